"""Echo, TCP and DNS from a station: one question, and what came back, in words."""
from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Sequence
from ipaddress import ip_address

from kvmnet.check import frames
from kvmnet.check.frames import IP4, TCP, UDP, Packet
from kvmnet.check.station import PATIENCE, Station, is_error
from kvmnet.records import dataclass

HEADERS = {4: 28, 6: 48}
"""Bytes of IP and ICMP header."""
UNREACHABLE4 = {0: "network unreachable", 1: "host unreachable", 3: "port unreachable", 4: "packet too big",
                9: "administratively prohibited", 10: "administratively prohibited",
                13: "administratively prohibited"}
UNREACHABLE6 = {0: "no route", 1: "administratively prohibited", 3: "address unreachable", 4: "port unreachable",
                5: "source address refused", 6: "route refused"}


@dataclass(frozen=True, slots=True)
class Echo:
    """What became of an echo request."""

    answered: bool
    whole: bool = False
    """The answer came in one packet."""
    words: str = ""
    """What came instead of an answer."""
    refused: bool = False
    """Somebody on the way said no."""


def version(address: str) -> int:
    return ip_address(address).version


def ping(station: Station, target: str, via: str = "", size: int = 0, patience: float = PATIENCE,
         nonce: bytes = b"") -> Echo:
    """Echo with DF to *target* through neighbour *via* (else itself), *size* bytes of IP packet. Of an answer in fragments the first counts,
    which bears the nonce: a later one may belong to the echo before."""
    src = station.address_for(target)
    if not src:
        return Echo(False, words=f"no IPv{version(target)} address to send from")
    hop = via or target
    mac = station.resolve(hop, patience)
    if not mac:
        return Echo(False, words=f"{hop} does not answer {'ND' if ':' in hop else 'ARP'}")
    nonce = nonce or os.urandom(8)
    payload = nonce + bytes(max(0, size - HEADERS[version(target)] - len(nonce)))
    packet = frames.echo(src, target, secrets.randbits(16), payload)
    answer = station.ask(frames.ether(mac, station.mac, frames.family(packet), packet),
                         lambda p: p.mac_src != station.mac and nonce in p.raw, patience)
    if answer is None:
        return Echo(False, words=f"{target} does not answer within {patience:g} s")
    if is_error(answer):
        return Echo(False, words=f"{answer.src} says: {error_words(answer)}", refused=True)
    return Echo(True, whole=not answer.fragment)


def error_words(packet: Packet) -> str:
    kind, code = packet.body[0], packet.body[1] if len(packet.body) > 1 else 0
    if packet.kind == IP4:
        return UNREACHABLE4.get(code, f"unreachable, code {code}") if kind == 3 else "time exceeded"
    return {1: UNREACHABLE6.get(code, f"unreachable, code {code}"), 2: "packet too big"}.get(kind, "time exceeded")


# -- TCP -------------------------------------------------------------------------------------------

def knock(station: Station, target: str, ports: Sequence[int], patience: float = PATIENCE) -> dict[int, str]:
    """What a SYN to each of *ports* of a neighbour brings: open, closed or refused; silent ones are left out."""
    src, mac = station.address_for(target), station.resolve(target, patience)
    if not src or not mac:
        return {}
    own, since = 32768 + secrets.randbelow(28000), len(station.heard)
    for port in ports:
        station.send_ip(wrap(src, target, TCP, frames.tcp(src, target, own, port, 2)), mac)
    found: dict[int, str] = {}
    deadline = time.monotonic() + patience
    while len(found) < len(ports) and (left := deadline - time.monotonic()) > 0:
        answer = station.wait(lambda p: answered_port(p, target, own) not in (0, *found), left, since)
        if answer is None:
            break
        port = answered_port(answer, target, own)
        found[port] = "refused" if is_error(answer) else "closed" if answer.body[13] & 4 else "open"
        if found[port] == "open":
            station.send_ip(wrap(src, target, TCP, frames.tcp(src, target, own, port, 4, sequence=2)), mac)
    return found


def answered_port(packet: Packet, target: str, own: int) -> int:
    """The port of *target* that a packet answers for; 0 when it answers nothing of ours."""
    if packet.src == target and packet.protocol == TCP and packet.ports[1] == own and len(packet.body) >= 20:
        return packet.ports[0]
    if is_error(packet) and (at := packet.body.find(struct.pack("!H", own), 8)) >= 0:
        return int.from_bytes(packet.body[at + 2:at + 4], "big")
    return 0


def wrap(src: str, dst: str, protocol: int, payload: bytes) -> bytes:
    """An IP packet of the family of *src*."""
    return frames.ip6(src, dst, protocol, payload) if ":" in src else frames.ip4(src, dst, protocol, payload)


# -- DNS -------------------------------------------------------------------------------------------

A, AAAA = 1, 28
CODES = {1: "format error", 2: "server failure", 3: "no such name", 5: "refused"}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A DNS answer. ``error``: what came instead."""

    addresses: tuple[str, ...] = ()
    error: str = ""


def look_up(station: Station, server: str, name: str, kind: int, patience: float = PATIENCE) -> Resolved:
    """Addresses of *name* by *server*, a neighbour."""
    src, mac = station.address_for(server), station.resolve(server, patience)
    if not src or not mac:
        return Resolved(error=f"{server} does not answer {'ND' if ':' in server else 'ARP'}")
    number, own = secrets.token_bytes(2), 32768 + secrets.randbelow(28000)
    question = number + struct.pack("!5H", 0x0100, 1, 0, 0, 0) + dns_name(name) + struct.pack("!HH", kind, 1)
    packet = wrap(src, server, UDP, frames.udp(src, server, own, 53, question))
    answer = station.ask(
        frames.ether(mac, station.mac, frames.family(packet), packet),
        lambda p: (p.src == server and p.ports == (53, own) and p.body[8:10] == number)
        or (is_error(p) and struct.pack("!HH", own, 53) in p.body), patience)
    if answer is None:
        return Resolved(error=f"{server} does not answer DNS")
    if is_error(answer):
        return Resolved(error=f"{server} says: {error_words(answer)}")
    return read_dns(answer.body[8:])


def dns_name(name: str) -> bytes:
    return b"".join(bytes([len(p)]) + p.encode("ascii") for p in name.rstrip(".").split(".")) + b"\0"


def read_dns(message: bytes) -> Resolved:
    """Addresses in a DNS answer (RFC 1035, 4.1). A malformed one is an error, not an exception."""
    try:
        _, flags, questions, answers = struct.unpack("!4H", message[:8])
        if code := flags & 15:
            return Resolved(error=CODES.get(code, f"response code {code}"))
        at, found = 12, []
        for _ in range(questions):
            at = skip_name(message, at) + 4
        for _ in range(answers):
            at = skip_name(message, at)
            kind, _, _, length = struct.unpack("!HHIH", message[at:at + 10])
            if kind in (A, AAAA):
                found.append(str(ip_address(message[at + 10:at + 10 + length])))
            at += 10 + length
    except (struct.error, IndexError, ValueError):
        return Resolved(error="the answer is malformed")
    return Resolved(tuple(found), "" if found else "no address of this family")


def skip_name(message: bytes, at: int) -> int:
    """Where the name at *at* ends."""
    while length := message[at]:
        if length & 0xC0:
            return at + 2
        at += length + 1
    return at + 1

