"""Commands that say what is broken without being asked about a path: doctor, explain."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmnet.cli.change import confirm_option, yes_option
from kvmnet.cli.output import json_option, print_json, say

if TYPE_CHECKING:
    from kvmnet.doctor.explain.entry import Answer
    from kvmnet.doctor.finding import Finding
    from kvmnet.doctor.view import View

NOT_KNOWN = 1
PROGRAMS = frozenset({"ip", "bridge", "tc", "nft", "sysctl", "ethtool", "kvmnet", "modprobe", "ss", "virsh", "iptables", "ip6tables", "systemctl", "dhcp_release",
                      "ovs-vsctl", "ovs-appctl", "ovs-ofctl", "ovn-appctl", "ovn-nbctl", "ovn-sbctl", "uptime", "conntrack", "journalctl", "cat", "ls", "nstat", "zgrep", "ping", "ulimit", "echo", "usermod", "apt-get", "chmod",
                      "dpkg-statoverride", "firewall-cmd", "ufw", "dig", "df", "free", "resolvectl"})
"""First words of what a shell can run."""
FOUND = 1
SPAN = 1.0
LISTED = 5
"""Findings of one code shown in full before the rest is counted."""
SHADES = {"blocks": "red", "degrades": "yellow", "risk": "cyan", "note": "bright_black"}
COLOURS = {"SEEN": "red", "POSSIBLE": "yellow", "RULED_OUT": "green", "UNKNOWN": "bright_black"}
facts_option = click.option("--facts", "file", type=click.Path(path_type=Path), metavar="FILE",
                            help="Judge a host by what `kvmnet facts` wrote there, instead of this one.")


def capture() -> dict[str, Any]:
    from kvmnet.facts.capture import capture
    from kvmnet.host.paths import Paths
    return capture(Paths.from_environment())


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True)
@facts_option
@json_option
def explain(words: tuple[str, ...], file: Path | None, as_json: bool) -> int:
    """Say what an error code or a line of a log means, which of its causes this host shows, and what mends it.

    WORDS: ENOBUFS, "Operation not supported", a line of the kernel's log, of QEMU, libvirt, dnsmasq, OVS, nft, an exit
    code of kvmnet ("exit 13"), a code of a finding. Quote what has brackets. Exits with 1 when nothing is known of it.
    """
    from kvmnet.doctor.explain.match import explain as look_up
    text = " ".join(words)
    view, reason = seen_host(file)
    answer = look_up(text, view)
    if answer is None:
        return not_known(text, as_json)
    if as_json:
        print_json(answer.to_json() | {"text": text, "host": reason or "looked at"})
        return 0
    show(answer, reason)
    return 0


def shown(cure: str) -> str:
    """A command with the prompt before it; what no command does as it is."""
    words = cure.split()
    return f"$ {cure}" if len(words) > 1 and words[0] in PROGRAMS else cure


def seen_host(file: Path | None) -> tuple[View | None, str]:
    """The host to check against, or None and why not."""
    from kvmnet.doctor.view import View
    from kvmnet.errors import HostCannot
    from kvmnet.facts.saved import saved
    if file is not None:
        return View(saved(file)), ""
    try:
        return View(capture()), ""
    except (HostCannot, PermissionError) as error:
        return None, str(error)


def not_known(text: str, as_json: bool) -> int:
    """An honest answer to words that nobody wrote an entry for."""
    from kvmnet.doctor.explain.match import nearest, plain_error
    near, plain = nearest(text), plain_error(text)
    if as_json:
        print_json({"known": False, "text": text, "error": plain, "nearest": near})
        return NOT_KNOWN
    click.echo(f"{text!r} is not known here." + (f" The C library says: {plain}." if plain else ""))
    click.echo("nearest: " + "; ".join(near))
    say("kvmnet doctor looks at the whole host; kvmnet why A B at one path")
    return NOT_KNOWN


def show(answer: Answer, reason: str) -> None:
    click.echo(click.style(answer.entry.name, bold=True))
    click.echo(answer.entry.means)
    click.echo()
    for cause in answer.causes:
        click.echo(f"{click.style('●', fg=COLOURS[cause.holds.name])} {cause.what}" + ("" if reason else f"  [{cause.holds.value}]"))
        if cause.evidence:
            click.echo(f"    {cause.evidence}")
        for command in cause.cure if cause.holds.name != "RULED_OUT" else ():
            click.echo(click.style(f"    {shown(command)}", fg="cyan"))
    if answer.entry.wrong:
        click.echo()
        click.echo(click.style("Not the cure: ", fg="yellow") + answer.entry.wrong)
    click.echo()
    click.echo(f"source: {answer.entry.source}")
    if answer.also:
        click.echo(f"also in these words: {', '.join(answer.also)}")
    if reason:
        say(f"not checked against this host: {reason}")


@click.command()
@facts_option
@click.option("--span", type=click.FloatRange(0, 60), default=SPAN, show_default=True, metavar="SECONDS",
              help="Time between two looks, which tells what grows and what moves; 0 for one look.")
@click.option("--all", "everything", is_flag=True, help="Every finding in full, however many are alike.")
@click.option("--fix", is_flag=True, help="Mend what is safe to mend: shown first, made as one, taken back when it does not help.")
@click.option("--undo", "undoing", is_flag=True, help="Take back what the last --fix has changed.")
@confirm_option
@yes_option
@json_option
def doctor(file: Path | None, span: float, everything: bool, fix: bool, undoing: bool, confirm_within: int | None, yes: bool, as_json: bool) -> int:
    """Look at the whole network of this host and say what is broken, why, and what mends it.

    Findings are ranked: what blocks packets, what degrades, what is a risk, what could be better. Each has what was read as evidence, and
    commands. Nothing is changed without --fix. Works on hosts that kvmnet did not configure. Exits with 1 when something blocks or
    degrades, with --fix when something still does.
    """
    from kvmnet.doctor.rules.table import examine
    from kvmnet.doctor.view import View
    from kvmnet.errors import KvmnetError
    check_words(file, fix, undoing, confirm_within)
    if undoing:
        return take_back(as_json)
    facts = seen_facts(file, span)
    try:
        findings = examine(View(facts))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if file is None:
            raise
        raise KvmnetError(f"{file}: not as `kvmnet facts` writes it: {error!r}", "make the capture again") from error
    code = exit_code(findings)
    if fix:
        return mend(View(facts), findings, everything, confirm_within, yes, as_json)
    if as_json:
        print_json({"findings": [f.to_json() for f in findings], "missing": facts.get("missing") or {}})
        return code
    show_findings(findings, everything)
    for part, reason in (facts.get("missing") or {}).items():
        click.echo(f"not looked at: {part}: {reason}")
    return code


def exit_code(findings: Iterable[Finding]) -> int:
    return FOUND if any(f.severity in ("blocks", "degrades") for f in findings) else 0


def check_words(file: Path | None, fix: bool, undoing: bool, confirm_within: int | None) -> None:
    if file is not None and (fix or undoing):
        raise click.UsageError("--facts is a host as it was: nothing can be changed there")
    if fix and undoing:
        raise click.UsageError("--fix or --undo, not both")
    if confirm_within is not None and not fix:
        raise click.UsageError("--confirm is for --fix")


def mend(view: View, findings: tuple[Finding, ...], everything: bool, confirm_within: int | None, yes: bool, as_json: bool) -> int:
    """Show what is mended and how it goes back, ask, make it, look again."""
    from kvmnet.cli.change import agreed
    from kvmnet.doctor.mend import mending
    from kvmnet.doctor.rules.table import RULES
    from kvmnet.doctor.view import View
    from kvmnet.host.paths import Paths
    from kvmnet.repair import make, words
    plan = mending(view, findings)
    if not as_json:
        show_findings(findings, everything)
        click.echo()
        for do, undo in words(plan.changes):
            click.echo(f"{click.style('$ ' + do, fg='cyan')}   (back: {undo})")
        click.echo(f"{len(plan.changes)} changes; {len(plan.left)} findings are left to you")
    if not plan.changes:
        if as_json:
            print_json({"changes": [], "left": [f.to_json() for f in plan.left], "confirm_within": None})
        return exit_code(plan.left)
    if not agreed(yes, "Make them?"):
        raise click.Abort
    wanted = {(c.code, c.where) for c in plan.changes}

    def still_there() -> list[str]:
        again = View(capture())
        return [f"{f.code} ({f.where})" for code in dict.fromkeys(code for code, _ in wanted) for f in RULES[code](again) if (f.code, f.where) in wanted]
    make(Paths.from_environment(), plan.changes, still_there, confirm_within)
    if as_json:
        print_json({"changes": [c.to_json() for c in plan.changes], "left": [f.to_json() for f in plan.left], "confirm_within": confirm_within})
    else:
        say("Done: a second look finds none of them. kvmnet doctor --undo takes it back.")
        if confirm_within:
            say(click.style(f"Not confirmed yet: run `kvmnet confirm` within {confirm_within} s, or it goes back.", fg="yellow"))
    return exit_code(plan.left)


def take_back(as_json: bool) -> int:
    from kvmnet.host.paths import Paths
    from kvmnet.repair import undo, words
    batch = undo(Paths.from_environment())
    if as_json:
        print_json({"undone": [c.to_json() for c in reversed(batch.changes)] if batch else []})
    elif batch is None:
        say("Nothing to take back: doctor has changed nothing here since this host started.")
    else:
        for _, back in reversed(words(batch.changes)):
            click.echo(f"$ {back}")
    return 0


def seen_facts(file: Path | None, span: float) -> dict[str, Any]:
    """A capture that was saved, or this host now, twice."""
    from kvmnet.facts.later import later
    from kvmnet.facts.saved import saved
    if file is not None:
        return saved(file)
    facts = capture()
    return facts | {"later": later(facts, span)} if span else facts


def show_findings(findings: tuple[Finding, ...], everything: bool) -> None:
    from collections import Counter
    shown_of: Counter[str] = Counter()
    for finding in findings:
        shown_of[finding.code] += 1
        if everything or shown_of[finding.code] <= LISTED:
            show_finding(finding)
    for code, count in shown_of.items():
        if count > LISTED and not everything:
            click.echo(f"… and {count - LISTED} more {code} (--all shows them)")
    if not findings:
        click.echo(click.style("nothing is wrong as far as one look can tell", fg="green"))
        return
    counts = Counter(f.severity.value for f in findings)
    click.echo(", ".join(f"{counts[s]} {s}" for s in SHADES if counts[s]) + "; kvmnet explain CODE tells more of each")


def show_finding(finding: Finding) -> None:
    click.echo(f"{click.style('● ' + finding.severity.value, fg=SHADES[finding.severity], bold=True)}  {finding.what}  "
               + click.style(f"[{finding.code}, {finding.certainty.value}]", fg="bright_black"))
    if finding.why:
        click.echo(f"    {finding.why}")
    for line in finding.evidence:
        click.echo(click.style(f"    | {line}", fg="bright_black"))
    for command in finding.fix:
        click.echo(click.style(f"    {shown(command)}", fg="cyan"))
    click.echo()
