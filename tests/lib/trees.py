"""Bridges that speak with each other in memory: links with delays, that fail and come back; and what is true of their trees."""
from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kvmnet.stp.bpdu import Bpdu, decode, encode
from kvmnet.stp.bridge import Bridge
from kvmnet.stp.node import BridgeConfig, Effect, Send
from kvmnet.stp.port import PortConfig
from kvmnet.stp.vectors import CIST, State

End = tuple[int, str]
"""A bridge's number and its port."""


@dataclass
class Wire:
    """A link between two ports."""

    ends: tuple[End, End]
    delay: float = 0.001
    up: bool = False
    epoch: int = 0
    """Frames that were under way when it failed are lost."""


@dataclass
class World:
    """Bridges and links, and a clock that jumps from event to event. ``check`` is called after each."""

    configs: list[BridgeConfig]
    wires: list[Wire] = field(default_factory=list)
    now: float = 0
    loops: list[tuple[float, int]] = field(default_factory=list)
    """(when, VLAN) of each event after which a loop forwarded."""
    delivered: int = 0

    def __post_init__(self) -> None:
        self.bridges: list[Bridge] = [Bridge(c) for c in self.configs]
        self.events: list[tuple[float, int, Wire, End, Bpdu, int]] = []
        self.number = 0
        self.place: dict[End, Wire] = {}

    def connect(self, a: int, b: int, *, delay: float = 0.001, **wishes: int) -> Wire:
        ends = []
        for bridge in (a, b):
            number = len(self.bridges[bridge].ports) + 1
            name = f"p{number}"
            self.carry(bridge, self.bridges[bridge].add_port(PortConfig(name, number, **wishes), self.now))  # type: ignore[arg-type]
            ends.append((bridge, name))
        wire = Wire((ends[0], ends[1]), delay)
        self.wires.append(wire)
        self.place |= dict.fromkeys(wire.ends, wire)
        return wire

    def raise_wire(self, wire: Wire) -> None:
        wire.up = True
        for bridge, port in wire.ends:
            self.carry(bridge, self.bridges[bridge].port_up(port, self.now))

    def cut(self, wire: Wire) -> None:
        wire.up = False
        wire.epoch += 1
        for bridge, port in wire.ends:
            self.carry(bridge, self.bridges[bridge].port_down(port, self.now))

    def carry(self, bridge: int, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                wire = self.place.get((bridge, effect.port))
                if wire and wire.up:
                    far = next(e for e in wire.ends if e != (bridge, effect.port))
                    said = decode(encode(effect.bpdu))
                    if said is None:    # too old: nobody would take it
                        continue
                    self.number += 1
                    heapq.heappush(self.events, (self.now + wire.delay, self.number, wire, far, said, wire.epoch))
        self.watch()

    def watch(self) -> None:
        for vlan in self.vlans():
            if find_loop(self.active(vlan)):
                self.loops.append((self.now, vlan))

    def run(self, seconds: float) -> None:
        """Everything that happens within *seconds*."""
        end = self.now + seconds
        while True:
            due = [(t, n) for n, b in enumerate(self.bridges) if (t := b.deadline()) is not None]
            tick, ticking = min(due, default=(end + 1, -1))
            if self.events and self.events[0][0] <= tick:
                when, _, wire, (bridge, port), said, epoch = heapq.heappop(self.events)
                if when > end:
                    heapq.heappush(self.events, (when, 0, wire, (bridge, port), said, epoch))
                    break
                self.now = when
                if wire.up and wire.epoch == epoch:
                    self.delivered += 1
                    self.carry(bridge, self.bridges[bridge].receive(port, said, when))
            elif tick <= end:
                self.now = tick
                self.carry(ticking, self.bridges[ticking].tick(tick))
            else:
                break
        self.now = end

    def vlans(self) -> list[int]:
        """A VLAN of each kind: of the common tree, and of each instance that somebody has."""
        return sorted({CIST + 4000, *(v for c in self.configs for v in kinds(c.vlans))})

    def state(self, end: End, vlan: int) -> State:
        bridge = self.bridges[end[0]]
        tree = bridge.config.vlans.get(vlan, CIST)
        tree = tree if tree in bridge.node.trees else CIST
        return bridge.ports[end[1]].trees[tree].state

    def active(self, vlan: int) -> list[tuple[int, int]]:
        """Links that carry *vlan*, as pairs of bridges."""
        return [(w.ends[0][0], w.ends[1][0]) for w in self.wires
                if w.up and all(self.state(e, vlan) is State.FORWARDING for e in w.ends)]

    def components(self) -> list[set[int]]:
        return components(len(self.bridges), [(w.ends[0][0], w.ends[1][0]) for w in self.wires if w.up])

    def faults(self) -> Iterator[str]:
        """What is not as it must be once the trees have come to rest."""
        for vlan in self.vlans():
            links = self.active(vlan)
            if find_loop(links):
                yield f"VLAN {vlan} has a loop: {links}"
            found = sorted(map(sorted, components(len(self.bridges), links)))
            if found != sorted(map(sorted, self.components())):
                yield f"VLAN {vlan} reaches only {found}"
        for group in self.components():
            best = min(self.bridges[n].node.trees[CIST].identifier for n in group)
            for n in group:
                if self.bridges[n].node.trees[CIST].root.root != best:
                    yield f"bridge {n} takes another root than {best:x}"


def kinds(vlans: Mapping[int, int]) -> set[int]:
    """The lowest VLAN of each instance."""
    lowest: dict[int, int] = {}
    for vlan, tree in vlans.items():
        lowest[tree] = min(vlan, lowest.get(tree, vlan))
    return set(lowest.values())


def find_loop(links: Iterable[tuple[int, int]]) -> bool:
    above: dict[int, int] = {}

    def top(n: int) -> int:
        while n in above:
            n = above[n]
        return n

    for a, b in links:
        a, b = top(a), top(b)
        if a == b:
            return True
        above[a] = b
    return False


def components(count: int, links: Iterable[tuple[int, int]]) -> list[set[int]]:
    groups = [{n} for n in range(count)]
    for a, b in links:
        one, two = (next(g for g in groups if n in g) for n in (a, b))
        if one is not two:
            one |= two
            groups.remove(two)
    return groups
