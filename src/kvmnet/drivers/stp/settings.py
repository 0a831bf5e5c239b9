"""What the process of a spanning tree is told. Pure."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvmnet.drivers.stp.gate import Lanes, lanes_of, spans
from kvmnet.records import dataclass

if TYPE_CHECKING:  # only the process itself needs the protocol: commands start without it
    from kvmnet.stp.node import BridgeConfig
    from kvmnet.stp.port import PortConfig


@dataclass(frozen=True, slots=True)
class Wish:
    """What the document wants of one bridge."""

    bridge: str
    protocol: str
    priority: int
    hello: int
    forward_delay: int
    max_age: int
    ports: tuple[Door, ...]
    region: str = ""
    revision: int = 0
    instances: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """(number, priority, VLANs)."""
    untagged: int = 0
    """VLAN of the region that frames without a tag belong to; 0 where there is one tree."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Wish:
        """Of a ``SpanningTree`` as plain data."""
        return cls(data["name"], data["protocol"], data["priority"], data["hello"], data["forward_delay"], data["max_age"],
                   tuple(port_words(text) for text in data["ports"]), data.get("region") or "", data.get("revision") or 0,
                   tuple(instance_words(text) for text in data.get("instances") or ()), data.get("untagged") or 0)

    @property
    def names(self) -> list[str]:
        return [port.name for port in self.ports]

    @property
    def lanes(self) -> Lanes:
        return lanes_of((instance_text(n, vids) for n, _, vids in self.instances), self.untagged)

    def of_bridge(self, mac: str) -> BridgeConfig:
        from kvmnet.stp.node import BridgeConfig
        from kvmnet.stp.vectors import Protocol
        return BridgeConfig(mac, self.priority, Protocol[self.protocol.upper()], self.max_age, self.hello, self.forward_delay,
                            region=self.region, revision=self.revision, instances={n: p for n, p, _ in self.instances},
                            vlans={vid: n for n, _, vids in self.instances for vid in vids})

    def of_port(self, name: str, megabits: int) -> PortConfig:
        """A port's number is its place among those of the document: it stays the same when the port is made anew."""
        from kvmnet.stp.port import PortConfig
        from kvmnet.stp.vectors import path_cost
        number = self.names.index(name) + 1
        door = self.ports[number - 1]
        return PortConfig(name, number, door.priority, door.cost or path_cost(megabits), door.costs)


@dataclass(frozen=True, slots=True)
class Door:
    """A port as the document wants it."""

    name: str
    cost: int
    """0: by its speed."""
    priority: int
    costs: tuple[tuple[int, int], ...] = ()
    """(instance, cost) where it is another one."""


def port_words(text: str) -> Door:
    name, cost, priority, *others = text.split()
    return Door(name, int(cost), int(priority), tuple((int(n), int(c)) for n, c in (other.split(":") for other in others)))


def instance_text(number: int, vids: Sequence[int]) -> str:
    return " ".join((str(number), *(f"{first}-{last}" if first < last else str(first) for first, last in spans(vids))))


def instance_words(text: str) -> tuple[int, int, tuple[int, ...]]:
    number, priority, *spans = text.split()
    vids: list[int] = []
    for span in spans:
        first, _, last = span.partition("-")
        vids += range(int(first), int(last or first) + 1)
    return int(number), int(priority), tuple(vids)
