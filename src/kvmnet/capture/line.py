"""One line for one frame: enough to see what goes on, not a dissector. Pure."""
from __future__ import annotations

import struct
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address

FLAGS = "FSRPAUEC"
ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
ICMP6 = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request", 129: "echo reply", 130: "MLD query",
         131: "MLD report", 133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation",
         136: "neighbour advertisement", 143: "MLD report"}
PROTOCOLS = {1: "ICMP", 2: "IGMP", 6: "TCP", 17: "UDP", 47: "GRE", 50: "ESP", 58: "ICMPv6", 89: "OSPF", 112: "VRRP", 132: "SCTP"}
ETHERTYPES = {0x88CC: "LLDP", 0x8863: "PPPoE", 0x8864: "PPPoE", 0x888E: "802.1X", 0x8809: "slow protocols", 0x88E5: "MACsec"}
EXTENSIONS = (0, 43, 60)
"""IPv6 headers that others follow (RFC 8200, 4.1)."""


def line(time: int, where: str, sign: str, length: int, data: bytes) -> str:
    """``12:00:00.123456789 web1/nic0 > 192.0.2.1.80 > 192.0.2.2.5000 TCP SA, 74 bytes``. ``time``: nanoseconds since 1970."""
    clock = datetime.fromtimestamp(time // 1_000_000_000).strftime("%H:%M:%S")
    try:
        what = ethernet(data)
    except (struct.error, IndexError, ValueError):
        what = "cut short"
    return f"{clock}.{time % 1_000_000_000:09d} {where} {sign} {what}, {length} bytes"


def ethernet(data: bytes) -> str:
    tags, at = "", 12
    kind = number(data, at)
    while kind in (0x8100, 0x88A8):
        tags += f"VLAN {number(data, at + 2) & 0xFFF} "
        at += 4
        kind = number(data, at)
    rest = data[at + 2:]
    if kind == 0x0800:
        return tags + ipv4(rest)
    if kind == 0x86DD:
        return tags + ipv6(rest)
    if kind == 0x0806:
        return tags + arp(rest)
    ends = f"{data[6:12].hex(':')} > {data[:6].hex(':')}"
    if kind < 0x600:
        return f"{tags}{ends} {'STP' if rest[:2] == b'BB' else 'LLC'}"
    return f"{tags}{ends} {ETHERTYPES.get(kind, f'type {kind:#06x}')}"


def arp(data: bytes) -> str:
    sender, target = IPv4Address(data[14:18]), IPv4Address(data[24:28])
    if number(data, 6) == 1:
        return f"ARP who has {target}? tell {sender}"
    return f"ARP {sender} is at {data[8:14].hex(':')}"


def ipv4(data: bytes) -> str:
    source, destination = str(IPv4Address(data[12:16])), str(IPv4Address(data[16:20]))
    offset = (number(data, 6) & 0x1FFF) * 8
    if offset:
        return f"{source} > {destination} {PROTOCOLS.get(data[9], data[9])} fragment at {offset}"
    return transport(source, destination, data[9], data[(data[0] & 15) * 4:])


def ipv6(data: bytes) -> str:
    source, destination = str(IPv6Address(data[8:24])), str(IPv6Address(data[24:40]))
    kind, at = data[6], 40
    while kind in EXTENSIONS:
        kind, at = data[at], at + 8 + data[at + 1] * 8
    if kind == 44:
        if offset := number(data, at + 2) & 0xFFF8:
            return f"{source} > {destination} {PROTOCOLS.get(data[at], data[at])} fragment at {offset}"
        kind, at = data[at], at + 8
    return transport(source, destination, kind, data[at:])


def transport(source: str, destination: str, protocol: int, data: bytes) -> str:
    if protocol in (6, 17, 132):
        ends = f"{source}.{number(data, 0)} > {destination}.{number(data, 2)}"
        if protocol != 6:
            return f"{ends} {PROTOCOLS[protocol]}"
        return f"{ends} TCP {''.join(name for bit, name in enumerate(FLAGS) if data[13] >> bit & 1) or 'no flags'}"
    kinds = {1: ICMP, 58: ICMP6}.get(protocol)
    what = PROTOCOLS.get(protocol, f"protocol {protocol}")
    return f"{source} > {destination} {what}" + (f" {kinds.get(data[0], f'type {data[0]}')}" if kinds else "")


def number(data: bytes, at: int) -> int:
    """Two bytes. Raises struct.error."""
    return int(struct.unpack_from("!H", data, at)[0])
