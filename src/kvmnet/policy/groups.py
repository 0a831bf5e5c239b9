"""Groups, tenants and isolation as chains in the guard's table; who is in what is set elements. Pure.

A packet is judged once in each direction, where a flow begins: what its sender may send in bridge forward
or input, what its receiver may get in forward or output, by the name of the port. So a packet that the host
routes or sends itself is judged by the same rules as one that only crosses the bridge; its sender is
known by the number that bridge prerouting wrote into its mark. The guard has judged it before in any
case: an established flow is a short way past the rules, never past the guard.

The two back ends differ in who knows the flows: bridge conntrack, or bridge netfilter, which hands frames
to the IP hooks, where ``host_chains`` writes what conntrack says into the mark.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from ipaddress import collapse_addresses, ip_network
from string import Template
from typing import TypeAlias

from kvmnet.policy.flows import Policy, Rule
from kvmnet.policy.marks import FRESH, GUEST, KNOWN, LONE, NIC, REJECTED
from kvmnet.records import dataclass, field
from kvmnet.spec.bounds import MOST_GROUPS
from kvmnet.spec.values import ALL_PORTS, ICMP_TYPES

LOGGED = "limit rate 10/second burst 20 packets log prefix"


class Tracking(StrEnum):
    """Who tracks the flows of bridged guests."""

    BRIDGE = "bridge conntrack"
    NETFILTER = "bridge netfilter"


@dataclass(frozen=True, slots=True)
class Ports:
    """What of the host the chains must know."""

    routers: frozenset[tuple[str, str]] = frozenset()
    """(bridge, its MAC): what is sent there the host routes or takes itself."""
    zones: Mapping[str, int] = field(default_factory=dict)
    """Bridge -> connection tracking zone, for bridges that are one network."""
    outer: frozenset[tuple[str, int, int]] = frozenset()
    """(port to the outside, VLAN or 0, zone)."""
    domains: Mapping[str, int] = field(default_factory=dict)
    """Bridge in a routing domain -> zone of the domain, in which is what the host routes or takes there."""


KNOWN_WORDS = {Tracking.BRIDGE: "ct state established,related",
               Tracking.NETFILTER: f"meta mark & {KNOWN:#010x} == {KNOWN:#010x}"}
INVALID_WORDS = {Tracking.BRIDGE: "ct state invalid",
                 Tracking.NETFILTER: f"meta mark & {KNOWN | FRESH:#010x} == 0"}
ALWAYS = """\
    ether type { arp, 0x8035 } accept
    icmpv6 type { 130-137, 143 } accept
    ip protocol igmp accept"""
"""ARP and RARP, ND and MLD, IGMP: the guard has judged them, and without them nothing else works."""

# What rejects a packet sends its answer without a flow; anything else without one was dropped by inet forward before.
TEXT = Template("""\
map ids { typeof iifname : meta mark; }
map tenant { typeof oifname : verdict; }
map ctzone { typeof iifname : ct zone; }
${slots}
set grouped { typeof iifname; }
set lone { typeof iifname; }
set logged { typeof iifname; }
set answered { typeof oifname; }
set rejecting { typeof ct zone . ether daddr; }
${routers}
chain sender {
    type filter hook prerouting priority -340; policy accept;
    meta mark & ${guest} == ${guest} meta mark set iifname map @ids
}
chain forward {
    type filter hook forward priority -10; policy accept;
    ether type { 8021q, 8021ad } oifname @grouped goto unheard_type
    ${known} accept
    iifname @grouped goto sent
    goto received
}
chain to_host {
    type filter hook input priority -10; policy accept;
    ${known} accept
    iifname @grouped goto sent
}
chain from_host {
    type filter hook output priority -10; policy accept;
    oifname @lone meta mark & ${lone} == ${lone} goto unheard_lone
    ${known} accept
    meta mark & ${guest} == 0 ${invalid} goto answered_by_host
    oifname "kvt-*" goto received
}
chain answered_by_host {
    tcp flags & rst == rst accept
    icmp type destination-unreachable icmp code 13 accept
    icmpv6 type destination-unreachable icmpv6 code 1 accept
    oifname "kvt-*" goto received
}
chain sent {
${always}
    ether type != { ip, ip6 } goto unsent_type
    udp sport 68 udp dport 67 goto received
    udp sport 546 udp dport 547 goto received
    ${invalid} goto unsent_invalid
${out}
    jump log_sent
${unsent}
    meta mark set 17 goto refuse
}
chain unsent_type {
    jump log_sent
    meta mark set 21 goto refuse
}
chain unsent_invalid {
    jump log_sent
    meta mark set 18 goto refuse
}
chain log_sent { iifname @logged ${logged} "kvmnet refused from a guest: "; }
chain received {
${always}
    oifname vmap @tenant
    oifname @grouped goto entering
    accept
}
chain entering {
    ether type != { ip, ip6 } goto unheard_type
    udp sport 67 udp dport 68 accept
    udp sport 547 udp dport 546 accept
    ${invalid} goto unheard_invalid
${into}
    jump log_received
${refused}
    meta mark set 19 goto withhold
}
chain unheard_type {
    jump log_received
    meta mark set 21 goto withhold
}
chain unheard_invalid {
    jump log_received
    meta mark set 18 goto withhold
}
chain unheard_tenant {
    jump log_received
    meta mark set 20 goto withhold
}
chain unheard_lone { meta mark set 22 goto withhold; }
chain log_received { oifname @logged ${logged} "kvmnet refused to a guest: "; }
chain withhold {
    update @dropped { oifname . meta mark }
    drop
}
""")

ANSWER = f"""\
chain answer {{
    type filter hook prerouting priority -100; policy accept;
    ct state new iifname @answered goto telling
    ct state new ct zone . ether daddr @rejecting goto answering
}}
chain telling {{
{ALWAYS}
    ether type != {{ ip, ip6 }} accept
    udp sport 68 udp dport 67 goto asked
    udp sport 546 udp dport 547 goto asked
TOLD
    jump log_sent
    meta mark set 17 update @dropped {{ iifname . meta mark }}
    meta l4proto tcp counter reject with tcp reset
    counter reject with icmpx type admin-prohibited
}}
chain asked {{
    ct zone . ether daddr @rejecting goto answering
    accept
}}
chain answering {{
{ALWAYS}
    ether type != {{ ip, ip6 }} accept
    udp sport 67 udp dport 68 accept
    udp sport 547 udp dport 546 accept
SLOTS
    meta l4proto tcp counter reject with tcp reset
    counter reject with icmpx type admin-prohibited
}}"""
"""Bridges can answer in prerouting and input only: the receiver is known by its MAC there, for what a NIC may send as well."""

Matches: TypeAlias = list[tuple[int, str]]
"""(IP version that it implies or 0, words of nft)."""
Peer: TypeAlias = Callable[[str], Matches]
"""Words for group:NAME, set:NAME and tenant:NAME as sender or receiver."""


def bridge_text(policy: Policy, tracking: Tracking, ports: Ports, sets: Iterable[str]) -> str:
    """What joins the text of the guard's table. ``sets``: names of the document's address sets."""
    macs = sorted({mac for _, mac in ports.routers})
    slots = range(1, MOST_GROUPS + 1)
    base = TEXT.substitute(
        guest=f"{GUEST:#010x}", lone=f"{LONE:#010x}", known=KNOWN_WORDS[tracking], invalid=INVALID_WORDS[tracking],
        routers="set routers { type ether_addr; " + (f"elements = {{ {', '.join(macs)} }}; " if macs else "") + "}",
        logged=LOGGED, always=ALWAYS, slots="\n".join(slot_maps()),
        out="\n".join(f"    iifname vmap @out{n}" for n in slots),
        into="\n".join(f"    oifname vmap @in{n}" for n in slots),
        unsent=hand_over("", "iifname", 17) if tracking is Tracking.NETFILTER else "",
        refused="\n".join(refused_to(ports)) if tracking is Tracking.NETFILTER else "")
    to = receiver_in_domains if ports.domains else receiver
    parts = [policy.line(), base, *set_lines(policy, sets, ports), *group_chains(policy, to), *answer_chains(policy, tracking, to),
             *tenant_chains(policy)]
    if tracking is Tracking.BRIDGE:
        asked = "\n".join(f"    ct zone . ether daddr vmap @ask{n}" for n in slots)
        told = "\n".join(f"    iifname vmap @tell{n}" for n in slots)
        parts += [zone_chain(ports), ANSWER.replace("SLOTS", asked).replace("TOLD", told)]
    return "\n".join((*parts, ""))


def slot_maps() -> Iterator[str]:
    for n in range(1, MOST_GROUPS + 1):
        yield f"map in{n} {{ typeof oifname : verdict; }}"
        yield f"map out{n} {{ typeof iifname : verdict; }}"
        yield f"map ask{n} {{ typeof ct zone . ether daddr : verdict; }}"
        yield f"map tell{n} {{ typeof iifname : verdict; }}"


def refused_to(ports: Ports) -> Iterator[str]:
    for device in ("kvt-*", *sorted({device for device, *_ in ports.outer})):
        yield hand_over(f'iifname "{device}" ', "oifname", 19)


def hand_over(condition: str, nic: str, reason: int) -> str:
    """Frames that the IP stack shall answer go on to it, counted: it alone can, and lets none of them pass."""
    return (f"    {condition}{nic} @answered meta mark set {reason} update @dropped {{ {nic} . meta mark }} "
            f"meta mark set {REJECTED:#010x} accept")


def set_lines(policy: Policy, sets: Iterable[str], ports: Ports) -> Iterator[str]:
    for name in policy.groups:
        yield f"set g_{name} {{ typeof meta mark; }}"
        yield f"set h_{name} {{ typeof oifname; }}"
        yield f"set e_{name} {{ typeof ct zone . ether daddr; }}"
        yield f"set m4_{name} {{ type ipv4_addr; }}"
        yield f"set m6_{name} {{ type ipv6_addr; }}"
        if ports.domains:
            yield f"set d4_{name} {{ typeof ct zone . ip daddr; }}"
            yield f"set d6_{name} {{ typeof ct zone . ip6 daddr; }}"
    for name in policy.tenants:
        yield f"set n_{name} {{ typeof meta mark; }}"
    for name in sets:
        yield f"set a4_{name} {{ type ipv4_addr; flags interval; }}"
        yield f"set a6_{name} {{ type ipv6_addr; flags interval; }}"


def zone_chain(ports: Ports) -> str:
    """One zone per network, for what the host does not route: there equal addresses may occur. What it routes is in the zone of
    the routing domain, as in the host's own table, or in zone 0: a flow has one zone on both layers."""
    outer = [f'    iifname "{device}" {f"vlan id {vlan}" if vlan else "ether type != 8021q"} ct zone set {zone}'
             for device, vlan, zone in sorted(ports.outer)]
    zones = ", ".join(f'"{bridge}" : {zone}' for bridge, zone in sorted(ports.domains.items()))
    routed = chain("routed", [f"ct zone set meta ibrname map {{ {zones} }}"]).splitlines() if zones else ()
    return "\n".join((*routed, "chain network {", "    type filter hook prerouting priority -300; policy accept;",
                      f"    ether daddr @routers {'goto routed' if zones else 'return'}", "    ct zone set iifname map @ctzone", *outer, "}"))


def group_chains(policy: Policy, to: Peer) -> Iterator[str]:
    for name, rules in policy.groups.items():
        yield chain(f"in_{name}", rule_lines(f"{name} ingress", rules.ingress, sender, "accept"))
        if rules.egress is None:
            yield chain(f"out_{name}", [f'counter goto received comment "{name} egress"'])
        else:
            yield chain(f"out_{name}", rule_lines(f"{name} egress", rules.egress, to, "goto received"))


def answer_chains(policy: Policy, tracking: Tracking, to: Peer) -> Iterator[str]:
    """The rules once more, without counters, for those that are answered."""
    for name, rules in policy.groups.items():
        yield chain(f"ask_{name}", [f"{words} accept" for rule in rules.ingress for words in matches(rule, sender)])
        if tracking is Tracking.NETFILTER:  # nobody asks there
            yield chain(f"tell_{name}", ())
        elif rules.egress is None:
            yield chain(f"tell_{name}", ["goto asked"])
        else:
            yield chain(f"tell_{name}", [
                f"{words} goto asked".strip() for rule in rules.egress for words in matches(rule, addressee(to))])


def tenant_chains(policy: Policy) -> Iterator[str]:
    for name, crossings in policy.tenants.items():
        yield chain(f"t_{name}", [
            f"meta mark & {GUEST:#010x} == 0 return", f"meta mark & {NIC:#010x} @n_{name} return",
            *rule_lines(f"{name} allow", crossings, sender, "return"), "goto unheard_tenant"])


def chain(name: str, lines: Sequence[str]) -> str:
    return "\n".join((f"chain {name} {{", *(f"    {line}" for line in lines), "}"))


def rule_lines(title: str, rules: Iterable[Rule], peer: Peer, verdict: str) -> list[str]:
    """Rules of one chain, each with its counter under the name that ``status`` knows it by."""
    lines = []
    for position, rule in enumerate(rules):
        name = f"{title} {position}"
        for words in matches(rule, peer):
            if rule.log:
                lines.append(f'{words} {LOGGED} "kvmnet {name}: "')
            lines.append(f'{words} counter {verdict} comment "{name}"'.strip())
    return lines


def matches(rule: Rule, peer: Peer) -> Iterator[str]:
    """Words of nft for each kind of traffic from or to each kind of peer."""
    only = f"oifname @h_{rule.to.partition(':')[2]} " if rule.to else ""
    for version, kind in kinds(rule):
        for other, end in ends(rule.peers, peer):
            if not (version and other and version != other):
                yield f"{only}{end} {kind}".strip()


def kinds(rule: Rule) -> Iterator[tuple[int, str]]:
    if rule.everything:
        yield 0, ""
    for name, ports in (("tcp", rule.tcp), ("udp", rule.udp)):
        if ports == (ALL_PORTS,):
            yield 0, f"meta l4proto {name}"
        elif ports:
            yield 0, f"{name} dport {{ {', '.join(ports)} }}"
    if rule.icmp == ():
        yield 0, "meta l4proto { 1, 58 }"
    for version, name in ((4, "icmp"), (6, "icmpv6")):
        numbers = [str(n) for t in rule.icmp or () if (n := ICMP_TYPES[t][version == 6]) is not None]
        if numbers:
            yield version, f"{name} type {{ {', '.join(numbers)} }}"
    if rule.protocol:
        yield 0, f"meta l4proto {{ {', '.join(map(str, rule.protocol))} }}"


def ends(peers: Sequence[str], peer: Peer) -> Iterator[tuple[int, str]]:
    """Prefixes of one family are one look."""
    if not peers or "any" in peers:
        yield 0, ""
        return
    named = [p for p in peers if p.partition(":")[0] in ("group", "set", "tenant")]
    for p in named:
        yield from peer(p)
    for version, word in ((4, "ip"), (6, "ip6")):
        prefixes = [p for p in peers if p not in named and (":" in p) == (version == 6)]
        if prefixes:
            way = "saddr" if peer is sender else "daddr"
            yield version, f"{word} {way} {{ {', '.join(collapse(prefixes))} }}"


def collapse(prefixes: Iterable[str]) -> list[str]:
    """An interval set refuses what overlaps."""
    return [str(n) for n in collapse_addresses(sorted(map(ip_network, prefixes)))]  # type: ignore[type-var]


def sender(peer: str) -> Matches:
    kind, _, name = peer.partition(":")
    if kind == "set":
        return [(4, f"ip saddr @a4_{name}"), (6, f"ip6 saddr @a6_{name}")]
    return [(0, f"meta mark & {NIC:#010x} @{'g' if kind == 'group' else 'n'}_{name}")]


def receiver(peer: str) -> Matches:
    """A group's members are known by their ports, and by their addresses where the host routes to them."""
    kind, _, name = peer.partition(":")
    if kind == "set":
        return [(4, f"ip daddr @a4_{name}"), (6, f"ip6 daddr @a6_{name}")]
    return [(0, f"oifname @h_{name}"), (4, f"ether daddr @routers ip daddr @m4_{name}"),
            (6, f"ether daddr @routers ip6 daddr @m6_{name}")]


def receiver_in_domains(peer: str) -> Matches:
    """The same where two routing domains may have equal addresses: a member is known by its own domain's zone."""
    kind, _, name = peer.partition(":")
    if kind == "set":
        return receiver(peer)
    return [(0, f"oifname @h_{name}"),
            (4, f"ether daddr @routers ct zone 0 ip daddr @m4_{name}"), (6, f"ether daddr @routers ct zone 0 ip6 daddr @m6_{name}"),
            (4, f"ether daddr @routers ct zone . ip daddr @d4_{name}"), (6, f"ether daddr @routers ct zone . ip6 daddr @d6_{name}")]


def addressee(to: Peer) -> Peer:
    """The same before it is known to which port a frame goes."""
    def known_by_mac(peer: str) -> Matches:
        kind, _, name = peer.partition(":")
        return [(0, f"ct zone . ether daddr @e_{name}"), *to(peer)[1:]] if kind == "group" else to(peer)
    return known_by_mac


def host_chains(tracking: Tracking, ports: Ports) -> str:
    """What the host's own table adds. Bridge netfilter: flows in their zones, told to the bridge by marks."""
    same = ", ".join(f'"{b}" . "{b}"' for b in sorted(ports.zones))
    text = HAIRPIN.format(same=same, lone=LONE, rest=0xFFFF_FFFF ^ LONE, domains=HAIRPIN_IN_DOMAINS if ports.domains else "")
    if tracking is Tracking.BRIDGE:
        return text
    zones = ", ".join(f'"{bridge}" : {zone}' for bridge, zone in sorted(ports.zones.items()))
    return text + NETFILTER.format(
        zones=zones, bridges=", ".join(f'"{b}"' for b in sorted(ports.zones)), known=KNOWN, fresh=FRESH,
        both=KNOWN | FRESH, rejected=REJECTED)


HAIRPIN = """\
set same {{
type ifname . ifname
elements = {{ {same} }}
}}
chain hairpin {{
type filter hook forward priority -30; policy accept;
{domains}iifname . oifname != @same meta mark & {lone:#010x} == {lone:#010x} meta mark set meta mark & {rest:#010x}
}}
"""
"""Isolation is within a network: what leaves it by the host's router is no business of it."""
HAIRPIN_IN_DOMAINS = 'iifname "kvr-*" meta sdifname . oifname @same accept\n'
"""There the input device is the domain's (see policy/vrf.py)."""

NETFILTER = """\
set tracked {{
type ifname
elements = {{ {bridges} }}
}}
chain zones {{
type filter hook prerouting priority -300; policy accept;
iifname . ether daddr != @routers ct zone set iifname map {{ {zones} }}
}}
chain arriving {{
type filter hook prerouting priority -150; policy accept;
iifname @tracked goto note
}}
chain passing {{
type filter hook forward priority -20; policy accept;
meta mark & {rejected:#010x} == {rejected:#010x} goto answer
oifname @tracked meta mark & {both:#010x} == 0 goto note
}}
chain arrived {{
type filter hook input priority -20; policy accept;
meta mark & {rejected:#010x} == {rejected:#010x} goto answer
}}
chain leaving {{
type filter hook output priority -20; policy accept;
oifname @tracked goto note
}}
chain note {{
ct state vmap {{ established : goto known, related : goto known, new : goto fresh, untracked : goto fresh }}
}}
chain known {{
meta mark set meta mark | {known:#010x}
}}
chain fresh {{
meta mark set meta mark | {fresh:#010x}
}}
chain answer {{
meta l4proto tcp counter reject with tcp reset
counter reject with icmpx type admin-prohibited
}}
"""
