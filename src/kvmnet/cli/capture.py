"""kvmnet capture: what passes at guests, networks and uplinks, into a pcapng file or line by line."""
from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmnet.cli.output import json_option, print_json, say, table

if TYPE_CHECKING:
    from kvmnet.api import Host
    from kvmnet.capture.choose import Watch
    from kvmnet.capture.record import Bounds, Outcome
    from kvmnet.host.ring import Rings
    from kvmnet.policy.places import Layout

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
WHOLE = 0x40000
"""Bytes of a frame that are kept when nothing else is said: all."""
LONGEST = 60
"""Seconds of a capture to a file, when nothing else is said."""
FULL = 74
"""Exit code for output that cannot be written (EX_IOERR)."""


def host() -> Host:
    from kvmnet.api import Host
    return Host()


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    found = re.fullmatch(r"([0-9]{1,7})([smh]?)", value)
    if not found or not int(found[1]):
        raise click.BadParameter(f"{value!r} is no time; write e.g. 30s, 5m or 1h", ctx, param)
    return int(found[1]) * SECONDS[found[2]]


def octets(ctx: click.Context, param: click.Parameter, value: str) -> int:
    from kvmnet.spec.values import size
    try:
        return size(value)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong), ctx, param) from None


def source(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    from kvmnet.capture.choose import DEVICE
    from kvmnet.spec.values import interface, mirrored
    try:
        return tuple(DEVICE + interface(word.removeprefix(DEVICE)) if word.startswith(DEVICE) else mirrored(word)
                     for word in value)
    except ValueError as wrong:
        raise click.BadParameter(f"{wrong}, or device:NAME", ctx, param) from None


def condition(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    from kvmnet.bpf.language import parse
    try:
        if value is not None:
            parse(value)
    except ValueError as wrong:
        raise click.BadParameter(str(wrong), ctx, param) from None
    return value


@click.command()
@click.argument("where", nargs=-1, required=True, callback=source)
@click.option("--write", "-w", "file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="A pcapng file, made with mode 0600 and never over one that exists. Without it: a line for each frame.")
@click.option("--for", "most", callback=seconds, metavar="TIME",
              help=f"End after e.g. 30s, 5m or 1h. To a file {LONGEST} s when not given, else until Ctrl-C.")
@click.option("--size", callback=octets, default="100M", show_default=True, metavar="SIZE", help="Largest file; then it ends.")
@click.option("--files", type=click.IntRange(1, 10000), default=1, show_default=True, metavar="N",
              help="Go on in a new file when one is full, FILE-00001 and so on, and keep the last N.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N frames.")
@click.option("--filter", "-f", "expression", callback=condition, metavar="EXPRESSION",
              help="Which frames, as tcpdump takes it, e.g. 'tcp port 80 and host 192.0.2.1'.")
@click.option("--direction", type=click.Choice(["sent", "received", "both"]), default="both", show_default=True,
              help="Sent by guests or received by them; by an uplink or a device sent or received by the host.")
@click.option("--hop", "hops", type=click.Choice(["tap", "bridge", "uplink"]), multiple=True, default=("tap",),
              help="Where on the way of guests: their own end (when not given), the host on their bridge, their uplink. "
                   "May be given more than once.")
@click.option("--snap", type=click.IntRange(14, WHOLE), default=WHOLE, metavar="BYTES", help="Keep only so much of each frame.")
@json_option
def capture(where: tuple[str, ...], file: Path | None, most: int | None, size: int, files: int,
            count: int | None, expression: str | None, direction: str, hops: tuple[str, ...], snap: int, as_json: bool) -> int:
    """Show what passes at guests, networks and uplinks, or write it to a file.

    WHERE is a guest or GUEST/NIC, network:NAME (each frame once, where it enters the network), group:NAME,
    uplink:NAME, vlan:NUMBER@UPLINK or device:NAME; several go into one file, each as an interface with its name.

    What is watched does not wait: frames that find no room are counted as lost. Ctrl-C ends it with a summary.
    """
    from kvmnet.bpf.language import parse
    from kvmnet.capture.choose import Hop, watches
    from kvmnet.capture.record import Bounds, End, stopping
    from kvmnet.errors import KvmnetError
    from kvmnet.host.ring import Rings
    from kvmnet.policy.places import Direction, NoSuchPlace
    try:
        chosen = watches(where, [Hop(h) for h in hops], Direction(direction),
                         parse(expression) if expression else None, snap, layout(where))
    except NoSuchPlace as wrong:
        raise KvmnetError(str(wrong), "see kvmnet status, and kvmnet capture --help") from None
    if file is not None and most is None:
        most = LONGEST
    with Rings({w.device: w.program for w in chosen}) as rings, stopping(rings) as came:
        bounds = Bounds(most, count)
        outcome = (written(rings, came, chosen, bounds, file, size, files, snap, expression or "") if file
                   else printed(rings, came, chosen, bounds, as_json))
    show(outcome, chosen, as_json)
    return {End.DISK: FULL, End.GONE: 1}.get(outcome.ended, 0)


def layout(where: tuple[str, ...]) -> Layout | None:
    """The applied document, unless only devices are named."""
    from kvmnet.capture.choose import DEVICE
    from kvmnet.policy.places import Layout
    if all(word.startswith(DEVICE) for word in where):
        return None
    document, compiled = host().in_force()
    return Layout(document.spec, compiled.segments, compiled.outer)


def written(rings: Rings, came: list[int], chosen: list[Watch], bounds: Bounds, file: Path, size: int, keep: int,
            snap: int, expression: str) -> Outcome:
    import os

    from kvmnet import __version__
    from kvmnet.capture.files import Files
    from kvmnet.capture.pcapng import Interface, header
    from kvmnet.capture.record import Writing, record
    about = os.uname()
    start = header([Interface(w.device, w.about, expression) for w in chosen], f"kvmnet {__version__}",
                   f"{about.sysname} {about.release}", snap, f"captured by kvmnet on {about.nodename}")
    files = Files(file, size, keep, start)
    say(f"writing to {files.names[0]}: {', '.join(w.label for w in chosen[:5])}"
        + (f" and {len(chosen) - 5} more" if len(chosen) > 5 else "") + "; Ctrl-C ends it")
    outcome = record(rings, Writing(files, rings), bounds, came)
    outcome.files, outcome.octets = files.names, files.total
    return outcome


def printed(rings: Rings, came: list[int], chosen: list[Watch], bounds: Bounds, as_json: bool) -> Outcome:
    from kvmnet.capture.line import line
    from kvmnet.capture.record import Printing, record
    from kvmnet.host.ring import Frame
    tell = say if as_json else click.echo

    def one(number: int, frame: Frame) -> None:
        tell(line(frame.time, chosen[number].label, "out" if frame.outgoing else "in", frame.length, frame.data))
    return record(rings, Printing(one), bounds, came)


def show(outcome: Outcome, chosen: list[Watch], as_json: bool) -> None:
    if as_json:
        print_json(to_json(outcome, chosen))
        return
    rows = [(w.device, w.about, str(seen.frames), str(seen.octets), str(seen.lost), "went away" if seen.gone else "")
            for w, seen in zip(chosen, outcome.seen.values(), strict=True)]
    frames = sum(seen.frames for seen in outcome.seen.values())
    say("")
    if outcome.files:
        table("", ("device", "what", "frames", "bytes", "lost", ""), rows, spare=("bytes",))
        click.echo(f"{outcome.octets} bytes in {', '.join(map(str, outcome.files[-3:]))}"
                   + (f" and {len(outcome.files) - 3} before" if len(outcome.files) > 3 else ""))
    lost = sum(seen.lost for seen in outcome.seen.values())
    say(f"{frames} frames in {outcome.seconds:.1f} s, {lost} lost: {outcome.ended}")


def to_json(outcome: Outcome, chosen: list[Watch]) -> dict[str, Any]:
    return {"format": 1, "ended": outcome.ended.name.lower(), "seconds": round(outcome.seconds, 3),
            "files": [str(f) for f in outcome.files], "written": outcome.octets,
            "interfaces": [{"device": w.device, "about": w.about, "frames": s.frames, "bytes": s.octets, "lost": s.lost,
                            "gone": s.gone} for w, s in zip(chosen, outcome.seen.values(), strict=True)]}
