"""Random policies and random packets of every kind, and what a reference in plain Python says of each. Pure.

A conversation is a packet that begins a flow and, perhaps, what follows it: its reply, an ICMP error about it by its
receiver, the same by a bystander, an error about it sent to somebody else. The reference for the first packet is
``flows.Judge``; for what follows it is the words of docs/design/groups.md.
"""
from __future__ import annotations

import random
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

from kvmnet.check.allowed import allowed
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.drivers.nftables.standing import Standing, transaction
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.facts.model import Facts
from kvmnet.policy.flows import Flow, Judge
from kvmnet.policy.groups import KNOWN_WORDS, Tracking
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads
from lib.frames import ICMP, ICMP6, TCP, UDP, checksum, ether, icmp, icmp6, ip4, ip6, pseudo, udp
from lib.volley import HOST, MARK, Ground, Round, Shot

VMS = {"a": "lan", "b": "lan", "c": "lan", "d": "lan", "e": "pub", "f": "pub", "g": "pub"}
WAN = "eth0"
WAN_MAC, NEXT_MAC = "02:00:00:00:0f:01", "02:00:00:00:0f:02"
OUTSIDE, OUTSIDE6 = "203.0.113.9", "2001:db8:ffff::9"
PEERS = ("group:x", "group:y", "group:z", "set:s", "tenant:t", "10.0.0.2", "10.0.0.0/30", "10.0.1.0/24", "203.0.113.0/24",
         "fd00::/126", "fd01::/64", "2001:db8:ffff::/48", "10.0.0.1", "any")
TRAFFIC = ("tcp: [80]", "tcp: any", "udp: [53, 60-70]", "udp: any", "icmp: true", "icmp: [echo-request]", "protocol: [17]",
           "tcp: 443, udp: 53", "tcp: [1-1000]", "")
KINDS = ((TCP, 80), (TCP, 443), (TCP, 2000), (UDP, 53), (UDP, 65), (UDP, 2000), (ICMP, 8), (ICMP, 13))
LEAST6 = 1280
"""Bridge conntrack drops an IPv6 packet whose largest fragment is smaller (br_ip6_fragment in net/ipv6/netfilter.c)."""
ANSWERS = {(ICMP, 8): 0, (ICMP, 13): 14, (ICMP6, 128): 129}
KINDS6 = (*KINDS[:6], (ICMP6, 128))
QUIET = 'dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"'


def document(dice: random.Random) -> str:
    """The same guests and networks each time; groups, tenants, rules and who is in what are random."""
    def rules(way: str) -> str:
        found = []
        for _ in range(dice.choice((0, 1, 2, 2, 4))):
            peers = dice.sample([p for p in PEERS if way == "from" or not p.startswith("tenant")], dice.choice((0, 1, 1, 2, 3)))
            words = [w for w in (dice.choice(TRAFFIC), f"{way}: [{', '.join(map(quoted, peers))}]" if peers else "") if w]
            found.append("{" + ", ".join(words) + "}")
        return "[" + ", ".join(found) + "]"

    names = dice.choice(("xyz", "xyzw", "xyzvw"))
    groups = [f"  {g}: {{ingress: {rules('from')}" + (f", egress: {rules('to')}" if dice.random() < 0.4 else "") + "}" for g in names]
    vms = [f"  {vm}: {{" + (f"tenant: {t}, " if (t := dice.choice(["", "t", "t", "u"])) else "")
           + f"nics: [{{network: {network}, groups: [{', '.join(dice.sample(names, dice.choice((0, 1, 1, 2))))}]}}]}}"
           for vm, network in VMS.items()]
    crossing = dice.choice(["", "{from: any, tcp: 80}", "{from: tenant:t, to: group:x}", "{from: group:y, udp: any}", "{from: any, icmp: true}"])
    return "\n".join((
        "version: 1", f"uplinks: {{wan: {{device: {WAN}}}}}", "networks:",
        f'  lan: {{mode: routed, uplink: wan, subnet: 10.0.0.0/24, subnet6: "fd00::/64", peers: [pub], {QUIET}}}',
        f'  pub: {{mode: routed, uplink: wan, subnet: 10.0.1.0/24, subnet6: "fd01::/64", {QUIET}}}',
        "vms:", *vms, "groups:", *groups, f'address_sets: {{s: [10.0.0.4, 10.0.0.5, "fd00::4", {dice.choice(("10.0.1.3", "203.0.113.9"))}]}}',
        "tenants:", "  t: {}", f"  u: {{allow: [{crossing}]}}")) + "\n"


def without_groups(text: str) -> str:
    """The control: the same guests, and nobody is judged."""
    return re.sub(r"tenant: \w, |, groups: \[[^]]*\]", "", text.partition("groups:\n")[0])


def quoted(peer: str) -> str:
    return f'"{peer}"' if "::" in peer else peer


def compiled(text: str, features: dict[str, str]) -> Compiled:
    document = loads(text)
    wan = Link(name=WAN, mac=WAN_MAC, mtu=1500, type="veth")
    return compile_spec(document.spec, Facts(state={wan.key: wan}, features=features), allocate(document.spec, {}))


class Kind(StrEnum):
    FIRST = "first packet"
    PARTS = "first packet in fragments"
    REPLY = "reply"
    ERROR = "error by the receiver"
    FORGED = "error by a bystander"
    MISDIRECTED = "error to somebody else"


@dataclass(frozen=True, slots=True)
class End:
    """A guest, the host on one network, or an address outside."""

    name: str
    tap: str
    mac: str
    ip: str
    ip6: str
    network: str


@dataclass(frozen=True, slots=True)
class Case:
    """A packet of a round, where it should come out, and whether the reference lets it."""

    kind: Kind
    source: End
    target: End
    flow: Flow
    expected: bool


Body: TypeAlias = Callable[[bytes], bytes]
"""Makes what an IP packet carries, given its number as bytes."""


@dataclass
class Dealer:
    """Makes policies, packets and verdicts, one after the other; numbers are never given twice."""

    dice: random.Random
    features: dict[str, str]
    number: int = 0
    standing: Standing = field(default_factory=Standing)
    before: dict[Key, Resource] = field(default_factory=dict)
    cases: dict[int, Case] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)
    routers: dict[str, str] = field(default_factory=dict)
    """Network -> MAC of its bridge."""

    def round(self, packets: int) -> tuple[Round, str]:
        """The change to another policy, packets that it judges, and its document."""
        text = document(self.dice)
        found, script = self.change(text)
        wanted = self.before
        self.place(found)
        judge = allowed(found.wanted).judge
        assert judge is not None
        zones = {r.name: r.zone or 0 for r in wanted.values() if isinstance(r, NicGroups)}
        shots: list[Shot] = []
        while len(shots) < packets:
            shots += self.conversation(judge, zones)
        return Round(script, shots), text

    def change(self, text: str) -> tuple[Compiled, str]:
        """The nft script that leads from the policy before to that of *text*, as the driver writes it."""
        found = compiled(text, self.features)
        wanted = {k: r for k, r in found.wanted.items() if isinstance(r, Resource)
                  and k.kind in ("nft-table", "nic-guard", "nic-groups", "address-set")}
        scripts, self.standing = transaction(self.standing, plan(self.before, wanted, self.before.keys()))
        self.before = wanted
        return found, "".join(scripts)

    def place(self, found: Compiled) -> None:
        for s in found.segments.values():
            link = found.wanted[Key(Link.kind, s.bridge)]
            assert isinstance(link, Link)
            self.routers[s.name] = link.mac or ""
            self.ends[f"{HOST} {s.name}"] = End(f"{HOST} {s.name}", HOST, link.mac or "", s.address, s.address6, s.name)
            for n in s.nics:
                self.ends[n.vm] = End(n.vm, n.tap, n.mac, n.ip, n.ip6, s.name)
        self.ends["outside"] = End("outside", WAN, NEXT_MAC, OUTSIDE, OUTSIDE6, "")

    # -- what is sent ------------------------------------------------------------------------------

    def conversation(self, judge: Judge, zones: dict[str, int]) -> Iterator[Shot]:
        source, target = self.dice.sample([e for e in self.ends.values() if HOST not in e.name or self.dice.random() < 0.5], 2)
        if (source.name not in VMS and target.name not in VMS) or (HOST in (source.tap, target.tap) and source.network != target.network):
            return
        six = self.dice.random() < 0.4
        protocol, port = self.dice.choice(KINDS6 if six else KINDS)
        sport = 3000 + self.number % 60000
        a, b = (source.ip6, target.ip6) if six else (source.ip, target.ip)
        flow = Flow(zones[source.tap] if bridged(source, target) else 0, protocol, a, b, port, b, port)
        passes, make = judge.allows(flow), body(protocol, a, b, sport, port)
        if protocol == UDP and source.name in VMS and self.dice.random() < 0.25:
            yield self.parts(Case(Kind.PARTS, source, target, flow, passes), sport)
        else:
            yield self.whole(Case(Kind.FIRST, source, target, flow, passes), make)
        opened = is_open(source, target, flow, passes)
        quoted = (ip6 if six else ip4)(a, b, protocol, make(b""))[:48 if six else 28]
        if self.dice.random() < 0.5:
            shot, case = self.reply(judge, Case(Kind.REPLY, target, source, flow, opened), sport)
            yield shot
            opened |= protocol == UDP and is_open(target, source, case.flow, case.expected)
        if self.dice.random() < 0.25:
            yield self.complaint(Kind.ERROR, judge, target, source, opened, quoted)
        other = self.ends[self.dice.choice([v for v in VMS if v not in (source.name, target.name)])]
        if self.dice.random() < 0.15:
            yield self.complaint(Kind.FORGED, judge, other, source, False, quoted)
        if self.dice.random() < 0.15 and target.name in VMS:
            yield self.complaint(Kind.MISDIRECTED, judge, target, other, False, quoted)

    def whole(self, case: Case, make: Body) -> Shot:
        nonce, flow = self.take(case), case.flow
        packet = (ip6 if ":" in flow.source else ip4)(flow.source, flow.destination, flow.protocol, make(nonce))
        return Shot(case.source.tap, (self.framed(case, packet),))

    def parts(self, case: Case, sport: int) -> Shot:
        """A datagram in two fragments, the second first; the number is in the one without ports."""
        nonce, flow = self.take(case), case.flow
        size = LEAST6 - 48 if ":" in flow.source else 64
        data = udp(flow.source, flow.destination, sport, flow.port, bytes(size - 8) + nonce + bytes(14))
        if ":" in flow.source:
            cut = [ip6(flow.source, flow.destination, 44, part) for part in (
                struct.pack("!BBHI", UDP, 0, size, self.number) + data[size:], struct.pack("!BBHI", UDP, 0, 1, self.number) + data[:size])]
        else:
            cut = [ip4(flow.source, flow.destination, UDP, part, frag=frag) for part, frag in ((data[size:], size // 8), (data[:size], 0x2000))]
            cut = [numbered(p, self.number) for p in cut]
        return Shot(case.source.tap, tuple(self.framed(case, p) for p in cut))

    def reply(self, judge: Judge, case: Case, sport: int) -> tuple[Shot, Case]:
        """*case*: with the flow that is answered, ``expected`` if it is open. Of UDP it may begin a flow itself."""
        flow, a, b = case.flow, case.flow.destination, case.flow.source
        kind = ANSWERS.get((flow.protocol, flow.port), sport)
        back = Flow(flow.zone, flow.protocol, a, b, kind, b, kind)
        if flow.protocol == UDP:
            made = replace(case, flow=back, expected=case.expected or judge.allows(back))
            return self.whole(made, body(UDP, a, b, flow.port, sport)), made
        made = replace(case, flow=back, expected=case.expected or stray(judge, case.source, case.target, back))
        return self.whole(made, answer(flow, a, b, sport, kind)), made

    def complaint(self, kind: Kind, judge: Judge, source: End, target: End, related: bool, quoted: bytes) -> Shot:
        """An ICMP error from *source* to *target*, about the packet that *quoted* begins."""
        six = quoted[0] >> 4 == 6
        a, b = (source.ip6, target.ip6) if six else (source.ip, target.ip)
        number = 1 if six else 3
        flow = Flow(0, ICMP6 if six else ICMP, a, b, number, b, number)
        passes = related or (kind is not Kind.FORGED and stray(judge, source, target, flow))
        return self.whole(Case(kind, source, target, flow, passes), error(a, b, quoted))

    def take(self, case: Case) -> bytes:
        self.number += 1
        self.cases[self.number] = case
        return MARK + self.number.to_bytes(4, "big")

    def framed(self, case: Case, packet: bytes) -> bytes:
        """The packet as its sender gives it away."""
        source, target = case.source, case.target
        if source.tap == HOST:
            return packet
        if source.name == "outside":
            return ether(WAN_MAC, source.mac, family(packet), packet)
        to = target.mac if target.network == source.network else self.routers[source.network]
        return ether(to, source.mac, family(packet), packet)


def bridged(source: End, target: End) -> bool:
    return source.network == target.network and HOST not in (source.tap, target.tap)


def is_open(source: End, target: End, flow: Flow, passes: bool) -> bool:
    """Whether the flow of a first packet is known afterwards: if it was let in. Of what the host takes itself its own rules
    let in an echo alone."""
    return passes and (bridged(source, target) or target.tap != HOST or (flow.protocol, flow.port) in ((ICMP, 8), (ICMP6, 128)))


def stray(judge: Judge, source: End, target: End, flow: Flow) -> bool:
    """Whether a packet of no flow passes: between a NIC in no group and another, or the host, where no router asks."""
    a, b = judge.nics.get(source.tap), judge.nics.get(target.tap)
    if (source.network != target.network) or (a and a.groups) or (b and b.groups):
        return False
    return not (a and b and b.tenant) or judge.may_cross(a, b, flow)


def family(packet: bytes) -> int:
    return 0x86DD if packet[0] >> 4 == 6 else 0x0800


def numbered(packet: bytes, number: int) -> bytes:
    """An IPv4 packet with an identification of its own."""
    head = bytearray(packet[:20])
    head[4:6], head[10:12] = struct.pack("!H", number % 65536), b"\0\0"
    head[10:12] = struct.pack("!H", checksum(bytes(head)))
    return bytes(head) + packet[20:]


def body(protocol: int, a: str, b: str, sport: int, port: int) -> Body:
    """What begins a flow."""
    match protocol:
        case 17:
            return lambda nonce: udp(a, b, sport, port, nonce)
        case 6:
            return lambda nonce: segment(a, b, sport, port, 2, nonce)
        case 1:
            return lambda nonce: icmp(port, 0, struct.pack("!HH", sport, 1) + bytes(12) + nonce)
    return lambda nonce: icmp6(a, b, port, struct.pack("!HH", sport, 1) + nonce)


def answer(flow: Flow, a: str, b: str, sport: int, kind: int) -> Body:
    """What *a* replies to *b*, which began *flow*. ``kind``: of ICMP the type."""
    match flow.protocol:
        case 6:
            return lambda nonce: segment(a, b, flow.port, sport, 18, nonce)
        case 1:
            return lambda nonce: icmp(kind, 0, struct.pack("!HH", sport, 1) + bytes(12) + nonce)
    return lambda nonce: icmp6(a, b, kind, struct.pack("!HH", sport, 1) + nonce)


def error(a: str, b: str, quoted: bytes) -> Body:
    """Destination unreachable."""
    if ":" in a:
        return lambda nonce: icmp6(a, b, 1, bytes(4) + quoted + nonce)
    return lambda nonce: icmp(3, 1, bytes(4) + quoted + nonce)


def segment(a: str, b: str, sport: int, port: int, flags: int, data: bytes) -> bytes:
    """A TCP segment with data."""
    head = struct.pack("!HHIIBBHHH", sport, port, 1, 0 if flags == 2 else 2, 0x50, flags, 1000, 0, 0)
    total = checksum(pseudo(a, b, TCP, 20 + len(data)) + head + data)
    return head[:16] + struct.pack("!H", total) + head[18:] + data


def ground(dealer: Dealer, filtered: bool) -> Ground:
    """The links for the ends that *dealer* knows. ``filtered``: bridge netfilter is the back end."""
    before, after = ["sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0"], []
    calls = " nf_call_iptables 1 nf_call_ip6tables 1" if filtered else ""
    for network, address in dealer.routers.items():
        host = dealer.ends[f"{HOST} {network}"]
        before.append(f"ip link add kvb-{network} address {address} type bridge mcast_snooping 0 forward_delay 0{calls}; ip link set kvb-{network} up; "
                      f"ip addr add {host.ip}/24 dev kvb-{network}; ip addr add {host.ip6}/64 dev kvb-{network} nodad")
    for end in dealer.ends.values():
        if end.tap == WAN:
            after.append(f"ip link set {WAN} address {WAN_MAC} up; ip addr add 192.0.2.2/24 dev {WAN}; ip addr add 2001:db8:1::2/64 dev {WAN} nodad; "
                         f"ip neigh replace 192.0.2.1 lladdr {NEXT_MAC} dev {WAN}; ip neigh replace 2001:db8:1::1 lladdr {NEXT_MAC} dev {WAN}; "
                         f"ip route add default via 192.0.2.1; ip -6 route add default via 2001:db8:1::1")
        elif end.tap != HOST:
            bridge = f"kvb-{end.network}"
            after.append(f"sysctl -qw net.ipv6.conf.{end.tap}.disable_ipv6=1; ip link set {end.tap} master {bridge} up; "
                         f"bridge fdb add {end.mac} dev {end.tap} master sticky static; ip neigh replace {end.ip} lladdr {end.mac} dev {bridge}; "
                         f"ip neigh replace {end.ip6} lladdr {end.mac} dev {bridge}")
    taps = tuple(e.tap for e in dealer.ends.values() if e.tap != HOST)
    return Ground("set -e\n" + "\n".join(before), "set -e\n" + "\n".join(after), taps, tuple(f"kvb-{n}" for n in dealer.routers))


@dataclass(frozen=True, slots=True)
class Difference:
    """A packet of which kernel and reference say different things."""

    case: Case
    came_out: tuple[str, ...]
    document: str


@dataclass
class Trial:
    """Policies and packets of one run, and whether the kernel agreed. Nothing of it needs a kernel but ``fire``."""

    dealer: Dealer
    rounds: list[Round]
    documents: list[str]
    numbers: list[range]

    @classmethod
    def dealt(cls, features: dict[str, str], policies: int, packets: int) -> Trial:
        """The last round is the control: packets of the one before it, under no groups."""
        made = cls(Dealer(random.Random(7), features), [], [], [])
        for _ in range(policies):
            first = made.dealer.number + 1
            one, text = made.dealer.round(packets)
            made.rounds.append(one)
            made.documents.append(text)
            made.numbers.append(range(first, made.dealer.number + 1))
        made.rounds.append(Round(made.dealer.change(without_groups(text))[1], one.shots))
        return made

    def ground(self) -> Ground:
        return ground(self.dealer, KNOWN_WORDS[Tracking.NETFILTER] in self.rounds[0].script)

    def judge(self, found: Sequence[dict[int, tuple[str, ...]]], least: int) -> None:
        """No difference; enough of every kind on both sides for that to mean something; and without groups what was refused arrives."""
        wrong = list(self.differences(found))
        assert Counter((w.case.kind, w.case.expected, w.case.flow.protocol, ":" in w.case.flow.source) for w in wrong) == {}, wrong[0]
        met = Counter((case.kind, case.expected) for case in self.dealer.cases.values())
        assert met[Kind.FORGED, True] == 0 and sum(met.values()) >= least
        assert min(met[kind, expected] for kind in Kind for expected in (True, False)
                   if not expected or kind not in (Kind.FORGED, Kind.MISDIRECTED)) >= least // 100, met
        begun = [n for n in self.numbers[-1] if self.dealer.cases[n].kind in (Kind.FIRST, Kind.PARTS)]
        refused = [n for n in begun if not self.dealer.cases[n].expected]
        assert len(refused) > len(begun) // 10
        assert [self.dealer.cases[n] for n in refused if self.dealer.cases[n].target.tap not in found[-1].get(n, ())] == []

    def differences(self, found: Sequence[dict[int, tuple[str, ...]]]) -> Iterator[Difference]:
        """Each packet: where it came out against where it should have. The sender may hear an answer that quotes it."""
        taps = {self.dealer.ends[vm].tap for vm in VMS}
        for numbers, arrived, text in zip(self.numbers, found, self.documents, strict=False):
            for number in numbers:
                case, where = self.dealer.cases[number], arrived.get(number, ())
                if (case.target.tap in where) != case.expected or \
                        any(w in taps and w not in (case.target.tap, case.source.tap) for w in where):
                    yield Difference(case, where, text)
