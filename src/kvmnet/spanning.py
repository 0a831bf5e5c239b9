"""Spanning trees that kvmnet speaks, as ``status`` shows them."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.stp.resources import SpanningTree
from kvmnet.engine.resource import State
from kvmnet.host.paths import Paths
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class TreePortStatus:
    role: str
    """root, designated, alternate, backup, master; disabled without a carrier."""
    state: str
    """forwarding, learning or discarding."""
    cost: int
    edge: bool
    """No bridge was heard there."""
    speaks: str
    """Protocol that the neighbour understands: rstp, mstp or stp."""
    inside: bool = False
    """mstp: the neighbour is of the same region."""


@dataclass(frozen=True, slots=True)
class TreeStatus:
    bridge: str
    instance: int
    """0: the common tree; of MSTP, the number of the instance."""
    identifier: str
    """The bridge in this tree, PRIORITY.MAC."""
    root: str
    """The tree's root, in the same way."""
    cost: int
    """Of the way there."""
    root_port: str
    """'' where the bridge itself is the root."""
    ports: Mapping[str, TreePortStatus]


def tree_statuses(paths: Paths, state: State) -> tuple[TreeStatus, ...]:
    """Every tree of every bridge whose process lives."""
    driver = StpDriver(paths)
    return tuple(tree for r in state.values() if isinstance(r, SpanningTree) for tree in trees_of(driver, r.name))


def trees_of(driver: StpDriver, bridge: str) -> Iterator[TreeStatus]:
    told = driver.speaking(bridge).state() or {"trees": {}, "ports": {}}
    for number, tree in told["trees"].items():
        yield TreeStatus(bridge, int(number), tree["bridge"], tree["root"], tree["cost"], tree["root_port"], {
            name: TreePortStatus(port["trees"][number]["role"], port["trees"][number]["state"], port["trees"][number].get("cost", 0), port["edge"], port["speaks"],
                                port.get("inside", False))    # of a process that an older version started
            for name, port in told["ports"].items()})


def apart(trees: Iterable[TreeStatus]) -> list[str]:
    """Bridges with instances none of whose neighbours is of the same region: all their VLANs go as the common tree does."""
    trees = tuple(trees)
    several = dict.fromkeys(t.bridge for t in trees if t.instance)
    heard = {t.bridge: [p for p in t.ports.values() if not p.edge and p.role != "disabled"] for t in trees if not t.instance}
    return [bridge for bridge in several if heard.get(bridge) and not any(p.inside for p in heard[bridge])]


def silent(state: State) -> list[str]:
    """Bridges for which nobody speaks, though somebody should."""
    return [r.name for r in state.values() if isinstance(r, SpanningTree) and not r.running]
