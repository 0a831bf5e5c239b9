"""A bridge as its state machines see it: its trees, its ports, the time, and what is to be done. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from kvmnet.records import dataclass, field
from kvmnet.stp.bpdu import Bpdu, Region, digest
from kvmnet.stp.port import NEVER, UNTOLD, Port, TreePort
from kvmnet.stp.vectors import CIST, Protocol, Role, State, Times, Vector, bridge_id, port_id

TX_HOLD = 6
"""Messages that a port may send within a second (802.1Q-2018, 13.26.12)."""


@dataclass(frozen=True, slots=True)
class BridgeConfig:
    """What is wished of a bridge. Times are in seconds."""

    mac: str
    priority: int = 32768
    """A multiple of 4096, at most 61440."""
    protocol: Protocol = Protocol.RSTP
    max_age: int = 20
    hello: int = 2
    forward_delay: int = 15
    hops: int = 20
    region: str = ""
    revision: int = 0
    vlans: Mapping[int, int] = field(default_factory=dict)
    """MSTP: VLAN -> instance; the others belong to the common tree."""
    instances: Mapping[int, int] = field(default_factory=dict)
    """MSTP: instance -> the bridge's priority in it."""

    @property
    def times(self) -> Times:
        return Times(0, self.max_age, self.hello, self.forward_delay, self.hops)

    @property
    def trees(self) -> tuple[int, ...]:
        return (CIST, *(sorted(self.instances) if self.protocol is Protocol.MSTP else ()))


@dataclass(frozen=True, slots=True)
class SetState:
    """Put a port into a state, for the VLANs of a tree."""

    port: str
    tree: int
    state: State


@dataclass(frozen=True, slots=True)
class Flush:
    """Forget what was learned at a port, for the VLANs of a tree."""

    port: str
    tree: int


@dataclass(frozen=True, slots=True)
class Send:
    port: str
    bpdu: Bpdu


@dataclass(frozen=True, slots=True)
class Tripped:
    """A BPDU came in by a port where none may: it is shut."""

    port: str


Effect: TypeAlias = SetState | Flush | Send | Tripped


@dataclass(slots=True)
class Tree:
    """What a bridge knows of one tree."""

    number: int
    identifier: int
    root: Vector = NEVER
    """rootPriority."""
    root_times: Times = UNTOLD
    root_port: str = ""
    """'' where the bridge itself is the root (of an instance: of the region)."""


@dataclass(slots=True)
class Node:
    config: BridgeConfig
    now: float
    trees: dict[int, Tree] = field(default_factory=dict)
    ports: dict[str, Port] = field(default_factory=dict)
    effects: list[Effect] = field(default_factory=list)
    region: Region | None = None

    def __post_init__(self) -> None:
        for number in self.config.trees:
            priority = self.config.instances[number] if number else self.config.priority
            own = bridge_id(priority, self.config.mac, number)
            self.trees[number] = Tree(number, own, Vector(0 if number else own, 0, own, 0, own, 0), self.config.times)
        if self.config.protocol is Protocol.MSTP:
            self.region = Region(self.config.region, self.config.revision, digest(self.config.vlans))

    def past(self, moment: float) -> bool:
        return self.now >= moment

    def places(self) -> Iterator[tuple[Port, TreePort]]:
        for port in self.ports.values():
            for tree in port.trees.values():
                yield port, tree

    def of_tree(self, number: int) -> Iterator[tuple[Port, TreePort]]:
        for port in self.ports.values():
            yield port, port.trees[number]

    def forward_delay(self) -> float:
        """Seconds that a port without an agreement spends in each state. The standard takes the hello time where the port
        speaks RSTP; the longer time is never less safe."""
        return self.trees[CIST].root_times.forward_delay or self.config.forward_delay

    def all_synced(self, number: int) -> bool:
        """Every port has its role, and those that lead away from the root are in step with it."""
        return all(t.selected and t.role is t.selected_role and not t.updt_info
                   and (t.synced or t.role in (Role.ROOT, Role.MASTER)) for _, t in self.of_tree(number))

    def re_rooted(self, number: int, port: Port) -> bool:
        """No other port was a root port a short while ago."""
        return all(self.past(t.rr_until) for p, t in self.of_tree(number) if p is not port)

    def set_sync(self, number: int) -> None:
        for _, t in self.of_tree(number):
            t.sync = True

    def set_re_root(self, number: int) -> None:
        for _, t in self.of_tree(number):
            t.re_root = True

    def set_tc_prop(self, port: Port, number: int) -> None:
        if not port.config.restricted_tcn:
            for p, t in self.of_tree(number):
                if p is not port:
                    t.tc_prop = True

    def set_state(self, port: Port, tree: TreePort, state: State) -> None:
        tree.state = state
        self.effects.append(SetState(port.name, tree.tree, state))


def identifier_of(port: Port) -> int:
    return port_id(port.config.priority, port.config.number)


def cost_of(port: Port, number: int) -> int:
    return dict(port.config.instance_costs).get(number, port.config.cost) if number else port.config.cost
