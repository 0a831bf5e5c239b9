"""Spanning trees that kvmnet speaks itself: the process of a bridge, and the gate that shuts what it has not opened. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TreeGate(Resource):
    """A table of nftables through which frames pass the ports of a spanning tree; named by its bridge.

    A port that the process has not opened passes nothing, whatever the kernel's bridge thinks of it: without a spanning tree
    of its own it opens each port by itself that joins or gets a carrier.
    """

    kind: ClassVar[str] = "tree-gate"
    goes_last: ClassVar[bool] = True
    ports: tuple[str, ...] | None = option(doc="links that pass nothing until they are opened, sorted")
    instances: tuple[str, ...] | None = option(doc="mstp: trees besides the common one: NUMBER VLANS, by number")
    untagged: int | None = option(doc="mstp: VLAN of the region that frames without a tag belong to; 0 without")
    whole: bool | None = option(doc="the table is as it was made")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class SpanningTree(Resource):
    """The process that speaks RSTP or MSTP for one bridge; named by it."""

    kind: ClassVar[str] = "spanning-tree"
    bridge: str | None = option(doc="the bridge", ref="link", on_delete="delete", recreate=True)
    gate: str | None = option(doc="the gate of its ports", ref="tree-gate", on_delete="delete", recreate=True)
    protocol: str | None = option(doc="rstp or mstp")
    priority: int | None = option(doc="priority of the bridge; the smallest becomes the root")
    hello: int | None = option(doc="seconds between messages")
    forward_delay: int | None = option(doc="seconds in each state where nobody agrees")
    max_age: int | None = option(doc="seconds that a message of the root counts")
    ports: tuple[str, ...] | None = option(doc="its ports: NAME COST PRIORITY, sorted; cost 0 is by the port's speed; then INSTANCE:COST")
    region: str | None = option(doc="mstp: name of the region")
    revision: int | None = option(doc="mstp: revision of the mapping of VLANs")
    instances: tuple[str, ...] | None = option(doc="mstp: NUMBER PRIORITY VLANS, by number")
    untagged: int | None = option(doc="mstp: VLAN of the region that frames without a tag belong to; 0 without")
    running: bool | None = option(doc="the process lives and goes by these settings")
