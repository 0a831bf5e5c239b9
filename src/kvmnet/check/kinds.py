"""Kinds of packets by which the rules of groups and tenants are told from each other, and what the rules say of each. Pure.

For each rule: what it names, what lies beside it, and the same ports of the other protocol; and what no rule names by chance.
"""
from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import count
from typing import TypeAlias

from kvmnet.check import frames
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.policy.flows import ICMP, ICMP6, TCP, UDP, Flow, Judge, Networks, Policy, Rule
from kvmnet.records import dataclass
from kvmnet.spec.values import ICMP_TYPES

MOST = 24
"""Kinds of one family that are tried between two."""
NOTHINGS = 40003
"""A port of no service, and of no other claim."""
DHCP = frozenset({67, 68, 546, 547})
"""UDP ports that the guard judges, whatever groups say."""
ASKING = frozenset({8, 13, 128})
"""ICMP types that begin a flow (net/netfilter/nf_conntrack_proto_icmp.c, icmpv6.c)."""
PLAIN = frozenset({4, 41, 47, 50, 88, 89, 97, 112, 115})
"""Other IP protocols that guards let pass and whose packets may hold anything."""
SYN = 2
Net: TypeAlias = IPv4Network | IPv6Network
SOURCE_PORTS = count()
"""One for each packet, so that no two are of one flow."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A packet that begins a flow: protocol, and port or ICMP type."""

    family: int
    protocol: int
    port: int

    def __str__(self) -> str:
        six = "6" if self.family == 6 else ""
        match self.protocol:
            case 6 | 17:
                return f"{'tcp' if self.protocol == TCP else 'udp'}{six} {self.port}"
            case 1 | 58:
                return f"icmp{six} {next(n for n, types in ICMP_TYPES.items() if types[self.family == 6] == self.port)}"
        return f"protocol{six} {self.protocol}"


def kinds(rules: Iterable[Rule], family: int) -> tuple[Kind, ...]:
    """At most MOST: half of them named by *rules*, the others beside."""
    rules = list(rules)
    named = list(dict.fromkeys(pair for r in rules for pair in of_rule(r, family)))[:MOST // 2]
    beside = ((protocol, port) for r in rules for protocol, port in beside_rule(r))
    echo = (ICMP6, 128) if family == 6 else (ICMP, 8)
    found = dict.fromkeys((*named, echo, (TCP, NOTHINGS), (UDP, NOTHINGS), *beside))
    return tuple(Kind(family, *pair) for pair in found if usable(*pair))[:MOST]


def usable(protocol: int, port: int) -> bool:
    match protocol:
        case 6 | 17:
            return 0 < port < 65536 and not (protocol == UDP and port in DHCP)
        case 1 | 58:
            return port in ASKING
    return protocol in PLAIN


def of_rule(rule: Rule, family: int) -> Iterator[tuple[int, int]]:
    for protocol, spans in ((TCP, rule.tcp), (UDP, rule.udp)):
        yield from ((protocol, int(port)) for span in spans for port in span.split("-"))
    for name in rule.icmp or ():
        number = ICMP_TYPES[name][family == 6]
        yield ICMP6 if family == 6 else ICMP, -1 if number is None else number
    yield from ((protocol, 0) for protocol in rule.protocol)


def beside_rule(rule: Rule) -> Iterator[tuple[int, int]]:
    for protocol, other, spans in ((TCP, UDP, rule.tcp), (UDP, TCP, rule.udp)):
        for span in spans:
            low, _, high = span.partition("-")
            yield from ((protocol, int(high or low) + 1), (other, int(low)), (protocol, int(low) - 1))


def rules_between(policy: Policy, source: NicGroups | None, target: NicGroups | None) -> Iterator[Rule]:
    """The rules that say what *source* may send to *target*. None: the host, or somebody outside."""
    for name in (source.groups or ()) if source else ():
        yield from policy.groups[name].egress or ()
    for name in (target.groups or ()) if target else ():
        yield from policy.groups[name].ingress
    if source and target and target.tenant and source.tenant != target.tenant:
        yield from policy.tenants.get(target.tenant, ())


def is_judged(policy: Policy, source: NicGroups | None, target: NicGroups | None) -> bool:
    """Whether rules have a say in what *source* sends to *target*."""
    limited = source is not None and any(policy.groups[g].egress is not None for g in source.groups or ())
    return bool(limited or (target and (target.groups or (source and target.tenant))) or are_apart(source, target))


def are_apart(source: NicGroups | None, target: NicGroups | None) -> bool:
    """Whether both are isolated, and on one network."""
    return bool(source and target and source.isolated and target.isolated and source.zone == target.zone)


def allows(judge: Judge, source: NicGroups | None, target: NicGroups | None, ends: tuple[str, str], kind: Kind) -> bool:
    """Whether a packet of *kind* may get from one address to the other, at those NICs."""
    flow = Flow(0, kind.protocol, *ends, kind.port, ends[1], kind.port)
    return not are_apart(source, target) and judge.between(source, target, flow)


@dataclass(frozen=True, slots=True)
class Shot:
    """An IP packet of one kind, and what it is known by again."""

    kind: Kind
    ends: tuple[str, str]
    allowed: bool
    packet: bytes
    mark: bytes

    @property
    def flow(self) -> tuple[str, str, int, int]:
        """What a flow that it begins is known by."""
        return (*self.ends, self.kind.protocol, self.kind.port)


def shot(kind: Kind, ends: tuple[str, str], *, allowed: bool, hops: int = 64) -> Shot:
    src, dst = ends
    sport = 32768 + next(SOURCE_PORTS) % 28000
    mark = os.urandom(12)
    match kind.protocol:
        case 6:
            body = frames.tcp(src, dst, sport, kind.port, SYN, secrets.randbits(32))
            mark = body[2:8]
        case 17:
            body = frames.udp(src, dst, sport, kind.port, mark)
        case 1:
            body = frames.icmp(kind.port, struct.pack("!HH", sport, 1) + mark)
        case 58:
            body = frames.icmp6(src, dst, kind.port, struct.pack("!HH", sport, 1) + mark)
        case _:
            body = bytes(8) + mark
    made = frames.ip6(src, dst, kind.protocol, body, hops) if kind.family == 6 else \
        frames.ip4(src, dst, kind.protocol, body, hops=hops)
    return Shot(kind, ends, allowed, made, mark)


# -- who else asks, and is asked -------------------------------------------------------------------

SOMEBODY = {4: ("198.51.100.1", "203.0.113.1", "192.0.2.1", "198.18.0.1"), 6: ("2001:db8::1", "2001:db8:ffff::c9")}
"""Addresses for documentation and benchmarks (RFC 5737, RFC 2544, RFC 3849): of nobody."""


def strangers(rules: Iterable[Rule], sets: Mapping[str, Networks], own: Iterable[str], family: int) -> tuple[str, ...]:
    """Addresses outside that tell *rules* apart: one of each prefix and address set that they name, and one of none. *own*: networks
    and addresses of the host, where nobody is outside."""
    inside = of_family(own, family)
    named = of_family((p for r in rules for peer in r.peers for p in prefixes_of(peer, sets)), family)
    found = [a for a in (one_of(net, family) for net in named) if not within(a, inside)]
    nobody = [a for a in SOMEBODY[family] if not within(a, [*named, *inside])]
    return tuple(dict.fromkeys((*found, *nobody[:1])))


def prefixes_of(peer: str, sets: Mapping[str, Networks]) -> Iterable[str]:
    kind, _, name = peer.partition(":")
    if kind == "set" and name in sets:
        return map(str, sets[name].prefixes)
    return () if kind in ("group", "tenant", "set", "any") else (peer,)


def of_family(prefixes: Iterable[str], family: int) -> list[Net]:
    return [net for net in map(ip_network, dict.fromkeys(prefixes)) if net.version == family]


def one_of(net: Net, family: int) -> str:
    documented = [a for a in SOMEBODY[family] if within(a, [net])]
    return documented[0] if documented else str(net.network_address if net.num_addresses < 3 else net.network_address + 1)


def within(address: str, nets: Iterable[Net]) -> bool:
    return any(ip_address(address) in net for net in nets)
