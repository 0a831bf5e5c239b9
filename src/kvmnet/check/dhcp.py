"""DHCPv4 (RFC 2131), DHCPv6 (RFC 8415) and router solicitation (RFC 4861) from a station."""
from __future__ import annotations

import secrets
import struct
from ipaddress import IPv4Address, IPv6Address

from kvmnet.check import frames
from kvmnet.check.frames import BROADCAST, IP4, IP6, UDP, Packet
from kvmnet.check.station import PATIENCE, Station
from kvmnet.records import dataclass, field

COOKIE = b"\x63\x82\x53\x63"
DISCOVER, OFFER, REQUEST, ACK, NAK, RELEASE = 1, 2, 3, 5, 6, 7
WANTED = bytes([1, 3, 6, 15, 26, 51, 54, 121])


@dataclass(frozen=True, slots=True)
class Lease4:
    """What a DHCPv4 server gave. ``error``: why it gave nothing."""

    address: str = ""
    server: str = ""
    router: str = ""
    mtu: int = 0
    """Bytes; 0 when not told."""
    seconds: int = 0
    nameservers: tuple[str, ...] = ()
    error: str = ""


def lease4(station: Station, patience: float = PATIENCE) -> Lease4:
    """Discover, request, and the lease."""
    number = secrets.token_bytes(4)

    def converse(kind: int, more: bytes) -> Packet | None:
        message = bootp(station.mac, number, kind, more + bytes([55, len(WANTED)]) + WANTED)
        packet = frames.ip4("0.0.0.0", "255.255.255.255", UDP,
                            frames.udp("0.0.0.0", "255.255.255.255", 68, 67, message), flags=0)
        return station.ask(frames.ether(BROADCAST, station.mac, IP4, packet),
                           lambda p: p.ports == (67, 68) and p.body[12:16] == number and len(p.body) > 248
                           and kind_of(p) in ((OFFER,) if kind == DISCOVER else (ACK, NAK)), patience)

    offer = converse(DISCOVER, b"")
    if offer is None:
        return Lease4(error="no DHCP server answers")
    address, server = offer.body[24:28], options4(offer.body[8:]).get(54, b"")
    if len(server) != 4:
        return Lease4(error="the offer names no server")
    answer = converse(REQUEST, b"\x32\x04" + address + b"\x36\x04" + server)
    if answer is None:
        return Lease4(error=f"{IPv4Address(server)} offers {IPv4Address(address)} and does not confirm it")
    if kind_of(answer) == NAK:
        return Lease4(error=f"{IPv4Address(server)} offers {IPv4Address(address)}, then refuses it")
    return read_lease4(answer.body[8:])


def release4(station: Station, lease: Lease4) -> None:
    """Give a lease back, so that the server forgets it."""
    mac = station.resolve(lease.server)
    if not mac or not lease.address:
        return
    message = bootp(station.mac, secrets.token_bytes(4), RELEASE, b"\x36\x04" + frames.ip(lease.server), lease.address)
    station.send_ip(frames.ip4(lease.address, lease.server, UDP,
                               frames.udp(lease.address, lease.server, 68, 67, message)), mac)


def bootp(mac: str, number: bytes, kind: int, more: bytes, address: str = "0.0.0.0", op: int = 1) -> bytes:
    """A DHCP message; answers are asked for by broadcast, as the address is not ours yet."""
    flags = 0x8000 if address == "0.0.0.0" else 0
    head = struct.pack("!BBBB", op, 1, 6, 0) + number + struct.pack("!HH", 0, flags) + frames.ip(address)
    return head + bytes(12) + frames.mac(mac) + bytes(10 + 192) + COOKIE + bytes([53, 1, kind]) + more + b"\xff"


def options4(message: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    rest = message[240:] if message[236:240] == COOKIE else b""
    while len(rest) >= 2 and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        found[rest[0]] = found.get(rest[0], b"") + rest[2:2 + rest[1]]
        rest = rest[2 + rest[1]:]
    return found


def kind_of(packet: Packet) -> int:
    return int.from_bytes(options4(packet.body[8:]).get(53, b""), "big")


def read_lease4(message: bytes) -> Lease4:
    told = options4(message)

    def addresses(code: int) -> tuple[str, ...]:
        raw = told.get(code, b"")
        return tuple(str(IPv4Address(raw[i:i + 4])) for i in range(0, len(raw) - 3, 4))

    return Lease4(str(IPv4Address(message[16:20])), next(iter(addresses(54)), ""), next(iter(addresses(3)), ""),
                  int.from_bytes(told.get(26, b""), "big"), int.from_bytes(told.get(51, b""), "big"), addresses(6))


# -- DHCPv6 ----------------------------------------------------------------------------------------

SOLICIT, ADVERTISE, REQUEST6, REPLY, RELEASE6 = 1, 2, 3, 7, 8
CLIENT_ID, SERVER_ID, IA_NA, IA_ADDR, ORO, ELAPSED, STATUS, DNS6 = 1, 2, 3, 5, 6, 8, 13, 23
SERVERS = "ff02::1:2"


@dataclass(frozen=True, slots=True)
class Lease6:
    """What a DHCPv6 server gave. ``error``: why it gave nothing."""

    address: str = ""
    server: bytes = b""
    """Its DUID."""
    nameservers: tuple[str, ...] = ()
    error: str = ""


def lease6(station: Station, patience: float = PATIENCE) -> Lease6:
    """Solicit, request, and the lease."""
    advert = converse6(station, SOLICIT, identity(station, ""), patience)
    if advert is None:
        return Lease6(error="no DHCPv6 server answers")
    offered = read_lease6(advert)
    if not offered.address:
        return offered
    reply = converse6(station, REQUEST6, option6(SERVER_ID, offered.server) + identity(station, offered.address), patience)
    if reply is None:
        return Lease6(error=f"{offered.address} is offered and not confirmed")
    return read_lease6(reply)


def release6(station: Station, lease: Lease6) -> None:
    """Give a lease back, so that the server forgets it; not one that the guest itself has."""
    if lease.address and not station.borrowed:
        converse6(station, RELEASE6, option6(SERVER_ID, lease.server) + identity(station, lease.address), 0.3)


def converse6(station: Station, kind: int, more: bytes, patience: float) -> bytes | None:
    """The server's message in answer to one of ours, or None."""
    number = secrets.token_bytes(3)
    message = (bytes([kind]) + number + option6(CLIENT_ID, station.duid)
               + option6(ELAPSED, b"\0\0") + option6(ORO, struct.pack("!H", DNS6)) + more)
    packet = frames.ip6(station.local, SERVERS, UDP, frames.udp(station.local, SERVERS, 546, 547, message), hops=1)
    answer = station.ask(frames.ether(frames.multicast_mac(SERVERS), station.mac, IP6, packet),
                         lambda p: p.ports == (547, 546) and p.body[9:12] == number, patience)
    return answer.body[8:] if answer else None


def identity(station: Station, address: str) -> bytes:
    inner = option6(IA_ADDR, frames.ip(address) + bytes(8)) if address else b""
    return option6(IA_NA, struct.pack("!III", station.iaid, 0, 0) + inner)


def option6(code: int, data: bytes) -> bytes:
    return struct.pack("!HH", code, len(data)) + data


def options6(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while len(raw) >= 4:
        code, length = struct.unpack("!HH", raw[:4])
        found[code], raw = raw[4:4 + length], raw[4 + length:]
    return found


def read_lease6(message: bytes) -> Lease6:
    told = options6(message[4:])
    inner = options6(told.get(IA_NA, b"")[12:])
    address, status = inner.get(IA_ADDR, b""), inner.get(STATUS) or told.get(STATUS) or b""
    server, raw = told.get(SERVER_ID, b""), told.get(DNS6, b"")
    if len(address) < 16:
        words = status[2:].decode(errors="replace")
        return Lease6(server=server, error=f"the DHCPv6 server gives no address{f': {words}' if words else ''}")
    names = tuple(str(IPv6Address(raw[i:i + 16])) for i in range(0, len(raw) - 15, 16))
    return Lease6(str(IPv6Address(address[:16])), server, names)


# -- router advertisements ---------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Router:
    """One router advertisement."""

    address: str
    lifetime: int
    """Seconds as a default router; 0 for none."""
    managed: bool
    mtu: int = 0
    """Bytes; 0 when not told."""
    prefixes: dict[str, bool] = field(default_factory=dict)
    """Prefix -> guests may form addresses from it themselves."""


ROUTER_PATIENCE = 4.0
"""Seconds: a bridge whose first port has just come up has no link-local address for 1-2 s (RFC 4862, 5.4)."""


def find_router(station: Station, patience: float = ROUTER_PATIENCE) -> Router | None:
    """The first router that answers a solicitation as guests accept it (RFC 4861, 6.1.2)."""
    packet = frames.ip6(station.local, "ff02::2", frames.ICMP6,
                        frames.icmp6(station.local, "ff02::2", 133, bytes(4) + b"\1\1" + frames.mac(station.mac)), 255)
    answer = station.ask(frames.ether(frames.multicast_mac("ff02::2"), station.mac, IP6, packet),
                         lambda p: p.kind == IP6 and p.icmp == 134 and len(p.body) >= 16 and p.src.startswith("fe80:")
                         and p.raw[21] == 255, patience)
    return read_router(answer) if answer else None


def read_router(packet: Packet) -> Router:
    body, mtu, prefixes = packet.body, 0, {}
    at = 16
    while at + 2 <= len(body) and body[at + 1]:
        part = body[at:at + 8 * body[at + 1]]
        if part[0] == 5 and len(part) >= 8:
            mtu = int.from_bytes(part[4:8], "big")
        elif part[0] == 3 and len(part) >= 32:
            prefixes[f"{IPv6Address(part[16:32])}/{part[2]}"] = bool(part[3] & 0x40)
        at += len(part)
    return Router(packet.src, int.from_bytes(body[6:8], "big"), bool(body[5] & 0x80), mtu, prefixes)
