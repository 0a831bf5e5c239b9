"""kvmnet bench: measurements on this host, for its operator. One function a scenario; all report in the same form."""
from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import click

from kvmnet.cli.change import agreed, yes_option
from kvmnet.cli.output import Bar, json_option, print_json, say, table

if TYPE_CHECKING:
    from kvmnet.api import Host
    from kvmnet.bench.model import Report


def host() -> Host:
    from kvmnet.api import Host
    return Host()


class Benches(click.Group):
    """The commands of bench; those of another file are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        self.complete()
        return ["run", "peers", "resume", "report", "compare", "failover"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        self.complete()
        return super().get_command(ctx, cmd_name)

    def complete(self) -> None:
        import kvmnet.cli.bench_peers
        import kvmnet.cli.bench_run  # noqa: F401  their commands add themselves


@click.group(cls=Benches, invoke_without_command=True)
@click.pass_context
def bench(ctx: click.Context) -> int:
    """Measurements on this host, repeated, with median and spread.

    Without a command: run, with its defaults, in about three minutes.
    """
    if ctx.invoked_subcommand is None:
        code: int = ctx.invoke(ctx.command.get_command(ctx, "run"))  # type: ignore[attr-defined]
        return code
    return 0


def address(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """An address that was written on the command line, in its canonical form."""
    try:
        return None if value is None else str(ip_address(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no IP address", ctx, param) from None


@bench.command()
@click.argument("name", required=False, metavar="[UPLINK|DEVICE]")
@click.option("--to", callback=address, metavar="ADDRESS",
              help="Address beyond the bond that answers pings; a gateway behind it when not given.")
@click.option("--member", "members", multiple=True, metavar="DEVICE",
              help="Lose only this member; each that carries traffic to ADDRESS when not given.")
@click.option("--loss", type=click.Choice(["link", "silent"]), default="link", show_default=True,
              help="link: the member is taken down. silent: it keeps its carrier and passes nothing.")
@click.option("--times", type=click.IntRange(1, 1000), default=5, show_default=True, help="Losses of each member.")
@click.option("--interval", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="MS",
              help="Milliseconds between two probes.")
@click.option("--limit", type=click.IntRange(2, 120), default=10, show_default=True, metavar="SECONDS",
              help="Longest time that a member stays lost.")
@click.option("--flows", type=click.IntRange(0, 60000), default=10000, show_default=True,
              help="UDP flows for the shares of the members; 0 for none.")
@yes_option
@json_option
def failover(name: str | None, to: str | None, members: tuple[str, ...], loss: str, times: int, interval: int, limit: int,
             flows: int, yes: bool, as_json: bool) -> int:
    """Measure how long a bond takes when a member is lost.

    Members are lost one at a time, again and again; then many flows show how members share traffic.

    UPLINK is one of the document's with members, DEVICE any bond; without it, the document's only bond. It says what it
    will do and asks first. A member is given back by itself, also when this command is killed; the last one with a
    carrier is never taken. Exits with 1 when nothing took over, or when shares are uneven where they could be even.
    """
    from kvmnet.bench.failover.losses import Loss
    from kvmnet.bench.failover.scenario import Wish
    from kvmnet.bench.failover.subject import chosen_bond, chosen_target, promised, run
    here = host()
    bond = chosen_bond(here, name)
    wish = Wish(bond, to or chosen_target(here, bond), members, Loss(loss), times, interval / 1000, float(limit), flows)
    for line in promised(here, wish):
        say(line)
    if not agreed(yes, "Do it?"):
        raise click.Abort
    bar = Bar(as_json)
    try:
        report = run(here, wish, bar.show)
    finally:
        bar.end()
    return show(report, as_json)


def show(report: Report, as_json: bool) -> int:
    """A report for people or programs; its exit code."""
    if as_json:
        print_json(report.to_json())
        return report.exit_code
    from rich.text import Text

    from kvmnet.bench.model import COLUMNS
    rows = [tuple(cell if r.good else Text(cell, "red") for cell in cells)
            for r, cells in zip(report.rows, report.table(), strict=True)]
    table(f"{report.scenario}: {report.subject}", COLUMNS, rows, spare=("remark",))
    for note in report.notes:
        click.echo(f"note: {note}")
    m = report.machine
    drivers = "".join(f", {name} {driver}" for name, driver in m.drivers.items())
    click.echo(f"on {m.kernel}, {m.processor or 'processor not named'} x {m.cpus}{drivers}; {report.seconds:.1f} s")
    return report.exit_code
