"""Spanning trees that kvmnet speaks, as ``status`` shows them."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.stp.resources import SpanningTree
from kvmnet.engine.resource import State
from kvmnet.host.paths import Paths


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
            name: TreePortStatus(port["trees"][number]["role"], port["trees"][number]["state"], port["trees"][number]["cost"], port["edge"], port["speaks"])
            for name, port in told["ports"].items()})


def silent(state: State) -> list[str]:
    """Bridges for which nobody speaks, though somebody should."""
    return [r.name for r in state.values() if isinstance(r, SpanningTree) and not r.running]
