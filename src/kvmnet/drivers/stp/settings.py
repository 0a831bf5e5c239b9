"""What the process of a spanning tree is told, and what it tells: files in its folder. Pure."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    ports: tuple[tuple[str, int, int], ...]
    """(name, cost or 0, priority)."""
    region: str = ""
    revision: int = 0
    instances: tuple[tuple[int, int, tuple[int, ...]], ...] = ()
    """(number, priority, VLANs)."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Wish:
        """Of a ``SpanningTree`` as plain data."""
        return cls(data["name"], data["protocol"], data["priority"], data["hello"], data["forward_delay"], data["max_age"],
                   tuple(port_words(text) for text in data["ports"]), data.get("region") or "", data.get("revision") or 0,
                   tuple(instance_words(text) for text in data.get("instances") or ()))

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
        number = next(i for i, (port, _, _) in enumerate(self.ports, 1) if port == name)
        _, cost, priority = self.ports[number - 1]
        return PortConfig(name, number, priority, cost or path_cost(megabits))


def port_words(text: str) -> tuple[str, int, int]:
    name, cost, priority = text.split()
    return name, int(cost), int(priority)


def instance_words(text: str) -> tuple[int, int, tuple[int, ...]]:
    number, priority, *spans = text.split()
    vids: list[int] = []
    for span in spans:
        first, _, last = span.partition("-")
        vids += range(int(first), int(last or first) + 1)
    return int(number), int(priority), tuple(vids)


def told(bridge: Any, moment: float) -> dict[str, Any]:
    """The state of a bridge (``kvmnet.stp.bridge.Bridge``) as plain data, for status."""
    from kvmnet.stp.vectors import CIST, id_text
    trees = {}
    for number, tree in bridge.node.trees.items():
        root = tree.root.root if number == CIST else tree.root.regional
        trees[str(number)] = {"bridge": id_text(tree.identifier), "root": id_text(root),
                              "cost": tree.root.external if number == CIST else tree.root.internal, "root_port": tree.root_port}
    ports = {name: {"up": port.up, "edge": port.oper_edge, "speaks": "stp" if not port.send_rstp else bridge.config.protocol.name.lower(),
                    "heard": port.heard, "cost": port.config.cost,
                    "trees": {str(n): {"role": str(t.role), "state": str(t.state)} for n, t in port.trees.items()}}
             for name, port in bridge.ports.items()}
    return {"since": round(moment, 3), "trees": trees, "ports": ports}
