"""mode vxlan: a segment that several hosts share, carried in UDP packets between them. Pure.

On this host it is a bridge like that of an isolated network with one port more, which leads to the other hosts. What
comes in there is somebody else's: the guard stands on the guests' own ports, and the host answers to the
segment no more than to a guest. The bridge's MAC is this host's own, since every host has one on the segment.

A peer is one entry of the port's forwarding table that gets a copy of what nobody in particular is to get (head-end
replication), so that a further host is a plan of one step. The kernel takes frames from whoever knows the segment's
number; the host's table narrows that to the peers (policy/overlay.py).
"""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Link, fdb
from kvmnet.facts.model import Facts
from kvmnet.modes.hosted import hosted, stable_mac
from kvmnet.modes.segment import Listening, Part, Segment
from kvmnet.spec import overlays


def wire(segment: Segment, facts: Facts) -> Part:
    part = hosted(segment)
    vxlan, overlay = segment.network.vxlan, segment.overlay
    assert vxlan and overlay
    part.resources.append(Link(
        name=overlay.port, type="vxlan", parent=overlay.device, mtu=segment.mtu, mac=stable_mac(f"vxlan {segment.identity}"),
        up=True, master=segment.bridge, alias=f"kvmnet network {segment.name}", addrgenmode="none",
        vxlan_vni=vxlan.vni, vxlan_local=overlay.local, vxlan_group=vxlan.group or "", vxlan_port=vxlan.port,
        vxlan_ttl=vxlan.ttl, vxlan_learning=vxlan.learning, vxlan_df=vxlan.df,
        isolated=False, learning=True, flood=True, mcast_flood=True, hairpin=False, bpdu_guard=False,
        neigh_suppress=False))
    if not vxlan.group:
        part.resources += (fdb(overlay.port, peer) for peer in vxlan.peers)
    part.policy.overlays.add(Listening(vxlan.port, vxlan.vni, overlays.family(vxlan), overlay.device,
                                       tuple(sorted(vxlan.peers))))
    if vxlan.group and not vxlan.peers:
        part.notes.append(f"network {segment.name}: whoever can send to UDP port {vxlan.port} by {overlay.device or 'any device'} "
                          "takes part in it; peers: names the hosts that may")
    return part
