"""kvmnet bench run, resume, report and compare: real guests on a host of their own, and what the records of that say."""
from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kvmnet.cli.bench import bench, show
from kvmnet.cli.output import Bar, json_option, print_json, say, table

if TYPE_CHECKING:
    from kvmnet.bench.ground import Tools
    from kvmnet.bench.record import Pen, Record

POINTS = ("", "model=e1000")
"""Configurations when none are named: what kvmnet does by itself, and the card that every system has a driver for."""
machine_option = click.option("--machine", is_flag=True, help="Settings of the whole machine may be changed, for the turns of the configurations "
                              "that have them; they are given back after each turn, also when this is killed.")
FILE = click.Path(path_type=Path, dir_okay=False)


@bench.command()
@click.option("--point", "points", multiple=True, metavar="'NAME=VALUE ...'",
              help="A configuration to compare, '' for kvmnet's defaults; can be given again. The first is what the others are "
                   "compared to. Without --point and --vary: kvmnet's defaults, and model=e1000.")
@click.option("--nic", "nics", multiple=True, metavar="VM[/NIC][@FILE]",
              help="Compare what this NIC of FILE, or of the applied document, has; can be given again: this document against that one.")
@click.option("--document", "documents", multiple=True, type=FILE, metavar="FILE",
              help="Compare whole documents: networks, NICs and policy of FILE on a host of its own, with a guest behind one NIC; can be "
                   "given again. The first of all is what the others are compared to.")
@click.option("--guest", default="", metavar="VM[/NIC]", help="The NIC of the documents that is measured; the first when not given.")
@click.option("--vary", multiple=True, metavar="NAME=VALUE,...", help="Compare all of these; of several the product.")
@click.option("--set", "base", multiple=True, metavar="NAME=VALUE", help="The same in all configurations.")
@click.option("--only", default="quick", show_default=True, metavar="NAME,...",
              help="Loads: quick, tcp, streams, udp, latency, connections, file, multicast, failover, all, or single ones.")
@click.option("--between", "places", multiple=True, type=click.Choice(["guest-host", "guest-guest", "guest-outside"]),
              default=("guest-host",), show_default=True, help="Ends of the loads; can be given again.")
@click.option("--rounds", type=click.IntRange(1, 200), default=6, show_default=True, help="Turns of each configuration.")
@click.option("--twin/--no-twin", default=True, show_default=True,
              help="Measure the first configuration twice, to know the noise.")
@click.option("--record", type=FILE, metavar="FILE", help="Where to keep what is measured; below the state directory when not given.")
@click.option("--html", type=FILE, metavar="FILE", help="Also write the report as one page of HTML.")
@machine_option
@json_option
def run(points: tuple[str, ...], nics: tuple[str, ...], documents: tuple[Path, ...], guest: str, vary: tuple[str, ...], base: tuple[str, ...], only: str, places: tuple[str, ...], rounds: int,
        twin: bool, record: Path | None, html: Path | None, machine: bool, as_json: bool) -> int:
    """Compare configurations of guests' NICs by traffic.

    Real guests run on a host in network namespaces, which kvmnet sets up as it would set up this one: your networks are not
    touched, and nothing is left, however it ends. Configurations take turns; each is compared to the first, pair by pair.

    \b
    What can be varied: model, mode (nat, routed, isolated, bridge, macvtap, vxlan), uplink (nic; of two ways: active-backup, 802.3ad, balance-xor, rstp), guard, groups (on, off), by (kvmnet, bare, libvirt,
    clean-traffic, ovs: who makes the network), mtu, queues, vhost, offloads (all, none, tso4+csum: without these), packed and rss (on, off), rx_ring,
    cpus and memory of the guest; and settings of the host's kernel that the document's tuning: takes, by their names
    (net.ipv4.tcp_rmem=4096/131072/33554432), which hold during the turns of their configuration.

    With --document whole documents are compared, each on a host of its own with all of its NICs; port 5199 of the host is opened for
    the load, tuning: and ethtool: are left out.

    Ctrl-C stops it; kvmnet bench resume goes on. Exits with 1 when an answer was not whole (a damaged file, connections
    that failed).
    """
    from kvmnet.bench.dials import refuse_of_machine
    from kvmnet.bench.document_seats import named
    from kvmnet.bench.matrix import matrix
    from kvmnet.bench.record import Pen, Wish
    from kvmnet.bench.scenarios import Place, chosen
    from kvmnet.bench.sitting import check, kernel_settings, started, tools
    points += tuple(map(written, nics))
    if not vary and not points and not documents:
        points = POINTS
    wish = Wish(tuple(matrix(base, vary, points, twin, [named(file, guest) for file in documents])), tuple(chosen(only.split(","))), tuple(map(Place, dict.fromkeys(places))),
                rounds)
    check(wish)
    wide = refuse_of_machine(kernel_settings(wish), machine)
    pen = Pen((record or fresh()).absolute())
    made = started(wish)
    have = tools(say)
    pen.begin(made)
    return sitting(made, pen, have, wide, html, as_json)


def written(nic: str) -> str:
    """``VM[/NIC][@FILE]`` in the words of --point."""
    from kvmnet.bench.matrix import nic_of
    from kvmnet.errors import KvmnetError
    name, _, file = nic.partition("@")
    if file:
        from kvmnet.spec.load import load
        return nic_of(load(file).spec, name)
    from kvmnet.api import Host
    document = Host().current()
    if document is None:
        raise KvmnetError("no document is applied on this host", f"write {name}@FILE")
    return nic_of(document.spec, name)


def fresh() -> Path:
    """A new record's place."""
    return folder() / f"{datetime.now():%Y%m%d-%H%M%S}.jsonl"


def folder() -> Path:
    from kvmnet.host.paths import Paths
    return Paths.from_environment().state / "bench"


def newest() -> Path:
    """The record that was begun last."""
    from kvmnet.errors import KvmnetError
    found = sorted(folder().glob("*.jsonl"))
    if not found:
        raise KvmnetError(f"there is no record in {folder()}", "kvmnet bench run makes one; or name a FILE")
    return found[-1]


def sitting(record: Record, pen: Pen, have: Tools, wide: Sequence[str], html: Path | None, as_json: bool) -> int:
    """Measure what is missing, in a process that takes its host along when it ends; its exit code. *wide*: settings of the machine that
    may be changed during turns."""
    from kvmnet.bench.dials import Dials, machine_values, outlived
    from kvmnet.bench.sitting import sit
    from kvmnet.host.apart import step_aside
    from kvmnet.host.paths import Paths
    html = html.absolute() if html else None
    place = Paths.from_environment().run
    home, values = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC), machine_values(wide)
    with outlived(values):
        step_aside(place)
        bar = Bar(as_json)
        try:
            sit(record, pen, place, have, bar.show, Dials(home, values))
        except KeyboardInterrupt:
            bar.end()
            say(f"stopped; kvmnet bench resume {pen.path} goes on")
            return 130
        finally:
            bar.end()
    say(f"record: {pen.path}")
    return told(record, html, as_json)


@bench.command()
@click.argument("file", required=False, type=FILE)
@click.option("--html", type=FILE, metavar="FILE", help="Also write the report as one page of HTML.")
@machine_option
@json_option
def resume(file: Path | None, html: Path | None, machine: bool, as_json: bool) -> int:
    """Go on with a run that was stopped: FILE, or the newest.

    Turns that were measured whole stay; a round that was cut off is measured again, so that what is compared was measured
    side by side.
    """
    from kvmnet.bench.dials import refuse_of_machine
    from kvmnet.bench.record import Pen, read
    from kvmnet.bench.sitting import check, kernel_settings, tools
    path = (file or newest()).absolute()
    record, pen = read(path), Pen(path)
    if not record.missing():
        say("nothing is missing")
        return told(record, html, as_json)
    check(record.wish)
    wide = refuse_of_machine(kernel_settings(record.wish), machine)
    have = tools(say)
    pen.go_on()
    return sitting(record, pen, have, wide, html, as_json)


@bench.command()
@click.argument("file", required=False, type=FILE)
@click.option("--html", type=FILE, metavar="FILE", help="Write the report as one page of HTML.")
@json_option
def report(file: Path | None, html: Path | None, as_json: bool) -> int:
    """Show what a record says: FILE, or the newest."""
    from kvmnet.bench.record import read
    return told(read(file or newest()), html, as_json)


@bench.command()
@click.argument("old", type=FILE)
@click.argument("new", type=FILE)
@json_option
def compare(old: Path, new: Path, as_json: bool) -> int:
    """Compare two records: the same configurations, measured before and after.

    What was measured on different days is not paired, so smaller differences than within one run go unseen, and a machine
    that was busier on one of the days looks like a difference. Exits with 1 when something became worse.
    """
    from kvmnet.bench.compare import compared, unlike
    from kvmnet.bench.record import read
    before, after = read(old), read(new)
    found, notes = compared(before, after), unlike(before, after)
    if as_json:
        print_json({"changes": [c.to_json() for c in found], "notes": notes})
    else:
        table(f"{old.name} -> {new.name}", ("of", "what", "before", "after", "change"), [c.cells() for c in found])
        for note in notes:
            click.echo(f"note: {note}")
    return int(any(c.good is False for c in found))


@bench.command()
@click.argument("file", required=False, type=FILE)
@click.option("--rounds", type=click.IntRange(6, 200), default=6, show_default=True, help="Rounds of each run that is cut from the record.")
@json_option
def equals(file: Path | None, rounds: int, as_json: bool) -> int:
    """How often two equals were called equal, in FILE or the newest record: it is cut into runs of a few rounds.

    kvmnet bench run --only tcp-up --rounds 120 --point '' makes a record that is long enough for twenty. Exits with 1 when a quantity
    that is judged was called different in more than one run of twenty.
    """
    from kvmnet.bench.equals import equals as made
    from kvmnet.bench.record import read
    path = file or newest()
    found = made(read(path), rounds)
    if as_json:
        print_json({"record": str(path), "rounds": rounds, "equals": [e.to_json() for e in found]})
    else:
        table(f"{path.name}: two equals in runs of {rounds} rounds", ("what", "runs", "no difference", "remark"),
              [(e.what, str(e.runs), str(e.equal), "" if e.main else "only explains") for e in found])
    return int(not all(e.kept for e in found))


def told(record: Record, html: Path | None, as_json: bool) -> int:
    """The report of a record; its exit code."""
    from kvmnet.bench.results import comparisons
    from kvmnet.bench.results import report as made
    if html:
        from kvmnet.bench.page import page
        html.write_text(page(record), encoding="utf-8")
        say(f"report: {html}")
    found = made(record)
    if record.wish.sizes:
        from kvmnet.bench.peers.compared import extended
        found = extended(record, found)
    if as_json:
        print_json(found.to_json() | {"comparisons": comparisons(record)})
        return found.exit_code
    return show(found, as_json)
