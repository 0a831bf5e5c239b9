"""Uplinks of two ways: what they lead to, and the loss of the one that carries a load.

A bond leads to what it needs at the other end: active-backup to a bridge of the outside; 802.3ad to a bond that speaks LACP, since
members without a partner that says so are never used together; balance-xor to one of its own mode. With RSTP the two ways lead to a
switch, which is a kvmnet host of its own with the same program, and is the root of the tree.
"""
from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
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
from kvmnet.host.watched import STATE
from kvmnet.spec.names import bridge_name, uplink_name

READY = 90.0
"""Seconds for both ways to be usable: carriers are looked at, RSTP agrees, and a slow LACP partner speaks every 30."""
FAR = {"active-backup": "bridge", "802.3ad": "bond mode 802.3ad miimon 100 lacp_rate fast", "balance-xor": "bond mode balance-xor miimon 100"}
"""Mode of a bond -> what makes one link of the far ends of its members."""
INDEX = 1000
"""Index of the first member; above those in the outside. The kernel tells the loss of a carrier at once only of a device whose other end has
another index (linkwatch_urgent_event() in net/core/link_watch.c), otherwise up to a second late when another link has changed
just before: of two equals one would be slower by that."""
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
    return [f"link add {device} mtu {seat.mtu} type {FAR[seat.ways]}", *(f"link set {end} {words}" for end in ends(seat) for words in (f"master {device}", "up")),
            f"addr add {seat.outside}/24 dev {device}", f"link set {device} up"]


def near_lines(seat: Seat, netns: str) -> list[str]:
    """What makes its members, with their ends in *netns*, for ``ip -batch``."""
    index = (f" index {INDEX + 2 * seat.number + n}" if seat.ways else "" for n in range(2))
    return [f"link add {member}{own} mtu {seat.mtu} type veth peer name {out} mtu {seat.mtu} netns {netns}"
            for member, out, own in zip(seat.members, ends(seat), index, strict=False)]


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
    try:
        kvmnet_of(where, "apply", str(file), "--yes", "--reach", "none")
    except ToolFailed as failed:
        raise KvmnetError(f"{seat.configuration.name}: its switch: {failed.detail}") from failed
    where.run([str(load), "serve", f"port={PORT}", f"life={life}"])


def kvmnet_of(where: Space, *words: str) -> str:
    """kvmnet for the host there, with directories of its own. Raises ToolFailed."""
    environment = [f"KVMNET_{name}_DIR={where.folder / name.lower()}" for name in ("STATE", "RUN", "ETC")]
    return where.run(["env", *environment, sys.executable, "-m", "kvmnet.cli.main", *words])


def roles(run_folder: Path, bridge: str, ports: Collection[str]) -> list[tuple[str, bool]]:
    """What those ports are in their tree, as its process has told, which may be in another network namespace; and whether they forward."""
    told = Speaking(run_folder / "trees" / bridge).read(STATE) or {"ports": {}}
    trees = [port["trees"]["0"] for name, port in told["ports"].items() if name in ports]
    return sorted((t["role"], t["state"] == "forwarding") for t in trees)


def usable(seat: Seat, paths: Paths, folder: Path) -> bool:
    """Whether the one way carries traffic and the other would."""
    if seat.ways == "rstp":
        return (roles(paths.run, bridge_name(seat.network), seat.members) == [("alternate", False), ("root", True)]
                and roles(switch(seat, folder).folder / "run", bridge_name("far"), ends(seat)) == [("designated", True)] * 2)
    members = read_bond(uplink_name(f"u{seat.number}")).members
    return len(members) == len(seat.members) and all(m.usable for m in members)


@contextmanager
def losing(seat: Seat, paths: Paths, folder: Path, outside: str) -> Iterator[None]:
    """For a load in the body: as soon as it is seen on a way, that one loses its carrier, at its far end. It is given back when the load
    is over, and used again before this returns. Raises KvmnetError when no load was seen, or a way does not come back."""
    both_usable(seat, paths, folder)
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
    both_usable(seat, paths, folder)


def both_usable(seat: Seat, paths: Paths, folder: Path) -> None:
    try:
        wait_until(lambda: usable(seat, paths, folder), READY, 0.1)
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

