"""The rules of groups and tenants as data, and which flows they let in. Pure.

The text of the guard's table carries them in a comment, so that whoever replaces one text by another can
tell which of the established flows the new one forbids (``judge``), without a second place to keep them.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from kvmnet.drivers.nftables.resources import AddressSet, NicGroups
from kvmnet.records import dataclass, field, fields
from kvmnet.spec.values import ICMP_TYPES

HEAD = "# flows: "
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: any of its kinds of traffic (all when there is none), with any of its peers (likewise)."""

    tcp: tuple[str, ...] = ()
    udp: tuple[str, ...] = ()
    icmp: tuple[str, ...] | None = None
    """Names of types; () for all, None for none."""
    protocol: tuple[int, ...] = ()
    peers: tuple[str, ...] = ()
    to: str = ""
    """Of a crossing: the group that the receiver must be in."""
    log: bool = False

    @property
    def everything(self) -> bool:
        return not (self.tcp or self.udp or self.protocol or self.icmp is not None)


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules of one group. ``egress`` None: its members may send anything."""

    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] | None = None
    refuse: str = "drop"
    log: bool = False


@dataclass(frozen=True, slots=True)
class Flow:
    """A flow as connection tracking has it. ``target`` and ``target_port``: who really answers, after DNAT."""

    zone: int
    protocol: int
    source: str
    destination: str
    port: int
    """Destination port; of ICMP the type."""
    target: str
    target_port: int


@dataclass(frozen=True)
class Policy:
    """All rules of the document."""

    groups: Mapping[str, Rules] = field(default_factory=dict)
    tenants: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)

    def line(self) -> str:
        return HEAD + json.dumps({"groups": {n: told_rules(r) for n, r in self.groups.items()},
                                  "tenants": {n: [told(r) for r in rules] for n, rules in self.tenants.items()}},
                                 separators=(",", ":"))


RULE = tuple(f.name for f in fields(Rule))


def told(rule: Rule) -> dict[str, object]:
    """A rule as plain data; ``dataclasses.asdict`` takes ten times as long."""
    return {name: getattr(rule, name) for name in RULE}


def told_rules(rules: Rules) -> dict[str, object]:
    return {"ingress": [told(r) for r in rules.ingress], "egress": None if rules.egress is None else [told(r) for r in rules.egress],
            "refuse": rules.refuse, "log": rules.log}


def read(text: str) -> Policy | None:
    """The rules that a table's text carries; None when it has none."""
    line = next((line for line in text.splitlines() if line.startswith(HEAD)), None)
    if line is None:
        return None
    data = json.loads(line.removeprefix(HEAD))
    return Policy(
        {name: Rules(read_rules(r["ingress"]), None if r["egress"] is None else read_rules(r["egress"]), r["refuse"], r["log"])
         for name, r in data["groups"].items()},
        {name: read_rules(rules) for name, rules in data["tenants"].items()})


def read_rules(rules: Iterable[Mapping[str, object]]) -> tuple[Rule, ...]:
    return tuple(Rule(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()})  # type: ignore[arg-type]
                 for r in rules)


class Judge:
    """Says of a flow whether the policy lets it in, as the kernel would of its first packet."""

    def __init__(self, policy: Policy, nics: Iterable[NicGroups], sets: Iterable[AddressSet],
                 owners: Mapping[tuple[int, str], str]):
        """``owners``: (zone, address) -> the NIC's tap; zone 0, or its routing domain's, for what the host routes."""
        self.policy, self.owners = policy, owners
        self.nics = {nic.name: nic for nic in nics}
        self.sets = {s.name: networks(s.prefixes or ()) for s in sets}

    def allows(self, flow: Flow) -> bool:
        return self.between(self.nics.get(self.owners.get((flow.zone, flow.source), "")),
                            self.nics.get(self.owners.get((flow.zone, flow.target), "")), flow)

    def between(self, source: NicGroups | None, target: NicGroups | None, flow: Flow) -> bool:
        """The same where it is known which NICs send and receive; None: the host, or somebody outside."""
        if source and not self.may_send(source, target, flow):
            return False
        if target and source and target.tenant and not self.may_cross(source, target, flow):
            return False
        return not (target and target.groups) or self.may_enter(source, target, flow)

    def may_send(self, source: NicGroups, target: NicGroups | None, flow: Flow) -> bool:
        rules = [self.policy.groups[g].egress for g in source.groups or () if g in self.policy.groups]
        if not source.groups or None in rules:
            return True
        ends = ((flow.destination, flow.port), (flow.target, flow.target_port))
        return any(carries(rule, flow.protocol, port) and self.is_peer(rule.peers, target, address)
                   for found in rules for rule in found or () for address, port in ends)

    def may_cross(self, source: NicGroups, target: NicGroups, flow: Flow) -> bool:
        return source.tenant == target.tenant or any(
            carries(rule, flow.protocol, flow.target_port) and self.is_peer(rule.peers, source, flow.source)
            and (not rule.to or rule.to.partition(":")[2] in (target.groups or ()))
            for rule in self.policy.tenants.get(target.tenant or "", ()))

    def may_enter(self, source: NicGroups | None, target: NicGroups, flow: Flow) -> bool:
        return any(carries(rule, flow.protocol, flow.target_port) and self.is_peer(rule.peers, source, flow.source)
                   for g in target.groups or () if g in self.policy.groups
                   for rule in self.policy.groups[g].ingress)

    def is_peer(self, peers: Sequence[str], nic: NicGroups | None, address: str) -> bool:
        return not peers or any(self.matches(peer, nic, address) for peer in peers)

    def matches(self, peer: str, nic: NicGroups | None, address: str) -> bool:
        kind, _, name = peer.partition(":")
        match kind:
            case "any":
                return True
            case "group":
                return nic is not None and name in (nic.groups or ())
            case "tenant":
                return nic is not None and nic.tenant == name
            case "set":
                return self.sets.get(name, NOTHING).has(address)
            case _:
                return networks((peer,)).has(address)


@dataclass(frozen=True)
class Networks:
    prefixes: tuple[IPv4Network | IPv6Network, ...]

    @cached_property
    def hosts(self) -> frozenset[str]:
        return frozenset(str(n.network_address) for n in self.prefixes if n.prefixlen == n.max_prefixlen)

    def has(self, text: str) -> bool:
        return text in self.hosts or any(ip_address(text) in n for n in self.prefixes if n.prefixlen < n.max_prefixlen)


NOTHING = Networks(())


def networks(prefixes: Iterable[str]) -> Networks:
    return Networks(tuple(map(ip_network, prefixes)))


def carries(rule: Rule, protocol: int, port: int) -> bool:
    """Whether the packet is of a kind that *rule* names. ``port``: of ICMP the type."""
    if rule.everything or protocol in rule.protocol:
        return True
    match protocol:
        case 6 | 17:
            return any(within(port, span) for span in (rule.tcp if protocol == TCP else rule.udp))
        case 1 | 58 if rule.icmp is not None:
            return not rule.icmp or any(ICMP_TYPES[name][protocol == ICMP6] == port for name in rule.icmp)
    return False


def within(port: int, span: str) -> bool:
    low, _, high = span.partition("-")
    return int(low) <= port <= int(high or low)
