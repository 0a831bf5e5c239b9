"""A network that several links lead to has one tree: a broadcast leaves by the ports that are open, once, and what comes back by another
way ends at one that is shut. Where there are several trees, it is the one of the network's VLAN."""
from __future__ import annotations

import json
import os
from contextlib import ExitStack, suppress

from kvmnet.check import frames
from kvmnet.check.model import Finding, failed, passed, skipped
from kvmnet.check.promises import Place
from kvmnet.check.station import PATIENCE, Station
from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.stp.process import Speaking
from kvmnet.drivers.stp.settings import Wish
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture, exists
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass, field
from kvmnet.stp.vectors import State

EVERYBODY = "ff02::1"
"""A bridge floods it whoever has asked for what (br_multicast_ipv6_rcv())."""
BACK = 0.3
"""Seconds for what goes round to come back."""
AGAIN = 0.2
DISCARD = 9
"""Port that nobody answers at; a port that is shut is not told to who sends to a group (RFC 4443, 2.4)."""


@dataclass(slots=True)
class Ear:
    """What passed a port: how often it left, and how often it came."""

    wire: Capture
    mark: bytes
    left: int = 0
    came: int = 0

    def drain(self) -> None:
        while (found := self.wire.hear()) is not None:
            frame, sent = found
            if self.mark in frame:
                self.left, self.came = self.left + sent, self.came + (not sent)


@dataclass(slots=True)
class Told:
    """What the process says of one tree."""

    root: str
    roles: dict[str, str] = field(default_factory=dict)
    """Port with a carrier -> role."""
    open: set[str] = field(default_factory=set)


def one_tree(place: Place) -> Finding | None:
    """None where kvmnet speaks no spanning tree on the network's bridge."""
    speaking = StpDriver(place.subject.paths).speaking(place.segment.bridge)
    if not speaking.config():
        return None
    tree = tree_of(place.segment, Wish.read(json.loads(speaking.config())))
    before = told(speaking, tree)
    if before is None:
        return failed(f"nobody speaks for the spanning tree of {place.segment.bridge}: kvmnet apply has it spoken again")
    if not before.open:
        return failed(f"no port of {place.segment.bridge} is open: {words(before, set(before.roles)) or 'none has a carrier'}")
    mark = os.urandom(12)
    with ExitStack() as stack:
        ears = {name: Ear(stack.enter_context(Capture(name)), mark) for name in before.roles if exists(name)}
        copies = tried(place, ears, before, mark)
    if told(speaking, tree) != before:
        return skipped("the tree changed meanwhile: check again")
    return judged(before, ears, copies)


def tree_of(segment: Segment, wish: Wish) -> int:
    vlan = segment.network.vlan
    return wish.lanes.tree(vlan) if vlan else wish.lanes.untagged


def told(speaking: Speaking, tree: int) -> Told | None:
    state = speaking.state()
    if state is None or str(tree) not in state["trees"]:
        return None
    found = Told(state["trees"][str(tree)]["root"])
    for name, port in state["ports"].items():
        if port["up"]:
            found.roles[name] = port["trees"][str(tree)]["role"]
            if port["trees"][str(tree)]["state"] == State.FORWARDING:
                found.open.add(name)
    return found


def tried(place: Place, ears: dict[str, Ear], before: Told, mark: bytes) -> int:
    """Send one broadcast that nobody answers, until it has left once, and wait for what comes back; how often another port of the
    same network got it."""
    since, shot = len(place.peer.heard), everybody(place.station, mark)
    place.station.send(shot)

    def gone() -> bool:
        for ear in ears.values():
            ear.drain()
        return all(ears[name].left for name in before.open if name in ears)

    with suppress(TimeoutError):
        wait_until(gone, PATIENCE)
    with suppress(TimeoutError):    # time for what goes round
        wait_until(lambda: gone() and sum(e.left for e in ears.values()) > len(before.open), BACK)
    return sum(mark in packet.raw for packet in place.peer.heard[since:])


def everybody(station: Station, mark: bytes) -> bytes:
    packet = frames.ip6(station.local, EVERYBODY, frames.UDP, frames.udp(station.local, EVERYBODY, DISCARD, DISCARD, mark), hops=1)
    return frames.ether(frames.multicast_mac(EVERYBODY), station.mac, frames.IP6, packet)


def judged(tree: Told, ears: dict[str, Ear], copies: int) -> Finding:
    left = {name for name, ear in ears.items() if ear.left}
    again = sorted(name for name, ear in ears.items() if ear.left > 1 or (ear.came and name in tree.open))
    if again or copies > 1:
        return failed(f"a broadcast goes round: it passed {' and '.join(again)} more than once" if again else
                      f"a broadcast came to another port {copies} times")
    if left != tree.open:
        return failed(f"a broadcast left by {' and '.join(sorted(left)) or 'no port'}, but open are {' and '.join(sorted(tree.open))}")
    back = {name for name, ear in ears.items() if ear.came}
    return passed(f"a broadcast left by {words(tree, left)}" + (f", came back by {words(tree, back)}, and ended there" if back else "")
                  + f"; shut: {words(tree, tree.roles.keys() - tree.open) or 'no port'}; root {tree.root}")


def words(tree: Told, names: set[str]) -> str:
    return " and ".join(f"{name} ({tree.roles[name]})" for name in sorted(names))
