"""Commands that say what is broken: facts, why."""
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmnet.cli.output import json_option, print_json

if TYPE_CHECKING:
    from kvmnet.doctor.finding import Finding
    from kvmnet.doctor.why import Report


@click.command()
def facts() -> int:
    """The whole network of this host as one JSON document, without secrets.

    A support bundle: links, addresses, routes, rules of every firewall, forwarding tables, who holds which tap, guests,
    settings, counters. Reading changes nothing.
    """
    from kvmnet.facts.capture import capture
    from kvmnet.host.paths import Paths
    click.echo(json.dumps(capture(Paths.from_environment()), sort_keys=True, default=list))
    return 0


@click.command()
@click.argument("source", metavar="A")
@click.argument("target", metavar="B")
@click.option("--tcp", type=click.IntRange(1, 65535), metavar="PORT", help="A connection to this port; ping if neither is given.")
@click.option("--udp", type=click.IntRange(1, 65535), metavar="PORT", help="A datagram to this port.")
@click.option("--icmp", is_flag=True, help="A ping.")
@click.option("-6", "six", is_flag=True, help="IPv6.")
@click.option("--facts", "file", type=click.Path(exists=True, dir_okay=False), metavar="FILE", help="Look at a capture of another host (kvmnet facts) instead of this one.")
@click.option("--prove", is_flag=True, help="Send up to three marked packets from A and follow them: confirms or refutes what was found.")
@click.option("--all", "everything", is_flag=True, help="Every hop, also the chains of rules that let the packet pass.")
@json_option
def why(source: str, target: str, tcp: int | None, udp: int | None, icmp: bool, six: bool, file: str | None, prove: bool, everything: bool, as_json: bool) -> int:
    """Why A does not reach B: everything in the way, with the evidence and the command that mends it.

    A and B are guests, NICs (GUEST/NIC), networks, devices, MACs, addresses, `host` or `outside`; NAME@ADDRESS gives the address of
    what nobody has heard yet, and the host looks for it as it does before it sends (ARP, neighbour discovery). Exits with 0 when nothing is in the way, 1 when something is, 3 when it cannot be told.
    """
    from kvmnet.doctor.scene import read
    from kvmnet.doctor.why import Probe
    from kvmnet.doctor.why import why as walk
    from kvmnet.errors import KvmnetError
    if sum((tcp is not None, udp is not None, icmp)) > 1:
        raise click.UsageError("one of --tcp, --udp and --icmp")
    probe = Probe("tcp" if tcp else "udp" if udp else "icmp", tcp or udp or 0, 6 if six or ":" in source.partition("@")[2] + target.partition("@")[2] or six_address(source, target) else 4)
    if prove and file:
        raise click.UsageError("--prove sends packets on this host; a capture is of another time or host")
    scene = read(captured(file))
    rows: list[Any] = []
    if prove:
        from kvmnet.check.second_look import seek
        if rows := seek(scene, (source, target)):
            told = captured(None)
            scene = read({**told, "neighbours": [*(told["neighbours"] or ()), *rows]})
    try:
        report = walk(scene, source, target, probe)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if file is None:
            raise
        raise KvmnetError(f"{file}: the capture is damaged: {type(error).__name__}: {error}", "make it anew with: kvmnet facts > host.json") from error
    if file is None:
        from kvmnet.check.passage import ask
        if ask(report):
            told = captured(None)
            scene = read({**told, "neighbours": [*(told["neighbours"] or ()), *rows]})
            report = walk(scene, source, target, probe)
    if prove:
        from kvmnet.check.passage import prove as by_packets
        report = by_packets(scene, report)
    if file is None:
        from kvmnet.check.switch_trace import followed
        report = followed(scene, report)
    if as_json:
        print_json(report.to_json())
    else:
        show(report, everything)
    return report.exit_code


def six_address(*words: str) -> bool:
    from kvmnet.doctor.ends import is_address
    return any(":" in word and is_address(word) for word in words)


def captured(file: str | None) -> Any:
    """Of *file*, or of this host. Raises KvmnetError."""
    from kvmnet.errors import KvmnetError
    from kvmnet.facts.capture import capture
    from kvmnet.host.paths import Paths
    if file is None:
        return capture(Paths.from_environment())
    try:
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KvmnetError(f"{file}: {error}", "make a capture with: kvmnet facts > host.json") from error


SIGNS = {"ok": ("●", "green"), "blocked": ("✖", "red"), "unknown": ("?", "yellow")}
CERTAINTIES = {"likely": "likely: ", "unknown": "not clear: "}


def show(report: Report, everything: bool) -> None:
    """The path as a column, then what stands in it."""
    click.echo(f"{click.style(report.source.title, bold=True)} → {click.style(report.target.title, bold=True)}, {report.probe}")
    for title, hops in (("there", report.there), ("back", report.back)):
        click.echo(click.style(title, dim=True))
        for hop in hops:
            if everything or hop.what != "rules" or hop.state != "ok":
                sign, colour = SIGNS[hop.state]
                click.echo(f"  {click.style(sign, fg=colour)} {hop.where}{'  ' + click.style(hop.words, dim=True) if hop.words else ''}")
                for finding in hop.findings:
                    click.echo(f"  {'│' if hop is not hops[-1] else ' '}   {click.style(finding.what, fg=colour if finding.severity == 'blocks' else None)}")
    findings = report.findings
    blocking = [f for f in findings if f.severity == "blocks"]
    click.echo()
    if report.live:
        click.echo(f"{click.style('packets', bold=True)}  {report.live}\n")
    if not blocking:
        click.echo(click.style("nothing on this host is in the way", fg="green", bold=True))
    for number, finding in enumerate(findings, 1):
        show_finding(number, finding)


def show_finding(number: int, finding: Finding) -> None:
    colour = {"blocks": "red", "degrades": "yellow"}.get(finding.severity)
    click.echo(f"{number}. {click.style(CERTAINTIES.get(finding.certainty, '') + finding.what, fg=colour, bold=True)}  [{finding.code}] {finding.where}")
    for label, lines in (("why", [finding.why] if finding.why else []), ("seen", finding.evidence), ("mend", finding.fix)):
        for line in lines:
            click.echo(f"   {label:<5}{click.style(line, fg='cyan') if label == 'mend' else line}")
