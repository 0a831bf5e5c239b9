"""Tables of rules and the guards of guest NICs. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NftTable(Resource):
    """One nftables table that is wholly ours; named ``FAMILY NAME``, e.g. ``bridge kvmnet``.

    ``text`` is the body between the braces, without set elements that are resources of their own.
    The table is replaced in one nft transaction, elements kept.
    """

    kind: ClassVar[str] = "nft-table"
    text: str | None = option(doc="the table's declarations, one per line")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NicGuard(Resource):
    """What one guest NIC may send; named by its tap. One element set per NIC, never rules per NIC."""

    kind: ClassVar[str] = "nic-guard"
    table: str | None = option(doc="the guard's table", ref="nft-table", on_delete="cascade")
    level: str | None = option(doc="full: MAC and addresses; mac: MAC only; open: anything")
    macs: tuple[str, ...] | None = option(doc="source MACs allowed, sorted", guest="live")
    addresses: tuple[str, ...] | None = option(doc="IPv4 and IPv6 host addresses allowed, sorted",
                                               guest="live")
    prefixes: tuple[str, ...] | None = option(doc="prefixes allowed as source, sorted", guest="live")
    vlans: tuple[int, ...] | None = option(doc="VLAN ids that a trunk NIC may tag, sorted", guest="live")
    roles: tuple[str, ...] | None = option(
        doc="dhcp-server, router, querier: what this NIC may do beyond a plain guest, sorted", guest="live")
    forbidden: tuple[str, ...] | None = option(
        doc="addresses of the host and of gateways that it can never use, sorted", guest="live")
    zone: int | None = option(doc="number of its network: link-locals are claimed per network", guest="live")


COMES_IN = " in"
"""What the name of a hook at ingress ends in."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GuardHook(Resource):
    """The place where the guard sees the frames of a device that is no port of a bridge; named by the device, and where frames come in
    `DEVICE in`."""

    kind: ClassVar[str] = "guard-hook"
    table: str | None = option(doc="the guard's table", ref="nft-table", on_delete="delete")
    dev: str | None = option(doc="the device; '' when the hook hangs on nothing", ref="link", on_delete="delete")
    guard: str | None = option(doc="guard that must stand; '' for none", ref="nic-guard")
    side: str | None = option(doc="egress: frames that leave by the device, which a macvtap's guest sends; ingress")
    to: str | None = option(doc="chain of the table that judges")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NicGroups(Resource):
    """What one guest NIC is in, where the document has groups or tenants; named by its tap. Set elements, never rules."""

    kind: ClassVar[str] = "nic-groups"
    part_of: ClassVar[str] = "table"
    table: str | None = option(doc="the guard's table", ref="nft-table", on_delete="cascade")
    number: int | None = option(doc="its number in packet marks, 1 to 65535", guest="live")
    groups: tuple[str, ...] | None = option(doc="groups that it is in, sorted", guest="live")
    tenant: str | None = option(doc="tenant that it belongs to, or ''", guest="live")
    zone: int | None = option(doc="connection tracking zone of its network", guest="live")
    routed: int | None = option(doc="connection tracking zone of what the host routes to it: its VRF's, or 0", guest="live")
    macs: tuple[str, ...] | None = option(doc="its MACs, sorted", guest="live")
    addresses: tuple[str, ...] | None = option(
        doc="its own addresses that the host routes to, sorted", guest="live")
    places: tuple[str, ...] | None = option(
        doc="`BRIDGE ADDRESS` where the host routes to it and to no other NIC, if groups or a tenant judge it, sorted", guest="live")
    isolated: bool | None = option(doc="does not reach other isolated NICs, not through the host's router either", guest="live")
    traits: tuple[str, ...] | None = option(
        doc="reject: refused packets to and from it are answered; log: what is refused to and from it is logged", guest="live")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NicLimits(Resource):
    """What one guest NIC may cause at most; named by its tap. Elements that bear the limit, never rules. 0 is no limit."""

    kind: ClassVar[str] = "nic-limits"
    part_of: ClassVar[str] = "table"
    table: str | None = option(doc="the guard's table", ref="nft-table", on_delete="cascade")
    packets: int | None = option(doc="packets a second from the guest", guest="live")
    bytes: int | None = option(doc="bytes a second from the guest", guest="live")
    connections: int | None = option(doc="flows a second that it begins", guest="live")
    concurrent: int | None = option(doc="flows that it has begun and that live", guest="live")
    broadcast: int | None = option(doc="broadcast frames a second from the guest", guest="live")
    multicast: int | None = option(doc="multicast frames a second from the guest", guest="live")
    unknown: int | None = option(doc="frames a second to MACs that its network does not have", guest="live")
    neighbours: int | None = option(doc="ARP and ND messages a second from the guest", guest="live")
    receive_packets: int | None = option(doc="packets a second to the guest", guest="live")
    receive_bytes: int | None = option(doc="bytes a second to the guest", guest="live")
    syn: int | None = option(doc="TCP connections a second that others begin with it", guest="live")
    burst: int | None = option(doc="seconds' worth of each rate that may come at once", guest="live")
    counted: str | None = option(doc="who counts concurrent flows: bridge; host, in its own table; ''", guest="live")
    stations: tuple[str, ...] | None = option(
        doc="where frames to unknown MACs are limited: MACs that its network has because of it, sorted", guest="live")
    zone: int | None = option(doc="number of its network among them", guest="live")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class AddressSet(Resource):
    """A named set of addresses that rules of groups ask."""

    kind: ClassVar[str] = "address-set"
    part_of: ClassVar[str] = "table"
    table: str | None = option(doc="the guard's table", ref="nft-table", on_delete="cascade")
    prefixes: tuple[str, ...] | None = option(doc="its addresses and prefixes, none inside another, sorted", guest="live")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GuardKeeper(Resource):
    """The process that owns a table which drops guest frames that no guard has judged.

    It survives ``nft flush ruleset``; when the guard's table disappears it has it loaded again.
    """

    kind: ClassVar[str] = "guard-keeper"
    version: str | None = option(doc="hash of the tables that it holds; "
                                     "'' when it is dead or its tables are not complete")
