"""A small DHCPv6 client (RFC 8415) and a reader of router advertisements (RFC 4861), inside the caller's
namespace."""
from __future__ import annotations

import os
import socket
import struct
import time
from dataclasses import dataclass, field
from ipaddress import IPv6Address

SOLICIT, ADVERTISE, REQUEST, RENEW, REPLY, INFORMATION = 1, 2, 3, 5, 7, 11
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDR, ORO, ELAPSED, STATUS, DNS, DOMAINS, NTP = 1, 2, 3, 5, 6, 8, 13, 23, 24, 56
NO_ADDRS, NO_BINDING = 2, 3


def duid_ll(mac: str) -> bytes:
    return b"\0\x03\0\x01" + bytes.fromhex(mac.replace(":", ""))


def duid_uuid(seed: bytes) -> bytes:
    """A DUID that does not tell the MAC (RFC 6355)."""
    return b"\0\x04" + (seed * 16)[:16]


@dataclass
class Reply6:
    kind: int
    options: dict[int, bytes]
    addresses: list[str] = field(default_factory=list)
    status: int = 0
    """Status code of the identity association."""

    @property
    def dns(self) -> list[str]:
        raw = self.options.get(DNS, b"")
        return [str(IPv6Address(raw[i:i + 16])) for i in range(0, len(raw), 16)]


def option(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


def options(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(raw) >= 4:
        code, length = struct.unpack("!HH", raw[:4])
        found[code], raw = raw[4:4 + length], raw[4 + length:]
    return found


def parse(packet: bytes) -> Reply6:
    reply = Reply6(packet[0], options(packet[4:]))
    if (ia := reply.options.get(IA_NA)) is not None:
        inner = options(ia[12:])
        if IA_ADDR in inner:
            reply.addresses.append(str(IPv6Address(inner[IA_ADDR][:16])))
        if STATUS in inner:
            reply.status = int.from_bytes(inner[STATUS][:2], "big")
    if STATUS in reply.options:
        reply.status = reply.status or int.from_bytes(reply.options[STATUS][:2], "big")
    return reply


class Client6:
    """One client on eth0 of the current namespace."""

    def __init__(self, duid: bytes, iaid: int = 0xC0A81234):
        self.duid, self.iaid = duid, iaid
        self.index = socket.if_nametoindex("eth0")
        self.sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(("::", 546))

    def __enter__(self) -> Client6:
        return self

    def __exit__(self, *error: object) -> None:
        self.sock.close()

    def ask(self, kind: int, more: bytes = b"", seconds: float = 20) -> Reply6 | None:
        """The first answer to one message, or None."""
        number = os.urandom(3)
        packet = (bytes([kind]) + number + option(CLIENT_ID, self.duid) + option(ELAPSED, b"\0\0")
                  + option(ORO, struct.pack("!HHH", DNS, DOMAINS, NTP)) + more)
        self.sock.sendto(packet, ("ff02::1:2", 547, 0, self.index))
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.sock.settimeout(left)
            try:
                answer = self.sock.recv(4096)
            except TimeoutError:
                return None
            if answer[1:4] == number:
                return parse(answer)
        return None

    def identity(self, address: str = "") -> bytes:
        inner = option(IA_ADDR, IPv6Address(address).packed + bytes(8)) if address else b""
        return option(IA_NA, struct.pack("!III", self.iaid, 0, 0) + inner)

    def lease(self) -> Reply6 | None:
        """Solicit, then request what was advertised. Status says why there is no address."""
        offer = self.ask(SOLICIT, self.identity())
        if offer is None or not offer.addresses:
            return offer
        server = option(SERVER_ID, offer.options[SERVER_ID])
        return self.ask(REQUEST, server + self.identity(offer.addresses[0]))


@dataclass
class Advert:
    """One router advertisement."""

    lifetime: int
    """Seconds as a default router."""
    managed: bool
    other: bool
    mtu: int = 0
    prefixes: dict[str, bool] = field(default_factory=dict)
    """Prefix -> autonomous configuration allowed."""
    dns: list[str] = field(default_factory=list)


def solicit_router(seconds: float = 20) -> Advert | None:
    """Ask for routers on eth0 of the current namespace, and read the answer."""
    index = socket.if_nametoindex("eth0")
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP,
                        IPv6Address("ff02::1").packed + struct.pack("@I", index))
        sock.sendto(b"\x85\0\0\0\0\0\0\0", ("ff02::2", 0, 0, index))
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            sock.settimeout(left)
            try:
                packet = sock.recv(4096)
            except TimeoutError:
                return None
            if packet[0] == 134:
                return parse_advert(packet)
    return None


def parse_advert(packet: bytes) -> Advert:
    advert = Advert(int.from_bytes(packet[6:8], "big"), bool(packet[5] & 0x80), bool(packet[5] & 0x40))
    at = 16
    while at + 2 <= len(packet) and packet[at + 1]:
        body = packet[at:at + 8 * packet[at + 1]]
        match body[0]:
            case 3:
                advert.prefixes[f"{IPv6Address(body[16:32])}/{body[2]}"] = bool(body[3] & 0x40)
            case 5:
                advert.mtu = int.from_bytes(body[4:8], "big")
            case 25:
                advert.dns += [str(IPv6Address(body[i:i + 16])) for i in range(8, len(body), 16)]
        at += len(body)
    return advert
