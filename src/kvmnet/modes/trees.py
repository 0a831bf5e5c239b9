"""Spanning trees that kvmnet speaks itself: the gate of a bridge's ports, and its process. Pure.

Guests' ports are no part of it: they are edges, and nobody listens to what a guest says of trees.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.stp.gate import spans
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.engine.resource import Absent, Resource
from kvmnet.spec import ways
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Network
from kvmnet.spec.uplinks import TreePort


def spanning_trees(made: Iterable[Resource | Absent], network: Network, spec: Spec) -> Iterator[Resource]:
    """What the bridge among *made* needs besides, if it has a gate."""
    bridge = next((r for r in made if isinstance(r, Link) and r.gate), None)
    if bridge is None or not network.uplink:
        return
    uplink = spec.uplinks[network.uplink]
    wish = network if network.stp else next(n for _, n in ways.bridged(network.uplink, spec) if n.tree_is_ours)
    options, region = wish.stp_options, wish.stp_options.region
    trees = sorted(region.instances.items()) if region else []
    untagged = region.untagged if region else 0
    ports = {ways.device(network.uplink, spec): uplink.tree, **uplink.redundant}
    yield TreeGate(name=bridge.name, ports=tuple(sorted(ports)), untagged=untagged, whole=True,
                   instances=tuple(f"{number} {vlans(tree.vlans)}" for number, tree in trees))
    yield SpanningTree(name=bridge.name, bridge=bridge.name, gate=bridge.name, protocol=str(wish.stp), priority=options.priority,
                       hello=options.hello, forward_delay=options.forward_delay, max_age=options.max_age,
                       region=region.name if region else "", revision=region.revision if region else 0, untagged=untagged,
                       instances=tuple(f"{number} {tree.priority} {vlans(tree.vlans)}" for number, tree in trees),
                       ports=tuple(words(name, ports[name]) for name in sorted(ports)), running=True)


def words(name: str, port: TreePort) -> str:
    return " ".join((name, str(port.cost or 0), str(port.priority), *(f"{n}:{cost}" for n, cost in sorted(port.costs.items()))))


def vlans(vids: Iterable[int]) -> str:
    return " ".join(f"{first}-{last}" if first < last else str(first) for first, last in spans(vids))
