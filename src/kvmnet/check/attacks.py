"""Frames that a guest must not be able to send, each beside one of the same shape that it may. Pure.

They are made so that one that gets through harms nobody: they go to the MAC of one receiver, which is
a probe or the host; what they claim of the host's neighbours is about addresses that nobody has.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Callable

from kvmnet.check import frames
from kvmnet.check.dhcp import COOKIE
from kvmnet.check.frames import ARP, ICMP6, IP4, IP6, UDP, ether, ip4, ip6, mac, snap, tagged, udp
from kvmnet.records import dataclass

ALL_NODES = "ff02::1"
DHCP_OFFER, DHCP_REQUEST = 2, 3
VLAN = 100
PORTS = 40001, 40002
"""Of no service."""


@dataclass(frozen=True, slots=True)
class Sender:
    """The probe that plays the attacker. Addresses are '' where it has none."""

    mac: str
    ip: str
    ip6: str
    local: str
    other_mac: str
    """A MAC that nobody has; likewise the addresses."""
    other_ip: str
    other_ip6: str


@dataclass(frozen=True, slots=True)
class Receiver:
    """Whom a frame is sent to, and whose place is claimed in front of it."""

    name: str
    mac: str
    ip: str
    ip6: str
    gateway: str
    """An IPv4 address whose owner the attacker claims to be; likewise ``gateway6``."""
    gateway6: str


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame, and the bytes by which its receiver knows it again."""

    frame: bytes
    mark: bytes


@dataclass(frozen=True, slots=True)
class Attack:
    """What is forbidden, and the control: what is allowed and takes the same way."""

    forbidden: Callable[[Sender, Receiver], Shot | None]
    """None: this network has no such thing."""
    allowed: Callable[[Sender, Receiver], Shot | None]
    says: str
    """What the forbidden frame pretends."""


def marked_udp(src: str, dst: str, ports: tuple[int, int] = PORTS, payload: bytes = b"") -> tuple[bytes, bytes]:
    """An IP packet with a nonce, and the nonce."""
    mark = os.urandom(12)
    datagram = udp(src, dst, *ports, payload + mark)
    return (ip6(src, dst, UDP, datagram) if ":" in src else ip4(src, dst, UDP, datagram)), mark


def addresses(by: Sender, to: Receiver) -> tuple[str, str]:
    """Own address and the receiver's, of a family that both have; link-local ones otherwise."""
    if by.ip and to.ip:
        return by.ip, to.ip
    return (by.ip6, to.ip6) if by.ip6 and to.ip6 else (by.local, frames.link_local(to.mac))


def plain(by: Sender, to: Receiver) -> Shot:
    packet, mark = marked_udp(*addresses(by, to))
    return Shot(ether(to.mac, by.mac, frames.family(packet), packet), mark)


def plain4(by: Sender, to: Receiver) -> Shot | None:
    return from_address(by, to, by.ip, to.ip)


def plain6(by: Sender, to: Receiver) -> Shot:
    shot = from_address(by, to, by.ip6, to.ip6) or from_address(by, to, by.local, frames.link_local(to.mac))
    assert shot
    return shot


def from_address(by: Sender, to: Receiver, src: str, dst: str) -> Shot | None:
    if not src or not dst:
        return None
    packet, mark = marked_udp(src, dst)
    return Shot(ether(to.mac, by.mac, frames.family(packet), packet), mark)


# -- whose frame it is -----------------------------------------------------------------------------

def spoofed_mac(by: Sender, to: Receiver) -> Shot:
    packet, mark = marked_udp(*addresses(by, to))
    return Shot(ether(to.mac, by.other_mac, frames.family(packet), packet), mark)


def spoofed_ip4(by: Sender, to: Receiver) -> Shot | None:
    return from_address(by, to, by.other_ip, to.ip)


def spoofed_ip6(by: Sender, to: Receiver) -> Shot | None:
    return from_address(by, to, by.other_ip6, to.ip6)


def spoofed_local(by: Sender, to: Receiver) -> Shot | None:
    """The link-local address of another MAC."""
    return from_address(by, to, frames.link_local(by.other_mac), frames.link_local(to.mac))


def arp_reply(by: Sender, to: Receiver, claimed: str) -> Shot | None:
    if not claimed:
        return None
    body = frames.arp(2, (by.mac, claimed), (to.mac, to.ip or "0.0.0.0"))
    return Shot(ether(to.mac, by.mac, ARP, body), body)


def arp_request(by: Sender, to: Receiver, claimed: str) -> Shot | None:
    """Receivers learn from requests as well (RFC 826)."""
    if not claimed or not to.ip:
        return None
    body = frames.arp(1, (by.mac, claimed), (frames.NOBODY, to.ip))
    return Shot(ether(to.mac, by.mac, ARP, body), body)


def neighbour(by: Sender, to: Receiver, claimed: str) -> Shot | None:
    """A neighbour advertisement that gives *claimed* to the sender's MAC."""
    if not claimed:
        return None
    src, dst = by.local, frames.link_local(to.mac)
    packet = frames.advertisement(src, dst, claimed, by.mac)
    return Shot(ether(to.mac, by.mac, IP6, packet), packet[40:])


# -- who may speak ---------------------------------------------------------------------------------

def router_message(by: Sender, ticks: bytes) -> bytes:
    """A router advertisement with a lifetime of 0 and no prefix: it changes nothing."""
    return frames.icmp6(by.local, ALL_NODES, 134, b"\x40\0\0\0" + bytes(4) + ticks + b"\1\1" + mac(by.mac))


def advertise(by: Sender, to: Receiver) -> Shot:
    message = router_message(by, ticks := os.urandom(4))
    return Shot(ether(to.mac, by.mac, IP6, ip6(by.local, ALL_NODES, ICMP6, message, 255)), ticks + b"\1\1" + mac(by.mac))


def hidden_advertise(by: Sender, to: Receiver) -> Shot:
    """The same behind a destination options header (RFC 7113)."""
    message = bytes([ICMP6, 0, 1, 4, 0, 0, 0, 0]) + router_message(by, ticks := os.urandom(4))
    return Shot(ether(to.mac, by.mac, IP6, ip6(by.local, ALL_NODES, 60, message, 255)), ticks + b"\1\1" + mac(by.mac))


def dhcp_offer(by: Sender, to: Receiver) -> Shot | None:
    if not by.ip:
        return None
    message = struct.pack("!BBBB", 2, 1, 6, 0) + os.urandom(4) + bytes(228) + COOKIE + bytes([53, 1, DHCP_OFFER])
    packet, mark = marked_udp(by.ip, "255.255.255.255", (67, 68), message + b"\xff")
    return Shot(ether(to.mac, by.mac, IP4, packet), mark)


def foreign_request(by: Sender, to: Receiver) -> Shot:
    """A DHCP request in the name of another MAC."""
    head = struct.pack("!BBBB", 1, 1, 6, 0) + os.urandom(4) + bytes(20) + mac(by.other_mac) + bytes(10 + 192)
    packet, mark = marked_udp("0.0.0.0", "255.255.255.255", (68, 67), head + COOKIE + bytes([53, 1, 1, 255]))
    return Shot(ether(to.mac, by.mac, IP4, packet), mark)


def dhcp6_advertise(by: Sender, to: Receiver) -> Shot:
    packet, mark = marked_udp(by.local, frames.link_local(to.mac), (547, 546), b"\2" + os.urandom(3))
    return Shot(ether(to.mac, by.mac, IP6, packet), mark)


# -- in what clothes -------------------------------------------------------------------------------

def dressed(wrap: Callable[[bytes], bytes]) -> Callable[[Sender, Receiver], Shot]:
    def shot(by: Sender, to: Receiver) -> Shot:
        bare = plain(by, to)
        return Shot(wrap(bare.frame), bare.mark)
    return shot


def in_snap(frame: bytes) -> bytes:
    return snap(frame[:6].hex(":"), frame[6:12].hex(":"), int.from_bytes(frame[12:14], "big"), frame[14:])


ATTACKS: dict[str, Attack] = {
    "spoofed-mac": Attack(spoofed_mac, plain, "another source MAC"),
    "spoofed-ipv4": Attack(spoofed_ip4, plain4, "another IPv4 source"),
    "spoofed-ipv6": Attack(spoofed_ip6, plain6, "another IPv6 source"),
    "spoofed-link-local": Attack(spoofed_local, plain6, "another MAC's link-local source"),
    "arp-spoof": Attack(lambda by, to: arp_reply(by, to, to.gateway), lambda by, to: arp_reply(by, to, by.ip),
                        "an ARP reply that takes another address"),
    "arp-request-spoof": Attack(lambda by, to: arp_request(by, to, to.gateway),
                                lambda by, to: arp_request(by, to, by.ip),
                                "an ARP request from another address"),
    "nd-spoof": Attack(lambda by, to: neighbour(by, to, to.gateway6),
                       lambda by, to: neighbour(by, to, by.ip6 or by.local),
                       "a neighbour advertisement that takes another address"),
    "rogue-ra": Attack(advertise, plain6, "a router advertisement"),
    "hidden-ra": Attack(hidden_advertise, plain6, "a router advertisement behind an option header"),
    "rogue-dhcp": Attack(dhcp_offer, plain4, "a DHCP offer"),
    "rogue-dhcp6": Attack(dhcp6_advertise, plain6, "a DHCPv6 advertisement"),
    "dhcp-as-other": Attack(foreign_request, plain, "a DHCP request for another MAC"),
    "vlan-tagged": Attack(dressed(lambda f: tagged(VLAN, f)), plain, "a VLAN tag"),
    "vlan-zero": Attack(dressed(lambda f: tagged(0, f)), plain, "a priority tag"),
    "vlan-stacked": Attack(dressed(lambda f: tagged(VLAN, tagged(VLAN, f), 0x88A8)), plain, "two VLAN tags"),
    "llc-snap": Attack(dressed(in_snap), plain, "an LLC/SNAP header"),
}
"""Name -> attack, in the order of the report."""
