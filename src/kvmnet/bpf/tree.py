"""Conditions on a frame, as a tree. Pure.

Offsets are those of an Ethernet frame without a VLAN tag in it: on devices the kernel keeps the (outer) tag beside the
frame (skb_vlan_untag() in net/core/skbuff.c). Where the two ways of writing have the same meaning, a condition is made as
tcpdump makes it, so that the same words mean the same frames.
"""
from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TypeAlias

from kvmnet.records import dataclass

IP, ARP, RARP, IP6, VLAN, QINQ = 0x0800, 0x0806, 0x8035, 0x86DD, 0x8100, 0x88A8
TCP, UDP, SCTP, ICMP, ICMP6, FRAGMENT = 6, 17, 132, 1, 58, 44
HEADER = 14
"""Bytes of an Ethernet header."""
ANCILLARY = 0xFFFF_F000
"""Offsets from here on stand for what the kernel knows of a packet beside its bytes (SKF_AD_OFF, linux/filter.h)."""
TAG, TAGGED = ANCILLARY + 44, ANCILLARY + 48
"""SKF_AD_VLAN_TAG, SKF_AD_VLAN_TAG_PRESENT."""


@dataclass(frozen=True, slots=True)
class Field:
    """A number in a frame: ``size`` bytes (1, 2 or 4) at ``offset``, of them the bits in ``mask``."""

    offset: int
    size: int
    mask: int = 0
    """0 for all bits."""
    transport: bool = False
    """``offset`` counts from the end of the IPv4 header, whose length the packet tells."""


@dataclass(frozen=True, slots=True)
class Length:
    """The frame's length in bytes."""


@dataclass(frozen=True, slots=True)
class Is:
    """``field`` is ``value``, or lies between ``value`` and ``last``."""

    field: Field | Length
    value: int
    last: int | None = None


@dataclass(frozen=True, slots=True)
class Not:
    item: Node


@dataclass(frozen=True, slots=True)
class All:
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Any:
    items: tuple[Node, ...]


Node: TypeAlias = Is | Not | All | Any
EVERYTHING = All(())
NOTHING = Any(())


def every(*items: Node) -> Node:
    return items[0] if len(items) == 1 else All(items)


def some(*items: Node) -> Node:
    return items[0] if len(items) == 1 else Any(items)


def ethertype(value: int) -> Node:
    return Is(Field(12, 2), value)


def protocol4(number: int) -> Node:
    return every(ethertype(IP), Is(Field(23, 1), number))


def protocol6(number: int) -> Node:
    """IPv6 packets whose first header, or the one behind a fragment header, is *number*."""
    behind = every(Is(Field(20, 1), FRAGMENT), Is(Field(54, 1), number))
    return every(ethertype(IP6), some(Is(Field(20, 1), number), behind))


def protocol(number: int) -> Node:
    return some(protocol6(number), protocol4(number))


def sides(direction: str, source: Node, destination: Node) -> Node:
    """``direction``: src, dst, "src or dst" or "src and dst"."""
    match direction:
        case "src":
            return source
        case "dst":
            return destination
        case "src and dst":
            return every(source, destination)
    return some(source, destination)


def ports(direction: str, first: int, last: int, protocols: Iterable[int]) -> Node:
    """Packets of *protocols* with a port from *first* to *last*. Later fragments have no ports, and are none of them."""
    found = []
    numbers = tuple(protocols)
    upper = last if last != first else None
    first_header = some(*(Is(Field(20, 1), n) for n in numbers))
    found.append(every(ethertype(IP6), first_header,
                       sides(direction, Is(Field(54, 2), first, upper), Is(Field(56, 2), first, upper))))
    found.append(every(ethertype(IP), some(*(Is(Field(23, 1), n) for n in numbers)), Is(Field(20, 2, 0x1FFF), 0),
                       sides(direction, Is(Field(HEADER, 2, transport=True), first, upper),
                             Is(Field(HEADER + 2, 2, transport=True), first, upper))))
    return some(*found)


def network(direction: str, prefix: str, kinds: Iterable[int] = (IP, ARP, RARP, IP6)) -> Node:
    """Packets from or to *prefix*; of ARP messages sender and target count. ``kinds``: Ethernet types that are looked at."""
    net = ip_network(prefix)
    if isinstance(net, IPv6Network):
        return every(ethertype(IP6), sides(direction, within6(22, net), within6(38, net))) if IP6 in kinds else NOTHING
    places = {IP: (26, 30), ARP: (28, 38), RARP: (28, 38)}
    return some(*(every(ethertype(kind), sides(direction, within4(source, net), within4(destination, net)))
                  for kind, (source, destination) in places.items() if kind in kinds))


def within4(offset: int, net: IPv4Network) -> Node:
    if not net.prefixlen:
        return EVERYTHING
    mask = 0 if net.prefixlen == 32 else int(net.netmask)
    return Is(Field(offset, 4, mask), int(net.network_address))


def within6(offset: int, net: IPv6Network) -> Node:
    tests = []
    for word in range(4):
        shift = 96 - 32 * word
        mask = int(net.netmask) >> shift & 0xFFFF_FFFF
        if mask:
            tests.append(Is(Field(offset + 4 * word, 4, 0 if mask == 0xFFFF_FFFF else mask),
                              int(net.network_address) >> shift & 0xFFFF_FFFF))
    return every(*tests)


def mac(direction: str, address: str) -> Node:
    octets = bytes.fromhex(address.replace(":", ""))
    high, low = int.from_bytes(octets[:2], "big"), int.from_bytes(octets[2:], "big")
    return sides(direction, every(Is(Field(8, 4), low), Is(Field(6, 2), high)),
                 every(Is(Field(2, 4), low), Is(Field(0, 2), high)))


def vlan(number: int | None = None) -> Node:
    """Frames with a VLAN tag, of *number* if given: beside the frame, or the first one in it."""
    if number is None:
        return some(Is(Field(TAGGED, 4), 1), ethertype(VLAN), ethertype(QINQ))
    inside = every(some(ethertype(VLAN), ethertype(QINQ)), Is(Field(14, 2, 0x0FFF), number))
    return some(every(Is(Field(TAGGED, 4), 1), Is(Field(TAG, 4, 0x0FFF), number)),
                every(Is(Field(TAGGED, 4), 0), inside))


def untagged() -> Node:
    """Frames without a VLAN tag, or with one that only carries a priority (VLAN 0, IEEE 802.1Q, 9.6)."""
    return some(Not(vlan()), vlan(0))
