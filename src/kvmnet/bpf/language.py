"""The language of pcap-filter(7), as far as kvmnet knows it. Pure.

Known: host, net, port, portrange, proto with src and dst before them and ether, ip, ip6, arp, tcp, udp, icmp and others
before these; the protocols alone; vlan, broadcast, multicast, less, greater; and, or, not and parentheses. As there,
``and`` and ``or`` bind equally, from left to right. Another than there, ``vlan`` asks for the tag and leaves the rest of
the expression as it was. What is not known (``tcp[13] & 2``, names of hosts and services) is refused, never guessed.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address, ip_network

from kvmnet.bpf import tree
from kvmnet.bpf.tree import Field, Is, Length, Node, Not, every, some
from kvmnet.records import dataclass, replace

KINDS = {"ip": tree.IP, "ip6": tree.IP6, "arp": tree.ARP, "rarp": tree.RARP}
CARRIED = {"tcp": 6, "udp": 17, "sctp": 132, "esp": 50, "ah": 51, "pim": 103, "vrrp": 112, "gre": 47}
ONLY4 = {"icmp": 1, "igmp": 2}
ONLY6 = {"icmp6": 58}
PROTOCOLS = {**CARRIED, **ONLY4, **ONLY6}
WITH_PORTS = ("tcp", "udp", "sctp")
TYPES = ("host", "net", "port", "portrange", "proto")
DIRECTIONS = ("src", "dst")
TOKEN = re.compile(r"\s*(\(|\)|&&|\|\||!|\\?[0-9A-Za-z_.:/-]+)")
MAC = re.compile(r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}")
WORDS = {"&&": "and", "||": "or", "!": "not"}
DEEPEST = 50


@dataclass(frozen=True, slots=True)
class Qualifiers:
    """What stands before a value."""

    proto: str = ""
    direction: str = ""
    kind: str = ""


class Reader:
    def __init__(self, text: str):
        self.tokens = split(text)
        self.at = 0
        self.last = Qualifiers()
        self.depth = 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise ValueError("it ends where something should follow")
        self.at += 1
        return token

    def expression(self) -> Node:
        found = self.term()
        while self.peek() in ("and", "or"):
            joined = every if self.take() == "and" else some
            found = joined(found, self.term())
        return found

    def term(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} parentheses and nots inside each other")
        try:
            if self.peek() == "not":
                self.take()
                return Not(self.term())
            if self.peek() == "(":
                self.take()
                found = self.expression()
                if self.take() != ")":
                    raise ValueError("a parenthesis is not closed")
                return found
            return self.primitive()
        finally:
            self.depth -= 1

    def primitive(self) -> Node:
        token = self.peek()
        if token in SINGLE:
            self.take()
            return SINGLE[token](self)
        begun = self.qualifiers()
        if begun is None:    # "port 80 or 443": the value is of the kind that was asked last
            if self.last == Qualifiers() and not is_address(token):
                raise ValueError(f"{token} is not understood here")
            return self.value(self.last if self.last != Qualifiers() else Qualifiers(kind="host"))
        if begun == replace(begun, direction="", kind="") and (self.peek() in ("", "and", "or", ")")):
            self.last = Qualifiers()
            return alone(begun.proto)
        if not begun.kind:
            begun = replace(begun, kind="net" if "/" in self.peek() else "host")
        self.last = begun
        return self.value(begun)

    def qualifiers(self) -> Qualifiers | None:
        """None when there are none."""
        proto = direction = kind = ""
        if self.peek() in ("ether", *KINDS, *PROTOCOLS):
            proto = self.take()
        if self.peek() in DIRECTIONS:
            direction = self.take()
            if self.peek() in ("and", "or") and self.peek(1) in DIRECTIONS and self.peek(1) != direction:
                direction = f"src {self.take()} dst"
                self.take()
        if self.peek() in TYPES or (self.peek() in ("broadcast", "multicast") and proto == "ether"):
            kind = self.take()
        found = Qualifiers(proto, direction, kind)
        return None if found == Qualifiers() else found

    def value(self, asked: Qualifiers) -> Node:
        if asked.kind in ("broadcast", "multicast"):
            return cast(asked.kind)
        if asked.kind == "port":
            number = port(self.take())
            return port_range(asked, number, number)
        if asked.kind == "portrange":
            first, dash, last = self.take().partition("-")
            if not dash or port(first) > port(last):
                raise ValueError(f"{first}{dash}{last} is not a range of ports, FIRST-LAST")
            return port_range(asked, port(first), port(last))
        if asked.kind == "proto":
            return of_protocol(asked, self.take().removeprefix("\\"))
        return addressed(asked, self.take())


def split(text: str) -> list[str]:
    found, here = [], 0
    text = text.rstrip()
    while here < len(text):
        match = TOKEN.match(text, here)
        if match is None:
            raise ValueError(f"{text[here:].strip()[:20]!r} is not understood")
        token = match[1]
        found.append(WORDS.get(token, token.lower() if not token.isdigit() else token))
        here = match.end()
    return found


def is_address(token: str) -> bool:
    try:
        ip_network(token, strict=False)
    except ValueError:
        return bool(MAC.fullmatch(token))
    return True


def alone(proto: str) -> Node:
    """A protocol that stands for all of its packets."""
    if proto in KINDS:
        return tree.ethertype(KINDS[proto])
    if proto in ONLY4:
        return tree.protocol4(ONLY4[proto])
    if proto in ONLY6:
        return tree.protocol6(ONLY6[proto])
    if proto in CARRIED:
        return tree.protocol(CARRIED[proto])
    raise ValueError("ether stands before host, src, dst, proto, broadcast or multicast")


def cast(kind: str) -> Node:
    return tree.mac("dst", "ff:ff:ff:ff:ff:ff") if kind == "broadcast" else Is(Field(0, 1, 1), 1)


def port(token: str) -> int:
    if not (token.isascii() and token.isdigit() and int(token) < 65536):
        raise ValueError(f"{token} is not a port from 0 to 65535")
    return int(token)


def port_range(asked: Qualifiers, first: int, last: int) -> Node:
    if asked.proto and asked.proto not in WITH_PORTS:
        raise ValueError(f"{asked.proto} has no ports; write tcp, udp or sctp, or nothing")
    found = (PROTOCOLS[asked.proto],) if asked.proto else (tree.SCTP, tree.TCP, tree.UDP)
    return tree.ports(asked.direction, first, last, found)


def of_protocol(asked: Qualifiers, token: str) -> Node:
    if asked.direction or asked.proto not in ("", "ip", "ip6", "ether"):
        raise ValueError("proto stands alone, or behind ip, ip6 or ether")
    known = KINDS if asked.proto == "ether" else PROTOCOLS
    most = 0xFFFF if asked.proto == "ether" else 0xFF
    try:
        number = known[token] if token in known else int(token, 0)
    except ValueError:
        raise ValueError(f"{token} is not a protocol") from None
    if not 0 <= number <= most:
        raise ValueError(f"{token} is not a protocol from 0 to {most}")
    return {"ip": tree.protocol4, "ip6": tree.protocol6, "ether": tree.ethertype, "": tree.protocol}[asked.proto](number)


def addressed(asked: Qualifiers, token: str) -> Node:
    """host and net."""
    if MAC.fullmatch(token):
        if asked.proto not in ("", "ether"):
            raise ValueError(f"{token} is a MAC: write ether host {token}")
        return tree.mac(asked.direction, ":".join(part.zfill(2) for part in token.split(":")))
    if asked.proto == "ether":
        raise ValueError(f"{token} is not a MAC")
    try:
        found = str(ip_network(token)) if asked.kind == "net" else str(ip_address(token))
    except ValueError:
        what = "a prefix without host bits, e.g. 192.0.2.0/24" if asked.kind == "net" else "an address"
        raise ValueError(f"{token} is not {what}") from None
    if not asked.proto:
        return tree.network(asked.direction, found)
    version = 6 if ":" in found else 4
    if asked.proto in KINDS:
        if (version == 6) != (asked.proto == "ip6"):
            raise ValueError(f"{asked.proto} has no such address as {token}")
        return tree.network(asked.direction, found, (KINDS[asked.proto],))
    raise ValueError(f"{asked.proto} has no addresses: write {asked.proto} and {asked.kind} {token}")


def tagged(reader: Reader) -> Node:
    token = reader.peek()
    if not token.isdigit():
        return tree.vlan()
    number = int(reader.take())
    if number > 4095:
        raise ValueError(f"{token} is not a VLAN from 0 to 4095")
    return tree.vlan(number)


def length(reader: Reader, first: int | None, last: int | None) -> Node:
    token = reader.take()
    if not (token.isascii() and token.isdigit() and int(token) < 2**31):
        raise ValueError(f"{token} is not a number of bytes")
    low, high = (int(token) if first is None else first), (int(token) if last is None else last)
    return Is(Length(), low, high)


SINGLE: dict[str, Callable[[Reader], Node]] = {
    "vlan": tagged, "broadcast": lambda reader: cast("broadcast"), "multicast": lambda reader: cast("multicast"),
    "less": lambda reader: length(reader, 0, None), "greater": lambda reader: length(reader, None, 2**31),
}
"""Words that are a condition by themselves, or with one number."""


def parse(text: str) -> Node:
    """The condition that *text* writes. Raises ValueError, with words for a person."""
    if not text.strip():
        raise ValueError("an empty expression; leave it out for every frame")
    reader = Reader(text)
    found = reader.expression()
    if reader.peek():
        raise ValueError(f"{reader.peek()} is not understood here")
    return found
