"""Commands that change the host, or show what would: plan, apply, confirm, recover, rollback, destroy, boot."""
from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmnet.cli.output import Bar, json_option, print_json, say

if TYPE_CHECKING:
    from kvmnet.api import Host, Listen
    from kvmnet.engine.transaction import Result
    from kvmnet.planned import Planned

CHANGES = 2
SETTLED = "Nothing to do: the host is as the document says."
EMPTY = "Nothing to do: nothing on this host is kvmnet's."
DEFAULTS = (Path("kvmnet.yaml"), Path("/etc/kvmnet/kvmnet.yaml"))

file_argument = click.argument("file", required=False, type=click.Path(path_type=Path))
adopt_option = click.option("--adopt", is_flag=True,
                            help="Take over things that have kvmnet's names but were not made by it.")
confirm_option = click.option("--confirm", "confirm_within", type=click.IntRange(1, 86400), metavar="SECONDS",
                              help="Everything goes back by itself unless `kvmnet confirm` is run within SECONDS.")
reach_option = click.option("--reach", multiple=True, metavar="ADDRESS", callback=lambda c, p, v: addresses(v),
                            help="A further address that must answer after a change of a way out, besides gateways and "
                                 "the document's reach; none for no guard at all.")
within_option = click.option("--reach-within", "within", type=click.IntRange(1, 600), metavar="SECONDS",
                             help="How long they get to answer: 10 s, or 40 s with bonds and spanning tree, if not given.")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask first.")


def addresses(given: Sequence[str]) -> tuple[str, ...]:
    """Addresses of --reach in canonical form. Raises click.BadParameter."""
    try:
        return tuple(word if word == "none" else str(ip_address(word)) for word in given)
    except ValueError as wrong:
        raise click.BadParameter(f"{wrong}: write an address, or none") from None


def chosen(file: Path | None) -> Path:
    """The document that was named (- for standard input), or the first of the default places that has one."""
    if file is not None:
        return Path("/dev/stdin") if str(file) == "-" else file
    for place in DEFAULTS:
        if place.exists():
            return place
    raise click.UsageError("no document named, and there is no kvmnet.yaml here; kvmnet init writes one")


def host() -> Host:
    from kvmnet.api import Host
    return Host()


@click.command()
@file_argument
@click.option("--commands", is_flag=True, help="Show the exact command of every step.")
@click.option("--all", "everything", is_flag=True, help="Show every step, however many.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Save the plan to FILE. `kvmnet apply FILE` then makes it, or refuses when the host has changed since.")
@reach_option
@within_option
@adopt_option
@json_option
def plan(file: Path | None, commands: bool, everything: bool, out: Path | None, reach: tuple[str, ...],
         within: int | None, adopt: bool, as_json: bool) -> int:
    """Show what apply would do with the document FILE. Nothing is changed.

    Without FILE: ./kvmnet.yaml, else /etc/kvmnet/kvmnet.yaml. Exits with 0 when there is nothing to do and with 2 when there are changes.
    """
    here = host()
    planned = with_guard(here, here.plan(chosen(file), adopt=adopt), reach, within)
    if out is not None:
        planned.save(out)
        say(f"saved to {out}; kvmnet apply {out} makes exactly this change")
    if as_json:
        print_json(planned.to_json())
    else:
        show_plan(here, planned, commands=commands, everything=everything)
    return CHANGES if planned.steps else 0


def with_guard(here: Host, planned: Planned, reach: Sequence[str], within: float | None) -> Planned:
    """*planned* with notes on who must answer after it."""
    from kvmnet.records import replace
    return replace(planned, notes=(*planned.notes, *here.guarded(planned, reach, within)))


def show_plan(here: Host, planned: Planned, *, commands: bool = False, everything: bool = False) -> None:
    from kvmnet.cli.plan_text import plan_text
    click.echo(plan_text(planned.steps, planned.notes, everything, here.text_diff))
    if commands:
        click.echo()
        for command in here.engine.dispatch.commands(planned.steps):
            click.echo("$ " + shlex.join(command.argv))
            if command.stdin:
                click.echo("".join(f"    {line}\n" for line in command.stdin.splitlines()), nl=False)


@click.command()
@file_argument
@confirm_option
@reach_option
@within_option
@yes_option
@adopt_option
@json_option
def apply(file: Path | None, confirm_within: int | None, reach: tuple[str, ...], within: int | None, yes: bool,
          adopt: bool, as_json: bool) -> int:
    """Make the host as the document FILE says, in one transaction.

    Without FILE: ./kvmnet.yaml, else /etc/kvmnet/kvmnet.yaml. FILE may also be a plan saved by
    `kvmnet plan --out`. When a step fails, everything goes back to what it was.
    """
    here, path = host(), chosen(file)

    def show(planned: Planned) -> None:
        if not as_json and planned.steps:
            show_plan(here, planned)
        elif not as_json:
            for note in planned.notes:
                say(f"note: {note}")

    bar = Bar(as_json)
    try:
        make = here.plan_to_apply if yes else here.plan
        result = carry_out(here, lambda: make(path, adopt=adopt), show, yes=yes, confirm=confirm_within,
                           reach=reach, within=within, adopt=adopt, listen=bar.hear)
    finally:
        bar.end()
    return report(here, result, as_json)


def carry_out(here: Host, make: Callable[[], Planned], show: Callable[[Planned], None], *, yes: bool,
              confirm: float | None = None, reach: Sequence[str] = (), within: float | None = None, adopt: bool = False,
              listen: Listen = lambda event: None) -> Result:
    """Plan, show, ask unless *yes*, and make the change. Without a question the host is looked at once."""
    if yes:
        return here.change(make, confirm=confirm, reach=reach, within=within, shown=show, listen=listen)
    planned = with_guard(here, make(), reach, within)
    show(planned)
    if planned.steps and not agreed(yes):
        raise click.Abort
    return here.apply(planned, confirm=confirm, adopt=adopt, reach=reach, within=within, listen=listen)


def agreed(yes: bool, question: str = "Apply this?") -> bool:
    """The operator's word; without a terminal to ask on, --yes is needed."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; add --yes")
    return click.confirm(question, err=True)


def report(here: Host, result: Result, as_json: bool, nothing: str = SETTLED) -> int:
    if as_json:
        print_json({"outcome": result.outcome.value, "changed": len(result.steps),
                    "revision": result.revision, "confirm_within": result.grace, "notes": list(result.notes)})
        return 0
    if not result.steps:
        say(nothing)
    else:
        count = "1 change" if len(result.steps) == 1 else f"{len(result.steps)} changes"
        say(click.style(f"Done: {count}, proved by a second look at the host", fg="green")
            + (f" (revision {result.revision})" if result.revision else ""))
    for note in result.notes:
        say(f"note: {note}")
    for key in result.gone:
        say(f"note: {key} is gone; its settings could not be given back")
    if result.grace:
        say(click.style(f"Not confirmed yet: run `kvmnet confirm` within {result.grace:g} s, "
                        "or everything goes back.", fg="yellow"))
    return 0


@click.command()
@json_option
def confirm(as_json: bool) -> int:
    """Keep a change that was applied with --confirm, or what `doctor --fix --confirm` has mended."""
    from kvmnet.repair import keep
    here = host()
    if keep(here.paths):
        say("Confirmed: what the doctor mended stays.")
        if here.unconfirmed() is None:
            print_json({"revision": None}) if as_json else None
            return 0
    revision = here.confirm()
    print_json({"revision": revision}) if as_json else say(f"Confirmed: revision {revision} stays.")
    return 0


@click.command()
@json_option
def recover(as_json: bool) -> int:
    """Clear up after a change that was cut off (killed, or the power failed): roll it back, or say that there
    is nothing to do. Every command that changes the host does this first."""
    outcome = host().recover()
    print_json({"outcome": outcome}) if as_json else say(outcome)
    return 0


@click.command()
@click.argument("revision", type=int, required=False)
@confirm_option
@reach_option
@within_option
@yes_option
@json_option
def rollback(revision: int | None, confirm_within: int | None, reach: tuple[str, ...], within: int | None, yes: bool,
             as_json: bool) -> int:
    """Go back to REVISION of `kvmnet history`.

    Without REVISION: undo the change that waits for its confirmation, else go to the newest
    revision with another document than the present one. Going back is a change like any other and gets a number of its own.
    """
    here = host()
    if revision is None and here.unconfirmed() is not None:
        undone = here.engine.revert()
        print_json({"reverted": undone}) if as_json else say("the unconfirmed change is undone")
        return 0

    def show(planned: Planned) -> None:
        if not as_json:
            say(f"going back to {planned.source}")
            if planned.steps:
                show_plan(here, planned)

    result = carry_out(here, lambda: here.plan_revision(revision), show, yes=yes, confirm=confirm_within,
                       reach=reach, within=within)
    return report(here, result, as_json)


@click.command()
@confirm_option
@reach_option
@within_option
@yes_option
@json_option
def destroy(confirm_within: int | None, reach: tuple[str, ...], within: int | None, yes: bool, as_json: bool) -> int:
    """Remove everything that kvmnet made and give back what it borrowed. Guests that it runs are stopped first.

    Addresses and MACs stay remembered, so that a later apply gives every guest the same ones.
    """
    here = host()

    def show(planned: Planned) -> None:
        running = here.running()
        if not as_json and (planned.steps or running):
            show_plan(here, planned)
            if running:
                say(f"guests that will be stopped: {', '.join(running)}"
                    + (" (going back does not start them again)" if confirm_within else ""))

    if not yes:
        planned = here.plan_destroy()
        show(planned)
        if (planned.steps or here.running()) and not agreed(yes):
            raise click.Abort
        show = silent_plan
    result = here.destroy(confirm=confirm_within, reach=reach, within=within, shown=show, say=say if not as_json else lambda _: None)
    return report(here, result, as_json, nothing=EMPTY)


def silent_plan(planned: Planned) -> None:
    """The plan was shown already."""


@click.command()
@json_option
def boot(as_json: bool) -> int:
    """Apply the last confirmed revision, as the systemd unit does after a start of the host.

    Guests are not started: see `kvmnet vm start`.
    """
    here = host()
    last = here.engine.history.last_confirmed()
    if last is None:
        say("no confirmed revision: nothing to apply")
        if as_json:
            print_json({"outcome": "unchanged", "changed": 0, "revision": None, "confirm_within": None,
                        "notes": []})
        return 0
    return report(here, here.change(lambda: here.plan_revision(last.number)), as_json)
