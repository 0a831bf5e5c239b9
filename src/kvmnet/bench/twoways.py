"""Uplinks of two ways: what they lead to, and the loss of the one that carries a load.

A bond (active-backup) leads to a bridge of the outside. With RSTP the two ways lead to a switch,
which is a kvmnet host of its own with the same program, and is the root of the tree.
"""
from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

from kvmnet.bench.failover.bonds import read_bond
from kvmnet.bench.matrix import PORT, Seat
from kvmnet.bench.peers.space import Space
from kvmnet.drivers.stp.process import Speaking
from kvmnet.errors import KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, run
from kvmnet.spec.names import bridge_name, uplink_name

READY = 60.0
"""Seconds for both ways to be usable: carriers are looked at, and RSTP agrees."""
BEGIN = 60.0
"""Seconds for a load to be seen on a way."""
WINDOW = 0.3
"""Seconds over which is counted which way carries it."""
CARRIED = 50
"""Packets in that time: a load of 1,000 a second, however busy the machine is, and not what hosts say by themselves."""


def ends(seat: Seat) -> tuple[str, ...]:
    """The far ends of its members."""
    return tuple(f"out{seat.number}{suffix}" for suffix in ("", "b")[:len(seat.members)])


def switch(seat: Seat, folder: Path) -> Space:
    """Where the switch is that an uplink with RSTP leads to."""
    return Space(f"switch{seat.number}", folder / f"switch{seat.number}")


def beyond(seat: Seat, folder: Path, outside: str) -> str:
    """The network namespace that its uplink leads to."""
    return switch(seat, folder).netns if seat.ways == "rstp" else outside


def far_lines(seat: Seat) -> list[str]:
    """What makes the far end of a bond, for ``ip -batch`` in the outside; the ends are there and down. Its name is ``way`` and the seat's number."""
    device = f"way{seat.number}"
    return [f"link add {device} mtu {seat.mtu} type bridge", *(f"link set {end} master {device} up" for end in ends(seat)),
            f"addr add {seat.outside}/24 dev {device}", f"link set {device} up"]


def build_switch(seat: Seat, folder: Path, load: Path, life: int) -> None:
    """The switch behind both ways, with the outside's address and a far end on it. Raises KvmnetError."""
    where = switch(seat, folder)
    where.ip(f"link set {end} up" for end in ends(seat))
    first, second = ends(seat)
    file = where.folder / "switch.yaml"
    file.write_text(f"version: 1\nuplinks: {{ways: {{device: {first}, redundant: {{{second}: {{}}}}}}}}\nnetworks:\n"
                    f"  far: {{mode: bridge, uplink: ways, stp: rstp, stp_options: {{priority: 4096, hello: 1}}, mtu: {seat.mtu}, "
                    f"subnet: {seat.prefix}.0/24, address: {seat.outside}, pool: {seat.prefix}.200-{seat.prefix}.209, "
                    "dhcp: {enabled: false}, dns: {enabled: false}, "
                    f"allow: [{{protocol: tcp, port: {PORT}}}, {{protocol: udp, port: {PORT}}}]}}\n")
    environment = [f"KVMNET_{name}_DIR={where.folder / name.lower()}" for name in ("STATE", "RUN", "ETC")]
    try:
        where.run(["env", *environment, sys.executable, "-m", "kvmnet.cli.main", "apply", str(file), "--yes", "--reach", "none"])
    except ToolFailed as failed:
        raise KvmnetError(f"{seat.configuration.name}: its switch: {failed.detail}") from failed
    where.run([str(load), "serve", f"port={PORT}", f"life={life}"])


def usable(seat: Seat, paths: Paths) -> bool:
    """Whether the one way carries traffic and the other would."""
    if seat.ways == "rstp":
        told = Speaking(paths.run / "trees" / bridge_name(seat.network)).state() or {"ports": {}}
        trees = [port["trees"]["0"] for name, port in told["ports"].items() if name in seat.members]
        return sorted((t["role"], t["state"] == "forwarding") for t in trees) == [("alternate", False), ("root", True)]
    members = read_bond(uplink_name(f"u{seat.number}")).members
    return len(members) == len(seat.members) and all(m.usable for m in members)


@contextmanager
def losing(seat: Seat, paths: Paths, folder: Path, outside: str) -> Iterator[None]:
    """For a load in the body: as soon as it is seen on a way, that one loses its carrier, at its far end. It is given back when the load
    is over, and used again before this returns. Raises KvmnetError when no load was seen, or a way does not come back."""
    both_usable(seat, paths)
    netns, done = beyond(seat, folder, outside), Event()
    with ThreadPoolExecutor(1) as one:
        cutting = one.submit(cut, seat, netns, done)
        try:
            yield
        finally:
            done.set()
            lost = cutting.result()
            if lost:
                run(["ip", "-n", netns, "link", "set", "dev", lost, "up"])
    if not lost:
        raise KvmnetError(f"{seat.configuration.name}: no load was seen on {' or '.join(seat.members)}, so neither was taken away")
    both_usable(seat, paths)


def both_usable(seat: Seat, paths: Paths) -> None:
    try:
        wait_until(lambda: usable(seat, paths), READY, 0.1)
    except TimeoutError:
        raise KvmnetError(f"{seat.configuration.name}: {' and '.join(seat.members)} are not both usable within {READY:g} s") from None


def cut(seat: Seat, netns: str, done: Event) -> str:
    """Take down the far end of the way that carries a load; its name, '' when the load was over before one was seen."""
    until = monotonic() + BEGIN
    before = sent(seat)
    while monotonic() < until and not done.wait(WINDOW):
        now = sent(seat)
        most, which = max((b - a, n) for n, (a, b) in enumerate(zip(before, now, strict=True)))
        if most >= CARRIED:
            run(["ip", "-n", netns, "link", "set", "dev", ends(seat)[which], "down"])
            return ends(seat)[which]
        before = now
    return ""


def sent(seat: Seat) -> list[int]:
    """Packets that left by each member (proc(5), /proc/net/dev)."""
    rows = dict(line.split(":", 1) for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if ":" in line)
    counts = {name.strip(): words.split() for name, words in rows.items()}
    return [int(counts[member][9]) for member in seat.members]

