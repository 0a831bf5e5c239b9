"""Below a tunnel: the packet of UDP that carries a frame to the other end, and the one that carries the answer back. Pure.

A bridge hands a frame to a VXLAN as to any port. What follows is the host's own sending, with its routes, rules and neighbours (vxlan_xmit() in
drivers/net/vxlan/vxlan_core.c), and what comes back passes its input like any packet for a program of the host.
"""
from __future__ import annotations

from ipaddress import ip_address

from kvmnet.doctor.finding import Severity
from kvmnet.doctor.packet import UDP, made
from kvmnet.doctor.routed import come_up, neighbour, sent, way_out
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.trip import Trip, begin
from kvmnet.records import replace

SPORT, PORT = 49152, 4789
NOBODY, ALL = "02:00:00:00:00:fe", "00:00:00:00:00:00"


def below(trip: Trip, dev: str) -> None:
    """What the host sends for a frame that leaves by *dev*, and the way of the answer. Nothing of a device that is no VXLAN, or one that sends to a group."""
    scene = trip.scene
    if scene.kind(dev) != "vxlan" or trip.asked:
        return
    remote = far_end(scene, dev, trip.packet.macs[0])
    if not remote:
        trip.hop(dev, "tunnel", "no other end")
        trip.blocks("tunnel-without-peers", dev, f"{dev} knows no host to send frames for {trip.packet.macs[0]} to", "it has no remote, no group and no entry for unknown machines", f"bridge fdb show dev {dev}", fix=(f"bridge fdb append {ALL} dev {dev} dst REMOTE",))
        return
    if ip_address(remote).is_multicast:
        return
    told = scene.data(dev)
    local, port = str(told.get("local") or told.get("local6") or ""), int(told.get("port") or PORT)
    if local and local not in scene.own:
        trip.hop(dev, "tunnel", f"from {local}")
        trip.blocks("tunnel-source", dev, f"{dev} sends from {local}, and this host has no such address", "the kernel finds no route for a packet of an address that is not its own, and answers would not come here", f"ip -d link show {dev}: local {local}", fix=(f"ip addr add {local}/{32 if '.' in local else 128} dev UPLINK   # or make {dev} anew with an address that the host has",))
        return
    trip.hop(dev, "tunnel", f"VNI {told.get('id')} to {remote}, UDP {port}")
    out = begin(scene, made((NOBODY, NOBODY), local or source(scene, remote), remote, UDP, (SPORT, port), trip.packet.frame[:64]))
    way = sent(out, scene.owner(local))
    if way.type == "unicast" and way.dev:
        if scene.kind(way.dev) not in ("tun", "wireguard"):
            neighbour(out, way.dev, way.via or remote, "")
        way_out(out, way.dev)
    taken(trip, out, dev)
    if way.type == "unicast" and way.dev:
        back = begin(scene, made((scene.mac(way.dev), NOBODY), remote, out.packet.source, UDP, (SPORT, port), trip.packet.frame[:64]))
        back.at("netdev", "ingress", iif=way.dev, where=way.dev)
        come_up(back, way.dev)
        back.at("ip", "input", iif=way.dev)
        taken(trip, back, dev)


def far_end(scene: Scene, dev: str, mac: str) -> str:
    """Where a VXLAN sends frames for a MAC: by its own forwarding table, the entry for unknown machines, or the one remote that it was made with; '' without."""
    rows = [row for row in scene.part("fdb") if row.get("ifname") == dev and row.get("dst")]
    told = scene.data(dev)
    found = next((row["dst"] for row in rows if row.get("mac") == mac), "") or next((row["dst"] for row in rows if row.get("mac") == ALL), "") or told.get("remote") or told.get("remote6") or told.get("group") or told.get("group6")
    return str(found or "")


def source(scene: Scene, remote: str) -> str:
    """An address of the host's for packets to *remote*."""
    near = scene.on_link(remote)
    own = [a for dev in (near, *scene.links) if dev for a in scene.addresses_of(dev, ip_address(remote).version) if dev != "lo"]
    return own[0].partition("/")[0] if own else "::1" if ":" in remote else "127.0.0.1"


def taken(trip: Trip, scout: Trip, dev: str) -> None:
    """The hops of what carries the frame, as hops of its own way."""
    for hop in scout.hops:
        trip.hop(hop.where, hop.what, f"below {dev}: {hop.words}").findings.extend(replace(f, what=f"{f.what} (what carries the frame, below {dev})") for f in hop.findings if f.severity is Severity.BLOCKS)
