"""kvmnet bench peers: kvmnet against what else could make the same network, where that is installed."""
from __future__ import annotations

from pathlib import Path

import click

from kvmnet.cli.bench import bench
from kvmnet.cli.bench_run import FILE, fresh, sitting
from kvmnet.cli.output import json_option, say


@bench.command()
@click.option("--networks", type=click.IntRange(1, 200), default=10, show_default=True, help="Networks that are configured against the clock.")
@click.option("--nics", type=click.IntRange(1, 100), default=10, show_default=True,
              help="NICs that are configured against the clock; libvirt takes seconds for each.")
@click.option("--only", default="tcp,latency-udp", show_default=True, metavar="NAME,...", help="Loads, as of run.")
@click.option("--between", "places", multiple=True, type=click.Choice(["guest-host", "guest-guest", "guest-outside"]),
              default=("guest-host",), show_default=True, help="Ends of the loads; can be given again.")
@click.option("--rounds", type=click.IntRange(1, 200), default=6, show_default=True, help="Turns of each.")
@click.option("--memory", type=click.IntRange(192, 65536), default=192, show_default=True, metavar="MIB", help="Of each guest.")
@click.option("--record", type=FILE, metavar="FILE", help="Where to keep what is measured; below the state directory when not given.")
@click.option("--html", type=FILE, metavar="FILE", help="Also write the report of the traffic as one page of HTML.")
@json_option
def peers(networks: int, nics: int, only: str, places: tuple[str, ...], rounds: int, memory: int, record: Path | None, html: Path | None,
          as_json: bool) -> int:
    """Compare kvmnet with libvirt, Open vSwitch and the bare tools: time to configure, and traffic.

    In one run, in turns, in network namespaces: your networks are not touched. What is not installed is said and left out. Everybody
    configures the same networks and NICs; then the same guests carry the same loads on a network that each of them made.

    Like is compared with like: kvmnet without its guard with libvirt's default network, with it with libvirt's filter clean-traffic.
    Exits with 1 when kvmnet was slower there beyond the noise of two equals.
    """
    from kvmnet.bench.matrix import matrix
    from kvmnet.bench.peers.compared import WHO, points
    from kvmnet.bench.peers.seats import LACKING
    from kvmnet.bench.record import Pen, Wish
    from kvmnet.bench.scenarios import Place, chosen
    from kvmnet.bench.sitting import check, started, tools
    absent = {by: why for by in WHO if by in LACKING and (why := LACKING[by]())}
    for by, why in absent.items():
        say(f"{WHO[by]} is left out: {why}")
    wish = Wish(tuple(matrix([f"memory={memory}"], [], points(absent), twin=True)), tuple(chosen(only.split(","))),
                tuple(map(Place, dict.fromkeys(places))), rounds, {"networks": networks, "nics": nics})
    check(wish)
    pen = Pen((record or fresh()).absolute())
    made = started(wish, absent)
    have = tools(say)
    pen.begin(made)
    return sitting(made, pen, have, (), html, as_json)
