"""A packet at the hooks of the kernel, chain after chain, and a frame on its way across a bridge. Pure.

Order at a hook: by priority. Connection tracking stands at -200 of prerouting and output (nf_conntrack_proto.c), chains of
type nat are asked for the first packet of a flow only, until one has decided (nf_nat_inet_fn()). On a bridge, br_netfilter
sends IP through the hooks of IP at priority 0 of prerouting, -1 of forward and last of postrouting, with the bridge in
the place of the ports (br_netfilter_hooks.c). Everything is asked, also what stands behind a drop: whoever mends one
blocker wants to know of the next.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

from kvmnet.doctor.judge import LIMIT, Judgement, Step, Verdict, judge
from kvmnet.doctor.packet import ICMP, ICMP6, STATES, TCP, UNKNOWN, Context, Packet, Tracked
from kvmnet.doctor.ruleset import Ruleset
from kvmnet.records import dataclass, field, replace

CONNTRACK = -200
"""NF_IP_PRI_CONNTRACK."""
NAT = -100
"""NF_IP_PRI_NAT_DST: from here on a flow has the marks of NAT in its status, also where nothing was translated."""
NETFILTER = {"prerouting": 0, "forward": -1, "input": 1 << 31, "output": 1 << 31, "postrouting": (1 << 31) - 1}
"""Where br_netfilter stands at a hook of the bridge; nowhere at two of them."""
BEGINNINGS = ("prerouting", "output")
"""Hooks at which a packet comes to connection tracking."""
TRACKING = ("ct", "ct count", "notrack", "synproxy", "flow")
"""Words that switch connection tracking on."""
HOST, MULTICAST, OTHER = 0, 2, 3
"""Kinds of ``meta pkttype``."""

UNTRACKED = frozenset({130, 131, 132, 133, 134, 135, 136, 137, 143})
"""ICMPv6 of neighbours, routers and groups."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What one chain said."""

    layer: str
    """bridge, ip, arp or netdev."""
    hook: str
    chain: str
    judgement: Judgement
    iif: str = ""
    oif: str = ""

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def reasons(self) -> list[Step]:
        """The words that made the verdict."""
        steps = [s for s in self.judgement.steps if s.verdict != LIMIT]
        return [s for s in steps if s.verdict != "accept"] if self.verdict is Verdict.UNKNOWN else steps[-1:]

    @property
    def limits(self) -> list[Step]:
        """Rules that were judged as if their limits were not reached."""
        return [s for s in self.judgement.steps if s.verdict == LIMIT]


@dataclass
class Rules:
    """All rules of a host, and the switches that say which packets meet them."""

    ruleset: Ruleset
    netfilter: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """Bridge -> IP versions that br_netfilter sends through the hooks of IP; '' for bridges that are not named."""
    tagged_netfilter: bool = False
    """Whether br_netfilter looks into tagged frames, too."""
    tracks: frozenset[int] | None = None
    """IP versions whose flows are tracked; None: as the rules need it."""

    @cached_property
    def translates(self) -> bool:
        return any(c.type == "nat" for c in self.ruleset.chains())

    def tracked(self, version: int) -> bool:
        """Conntrack works as soon as a rule of the family asks for it (nf_ct_netns_get())."""
        if self.tracks is None:
            asking = {v: self.bridge_tracked or any(c.type == "nat" for c in self.ruleset.chains() if c.family in (family, "inet"))
                      or any(self.ruleset.asks(word, (family, "inet")) for word in TRACKING)
                      for v, family in ((4, "ip"), (6, "ip6"))}
            self.tracks = frozenset(v for v, needed in asking.items() if needed)
        return version in self.tracks

    @cached_property
    def bridge_tracked(self) -> bool:
        """Whether bridges track flows themselves: as soon as a rule of theirs asks (nf_conntrack_bridge.c; it then works for IP, too)."""
        return any(self.ruleset.asks(word, ("bridge",)) for word in TRACKING)


def families(layer: str, version: int) -> tuple[str, ...]:
    if layer == "netdev":   # chains of inet at a device's ingress see IP alone (nft_do_chain_inet_ingress())
        return ("netdev", "inet") if version else ("netdev",)
    return ("inet", "ip6" if version == 6 else "ip") if layer == "ip" else (layer,)


def at_hook(rules: Rules, context: Context, layer: str, hook: str, device: str = "", *, above: int = -(1 << 40), upto: int = 1 << 40) -> list[Passage]:
    """Every chain at a hook, those of priorities above *above* and not above *upto*. *context* changes as rules change the packet."""
    found: list[Passage] = []
    context.hook = hook
    decided = False
    for chain in rules.ruleset.bases(hook, families(layer, context.packet.version), device):
        if not above < chain.priority <= upto:
            continue
        if chain.priority > CONNTRACK:
            track(rules, context, layer, hook)
        if (chain.priority >= NAT or hook not in BEGINNINGS) and context.tracked and rules.translates:
            context.tracked.status = UNKNOWN
        if chain.type == "nat" and (decided or context.tracked is None or context.tracked.state != STATES["new"]):
            continue
        said = judge(rules.ruleset, chain, context)
        decided = decided or bool(chain.type == "nat" and said.changed)
        found.append(Passage(layer, hook, chain.place, said, context.iif, context.oif))
    if upto >= CONNTRACK:
        track(rules, context, layer, hook)
    return found


def track(rules: Rules, context: Context, layer: str, hook: str) -> None:
    """Connection tracking meets the packet, the first time that it passes its place. What is not IP a bridge calls untracked (nf_ct_bridge_pre())."""
    here = (layer == "ip" and hook in BEGINNINGS and rules.tracked(context.packet.version)) or (layer == "bridge" and hook == "prerouting" and rules.bridge_tracked)
    if here and context.tracked is None:
        context.strayed = context.flow is not None and isinstance(context.zone, int) and isinstance(context.flow.zone, int) and context.zone != context.flow.zone
        begins = Tracked(state=first_state(context.packet) if context.packet.version else STATES["untracked"], zone=context.zone)
        context.tracked = replace(context.flow) if context.flow is not None and not context.strayed else begins


def first_state(packet: Packet) -> int:
    """What a packet of no known flow is to conntrack: nf_conntrack_proto_tcp.c (with nf_conntrack_tcp_loose, the
    default), nf_conntrack_proto_icmp.c, nf_conntrack_proto_icmpv6.c."""
    if packet.upper is None:
        return STATES["invalid"]
    protocol, at, _ = packet.upper
    if protocol == TCP:
        flags = packet.frame[at + 13] & 0x17 if len(packet.frame) > at + 13 else 0
        return STATES["new" if flags in (0x02, 0x10) else "invalid"]
    if protocol == ICMP and packet.version == 4:
        return STATES["new" if packet.frame[at] in (8, 13, 15, 17) else "invalid"]
    if protocol == ICMP6 and packet.version == 6:
        kind = packet.frame[at]
        return STATES["new" if kind in (128, 139) else "untracked" if kind in UNTRACKED else "invalid"]
    return STATES["new"]


def verdict(passages: Iterable[Passage]) -> Verdict:
    """Of all chains together."""
    said = {p.verdict for p in passages}
    return Verdict.DROP if Verdict.DROP in said else Verdict.UNKNOWN if Verdict.UNKNOWN in said else Verdict.ACCEPT


def bridge_hook(rules: Rules, context: Context, hook: str, bridge: str, iif: str, oif: str) -> list[Passage]:
    """A frame at a hook of the bridge, with what br_netfilter adds in its place."""
    place = NETFILTER[hook]
    context.iif, context.oif, context.bridge_in = iif, oif, bridge if iif else ""
    context.bridge_out = bridge if oif else ""
    found = at_hook(rules, context, "bridge", hook, upto=place)
    packet = context.packet
    switched_on = rules.netfilter.get(bridge, rules.netfilter.get("", frozenset()))
    if hook in ("prerouting", "forward", "postrouting") and packet.version in switched_on and packet.upper and (
            rules.tagged_netfilter or not packet.tagged):
        kind, context.pkttype = context.pkttype, HOST if context.pkttype == OTHER else context.pkttype
        context.iif, context.oif = (bridge if iif and hook != "postrouting" else ""), (bridge if oif else "")
        found += at_hook(rules, context, "ip", hook)
        context.iif, context.oif, context.pkttype = iif, oif, kind
    return found + at_hook(rules, context, "bridge", hook, above=place)


def crossing(rules: Rules, context: Context, bridge: str, port: str, out: str) -> list[Passage]:
    """A frame from one port of a bridge to another."""
    context.iif = port
    found = at_hook(rules, context, "netdev", "ingress", port)
    found += bridge_hook(rules, context, "prerouting", bridge, port, "")
    found += bridge_hook(rules, context, "forward", bridge, port, out)
    found += bridge_hook(rules, context, "postrouting", bridge, "", out)
    context.iif, context.oif = "", out
    return found + at_hook(rules, context, "netdev", "egress", out)


def kind_of_frame(packet: Packet, device_mac: str) -> int:
    """``meta pkttype`` of a frame that a device receives (eth_type_trans())."""
    destination = packet.macs[0]
    if destination == "ff:ff:ff:ff:ff:ff":
        return 1
    return MULTICAST if int(destination[:2], 16) & 1 else HOST if destination == device_mac else OTHER

