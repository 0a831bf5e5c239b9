"""Random VLANs, filters of tc, queues, VRFs and bonds, random frames for them, and what the walk of ``why`` says of each. What is sent and heard
needs a whole kernel (``fire``); the rest is pure. See tests/lab/test_devices.py.
"""
from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.filters import filters
from kvmnet.doctor.packet import Packet
from kvmnet.doctor.routed import come_up, forward
from kvmnet.doctor.scene import Scene, read
from kvmnet.doctor.segment import cross, device, enter, leave
from kvmnet.doctor.trip import State, Trip, begin, state_of
from kvmnet.doctor.why import deliver
from kvmnet.facts.capture import table_job, with_matches
from kvmnet.host.clock import wait_until
from lib.frames import TCP, UDP, ether, ip4, tag, tcp, udp
from lib.netns import new_netns, sh
from lib.nft import Nft
from lib.rules import signature
from lib.tap import Tap

BRIDGED, ROUTED, MEMBERS = ("t1", "t2", "t3"), ("v1", "v2", "v3"), ("b1", "b2")
VLANS = (1, 5, 7)
NETS = {"v1": 1, "v2": 2, "v3": 3, "bond0": 4}
HOST = "ee:00:00:00:01:00"
OWN = {name: f"ee:00:00:00:00:0{n}" for n, name in enumerate((*BRIDGED, *ROUTED, *MEMBERS))}
FAR = {name: f"02:00:00:00:00:0{n}" for n, name in enumerate((*BRIDGED, *ROUTED, *MEMBERS))}
GROUND = "\n".join((
    "sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
    f"ip link add br0 address {HOST} type bridge vlan_filtering 1 mcast_snooping 0 forward_delay 0; ip link set br0 up",
    *(f"ip link add link br0 name br0.{n} type vlan id {n}; ip link set br0.{n} up" for n in (5, 7)),
    "ip link add red type vrf table 10; ip link set red up; ip link add bond0 type bond mode active-backup miimon 50"))
SETTLED = "\n".join((
    *(f"ip link set {t} address {OWN[t]}" for t in (*BRIDGED, *ROUTED)),
    *(f"ip link set {t} master br0 up" for t in BRIDGED),
    *(f"ip link set {b} down; ip link set {b} master bond0; ip link set {b} up" for b in MEMBERS), "ip link set v1 master red; ip link set v2 master red; ip link set bond0 up",
    *(f"ip link set {v} up; ip addr add 10.{n}.0.1/24 dev {v}; ip neigh replace 10.{n}.0.9 lladdr 02:00:00:00:09:0{n} dev {v}" for v, n in NETS.items()),
    *(f"tc qdisc add dev {t} clsact" for t in (*BRIDGED, *ROUTED))))
FILTERS = (
    "protocol ip flower ip_proto udp dst_port 53 action drop", "protocol ip flower ip_proto tcp action drop", "protocol ip flower dst_ip 10.2.0.0/16 action drop", "protocol ip flower src_ip 10.1.0.7 action pass",
    "protocol all flower dst_mac 02:00:00:00:00:01 action drop", "protocol 802.1Q flower vlan_id 5 action drop", "protocol all matchall action drop", "protocol ip matchall action pass",
    "protocol all matchall action police rate 1gbit burst 1m conform-exceed drop/pipe action pass", "protocol ip u32 match ip protocol 17 0xff action drop", "protocol ip flower ip_proto tcp dst_port 80-90 action drop",
    "protocol ip flower ip_proto udp action continue", "protocol ip u32 match ip dst 10.3.0.0/16 action pass", "protocol ip flower ip_proto tcp dst_port 443 action pass", "protocol arp matchall action drop")
RULES = ('iifname "v1" drop', 'iifname "red" drop', 'iifname "red" oifname "v2" accept', 'meta sdifname "v1" udp dport 53 drop', 'oifname "bond0" tcp dport 443 drop', 'oifname "v2" accept', 'iifname "v3" drop', "udp dport 53 accept", "ct state new tcp dport 80 drop")


@dataclass(frozen=True, slots=True)
class Turn:
    """Settings, as lines for each tool, and frames with the port that each enters by."""

    ip: Sequence[str]
    bridge: Sequence[str]
    tc: Sequence[str]
    nft: str
    shots: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Heard:
    """The host as the tools show it, and where each frame came out."""

    facts: Mapping[str, Any]
    arrived: Sequence[frozenset[str]]


def deal(dice: random.Random, first: int, frames: int) -> Turn:
    down = dice.choice(((), (), ("b1",), ("b2",), MEMBERS))
    ip = [f"link set {b} {'down' if b in down else 'up'}" for b in MEMBERS]
    ip.append(f"route {dice.choice(('replace', 'replace', 'del'))} unreachable default metric 4278198272 table 10")
    bridge = []
    for t in BRIDGED:
        bridge += [f"vlan del dev {t} vid 1-10"]
        taken = dice.sample(VLANS, dice.choice((1, 2, 3)))
        pvid = dice.choice((*taken, taken[0], 0))
        bridge += [f"vlan add dev {t} vid {v}{' pvid untagged' if v == pvid else ''}" for v in taken]
        bridge += [f"fdb replace {FAR[t]} dev {t} master static vlan {v}" for v in taken]
    own = dice.choice((1, 5, 7, 0))
    bridge += ["vlan del dev br0 vid 1-10 self", *(f"vlan add dev br0 vid {v}{' pvid untagged' if v == own else ''} self" for v in dice.sample(VLANS, dice.choice((1, 2, 3))))]
    tc = [f"filter del dev {t} {way}" for t in (*BRIDGED, *ROUTED) for way in ("ingress", "egress")]
    for t in dice.sample((*BRIDGED, *ROUTED), 3):
        way = dice.choice(("ingress", "egress"))
        tc += [f"filter add dev {t} {way} pref {n} {words}" for n, words in enumerate(dice.sample(FILTERS, dice.choice((1, 2, 3))), 10)]
    tc += [f"qdisc replace dev t3 root {dice.choice(('pfifo limit 100', 'pfifo limit 100', 'netem loss 100%'))}"]
    rules = "; ".join(dice.sample(RULES, dice.choice((0, 1, 2, 3))))
    nft = f"flush ruleset\ntable inet r {{ chain c {{ type filter hook forward priority 0; policy {dice.choice(('accept', 'accept', 'drop'))}; {rules}; }}; }}"
    return Turn(ip, bridge, tc, nft, [shot(dice, first + n) for n in range(frames)])


def shot(dice: random.Random, number: int) -> tuple[str, bytes]:
    protocol, port, sport = dice.choice((TCP, UDP)), dice.choice((53, 80, 85, 443)), 1024 + number
    way = dice.choice(("bridge", "route", "up"))
    come = dice.choice(ROUTED) if way == "route" else dice.choice(BRIDGED)
    to = dice.choice([t for t in (BRIDGED if way == "bridge" else ("v3", "bond0") if way == "up" else NETS) if t != come])
    source = f"10.{NETS.get(come, 9)}.0.{dice.choice((7, 8))}"
    target = f"10.{NETS.get(to, 2)}.0.9"
    body = tcp(source, target, sport, port, 2) if protocol == TCP else udp(source, target, sport, port, number.to_bytes(4, "big"))
    frame = ether(FAR[to] if way == "bridge" else HOST if way == "up" else OWN[come], FAR[come], 0x0800, ip4(source, target, protocol, body))
    return come, tag(dice.choice(VLANS), frame) if way == "bridge" and dice.random() < 0.4 else frame


# -- on the kernel -----------------------------------------------------------------------------------

TABLES = {"links": ("ip", "-j", "-d", "addr", "show"), "vlans": ("bridge", "-j", "vlan", "show"), "fdb": ("bridge", "-j", "fdb", "show"), "qdiscs": ("tc", "-j", "qdisc", "show"), "routes4": ("ip", "-j", "-d", "-4", "route", "show", "table", "all")}
ONCE = {"rules4": ("ip", "-j", "-4", "rule", "show"), "netconf": ("ip", "-j", "netconf", "show"), "neighbours": ("ip", "-j", "neigh", "show")}


def fire(turns: Sequence[Turn]) -> list[Heard]:
    with new_netns(), ExitStack() as stack:
        sh(f"set -e\n{GROUND}")
        taps = {name: stack.enter_context(Tap(name)) for name in (*BRIDGED, *ROUTED, *MEMBERS)}
        sh(f"set -e\n{SETTLED}")
        wait_until(lambda: sh("bridge link").count("state forwarding") == len(BRIDGED), 30)
        nft = Nft()
        once = {name: table_job(argv)() for name, argv in ONCE.items()}
        return [heard(turn, taps, nft, once) for turn in turns]


def heard(turn: Turn, taps: Mapping[str, Tap], nft: Nft, once: Mapping[str, Any]) -> Heard:
    for tool, lines in (("ip", turn.ip), ("bridge", turn.bridge), ("tc", turn.tc)):
        text = "\n".join(lines)
        sh(f"{tool} -force -batch - <<'END' 2>/dev/null\n{text}\nEND", check=False)
    assert (refused := nft.refused(turn.nft)) == "", refused
    wanted = [b for b in MEMBERS if f"link set {b} up" in turn.ip]
    wait_until(lambda: ("active_slave" in (told := sh("ip -d link show bond0"))) == bool(wanted) and (not wanted or any(f"active_slave {b}" in told for b in wanted)), 30)
    rules, text = nft.listed()
    facts = {**once, **{name: table_job(argv)() for name, argv in TABLES.items()}, "filters": shown(), "nft": json.loads(rules)["nftables"], "nft_text": text}
    for tap in taps.values():
        tap.forget()
    arrived = []
    for come, frame in turn.shots:
        taps[come].send(frame)
        mark = signature(frame)
        arrived.append(frozenset(name for name, tap in taps.items() if any(mark in seen for seen in tap.drain())))
        for tap in taps.values():
            tap.seen.clear()
    return Heard(facts, arrived)


def shown() -> list[Mapping[str, Any]]:
    """Filters of the taps, as ``kvmnet facts`` has them."""
    asked = [(t, way) for t in (*BRIDGED, *ROUTED) for way in ("ingress", "egress")]
    lines = "\n".join(f"filter show dev {t} {way}" for t, way in asked)
    text = sh(f"tc -j -s -b - <<'END'\n{lines}\nEND")
    found: list[Mapping[str, Any]] = []
    decoder, at = json.JSONDecoder(object_pairs_hook=with_matches), 0
    for dev, way in asked:
        at = len(text) - len(text[at:].lstrip())
        rows, at = decoder.raw_decode(text, at) if at < len(text) else ([], at)
        found.append({"dev": dev, "direction": way, "filters": rows})
    return found


# -- the model ---------------------------------------------------------------------------------------

def walked(scene: Scene, come: str, packet: Packet) -> tuple[Trip, frozenset[str]]:
    """The walk of a frame, and the ports by which it may leave."""
    trip = begin(scene, packet)
    if packet.macs[0] == HOST:
        up = scene.face("br0", come)
        enter(trip, come)
        cross(trip, "br0", come, "")
        if not up:
            trip.blocks("vlan-mismatch", "br0", "the host is not in that VLAN", "")
            return trip, frozenset()
        way = come_up(trip, up)
    elif come in BRIDGED:
        out = next(t for t, mac in FAR.items() if mac == packet.macs[0])
        enter(trip, come)
        cross(trip, "br0", come, out)
        leave(trip, "br0", come, out)
        return trip, frozenset({out})
    else:
        device(trip, come, "uplink")
        filters(trip, come, "ingress")
        trip.at("netdev", "ingress", iif=come, where=come)
        way = come_up(trip, come)
    if way.type == "unicast":
        forward(trip, up if packet.macs[0] == HOST else come, way)
        deliver(trip, way, End(packet.target, Place.OUTSIDE, packet.target))
    return trip, frozenset(MEMBERS if way.dev == "bond0" else (way.dev,))


def differences(turns: Sequence[Turn], found: Sequence[Heard], said: Counter[str]) -> Iterator[str]:
    for turn, heard in zip(turns, found, strict=True):
        scene = read({"format": 1, "kvmnet": "0", "missing": {}, "sysctls": {"net/ipv4/ip_forward": "1"}, **heard.facts})
        for (come, frame), arrived in zip(turn.shots, heard.arrived, strict=True):
            trip, ports = walked(scene, come, Packet(frame))
            state = state_of(trip.findings)
            said[f"{'up' if Packet(frame).macs[0] == HOST else 'bridge' if come in BRIDGED else 'route'} {state}"] += 1
            said.update(f.code for f in trip.findings)
            if state is not State.UNKNOWN and (state is State.OK) is not bool(arrived & ports):
                yield (f"model {state}, came out at {', '.join(arrived) or 'nothing'}: by {come}, {Packet(frame).macs[0]} {Packet(frame).vlan} {Packet(frame).source} {Packet(frame).target} {Packet(frame).ports} {Packet(frame).upper}\n"
                       f"{[(f.code, f.where, f.what) for f in trip.findings]}\n{turn.bridge}\n{turn.tc}\n{turn.ip}\n{turn.nft}")
