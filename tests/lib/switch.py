"""Bridges in namespaces beside the host, which speak RSTP or MSTP by the same program as it does."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.engine.plan import Create, Delete
from lib.netns import inside, sh


def roles(told: dict[str, Any] | None, tree: int = 0) -> dict[str, dict[str, str]]:
    """Port -> role and state."""
    return {name: {word: port["trees"][str(tree)][word] for word in ("role", "state")} for name, port in (told or {"ports": {}})["ports"].items()}


def root_of(told: dict[str, Any] | None, tree: int = 0) -> str:
    return str((told or {"trees": {}})["trees"].get(str(tree), {}).get("root"))


@dataclass
class Switch:
    """A bridge with two ports in a namespace, and a device on it that hears what it floods."""

    netns: str
    driver: StpDriver
    place: Path
    vlans: tuple[int, ...] = ()
    """Those that it has tagged on each port, on a bridge that goes by them."""
    instances: tuple[str, ...] = ()
    """MSTP: NUMBER PRIORITY VLANS."""
    tree: SpanningTree = field(init=False)

    def start(self, mac: str, priority: int) -> None:
        with inside(self.netns):
            trees = [text.split() for text in self.instances]
            untagged = 1 if trees else 0
            gate = TreeGate(name="br0", ports=("p1", "p2"), untagged=untagged, whole=True,
                            instances=tuple(" ".join((number, *vlans)) for number, _, *vlans in trees))
            self.tree = SpanningTree(name="br0", bridge="br0", gate="br0", protocol="mstp" if trees else "rstp", priority=priority, hello=1,
                                     forward_delay=15, max_age=20, ports=("p1 2000 128", "p2 2000 128"), region="lab" if trees else "",
                                     revision=0, instances=self.instances, untagged=untagged, running=True)
            self.driver.apply([Create(gate)], lambda n: None)
            aware = "vlan_filtering 1" if self.vlans else ""
            sh(f"ip link add br0 address {mac} type bridge {aware}; ip link set br0 up; ip link add g0 type veth peer name h0; "
               "for p in p1 p2 g0; do ip link set $p master br0 up; done; ip link set h0 up")
            if self.vlans:
                sh("".join(f"bridge vlan add dev {port} vid {vid};" for port in ("p1", "p2", "g0") for vid in self.vlans))
            self.driver.apply([Create(self.tree)], lambda n: None)

    def stop(self) -> None:
        with inside(self.netns):
            self.driver.apply([Delete(self.tree)], lambda n: None)

    def told(self) -> dict[str, Any] | None:
        with inside(self.netns):
            return self.driver.speaking("br0").state()

    def state(self) -> dict[str, dict[str, str]]:
        return roles(self.told())

    def root(self) -> str:
        return root_of(self.told())
