"""Who has an address: the question of one end, and the answer of the other, where both meet (ARP, neighbour discovery). Pure.

What of it is told is what its packet alone meets (``HEARD``): the rest stands in the way of the packet that follows, too.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.filters import filters
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.packet import question, reply
from kvmnet.doctor.routing import Asked, look_up
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.segment import cross, enter, leave
from kvmnet.doctor.trip import Trip, begin

NOBODY = "02:00:00:00:00:fe"
"""Stands for a MAC that is not known."""
HEARD = ("arp-drop", "bridge-netfilter", "rule-unknown", "port-no-flood", "arp-ignored", "arp-off")
"""What of a question's way is told: the rest its packet meets, too."""


QUESTIONS = ("ARP", "neighbour discovery")
"""Hops that stand for a question, of both IP versions."""


def ask(scene: Scene, a: End, b: End) -> Trip:
    """The question of *a* who has the address of *b*, and the answer, on one bridge."""
    trip = begin(scene, question(a.mac or NOBODY, a.ip, b.ip), asked=True)
    on_bridge(trip, a, b)
    answer = begin(scene, reply(trip.packet, b.mac or NOBODY), asked=True)
    on_bridge(answer, b, a)
    trip.hops += answer.hops
    return trip


def ask_beyond(scene: Scene, dev: str, own: str, target: str) -> Trip:
    """The host's question by a device that is no bridge, and the answer of whose MAC is known, as far as this host."""
    trip = begin(scene, question(scene.mac(dev) or NOBODY, own, target), asked=True)
    trip.context.linked = False
    if trip.packet.version:
        trip.at("ip", "output", oif=dev)
        trip.at("ip", "postrouting", oif=dev)
    else:
        trip.at("arp", "output", oif=dev)
    trip.context.linked = True
    trip.at("netdev", "egress", oif=dev, where=dev)
    filters(trip, dev, "egress")
    mac = scene.neighbours.get((dev, target), {}).get("lladdr")
    if not mac:     # rules may ask for it
        return trip
    answer = begin(scene, reply(trip.packet, mac), asked=True)
    filters(answer, dev, "ingress")
    answer.at("netdev", "ingress", iif=dev, where=dev)
    if answer.packet.version:
        answer.at("ip", "prerouting", iif=dev)
        answer.at("ip", "input", iif=dev)
    else:
        answer.at("arp", "input", iif=dev)
    trip.hops += answer.hops
    return trip


def on_bridge(trip: Trip, a: End, b: End) -> None:
    """A frame between two ends on one bridge, either of which may be the host, by the bridge or a VLAN device on it."""
    bridge, own = trip.scene.base(a.segment), a.segment if a.place is Place.HOST else b.segment
    if a.place is Place.NIC:
        if not a.dev and b.place is Place.NIC:
            return
        if a.dev:
            enter(trip, a.dev)
    elif trip.packet.version == 0:
        trip.at("arp", "output", oif=own)
    else:
        trip.context.linked = False
        trip.at("ip", "output", oif=own)
        trip.at("ip", "postrouting", oif=own)
        trip.context.linked = True
    if a.place is Place.HOST and own != bridge:
        trip.context.packet = trip.packet.tagged_with(int(trip.scene.data(own).get("id", 0)))
    if b.place is Place.NIC:
        if b.dev and (out := cross(trip, bridge, a.dev, b.dev)):
            leave(trip, bridge, a.dev, out)
        return
    trip.at_bridge("input", bridge, bridge, "")
    if trip.packet.version == 0:
        trip.at("arp", "input", iif=own)
    else:
        if not trip.seen:
            trip.at("ip", "prerouting", iif=own)
        trip.at("ip", "input", iif=own)
    if "NOARP" in trip.scene.flags(own):
        trip.blocks("arp-off", own, f"{own} asks and answers no ARP (NOARP)", "the host takes every MAC there for known, and its own is not told to anybody", f"ip link show {own}: {','.join(trip.scene.flags(own))}", fix=(f"ip link set {own} arp on",))
    if trip.packet.version == 0:
        arp_answered(trip, own, a.ip, b.ip)


def arp_answered(trip: Trip, bridge: str, asker: str, asked: str) -> None:
    """Whether the host answers who asks for one of its addresses (arp_ignore(), arp_filter() in net/ipv4/arp.c)."""
    scene = trip.scene
    level = max(scene.number(f"net/ipv4/conf/{dev}/arp_ignore") or 0 for dev in ("all", bridge))
    here = [ip_interface(a) for a in scene.addresses_of(bridge, 4)]
    if level == 8 or (level in (1, 2) and all(str(a.ip) != asked for a in here)) or (level == 2 and not any(str(a.ip) == asked and ip_address(asker) in a.network for a in here)):
        trip.blocks("arp-ignored", bridge, f"the host answers no ARP for {asked} on {bridge}", f"arp_ignore is {level}: {ARP_IGNORE[level]}", f"net.ipv4.conf.{bridge}.arp_ignore and all: the larger is {level}",
                    f"addresses of {bridge}: {', '.join(map(str, here)) or 'none'}", fix=(f"sysctl -w net.ipv4.conf.{bridge}.arp_ignore=0 net.ipv4.conf.all.arp_ignore=0",))
    if "1" in (scene.sysctl(f"net/ipv4/conf/{dev}/arp_filter") for dev in ("all", bridge)) and (way := look_up(scene, Asked(asker, asked))).dev != bridge:
        trip.blocks("arp-ignored", bridge, f"the host answers no ARP of {asker} on {bridge}", "arp_filter is on: it answers only by the device that its route to the asker leads to", f"{way.route or 'no route'}",
                    fix=(f"sysctl -w net.ipv4.conf.{bridge}.arp_filter=0 net.ipv4.conf.all.arp_filter=0",))


ARP_IGNORE = {1: "it answers for addresses of the device that the question came by alone", 2: "it answers for addresses of that device alone, and only who is in their subnet", 8: "it answers nobody"}
"""Values of arp_ignore that take answers away (ip-sysctl.rst)."""


def heard(trip: Trip, questions: Sequence[Trip]) -> None:
    """One hop for the questions; what lost them is told, once."""
    kind = QUESTIONS[trip.packet.version == 6]
    hop = trip.hop(kind, "neighbour", "question and answer")
    for finding in told(questions):
        if all(finding.where != f.where or finding.what != f.what for f in hop.findings):
            trip.find(finding)


def told(questions: Sequence[Trip]) -> Iterator[Finding]:
    return (f for q in questions for f in q.findings if f.code in HEARD and f.severity is Severity.BLOCKS)


def proxied(trip: Trip, bridge: str, target: str) -> None:
    """The host answers for an address that it thinks is elsewhere (arp_process(), proxy_arp)."""
    scene = trip.scene
    if scene.sysctl(f"net/ipv4/conf/{bridge}/proxy_arp") != "1" and scene.sysctl("net/ipv4/conf/all/proxy_arp") != "1":
        return
    way = look_up(scene, Asked(target, iif=bridge))
    if way.type == "unicast" and way.dev != bridge:
        trip.blocks("proxy-arp", bridge, f"the host answers ARP for {target} on {bridge}, because its route leads to {way.dev}", "the asker takes the host's MAC for it, when that answer is heard last",
                    f"net.ipv4.conf.{bridge}.proxy_arp is on; {way.route}", fix=(f"sysctl -w net.ipv4.conf.{bridge}.proxy_arp=0 net.ipv4.conf.all.proxy_arp=0",), certainty=Certainty.LIKELY)


def host_at(scene: Scene, dev: str, version: int, near: str) -> End:
    own = [ip_interface(a) for a in scene.addresses_of(dev, version)] or elsewhere(scene, dev, version)
    best = next((i for i in own if ip_address(near) in i.network), own[0])
    return End("host", Place.HOST, str(best.ip), mac=scene.mac(dev), segment=dev)


def elsewhere(scene: Scene, dev: str, version: int) -> list[IPv4Interface | IPv6Interface]:
    """Addresses for a segment on which the host has none: those of the same domain."""
    found = [ip_interface(a) for d in scene.links if scene.domain_of(d) == scene.domain_of(dev) for a in scene.addresses_of(d, version)]
    return [a for a in found if not a.ip.is_loopback] or found
