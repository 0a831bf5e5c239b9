"""Abuse limits as the operator writes them: what a NIC may cause at most. See docs/design/limits.md.

Not to be mixed up with rates, which shape traffic by delaying it: what is over a limit is dropped.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.part import Part
from kvmnet.spec.types import BytesPerSecond, Count, PerSecond, Ports

NEIGHBOURS = 100
"""ARP and ND messages a second, each way of the two together, where other limits are given and neighbours is not."""

HURRY = 1000
"""Flows a second where only their number is limited: the kernel forgets refused ones at nine per tick at most, once the list of a NIC
is asked (CONNCOUNT_GC_MAX_NODES in net/netfilter/nf_conncount.c), so faster ones would fill its memory."""


WINDOW_SCALE = 7


class Sending(Part):
    """What the guest may send."""

    packets: PerSecond | None = None
    """Packets a second, e.g. 20000/s. A packet that the guest lets the host cut (TSO, up to 64 KiB) counts once."""
    bytes: BytesPerSecond | None = None
    """Bytes a second, e.g. 100MB/s, from the IP header on. When not given beside packets: that many packets of the full MTU."""
    connections: PerSecond | None = None
    """Flows a second that it begins, e.g. 100/s: TCP, UDP, ICMP and others, as connection tracking counts them."""
    concurrent: Count | None = None
    """Flows that it has begun and that live, e.g. 5000. Beside it connections is 1000/s when not given."""


class Receiving(Part):
    """What may come to the guest. ARP and ND are not counted."""

    packets: PerSecond | None = None
    """Packets a second."""
    bytes: BytesPerSecond | None = None
    """Bytes a second. When not given beside packets: that many packets of the full MTU."""
    syn: PerSecond | None = None
    """TCP connections a second that others begin with it (SYN), e.g. 1000/s."""
    synproxy: Ports | Literal["none"] | None = None
    """mode routed: TCP ports, e.g. [22, 80, 443] or any, to which the host answers connections from the uplink first: the guest
    hears of one when its beginner has answered, so no SYN flood under false addresses comes to it. Only for guests that use
    TCP time stamps, as Linux does."""
    window_scale: Annotated[int, Field(ge=0, le=14)] | None = None
    """With synproxy: window scale (RFC 7323) that the guest itself uses; 7 when not given, that of Linux with up to 8 MiB of
    tcp_rmem."""


class Storms(Part):
    """Frames of the guest that go to more than one receiver. ARP and ND are not counted."""

    broadcast: PerSecond | None = None
    """Broadcast frames a second, e.g. 100/s."""
    multicast: PerSecond | None = None
    """Multicast frames a second, e.g. 500/s."""
    unknown: PerSecond | None = None
    """modes nat, routed and isolated: frames a second to MACs that neither a NIC of the network nor the host has, e.g. 100/s."""


class Limits(Part):
    """What a NIC may cause at most; whatever is more is dropped and counted. none lifts what the network says."""

    send: Sending = Sending()
    """What the guest may send."""
    receive: Receiving = Receiving()
    """What may come to the guest."""
    storms: Storms = Storms()
    """Frames to more than one receiver."""
    neighbours: PerSecond | None = None
    """ARP and ND messages a second that the guest sends. They have this budget of their own: a guest that is over another limit
    can still resolve addresses. 100/s when not given beside limits of packets, bytes, broadcast or multicast."""
    burst: Annotated[int, Field(ge=1, le=60)] | None = None
    """Seconds' worth of each rate that may come at once after silence; 1 when not given."""


PLACES: Mapping[str, tuple[str, str]] = MappingProxyType({
    "packets": ("send", "packets"), "bytes": ("send", "bytes"), "connections": ("send", "connections"),
    "concurrent": ("send", "concurrent"), "broadcast": ("storms", "broadcast"), "multicast": ("storms", "multicast"),
    "unknown": ("storms", "unknown"), "neighbours": ("", "neighbours"), "receive_packets": ("receive", "packets"),
    "receive_bytes": ("receive", "bytes"), "syn": ("receive", "syn")})
"""Limit -> where it stands in the document."""
SENT = frozenset({"packets", "bytes", "broadcast", "multicast", "unknown", "neighbours"})
"""Limits of single frames that the guest sends."""
RECEIVED = frozenset({"receive_packets", "receive_bytes", "syn"})
FLOWS = frozenset({"connections", "concurrent"})
"""Limits that need connection tracking."""
FULL_FRAMES = (("packets", "bytes"), ("receive_packets", "receive_bytes"))
HEADER = 18
"""Bytes of an Ethernet header with one tag."""


def declared(limits: Limits) -> Iterator[tuple[str, str, int]]:
    """(limit, its place, value) of what is written; the value 0 is none."""
    if not limits.model_fields_set:
        return
    for name, (part, field) in PLACES.items():
        value = getattr(getattr(limits, part) if part else limits, field)
        if value is not None:
            yield name, f"{part}.{field}" if part else field, value


def proxied(own: Limits, network: Limits) -> tuple[tuple[str, ...], int]:
    """Ports of a NIC whose connections the host answers first, none for none, and the window scale."""
    ports = network.receive.synproxy if own.receive.synproxy is None else own.receive.synproxy
    scale = network.receive.window_scale if own.receive.window_scale is None else own.receive.window_scale
    return () if ports in (None, "none") else ports, WINDOW_SCALE if scale is None else scale  # type: ignore[return-value]


@lru_cache(maxsize=10_000)
def effective(own: Limits, network: Limits, mtu: int) -> tuple[Mapping[str, int], int]:
    """Limits of a NIC, without those that are none, and its burst in seconds. ``network``: the defaults."""
    found = {name: value for limits in (network, own) for name, _, value in declared(limits)}
    for packets, octets in FULL_FRAMES:
        if found.get(packets):
            found.setdefault(octets, found[packets] * (mtu + HEADER))
    if any(found.get(name) for name in ("packets", "bytes", "broadcast", "multicast")):
        found.setdefault("neighbours", NEIGHBOURS)
    if found.get("concurrent") and not found.get("connections"):
        found["connections"] = HURRY
    return MappingProxyType({name: value for name, value in found.items() if value}), own.burst or network.burst or 1
