"""Frames as bytes: enough of Ethernet, ARP, IPv4, IPv6, ICMP, UDP and ND to act as a guest or an attacker."""
from __future__ import annotations

import struct
from ipaddress import ip_address

BROADCAST = "ff:ff:ff:ff:ff:ff"
TCP, UDP, ICMP, IGMP, ICMP6 = 6, 17, 1, 2, 58


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return ip_address(text).packed


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ether(dst: str, src: str, kind: int, payload: bytes) -> bytes:
    return mac(dst) + mac(src) + struct.pack("!H", kind) + payload


def tag(vlan: int, frame: bytes, kind: int = 0x8100) -> bytes:
    """*frame* with one more VLAN tag outside."""
    return frame[:12] + struct.pack("!HH", kind, vlan) + frame[12:]


def llc(dst: str, src: str, payload: bytes) -> bytes:
    """An 802.3 frame: its type field is the length of what follows."""
    return ether(dst, src, len(payload), payload)


def snap(kind: int, payload: bytes) -> bytes:
    return b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", kind) + payload


def arp(op: int, sender: tuple[str, str], target: tuple[str, str], start: bytes = b"\0\1\x08\0\6\4") -> bytes:
    return start + struct.pack("!H", op) + mac(sender[0]) + ip(sender[1]) + mac(target[0]) + ip(target[1])


def ip4(src: str, dst: str, proto: int, payload: bytes, *, frag: int = 0, options: bytes = b"", ttl: int = 64,
        version: int = 4) -> bytes:
    """``frag``: flags and offset field, e.g. 0x2000 for a first fragment."""
    header = struct.pack("!BBHHHBBH", version << 4 | 5 + len(options) // 4, 0, 20 + len(options) + len(payload), 7,
                         frag, ttl, proto, 0) + ip(src) + ip(dst) + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + payload


def pseudo(src: str, dst: str, proto: int, length: int) -> bytes:
    return ip(src) + ip(dst) + struct.pack("!IHBB", length, 0, 0, proto) if ":" in src else \
        ip(src) + ip(dst) + struct.pack("!BBH", 0, proto, length)


def udp(src: str, dst: str, sport: int, dport: int, payload: bytes = b"") -> bytes:
    """A UDP datagram between two addresses, checksummed."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    total = checksum(pseudo(src, dst, UDP, 8 + len(payload)) + head + payload) or 0xFFFF
    return head[:6] + struct.pack("!H", total) + payload


def tcp(src: str, dst: str, sport: int, dport: int, flags: int = 2) -> bytes:
    head = struct.pack("!HHIIBBHHH", sport, dport, 1, 0, 0x50, flags, 1000, 0, 0)
    return head[:16] + struct.pack("!H", checksum(pseudo(src, dst, TCP, 20) + head)) + head[18:]


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    """ICMP or IGMP: type, code, checksum, the rest."""
    return struct.pack("!BBH", kind, code, checksum(struct.pack("!BBH", kind, code, 0) + rest)) + rest


def ip6(src: str, dst: str, proto: int, payload: bytes, *, hops: int = 255, version: int = 6) -> bytes:
    return struct.pack("!IHBB", version << 28, len(payload), proto, hops) + ip(src) + ip(dst) + payload


def icmp6(src: str, dst: str, kind: int, rest: bytes, code: int = 0) -> bytes:
    head = struct.pack("!BBH", kind, code, 0)
    total = checksum(pseudo(src, dst, ICMP6, 4 + len(rest)) + head + rest)
    return struct.pack("!BBH", kind, code, total) + rest


def option(kind: int, data: bytes) -> bytes:
    """An ND option; *data* fills its units of 8 bytes."""
    return bytes([kind, (len(data) + 2) // 8]) + data


def extension(following: int, body: bytes = b"\1\4\0\0\0\0") -> bytes:
    """A hop-by-hop, destination or routing header of 8 bytes and more (default: padding)."""
    return bytes([following, (len(body) + 2) // 8 - 1]) + body


ROUTER_ALERT = b"\5\2\0\0\1\0"


def fragment(following: int, payload: bytes, *, offset: int = 0, more: bool = True) -> bytes:
    """An IPv6 fragment header and its part. ``offset`` in bytes."""
    return struct.pack("!BBHI", following, 0, offset | more, 0x1234) + payload


def solicited_node(address: str) -> str:
    return f"ff02::1:ff{ip(address)[13]:02x}:{int.from_bytes(ip(address)[14:], 'big'):x}"


def multicast_mac(address: str) -> str:
    packed = ip(address)
    return (b"\x33\x33" + packed[12:]).hex(":") if len(packed) == 16 else \
        (b"\x01\0\x5e" + bytes([packed[1] & 0x7F]) + packed[2:]).hex(":")


def dhcp(op: int, kind: int, chaddr: str) -> bytes:
    """A BOOTP message with the DHCP option *kind* (1 discover, 2 offer, 3 request)."""
    return (struct.pack("!BBBBIHH16x", op, 1, 6, 0, 0x77, 0, 0x8000) + mac(chaddr) + bytes(10 + 192)
            + b"\x63\x82\x53\x63" + bytes([53, 1, kind, 255]))
