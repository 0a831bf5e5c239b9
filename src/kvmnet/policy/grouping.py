"""Groups, tenants and isolation of a document: spec -> the policy, who is in what, the back end. Pure."""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import collapse_addresses, ip_network
from zlib import crc32

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.nftables.resources import AddressSet, NftTable, NicGroups
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.policy.flows import Policy, Rule, Rules
from kvmnet.policy.groups import Ports, Tracking, bridge_text, host_chains
from kvmnet.policy.guard import TABLE, link_local
from kvmnet.policy.limits import has_flow_limits
from kvmnet.policy.routed import Stretch, apart, routed_table
from kvmnet.records import dataclass, replace
from kvmnet.spec import domains as vrfs
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode
from kvmnet.spec.policies import Traffic
from kvmnet.spec.tenancy import BLIND, owners, tenant_of

HIGHEST = 0xFFFF
"""NIC numbers and conntrack zones have 16 bits; 0 is none."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """What groups, tenants, isolation and limits of flows add to the host."""

    bridge_text: str
    host_text: str
    routed: NftTable | None
    """What judges packets that the host routes or sends; None when nobody is in groups or a tenant."""
    members: Sequence[NicGroups]
    sets: Sequence[AddressSet]
    filtered: frozenset[str]
    """Bridges of ours whose frames go through the IP hooks (bridge netfilter)."""
    notes: tuple[str, ...]

    def bridge(self, link: Link) -> Link:
        """*link* as the back end needs it."""
        if link.name not in self.filtered:
            return link
        return replace(link, nf_call_iptables=True, nf_call_ip6tables=True)


def grouping(spec: Spec, facts: Facts, segments: Mapping[str, Segment], routers: Iterable[tuple[str, str]],
             outer: Iterable[tuple[str, str]]) -> Grouping | None:
    """None when the document has nothing of it. ``routers``: (bridge, its MAC); ``outer``: (port, its bridge)."""
    segments = {name: s for name, s in segments.items() if s.network.mode not in BLIND}
    if not is_needed(spec, segments):
        return None
    tracking = tracking_of(facts)
    domains = vrf_zones(spec, segments)
    zones = numbers({s.domain for s in segments.values()}, domains.values())
    ports = Ports(frozenset({*routers, *adopted_macs(segments, facts)}),
                  {s.bridge: zones[s.domain] for s in segments.values() if not s.vlan}, outer_ports(segments, zones, outer),
                  {bridge: zone for bridge, zone in domains.items() if zone})
    policy = policy_of(spec)
    members = nic_groups(spec, segments, zones, domains)
    filtered = frozenset(s.bridge for s in segments.values() if not s.network.bridge) \
        if tracking is Tracking.NETFILTER else frozenset[str]()
    routed = routed_table(policy, tracking, ports.zones, spec.address_sets, apart(claims(segments, members))) \
        if any(m.groups or m.tenant for m in members) else None
    return Grouping(bridge_text(policy, tracking, ports, spec.address_sets), host_chains(tracking, ports), routed, members,
                    [address_set(name, prefixes) for name, prefixes in spec.address_sets.items()], filtered,
                    notes(spec, segments, tracking))


def is_needed(spec: Spec, segments: Mapping[str, Segment]) -> bool:
    return bool(spec.tenants) or has_flow_limits(spec.networks, (nic for s in segments.values() for nic in s.nics)) or any(
        nic.declared.groups or (s.network.bridge and s.isolates(nic)) for s in segments.values() for nic in s.nics)


def tracking_of(facts: Facts) -> Tracking:
    return Tracking.BRIDGE if facts.features.get("bridge-conntrack") == "" else Tracking.NETFILTER


def vrf_zones(spec: Spec, segments: Mapping[str, Segment]) -> dict[str, int]:
    """Bridge -> conntrack zone of the routing domain that it is in, 0 for the host's own."""
    zones = vrfs.zones(spec)
    return {s.bridge: zones.get(s.vrf, 0) for s in segments.values()}


def numbers(names: Iterable[str], others: Iterable[int] = ()) -> dict[str, int]:
    """A number for each name, 1 to 65535 and none of *others*: the same for the same name, unless two meet."""
    found: dict[str, int] = {}
    taken = set(others)
    for name in sorted(names):
        number = crc32(name.encode()) % HIGHEST + 1
        while number in taken:
            number = number % HIGHEST + 1
        taken.add(number)
        found[name] = number
    return found


def adopted_macs(segments: Mapping[str, Segment], facts: Facts) -> Iterable[tuple[str, str]]:
    for segment in segments.values():
        link = facts.state.get(Key(Link.kind, segment.network.bridge or ""))
        if isinstance(link, Link) and link.mac:
            yield link.name, link.mac


def outer_ports(segments: Mapping[str, Segment], zones: Mapping[str, int],
                outer: Iterable[tuple[str, str]]) -> frozenset[tuple[str, int, int]]:
    return frozenset((device, s.network.vlan or 0 if s.vlan else 0, zones[s.domain])
                     for device, bridge in outer for s in segments.values() if s.bridge == bridge)


def policy_of(spec: Spec) -> Policy:
    return Policy(
        {name: Rules(tuple(rule(r, r.from_) for r in group.ingress),
                     None if group.egress is None else tuple(rule(r, r.to) for r in group.egress),
                     group.refuse, group.log)
         for name, group in spec.groups.items()},
        {name: tuple(rule(r, r.from_, r.to or "") for r in tenant.allow) for name, tenant in spec.tenants.items()})


def rule(traffic: Traffic, peers: tuple[str, ...], to: str = "") -> Rule:
    return Rule(tcp=traffic.tcp or (), udp=traffic.udp or (), icmp=traffic.icmp, protocol=traffic.protocol or (),
                peers=() if "any" in peers else peers, to=to, log=traffic.log)


def nic_groups(spec: Spec, segments: Mapping[str, Segment], zones: Mapping[str, int], domains: Mapping[str, int]) -> list[NicGroups]:
    number = numbers(nic.tap for s in segments.values() for nic in s.nics)
    owner = owners(spec)
    found = []
    shared = several(segments)
    for segment in segments.values():
        routed = segment.network.mode is Mode.BRIDGE or segment.address or segment.address6
        for nic in segment.nics:
            groups = tuple(sorted(set(nic.declared.groups)))
            own = addresses(nic) if routed else set()
            tenant = tenant_of(spec.vms[nic.vm], nic.declared.network, owner) or ""
            judged = segment.with_host and (groups or tenant)
            found.append(NicGroups(
                name=nic.tap, table=TABLE, number=number[nic.tap], groups=groups, zone=zones[segment.domain],
                routed=domains[segment.bridge], tenant=tenant,
                macs=tuple(sorted({nic.mac, *nic.declared.extra.macs})), addresses=tuple(sorted(own)),
                places=tuple(sorted(f"{segment.bridge} {a}" for a in (*own, *link_locals(nic, segment)) if (segment.bridge, a) not in shared))
                if judged else (),
                isolated=segment.isolates(nic), traits=traits(spec, groups)))
    return found


def addresses(nic: NicOnNetwork) -> set[str]:
    return {a for a in (nic.ip, nic.ip6, *(p for p in nic.prefixes if "/" not in p)) if a}


def link_locals(nic: NicOnNetwork, segment: Segment) -> tuple[str, ...]:
    """Where the host sends to itself."""
    return (str(link_local(nic.mac)),) if segment.address6 or segment.network.mode is Mode.BRIDGE else ()


def claims(segments: Mapping[str, Segment], members: Iterable[NicGroups]) -> Iterator[Stretch]:
    """What a NIC may use where the host reaches it, and others may too or is more than an address."""
    of = {m.name: m for m in members}
    shared = several(segments)
    for segment in segments.values():
        for nic in segment.nics if segment.with_host else ():
            member = of[nic.tap]
            for text in (*addresses(nic), *(p for p in nic.prefixes if "/" in p)):
                if "/" in text or (segment.bridge, text) in shared:
                    yield Stretch(segment.bridge, ip_network(text), member.number or 0,
                                  (member.tenant or "", member.groups or (), "log" in (member.traits or ())))


def several(segments: Mapping[str, Segment]) -> set[tuple[str, str]]:
    """(bridge, address) that more than one NIC may use: who gets a packet for it is known at the port alone."""
    met = Counter((s.bridge, a) for s in segments.values() if s.with_host for nic in s.nics for a in addresses(nic))
    return {place for place, count in met.items() if count > 1}


def traits(spec: Spec, groups: Iterable[str]) -> tuple[str, ...]:
    declared = [spec.groups[g] for g in groups]
    return tuple(name for name, given in (("log", any(g.log for g in declared)),
                                          ("reject", any(g.refuse == "reject" for g in declared))) if given)


def address_set(name: str, prefixes: Iterable[str]) -> AddressSet:
    nets = [ip_network(p) for p in prefixes]
    merged = [n for v in (4, 6) for n in collapse_addresses([n for n in nets if n.version == v])]  # type: ignore[type-var]
    return AddressSet(name=name, table=TABLE, prefixes=tuple(
        str(n.network_address) if n.prefixlen == n.max_prefixlen else str(n) for n in merged))


def notes(spec: Spec, segments: Mapping[str, Segment], tracking: Tracking) -> tuple[str, ...]:
    """What the second back end does otherwise."""
    if tracking is Tracking.BRIDGE:
        return ()
    silent = sorted(s.name for s in segments.values() if not (s.address or s.address6)
                    and any("reject" in traits(spec, nic.declared.groups) for nic in s.nics))
    lines = ["groups: this kernel cannot track flows in bridges, so frames of guests go through the IP hooks "
             "(bridge netfilter); other firewalls of the host see them too"]
    if silent:
        lines.append(f"groups: refused packets on {', '.join(silent)} are dropped, not rejected: the host has no address "
                     "there, and this kernel cannot answer in bridges")
    return tuple(lines)
