"""One packet and what the kernel knows beside its bytes, at the place where rules judge it. Pure.

Headers are found as the kernel finds them: the outermost VLAN tag is taken off before any hook sees the frame
(skb_vlan_untag() in __netif_receive_skb_core()), but is still there for who reads the link layer
(nft_payload_copy_vlan()); the transport header of IPv6 is behind all extension headers (ipv6_find_hdr()), and there
is none to be read in a later fragment.
"""
from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from functools import cached_property
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias

from kvmnet.records import dataclass, field

ARP, IPV4, IPV6, VLAN, QINQ = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
EXTENSIONS = {0, 43, 60, 135}
"""IPv6 extension headers whose second byte is their length in units of 8 bytes (RFC 8200)."""
FRAGMENT, AUTHENTICATION, NONE = 44, 51, 59
NO_MAC = "00:00:00:00:00:00"
BROADCAST = "ff:ff:ff:ff:ff:ff"


class Special(Enum):
    """What stands in for a value."""

    UNKNOWN = "unknown"
    """The packet has one, but nobody can tell from here which."""
    ABSENT = "absent"
    """It has none: a rule that asks does not match, whatever it asks (NFT_BREAK)."""


UNKNOWN: Final = Special.UNKNOWN
ABSENT: Final = Special.ABSENT
Scalar: TypeAlias = "int | str"
Value: TypeAlias = "Scalar | Special | tuple[Value, ...]"
Header: TypeAlias = Literal["ll", "nh", "th"]


@dataclass(frozen=True)
class Packet:
    """An Ethernet frame as it stands on a wire, its VLAN tags with it."""

    frame: bytes

    @cached_property
    def tagged(self) -> bool:
        return self.outer in (VLAN, QINQ)

    @cached_property
    def outer(self) -> int:
        """Type that the frame itself names."""
        return int.from_bytes(self.frame[12:14], "big")

    @cached_property
    def network(self) -> int:
        """Where the network header begins, behind the outermost tag."""
        return 18 if self.tagged else 14

    @cached_property
    def protocol(self) -> int:
        """Type of what is behind the outermost tag (skb->protocol). A length, of 802.2, counts as no type."""
        kind = int.from_bytes(self.frame[self.network - 2:self.network], "big")
        return kind if kind >= 0x600 else 0x0004

    @cached_property
    def vlan(self) -> int:
        """VLAN of the outermost tag, 0 without."""
        return int.from_bytes(self.frame[14:16], "big") & 0xFFF if self.tagged else 0

    @cached_property
    def version(self) -> int:
        return {IPV4: 4, IPV6: 6}.get(self.protocol, 0)

    @cached_property
    def upper(self) -> tuple[int, int, int] | None:
        """(protocol, where its header begins, fragment offset); None where there is none to be found."""
        at = self.network
        data = self.frame
        if self.version == 4 and len(data) >= at + 20 and data[at] >> 4 == 4 and data[at] & 15 >= 5:
            return data[at + 9], at + (data[at] & 15) * 4, int.from_bytes(data[at + 6:at + 8], "big") & 0x1FFF
        if self.version == 6 and len(data) >= at + 40 and data[at] >> 4 == 6:
            return self.behind(data[at + 6], at + 40)
        return None

    def behind(self, kind: int, at: int) -> tuple[int, int, int] | None:
        """The upper protocol of IPv6 behind its extension headers."""
        data = self.frame
        while kind in EXTENSIONS or kind in (FRAGMENT, AUTHENTICATION):
            if len(data) < at + 8:
                return None
            if kind == FRAGMENT:
                offset = int.from_bytes(data[at + 2:at + 4], "big") & ~7
                if offset:
                    return data[at], at + 8, offset
                size = 8
            else:
                size = (data[at + 1] + 2) * 4 if kind == AUTHENTICATION else (data[at + 1] + 1) * 8
            kind, at = data[at], at + size
        return None if kind == NONE else (kind, at, 0)

    def headers(self) -> set[int]:
        """Kinds of the IPv6 extension headers."""
        found: set[int] = set()
        if self.version != 6:
            return found
        kind, at = self.frame[self.network + 6], self.network + 40
        while (kind in EXTENSIONS or kind in (FRAGMENT, AUTHENTICATION)) and len(self.frame) >= at + 8:
            found.add(kind)
            size = 8 if kind == FRAGMENT else (self.frame[at + 1] + 2) * 4 if kind == AUTHENTICATION else (self.frame[at + 1] + 1) * 8
            kind, at = self.frame[at], at + size
        return found

    def start(self, header: Header) -> int | None:
        """Where a header begins in the frame; None without."""
        match header:
            case "ll":
                return 0
            case "nh":
                return self.network
        return None if self.upper is None or self.upper[2] else self.upper[1]

    def bits(self, header: Header, offset: int, length: int) -> int | Special:
        """*length* bits from *offset*, of the bytes in their order; ABSENT beyond the end."""
        begin = self.start(header)
        if begin is None:
            return ABSENT
        first = begin * 8 + offset
        last = first + length
        if (last + 7) // 8 > len(self.frame):
            return ABSENT
        whole = int.from_bytes(self.frame[first // 8:(last + 7) // 8], "big")
        return whole >> (-last % 8) & ((1 << length) - 1)

    def with_bits(self, header: Header, offset: int, length: int, value: int) -> Packet:
        """The packet with other bits there; checksums stay as they are."""
        begin = self.start(header)
        if begin is None:
            return self
        size = len(self.frame) * 8
        shift = size - (begin * 8 + offset) - length
        mask = ((1 << length) - 1) << shift
        whole = int.from_bytes(self.frame, "big") & ~mask | value << shift & mask
        return Packet(whole.to_bytes(len(self.frame), "big"))

    @cached_property
    def source(self) -> str:
        return self.address(0)

    @cached_property
    def target(self) -> str:
        return self.address(1)

    def address(self, place: int) -> str:
        """Source (0) or destination (1) address; '' of what is not IP."""
        size, at = {4: (4, 12), 6: (16, 8)}.get(self.version, (0, 0))
        begin = self.network + at + place * size
        return str(ip_address(self.frame[begin:begin + size])) if size and len(self.frame) >= begin + size else ""

    @property
    def macs(self) -> tuple[str, str]:
        """(destination, source)."""
        return self.frame[:6].hex(":"), self.frame[6:12].hex(":")

    @property
    def ports(self) -> tuple[int, int]:
        """(source, destination) of TCP and UDP, (identifier, type) of an echo, else zeros."""
        if self.upper is None or self.upper[2]:
            return 0, 0
        kind, at, _ = self.upper
        if kind in (TCP, UDP):
            return int.from_bytes(self.frame[at:at + 2], "big"), int.from_bytes(self.frame[at + 2:at + 4], "big")
        return (int.from_bytes(self.frame[at + 4:at + 6], "big"), self.frame[at]) if kind in (ICMP, ICMP6) else (0, 0)

    def between(self, destination: str, source: str) -> Packet:
        """The packet with other MACs, as a router sends it on."""
        return Packet(octets(destination) + octets(source) + self.frame[12:])

    def untagged(self) -> Packet:
        return Packet(self.frame[:12] + self.frame[16:]) if self.tagged else self

    def tagged_with(self, vlan: int) -> Packet:
        plain = self.untagged()
        return Packet(plain.frame[:12] + struct.pack("!HH", VLAN, vlan) + plain.frame[12:]) if vlan else plain

    def to_address(self, place: int, address: str) -> Packet:
        """The packet with another source (0) or destination (1), as NAT makes it."""
        size, at = {4: (4, 12), 6: (16, 8)}.get(self.version, (0, 0))
        return self.with_bits("nh", (at + place * size) * 8, size * 8, int(ip_address(address))) if size else self

    def to_port(self, place: int, port: int) -> Packet:
        if self.upper is None or self.upper[0] not in (TCP, UDP):
            return self
        return self.with_bits("th", place * 16, 16, port)


@dataclass
class Tracked:
    """What connection tracking knows of the packet."""

    state: Value = 0
    """One of ``STATES``."""
    mark: Value = 0
    zone: Value = 0
    status: Value = 0
    direction: Value = 0
    """0 for the direction in which the flow began, 1 for its answers."""
    first: Packet | None = None
    """The packet that began the flow; None when it is this one."""


STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
"""Bits of ``ct state`` (NF_CT_STATE_*, include/uapi/linux/netfilter/nf_conntrack_common.h)."""


@dataclass
class Context:
    """A packet at a hook. Rules change it as it goes."""

    packet: Packet
    family: str = "inet"
    """Of the table that judges: ip, ip6, inet, bridge, arp or netdev."""
    hook: str = ""
    iif: str = ""
    """Device by which it came; '' when the host itself sends it."""
    oif: str = ""
    sdif: str = ""
    """Member of a VRF by which it came, while ``iif`` is the VRF; '' elsewhere."""
    bridge_in: str = ""
    bridge_out: str = ""
    mark: Value = 0
    zone: Value = 0
    """Of connection tracking, as rules before it have set it."""
    strayed: bool = False
    """Whether it belongs to a flow that connection tracking does not find, because that is in another zone."""
    priority: Value = UNKNOWN
    pkttype: Value = UNKNOWN
    tracked: Tracked | None = None
    """None before conntrack, and where nothing is tracked."""
    flow: Tracked | None = None
    """What conntrack will say of it; None: that it begins a flow."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Device -> ARPHRD_*; Ethernet where it is not given."""
    groups: dict[str, int] = field(default_factory=dict)
    owner: Value = UNKNOWN
    """uid of the socket that sends it."""
    fib: Callable[[Context, str, frozenset[str]], Value] | None = None
    """Answers (context, result, flags) of the expression fib."""
    crossing: bool = False
    """It only passes a bridge, and rules of IP see it by br_netfilter."""
    asked: set[str] = field(default_factory=set)
    """Headers that the rule has asked for already."""
    alone: bool = False
    """Whether limits are taken as not reached: one packet is within any rate. Else nobody can tell what a limit says."""
    linked: bool = True
    """Whether it has a link-layer header: what the host itself sends has none before it leaves."""


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


# -- making packets --------------------------------------------------------------------------------

def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def upper_bytes(protocol: int, source: str, target: str, ports: tuple[int, int], payload: bytes, answer: bool, sequence: int) -> bytes:
    """TCP with SYN (SYN and ACK in an *answer*), UDP, or an echo with ports[0] as its identifier; checksummed."""
    if protocol == TCP:
        data, at = struct.pack("!HHIIBBHHH", *ports, sequence, 0, 0x50, 0x12 if answer else 2, 64240, 0, 0) + payload, 16
    elif protocol == UDP:
        data, at = struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload, 6
    else:
        kind = (0 if answer else 8) if protocol == ICMP else (129 if answer else 128)
        data, at = struct.pack("!BBHHH", kind, 0, 0, ports[0], 1) + payload, 2
    ends = ip_address(source).packed + ip_address(target).packed
    pseudo = b"" if protocol == ICMP else ends + (
        struct.pack("!IHBB", len(data), 0, 0, protocol) if ":" in source else struct.pack("!BBH", 0, protocol, len(data)))
    total = checksum(pseudo + data) or (0xFFFF if protocol == UDP else 0)
    return data[:at] + struct.pack("!H", total) + data[at + 2:]


def made(macs: tuple[str, str], source: str, target: str, protocol: int, ports: tuple[int, int] = (0, 0), payload: bytes = b"",
         answer: bool = False, sequence: int = 1) -> Packet:
    """An IP packet in a frame. ``macs``: (destination, source)."""
    upper = upper_bytes(protocol, source, target, ports, payload, answer, sequence)
    if ":" in source:
        head = struct.pack("!IHBB", 6 << 28, len(upper), protocol, 64) + ip_address(source).packed + ip_address(target).packed
        kind = IPV6
    else:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(upper), 1, 0x4000, 64, protocol, 0) + ip_address(source).packed + ip_address(target).packed
        head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        kind = IPV4
    return Packet(octets(macs[0]) + octets(macs[1]) + struct.pack("!H", kind) + head + upper)


def question(mac: str, source: str, target: str) -> Packet:
    """Who has *target*? ARP, or neighbour solicitation for IPv6."""
    if ":" not in source:
        body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 1) + octets(mac) + ip_address(source).packed + bytes(6) + ip_address(target).packed
        return Packet(octets(BROADCAST) + octets(mac) + struct.pack("!H", ARP) + body)
    packed = ip_address(target).packed
    group = ip_address(b"\xff\2" + bytes(9) + b"\1\xff" + packed[13:])
    data = struct.pack("!BBHI", 135, 0, 0, 0) + packed + b"\1\1" + octets(mac)
    ends = ip_address(source).packed + group.packed
    total = checksum(ends + struct.pack("!IHBB", len(data), 0, 0, ICMP6) + data)
    head = struct.pack("!IHBB", 6 << 28, len(data), ICMP6, 255) + ends
    return Packet(b"\x33\x33" + group.packed[12:] + octets(mac) + struct.pack("!H", IPV6) + head + data[:2] + struct.pack("!H", total) + data[4:])


def reply(asked: Packet, mac: str) -> Packet:
    """The answer of who has *mac* to a ``question``."""
    asker = asked.macs[1]
    at = asked.network
    if asked.protocol == ARP:
        frame = asked.frame
        body = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2) + octets(mac) + frame[at + 24:at + 28] + frame[at + 8:at + 18]
        return Packet(octets(asker) + octets(mac) + struct.pack("!H", ARP) + body)
    target = asked.frame[at + 48:at + 64]
    data = struct.pack("!BBHI", 136, 0, 0, 0x60000000) + target + b"\2\1" + octets(mac)
    ends = target + asked.frame[at + 8:at + 24]
    total = checksum(ends + struct.pack("!IHBB", len(data), 0, 0, ICMP6) + data)
    head = struct.pack("!IHBB", 6 << 28, len(data), ICMP6, 255) + ends
    return Packet(octets(asker) + octets(mac) + struct.pack("!H", IPV6) + head + data[:2] + struct.pack("!H", total) + data[4:])
