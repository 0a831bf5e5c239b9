"""Spanning trees that kvmnet speaks itself: the gate of a bridge's ports, and its process. Pure.

Guests' ports are no part of it: they are edges, and nobody listens to what a guest says of trees.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvmnet.drivers.linux.resources import Link
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
    sharing = (n for _, n in ways.bridged(network.uplink, spec) if n.stp == "rstp")
    options = (network if network.stp else next(sharing)).stp_options
    ports = {ways.device(network.uplink, spec): uplink.tree, **uplink.redundant}
    yield TreeGate(name=bridge.name, ports=tuple(sorted(ports)), whole=True)
    yield SpanningTree(name=bridge.name, bridge=bridge.name, gate=bridge.name, protocol="rstp", priority=options.priority,
                       hello=options.hello, forward_delay=options.forward_delay, max_age=options.max_age,
                       ports=tuple(words(name, ports[name]) for name in sorted(ports)), running=True)


def words(name: str, port: TreePort) -> str:
    return f"{name} {port.cost or 0} {port.priority}"
