"""Random rules of nftables, random frames for them, and what the model of ``why`` says: held against a kernel by
tests/net/test_judge_kernel.py, and against Debian's by tests/lab/test_judge_kernel.py. Pure but for ``allowed``.
"""
from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from kvmnet.doctor.hooks import Rules, crossing, kind_of_frame, verdict
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.packet import STATES, UNKNOWN, Context, Packet, Tracked
from kvmnet.doctor.ruleset import parse
from kvmnet.host.clock import wait_until
from lib.frames import (
    ICMP,
    ICMP6,
    ROUTER_ALERT,
    TCP,
    UDP,
    arp,
    ether,
    extension,
    icmp,
    icmp6,
    ip4,
    ip6,
    tag,
    tcp,
    udp,
)
from lib.netns import new_netns, sh
from lib.nft import Nft
from lib.tap import Tap

SEED = 11
MACS = {"t1": "02:00:00:00:00:01", "t2": "02:00:00:00:00:02"}
FOURS, SIXES = ("10.0.0.1", "10.0.0.2", "10.0.0.9", "10.1.0.1"), ("fd00::1", "fd00::2", "fd00::9", "fd01::1")
DEVICES = """
iifname "t1" | iifname != "t2" | iifname "t*" | iifname { "t1", "x*" } | iifname "br0" | oifname "t2" | oifname != "t*" | oifname { "br0", "t1" }
iifname vmap { "t1" : jump c1, "t*" : accept } | iifname @ifs | meta iiftype ether | ibrname "br0" | iifgroup 0
"""
MATCHES = """
meta mark 0x1 | meta mark != 0 | meta mark & 0x3 == 0x1 | meta mark and 0x2 != 0 | meta mark > 2 | meta mark { 0x1, 0x4-0x8 } | meta l4proto { tcp, udp }
meta l4proto != icmp | meta l4proto 17 | meta l4proto vmap { tcp : jump c1, icmp : drop, ipv6-icmp : accept } | ip saddr 10.0.0.1 | ip saddr != 10.0.0.0/30
ip daddr { 10.0.0.2, 10.0.0.8-10.0.0.15 } | ip daddr != { 10.0.0.0/8 } | ip saddr . tcp dport { 10.0.0.1 . 80, 10.0.0.2 . 443 }
ip daddr . meta l4proto . th dport vmap { 10.0.0.2 . tcp . 80 : accept, 10.0.0.2 . udp . 53 : drop } | ip saddr vmap { 10.0.0.1 : jump c1, 10.0.0.2 : goto c1 }
tcp dport 80 | tcp dport != 80-90 | tcp dport { 22, 80-90 } | tcp sport > 3000 | udp dport { 53, 60-70 } | udp dport vmap { 53 : drop, 60-70 : accept }
tcp flags syn | tcp flags & (syn|ack) == syn | tcp flags ! syn | tcp flags { syn, syn | ack } | tcp flags != ack | th dport 53 | th sport != 80
icmp type echo-request | icmp type { echo-reply, 13 } | icmp code 0 | icmpv6 type { echo-request, nd-neighbor-solicit } | icmpv6 type != 128
ip6 saddr fd00::/126 | ip6 daddr { fd00::2, fd01::/64 } | ip6 saddr != fd00::1 | ip6 nexthdr tcp | ip6 hoplimit < 255 | ip6 nexthdr 0 | ip ttl < 64
ip ttl 64 | ip length > 50 | meta length 40-60 | ip dscp cs1 | ip dscp != cs0 | ip dscp { cs1, af11 } | ip ecn ce | ip version 4 | ip hdrlength > 5 | ip id 7
ip protocol { tcp, icmp } | ip frag-off & 0x1fff != 0 | exthdr hbh exists | exthdr hbh missing | udp length > 20
ether saddr 02:00:00:00:00:01 | ether saddr != 02:00:00:00:00:01 | ether daddr 02:00:00:00:00:02 | ether type ip | ether type != arp
vlan id 5 | vlan id 4-6 | vlan pcp 0 | meta protocol ip | meta protocol { ip6, arp } | vlan id 5 ip daddr 10.0.0.2
meta nfproto ipv4 | @nh,72,8 6 | @th,16,16 80 | @ll,48,48 0x020000000001 | @nh,0,8 0x45 | @th,0,16 != 80 | arp operation request | arp saddr ip 10.0.0.1
arp daddr ip { 10.0.0.2, 10.0.0.9 } | arp saddr ether 02:00:00:00:00:01 | arp htype 1 | arp plen 4 | meta pkttype broadcast | meta pkttype { host, other }
ip saddr @s4 | ip daddr != @s4 | ip6 saddr @s6 | ip saddr . ip daddr @pair | ether saddr . ip saddr @bound | ether saddr . ip saddr != @bound | ip saddr . tcp dport @spans
ip saddr vmap @vm | tcp dport vmap @ports | ip saddr & 255.255.0.0 == 10.0.0.0 | meta mark ^ 0x1 == 0 | ip saddr != 10.0.0.1 ip daddr != 10.0.0.9
"""
TRACKED = """
ct state new | ct state established,related | ct state invalid | ct state { new, untracked } | ct state vmap { established : accept, invalid : drop, new : jump c1 } | ct state != new
ct mark 5 | ct mark != 0 | ct direction reply | ct original ip saddr 10.0.0.1 | ct original proto-dst 80 | ct status seen-reply
"""
CHANGES = """
meta mark set 0x1 | meta mark set meta mark \\| 0x2 | meta mark set meta mark & 0x5 | meta mark set ip saddr map { 10.0.0.1 : 0x4, 10.0.0.2 : 0x2 } | meta mark set tcp dport map @marks
counter | counter log | ip dscp set cs1 | ip ttl set 63 | add @seen { ip saddr } | update @seen { ip daddr } | meta mark set iifname map { "t1" : 0x1, "br0" : 0x8 }
meta mark set ether saddr map { 02:00:00:00:00:01 : 0x9 } | meta mark set 0 | limit rate 1/day counter | continue
"""
TRACKED_CHANGES = "ct mark set 5 | ct mark set meta mark | meta mark set ct mark | ct mark set tcp dport map @marks"
SETS = """
set s4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/30, 10.1.0.0/16 }; }
set s6 { type ipv6_addr; flags interval; elements = { fd00::/127, fd01::1 }; }
set pair { type ipv4_addr . ipv4_addr; elements = { 10.0.0.1 . 10.0.0.2, 10.0.0.9 . 10.0.0.1 }; }
set bound { type ether_addr . ipv4_addr; elements = { 02:00:00:00:00:01 . 10.0.0.1, 02:00:00:00:00:02 . 10.0.0.2 }; }
set spans { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/30 . 80-90, 10.0.0.9 . 22 }; }
set ifs { type ifname; flags interval; elements = { "t*", "eth0" }; }
set seen { type ipv4_addr; flags dynamic; size 65535; }
map vm { type ipv4_addr : verdict; elements = { 10.0.0.1 : jump c1, 10.0.0.2 : accept, 10.0.0.9 : drop }; }
map ports { type inet_service : verdict; flags interval; elements = { 22 : drop, 80-90 : accept, * : continue }; }
map marks { type inet_service : mark; elements = { 80 : 0x1, 22 : 0x7 }; }
"""
PLACES = (("bridge", "prerouting", ""), ("bridge", "forward", ""), ("bridge", "postrouting", ""), ("inet", "prerouting", ""), ("inet", "forward", ""),
          ("ip", "forward", ""), ("ip6", "postrouting", ""), ("ip", "prerouting", ""), ("netdev", "ingress", "device t1 "), ("netdev", "egress", "device t2 "))
ENDINGS = ("accept", "drop", "drop", "accept", "return", "jump c1", "goto c1", "continue", "")


Words: TypeAlias = Mapping[tuple[str, str, str], tuple[list[str], list[str]]]
"""Place -> matches and changes that a kernel takes there."""


def phrases(text: str) -> list[str]:
    return [p.strip().replace("\x00", "|") for line in text.replace("\\|", "\x00").strip().splitlines()
            for p in line.replace("{ syn, syn | ack }", "{ syn, syn \x00 ack }").replace("(syn|ack)", "(syn\x00ack)").split("|")]


def allowed(nft: Nft, family: str, hook: str, device: str) -> tuple[list[str], list[str]]:
    """Matches and changes that this kernel takes at a place."""
    place = f"table {family} probe {{ {SETS} chain c1 {{ }}; chain c {{ type filter hook {hook} {device}priority 0; }}; }}"
    assert nft.refused(place) == "", place
    tracked = family in ("inet", "ip", "ip6")
    candidates = (phrases(DEVICES) + phrases(MATCHES) + (phrases(TRACKED) if tracked else []), phrases(CHANGES) + (phrases(TRACKED_CHANGES) if tracked else []))
    found = tuple([p for p in some if nft.refused(f"add rule {family} probe c {p}") == ""] for some in candidates)
    nft.refused(f"delete table {family} probe")
    return found[0], found[1]


def rule(dice: random.Random, words: tuple[list[str], list[str]], last: bool) -> str:
    matches = dice.sample(words[0], dice.choice((0, 1, 1, 1, 2)))
    final = [m for m in matches if " vmap " in m]
    matches = [m for m in matches if " vmap " not in m]
    changes = dice.sample(words[1], dice.choice((0, 0, 1)))
    if "limit rate 1/day counter" in changes and dice.random() < 0.8:
        changes = []
    if final:
        return " ".join((*matches, *changes, final[0]))
    ending = dice.choice([e for e in ENDINGS if not (last and ("c1" in e))])
    return " ".join((*matches, *changes, ending)) if matches or changes or ending else "counter"


def document(dice: random.Random, words: Words) -> str:
    tables = []
    for number, (family, hook, device) in enumerate(dice.sample(PLACES, dice.randint(1, 3))):
        can = words[family, hook, device]
        inner = ([m for m in can[0] if "c1" not in m and "@vm" not in m], can[1])
        rules = "; ".join(rule(dice, can, last=False) for _ in range(dice.randint(1, 5)))
        nested = "; ".join(rule(dice, inner, last=True) for _ in range(dice.randint(0, 3)))
        priority = dice.choice((-300, -150, 0, 10))
        policy = dice.choice(("accept", "accept", "drop"))
        tables.append(f"table {family} r{number} {{ {SETS} chain c1 {{ {nested}; }}; chain c {{ type filter hook {hook} {device}priority {priority}; policy {policy}; {rules}; }}; }}")
    return "\n".join(tables)


def frame(dice: random.Random, number: int) -> bytes:
    """A frame from t1 to t2 with the number as its nonce."""
    nonce = b"N" + number.to_bytes(4, "big")
    if dice.random() < 0.1:
        a, b = dice.choice(FOURS), dice.choice(FOURS)
        return ether(dice.choice((MACS["t2"], "ff:ff:ff:ff:ff:ff")), MACS["t1"], 0x0806, arp(dice.choice((1, 2)), (MACS["t1"], a), (MACS["t2"], b)) + nonce)
    sport, dport = 1024 + number % 60000, dice.choice((22, 53, 65, 80, 85, 443))
    if dice.random() < 0.35:
        a, b = dice.choice(SIXES), dice.choice(SIXES)
        kind = dice.choice((TCP, UDP, ICMP6))
        body = tcp(a, b, sport, dport, dice.choice((2, 16, 18))) if kind == TCP else udp(a, b, sport, dport, nonce) if kind == UDP else \
            icmp6(a, b, dice.choice((128, 129, 135)), (number & 0xFFFF).to_bytes(2, "big") + number.to_bytes(2, "big") + nonce + bytes(16))
        head = dice.random() < 0.15
        packet = ip6(a, b, 0 if head else kind, (extension(kind, ROUTER_ALERT) if head else b"") + body, hops=dice.choice((64, 255)))
        whole = ether(MACS["t2"], MACS["t1"], 0x86DD, packet)
    else:
        a, b = dice.choice(FOURS), dice.choice(FOURS)
        kind = dice.choice((TCP, UDP, ICMP))
        body = tcp(a, b, sport, dport, dice.choice((2, 16, 18))) if kind == TCP else udp(a, b, sport, dport, nonce) if kind == UDP else \
            icmp(dice.choice((8, 0, 13)), 0, (number & 0xFFFF).to_bytes(2, "big") + number.to_bytes(2, "big") + nonce)
        packet = ip4(a, b, kind, body, ttl=dice.choice((64, 63, 255)))
        whole = ether(MACS["t2"], MACS["t1"], 0x0800, packet)
    return tag(dice.choice((5, 7)), whole) if dice.random() < 0.1 else whole


def signature(data: bytes) -> bytes:
    """What tells a frame from others, whatever rules changed in it (TTL, DSCP, checksums)."""
    packet = Packet(data)
    return data[packet.upper[1]:][:8] if packet.upper else data[-5:]


def context(packet: Packet, flow: Tracked | None = None) -> Context:
    return Context(packet, pkttype=kind_of_frame(packet, "ee:00:00:00:00:01"), flow=flow)


def answer(packet: Packet) -> bytes | None:
    """An answer to a packet that began a flow of UDP."""
    if packet.tagged or packet.upper is None or packet.upper[0] != UDP or packet.source == packet.target or packet.headers():
        return None
    sport, dport = packet.ports
    a, b = packet.target, packet.source
    body = udp(a, b, dport, sport, signature(packet.frame))
    return ether(MACS["t1"], MACS["t2"], 0x86DD, ip6(a, b, UDP, body)) if packet.version == 6 else ether(MACS["t1"], MACS["t2"], 0x0800, ip4(a, b, UDP, body))




# -- sending and judging -----------------------------------------------------------------------------

@dataclass(frozen=True, slots=True)
class Round:
    """A ruleset, and frames with the port that each enters by; the answer to one stands behind it."""

    text: str
    shots: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Heard:
    """The rules as the kernel has them, in JSON and as text, and of each frame whether it came out by the other port."""

    rules: tuple[str, str]
    arrived: Sequence[bool]


def deal(dice: random.Random, words: Words, first: int, packets: int) -> Round:
    """A round whose frames have numbers from *first* on."""
    shots: list[tuple[str, bytes]] = []
    for number in range(first, first + packets):
        sent = frame(dice, number)
        shots.append(("t1", sent))
        if (back := answer(Packet(sent))) is not None:
            shots.append(("t2", back))
    return Round("flush ruleset\n" + document(dice, words), shots)


def fire(rounds: Sequence[Round]) -> list[Heard | None]:
    """Sends everything across a bridge with bridge netfilter; None of a round whose rules were refused. What is written to a tap has
    come out by the other when the write returns."""
    with bridge_netfilter(), new_netns(call_iptables=1):
        sh("ip link add br0 type bridge mcast_snooping 0 forward_delay 0; sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.br0.disable_ipv6=1; ip link set br0 up")
        with Tap("t1") as first, Tap("t2") as second:
            for tap in MACS:
                sh(f"ip link set {tap} address ee:00:00:00:00:0{tap[1]} master br0 up; bridge fdb replace {MACS[tap]} dev {tap} master static")
            wait_until(lambda: sh("bridge link").count("state forwarding") == 2, 20)
            nft = Nft()
            found = [heard(nft, one, {"t1": (first, second), "t2": (second, first)}) for one in rounds]
            nft.close()
            return found


@contextmanager
def bridge_netfilter() -> Iterator[None]:
    """With the module, which Debian loads when somebody asks for it; without it again, where it was not there."""
    found = Path("/proc/sys/net/bridge").exists()
    if not found:
        sh("modprobe br_netfilter")
    try:
        yield
    finally:
        if not found:
            sh("modprobe -r br_netfilter")


def heard(nft: Nft, one: Round, ways: Mapping[str, tuple[Tap, Tap]]) -> Heard | None:
    if nft.refused(one.text):
        return None
    arrived = []
    for port, sent in one.shots:
        near, far = ways[port]
        near.send(sent)
        wanted = signature(sent)
        arrived.append(any(wanted in seen for seen in far.drain()))
        far.forget()
        near.forget()
    return Heard(nft.listed(), arrived)


def judged(one: Round, heard: Heard, said: Counter[str]) -> Iterator[str]:
    """Where model and kernel differ. ``said`` counts what the model said."""
    rules = Rules(parse(json.loads(heard.rules[0])["nftables"], heard.rules[1]), {"br0": frozenset({4, 6})})
    flow: Tracked | None = None
    begun = False
    """Whether the frame before began a flow, and came out."""
    for (port, sent), arrived in zip(one.shots, heard.arrived, strict=True):
        if port == "t2" and not begun:
            continue
        asked = context(Packet(sent), flow if port == "t2" else None)
        model = verdict(crossing(rules, asked, "br0", port, "t2" if port == "t1" else "t1"))
        said[model] += 1
        if model is not Verdict.UNKNOWN and (model is Verdict.ACCEPT) is not arrived:
            packet = asked.packet
            yield f"model {model}, kernel {'accept' if arrived else 'drop'}: {port} {packet.macs} {packet.source} {packet.target} {packet.upper} {sent.hex()}\n{one.text}"
        tracked, begun = asked.tracked, arrived
        flow = replace(tracked, state=STATES["established"], direction=1, status=UNKNOWN, first=Packet(sent)) if tracked and tracked.state == STATES["new"] else None


def differences(rounds: Sequence[Round], found: Sequence[Heard | None], least: int) -> list[str]:
    """All of them. Raises AssertionError where too little was said on either side for an empty list to mean something."""
    said: Counter[str] = Counter()
    wrong = [w for one, heard in zip(rounds, found, strict=True) if heard for w in judged(one, heard, said)]
    total = said.total()
    assert total >= least and min(said["accept"], said["drop"]) > total * 0.2 and said["unknown"] < total * 0.05, said
    return wrong
