"""Frames as bytes, and bytes as packets: Ethernet, ARP, IPv4, IPv6, ICMP, ND, UDP, TCP. Pure.

Addresses and MACs are text. Builders give whole frames or parts of them; ``read`` takes a frame apart.
"""
from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from kvmnet.records import dataclass

BROADCAST = "ff:ff:ff:ff:ff:ff"
NOBODY = "00:00:00:00:00:00"
ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58
IP4, ARP, IP6 = 0x0800, 0x0806, 0x86DD
DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000


# -- building --------------------------------------------------------------------------------------

def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return ip_address(text).packed


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(dst: str, src: str, kind: int, payload: bytes) -> bytes:
    return mac(dst) + mac(src) + struct.pack("!H", kind) + payload


def tagged(vlan: int, frame: bytes, kind: int = 0x8100) -> bytes:
    """*frame* with one more VLAN tag outside."""
    return frame[:12] + struct.pack("!HH", kind, vlan) + frame[12:]


def snap(dst: str, src: str, kind: int, payload: bytes) -> bytes:
    """The same payload behind an 802.2 LLC/SNAP header (RFC 1042)."""
    body = b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", kind) + payload
    return ether(dst, src, len(body), body)


def arp(op: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """``op``: 1 request, 2 reply. ``sender`` and ``target``: (MAC, IPv4)."""
    return (b"\0\1\x08\0\6\4" + struct.pack("!H", op) + mac(sender[0]) + ip(sender[1])
            + mac(target[0]) + ip(target[1]))


def ip4(src: str, dst: str, protocol: int, payload: bytes, flags: int = DONT_FRAGMENT, hops: int = 64) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, flags, hops, protocol, 0) + ip(src) + ip(dst)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(src: str, dst: str, protocol: int, payload: bytes, hops: int = 64) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + ip(src) + ip(dst) + payload


def pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    if ":" in src:
        return ip(src) + ip(dst) + struct.pack("!IHBB", length, 0, 0, protocol)
    return ip(src) + ip(dst) + struct.pack("!BBH", 0, protocol, length)


def udp(src: str, dst: str, sport: int, dport: int, payload: bytes) -> bytes:
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    total = checksum(pseudo(src, dst, UDP, 8 + len(payload)) + head + payload) or 0xFFFF
    return head[:6] + struct.pack("!H", total) + payload


def tcp(src: str, dst: str, sport: int, dport: int, flags: int, sequence: int = 1, ack: int = 0, data: bytes = b"") -> bytes:
    """A segment. ``flags``: 2 SYN, 4 RST, 8 PSH, 0x10 ACK. ``sequence`` and ``ack`` count past 2**32 from 0 on."""
    head = struct.pack("!HHIIBBHHH", sport, dport, sequence & 0xFFFF_FFFF, ack & 0xFFFF_FFFF, 0x50, flags, 1024, 0, 0)
    return head[:16] + struct.pack("!H", checksum(pseudo(src, dst, TCP, 20 + len(data)) + head + data)) + head[18:] + data


def icmp(kind: int, rest: bytes) -> bytes:
    return struct.pack("!BBH", kind, 0, checksum(struct.pack("!BBH", kind, 0, 0) + rest)) + rest


def icmp6(src: str, dst: str, kind: int, rest: bytes) -> bytes:
    head = struct.pack("!BBH", kind, 0, 0)
    return head[:2] + struct.pack("!H", checksum(pseudo(src, dst, ICMP6, 4 + len(rest)) + head + rest)) + rest


def echo(src: str, dst: str, identity: int, payload: bytes) -> bytes:
    """An IP packet with an echo request; IPv4 with DF."""
    rest = struct.pack("!HH", identity, 1) + payload
    if ":" in src:
        return ip6(src, dst, ICMP6, icmp6(src, dst, 128, rest))
    return ip4(src, dst, ICMP, icmp(8, rest))


def echo_reply(request: Packet) -> bytes:
    """The IP packet that answers an echo request."""
    src, dst, rest = request.dst, request.src, request.body[4:]
    if ":" in src:
        return ip6(src, dst, ICMP6, icmp6(src, dst, 129, rest))
    return ip4(src, dst, ICMP, icmp(0, rest), flags=DONT_FRAGMENT)


def family(packet: bytes) -> int:
    """Ethernet type of an IP packet."""
    return IP6 if packet[0] >> 4 == 6 else IP4


def solicitation(src: str, own_mac: str, wanted: str) -> bytes:
    """ICMPv6 packet that asks for the MAC of *wanted*, to its solicited-node group."""
    group = solicited_node(wanted)
    rest = bytes(4) + ip(wanted) + b"\1\1" + mac(own_mac)
    return ip6(src, group, ICMP6, icmp6(src, group, 135, rest), hops=255)


def advertisement(src: str, dst: str, target: str, target_mac: str) -> bytes:
    """ICMPv6 packet that says: *target* is at *target_mac* (solicited, override)."""
    rest = b"\x60\0\0\0" + ip(target) + b"\2\1" + mac(target_mac)
    return ip6(src, dst, ICMP6, icmp6(src, dst, 136, rest), hops=255)


def group_report(src: str, groups: list[str]) -> bytes:
    """MLDv2 report that joins *groups*, so that a snooping bridge forwards them (RFC 3810)."""
    records = b"".join(struct.pack("!BBH", 4, 0, 0) + ip(g) for g in groups)
    rest = struct.pack("!HH", 0, len(groups)) + records
    body = icmp6(src, "ff02::16", 143, rest)
    return ip6(src, "ff02::16", 0, bytes([ICMP6, 0, 5, 2, 0, 0, 1, 0]) + body, hops=1)


def solicited_node(address: str) -> str:
    return str(IPv6Address(ip("ff02::1:ff00:0")[:13] + ip(address)[13:]))


def multicast_mac(address: str) -> str:
    packed = ip(address)
    if len(packed) == 16:
        return (b"\x33\x33" + packed[12:]).hex(":")
    return (b"\x01\0\x5e" + bytes([packed[1] & 0x7F]) + packed[2:]).hex(":")


def link_local(own_mac: str) -> str:
    """The EUI-64 link-local address of a MAC (RFC 4291, appendix A)."""
    b = mac(own_mac)
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes([b[0] ^ 2, b[1], b[2], 0xFF, 0xFE, *b[3:]])))


# -- reading ---------------------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Packet:
    """One frame, taken apart. What it has not is '' or 0."""

    raw: bytes
    mac_dst: str
    mac_src: str
    kind: int
    """Ethernet type."""
    src: str = ""
    """IPv4 or IPv6 source; the sender's address of an ARP message."""
    dst: str = ""
    protocol: int = 0
    """IP protocol behind IPv6 hop-by-hop headers; the operation of an ARP message."""
    body: bytes = b""
    """What the IP header carries."""
    fragment: bool = False

    @property
    def icmp(self) -> int:
        """ICMP or ICMPv6 type; -1 for anything else."""
        if self.fragment or self.protocol != (ICMP if self.kind == IP4 else ICMP6) or not self.body:
            return -1
        return self.body[0]

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port of UDP and TCP."""
        if self.fragment or self.protocol not in (UDP, TCP) or len(self.body) < 8:
            return 0, 0
        return int.from_bytes(self.body[:2], "big"), int.from_bytes(self.body[2:4], "big")


def read(frame: bytes) -> Packet | None:
    """A frame taken apart; None when it is too short to be one."""
    if len(frame) < 14:
        return None
    to, by, kind = frame[:6].hex(":"), frame[6:12].hex(":"), int.from_bytes(frame[12:14], "big")
    rest = frame[14:]
    plain = Packet(frame, to, by, kind)
    match kind:
        case 0x0800 if len(rest) >= 20:
            return read4(plain, rest)
        case 0x86DD if len(rest) >= 40:
            return read6(plain, rest)
        case 0x0806 if len(rest) >= 28:
            return Packet(frame, to, by, kind, str(IPv4Address(rest[14:18])), str(IPv4Address(rest[24:28])),
                          int.from_bytes(rest[6:8], "big"), rest)
    return plain


def read4(plain: Packet, rest: bytes) -> Packet:
    size, part = (rest[0] & 15) * 4, int.from_bytes(rest[6:8], "big")
    total = int.from_bytes(rest[2:4], "big")
    return Packet(plain.raw, plain.mac_dst, plain.mac_src, plain.kind, str(IPv4Address(rest[12:16])),
                  str(IPv4Address(rest[16:20])), rest[9], rest[size:total], bool(part & 0x3FFF))


def read6(plain: Packet, rest: bytes) -> Packet:
    following, body = rest[6], rest[40:40 + int.from_bytes(rest[4:6], "big")]
    if following == 0 and len(body) >= 8:
        following, body = body[0], body[8 * (body[1] + 1):]
    return Packet(plain.raw, plain.mac_dst, plain.mac_src, plain.kind, str(IPv6Address(rest[8:24])),
                  str(IPv6Address(rest[24:40])), following, body, following == 44)
