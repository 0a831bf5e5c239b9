"""Guests with a virtual function of a NIC, and ports of Open vSwitch: switched where no rule and no bridge of this host looks. Pure.

What the host knows of them is judged (the PF, the VF's carrier and VLAN, the port's carrier); the rest is said to be unknown.
"""
from __future__ import annotations

from kvmnet.doctor.asking import NOBODY
from kvmnet.doctor.ends import End
from kvmnet.doctor.finding import Certainty
from kvmnet.doctor.packet import ICMP, ICMP6, TCP, UDP, Packet
from kvmnet.doctor.routed import way_out
from kvmnet.doctor.rules.switches import empty
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.segment import device
from kvmnet.doctor.trip import Trip
from kvmnet.doctor.view import Json

SWITCH = "openvswitch"
WORDS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMP6: "icmp6"}


def is_vf(scene: Scene, end: End) -> bool:
    return not end.dev and end.mac in scene.vfs


def vlan(row: Json) -> int:
    return int(next((v.get("vlan", 0) for v in row.get("vlan_list", ())), 0))


def at_vf(trip: Trip, end: End, other: End) -> None:
    """To or from a VF: its NIC switches the frames itself."""
    scene = trip.scene
    pf, row = scene.vfs[end.mac]
    carrier = str(row.get("link_state", "auto"))
    trip.hop(f"{pf} VF {row['vf']}", "port", ", ".join(w for w in (f"VLAN {vlan(row)}" if vlan(row) else "", f"link {carrier}", f"spoofchk {'on' if row.get('spoofchk') else 'off'}", "trusted" if row.get("trust") else "") if w))
    if carrier == "disable":
        trip.blocks("vf-link-off", f"{pf} VF {row['vf']}", f"the carrier of VF {row['vf']} of {pf} is switched off", "the guest sees no link", f"ip -d link show {pf}: vf {row['vf']} link-state disable", fix=(f"ip link set {pf} vf {row['vf']} state auto",))
    theirs = scene.vfs.get(other.mac) if is_vf(scene, other) else None
    if theirs and theirs[0] == pf and vlan(theirs[1]) != vlan(row):
        first, second = sorted(((row["vf"], vlan(row)), (theirs[1]["vf"], vlan(theirs[1]))))
        trip.blocks("vlan-mismatch", pf, f"VF {first[0]} and VF {second[0]} of {pf} are in different VLANs", "the NIC sends a frame to ports of its VLAN only", f"ip -d link show {pf}: vf {first[0]} vlan {first[1]}, vf {second[0]} vlan {second[1]}",
                    fix=(f"ip link set {pf} vf {second[0]} vlan {first[1]}",))
    if theirs and theirs[0] == pf:
        device(trip, pf, "uplink")
    else:
        way_out(trip, pf)
    trip.blocks("not-followed", pf, f"{pf} switches the frames of its VFs itself", "no bridge, rule or counter of this host sees them: whether they pass is known to the NIC and to the switch behind it", f"ip -s -d link show {pf}", certainty=Certainty.UNKNOWN)


def in_switch(scene: Scene, dev: str) -> bool:
    return dev in scene.switched or scene.kind(scene.master(dev)) == SWITCH


def at_switch(trip: Trip, dev: str) -> None:
    """A port of Open vSwitch: its flows decide, and it can be asked."""
    switch = trip.scene.switched.get(dev)
    if switch and (found := empty(switch)):
        trip.find(found)
        return
    asked = switch["name"] if switch else f"$(ovs-vsctl iface-to-br {dev})"
    trip.blocks("not-followed", dev, f"{dev} is a port of Open vSwitch: its flows decide, which are not read here", "ask it what it does with this very packet: the command below sends nothing",
                f"ovs-vsctl: a port of {switch['name']}, {switch['flows']} flows" if switch else f"ip link show {dev}: master {trip.scene.master(dev)}", certainty=Certainty.UNKNOWN, fix=(f"ovs-appctl ofproto/trace {asked} '{flow(trip.packet, dev)}'",))


def flow(packet: Packet, dev: str) -> str:
    """A packet in the words of ovs-fields(7)."""
    six = packet.version == 6
    words = [f"in_port={dev}", *(f"{word}={mac}" for word, mac in (("dl_src", packet.macs[1]), ("dl_dst", packet.macs[0])) if mac != NOBODY)]
    if packet.version and packet.upper:
        kind = WORDS.get(packet.upper[0], "ip")
        words[1:1] = [f"{kind}6" if six and kind in ("tcp", "udp") else kind if kind != "ip" or not six else "ipv6"]
        words += [f"{'ipv6_src' if six else 'nw_src'}={packet.source}", f"{'ipv6_dst' if six else 'nw_dst'}={packet.target}"]
        if kind in ("tcp", "udp"):
            words += [f"tp_src={packet.ports[0]}", f"tp_dst={packet.ports[1]}"]
    return ",".join(words)
