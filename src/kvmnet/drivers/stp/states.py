"""States of ports and of their VLANs in the kernel, and what the process tells of its trees. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmnet.drivers.stp.gate import Lanes, spans
from kvmnet.drivers.stp.netlink import BLOCKING, FORWARDING, LEARNING, LISTENING, Span
from kvmnet.stp.node import cost_of
from kvmnet.stp.vectors import CIST, State, id_text

PORT_STATES = {State.DISCARDING: LISTENING, State.LEARNING: LEARNING, State.FORWARDING: FORWARDING}
VLAN_STATES = {State.DISCARDING: BLOCKING, State.LEARNING: LEARNING, State.FORWARDING: FORWARDING}
"""The kernel leaves the state of a VLAN as it was told, in whichever state the port is."""


def port_state(trees: Mapping[int, State]) -> int:
    """State of a port in the kernel. With several trees it is open as soon as one of them is, and the states of its VLANs
    do the rest."""
    if len(trees) == 1:
        return PORT_STATES[trees[CIST]]
    return LISTENING if set(trees.values()) == {State.DISCARDING} else FORWARDING


def vlan_changes(seen: Sequence[Span], lanes: Lanes, trees: Mapping[int, State]) -> Iterator[Span]:
    """VLANs of a port that are in another state than their trees are; with one tree, all are open."""
    for span in seen:
        for number in sorted({lanes.untagged} if span.untagged else {lanes.tree(vid) for vid in range(span.first, span.last + 1)}):
            wanted = VLAN_STATES[trees[number]] if len(trees) > 1 else FORWARDING
            if wanted != span.state:
                vids = (vid for vid in range(span.first, span.last + 1) if span.untagged or lanes.tree(vid) == number)
                yield from (Span(first, last, span.untagged, wanted) for first, last in spans(vids))


def told(bridge: Any, moment: float) -> dict[str, Any]:
    """The state of a bridge (``kvmnet.stp.bridge.Bridge``) as plain data, for status."""
    trees = {}
    for number, tree in bridge.node.trees.items():
        root = tree.root.root if number == CIST else tree.root.regional
        trees[str(number)] = {"bridge": id_text(tree.identifier), "root": id_text(root),
                              "cost": tree.root.external if number == CIST else tree.root.internal, "root_port": tree.root_port}
    ports = {name: {"up": port.up, "edge": port.oper_edge, "speaks": "stp" if not port.send_rstp else bridge.config.protocol.name.lower(),
                    "heard": port.heard, "inside": port.rcvd_internal,
                    "trees": {str(n): {"role": str(t.role), "state": str(t.state), "cost": cost_of(port, n)} for n, t in port.trees.items()}}
             for name, port in bridge.ports.items()}
    return {"since": round(moment, 3), "trees": trees, "ports": ports}
