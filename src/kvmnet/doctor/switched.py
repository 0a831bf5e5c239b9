"""Ports of Open vSwitch on the path of a packet. Pure.

What its databases tell is judged; what its flows do with the packet the switch itself is asked: the command is printed, and on a living host carried out (check/switch_trace.py).
"""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface

from kvmnet.doctor.asking import NOBODY
from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.finding import Certainty, Finding
from kvmnet.doctor.packet import ICMP, ICMP6, NO_MAC, TCP, UDP, Packet
from kvmnet.doctor.rules.ovn import here, ovn_mapping_missing, unwritten
from kvmnet.doctor.rules.switches import empty, switch_silent
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.trip import Trip
from kvmnet.doctor.view import Json

SWITCH = "openvswitch"
WORDS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp6"}
ANSWERS = " ".join(["--ct-next trk,est,rpl"] * 4)
"""An answer belongs to a flow that is known, at each pass through conntrack; without it the trace takes every packet for a new one's (ovs-vswitchd(8), ofproto/trace)."""


def in_switch(scene: Scene, dev: str) -> bool:
    return dev in scene.switched or scene.kind(scene.master(dev)) == SWITCH


def at_switch(trip: Trip, dev: str, to: End) -> None:
    """A packet that a guest at a port of Open vSwitch sends: its flows decide, and it can be asked."""
    scene, switch = trip.scene, trip.scene.switched.get(dev)
    if switch and (found := list(faults(scene, switch, dev, to))):
        for finding in found:
            trip.find(finding)
        return
    mac = next_mac(scene, dev, to, trip.packet) or trip.packet.macs[0]
    trip.context.packet = trip.packet.between(mac, trip.packet.macs[1])
    asked = switch["name"] if switch else f"$(ovs-vsctl iface-to-br {dev})"
    blind = "" if known(trip.packet) else ": dl_src and dl_dst, the MACs, are not known here and must be added"
    trip.blocks("not-followed", dev, f"{dev} is a port of Open vSwitch: its flows decide, which are not read here", f"ask it what it does with this very packet: the command below sends nothing{blind}",
                f"ovs-vsctl: a port of {switch['name']}, {switch['flows']} flows" if switch else f"ip link show {dev}: master {scene.master(dev)}", certainty=Certainty.UNKNOWN,
                fix=(f"ovs-appctl ofproto/trace --names {asked} '{flow(trip.packet, dev)}'{' ' + ANSWERS if trip.context.flow else ''}",))


def from_beyond(trip: Trip, dev: str) -> None:
    """What comes from outside to a port of Open vSwitch. Of an answer that is a hop: whether it passes follows from conntrack mostly, which no trace has."""
    trip.hop(dev, "port", "what comes to it by Open vSwitch from outside is not followed")
    if not trip.context.flow:
        trip.blocks("not-followed", dev, f"{dev} is a port of Open vSwitch: what comes to it from outside is not followed", "the device that it comes by and the MAC that it comes from are not known here",
                    f"ovs-vsctl iface-to-br {dev}", fix=("ovs-appctl ofproto/trace BRIDGE 'in_port=UPLINK,dl_src=MAC,dl_dst=MAC,ip,nw_src=ADDRESS,nw_dst=ADDRESS'",), certainty=Certainty.UNKNOWN)


def faults(scene: Scene, switch: Json, dev: str, to: End) -> Iterator[Finding]:
    """What its databases tell of a port, and of the network that a packet leaves by."""
    ovn = here(scene)
    yield from switch_silent(scene)
    if found := empty(switch):
        yield found
    elif ovn and (port := next((p for p in switch["ports"] if p["name"] == dev), None)):
        if lost := unwritten(ovn, switch, port):
            yield lost
        if switch["name"] == ovn["bridge"] and to.place is Place.OUTSIDE:
            yield from ovn_mapping_missing(scene)


def next_mac(scene: Scene, dev: str, to: End, packet: Packet) -> str:
    """The MAC that a guest sends to: the other end's on its own segment, else that of OVN's router there; '' where that is not known."""
    ports = here(scene).get("ports") or ()
    own = next((p for p in scene.logical if p["dev"] == dev), None)
    if own is None:
        there = scene.switched.get(to.dev or to.segment)
        return to.mac if there and dev in scene.switched and there["name"] == scene.switched[dev]["name"] else ""
    homes = {p["name"]: p["datapath"] for p in ports}
    for words in (word.split() for p in ports if p["type"] in ("patch", "l3gateway") and homes.get(p["peer"]) == own["datapath"] for word in p["mac"]):
        networks = [ip_interface(w).network for w in words[1:] if "/" in w]
        mine = [n for n in networks if ip_address(packet.source) in n]
        if mine and all(ip_address(packet.target) not in n for n in mine):
            return str(words[0])
    return next((str(p["mac"]) for p in scene.logical if packet.target in p["ips"] and p["datapath"] == own["datapath"]), "")


def known(packet: Packet) -> bool:
    return not {NOBODY, NO_MAC} & set(packet.macs)


def flow(packet: Packet, dev: str) -> str:
    """A packet in the words of ovs-fields(7)."""
    six = packet.version == 6
    words = [f"in_port={dev}", *(f"{word}={mac}" for word, mac in (("dl_src", packet.macs[1]), ("dl_dst", packet.macs[0])) if mac not in (NOBODY, NO_MAC))]
    if packet.version and packet.upper:
        kind = WORDS.get(packet.upper[0], "ip")
        words[1:1] = [f"{kind}6" if six and kind in ("tcp", "udp") else kind if kind != "ip" or not six else "ipv6"]
        words += [f"{'ipv6_src' if six else 'nw_src'}={packet.source}", f"{'ipv6_dst' if six else 'nw_dst'}={packet.target}", "nw_ttl=64"]
        if kind in ("tcp", "udp"):
            words += [f"tp_src={packet.ports[0]}", f"tp_dst={packet.ports[1]}"]
        elif kind in ("icmp", "icmp6"):
            words += [f"{'icmpv6' if six else 'icmp'}_type={packet.bits('th', 0, 8)}"]
    return ",".join(words)
