"""Guests with a virtual function of a NIC: switched where no rule and no bridge of this host looks. Pure.

What the host knows of them is judged (the PF, the VF's carrier and VLAN); the rest is said to be unknown.
"""
from __future__ import annotations

from kvmnet.doctor.ends import End
from kvmnet.doctor.finding import Certainty
from kvmnet.doctor.routed import way_out
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.segment import device
from kvmnet.doctor.trip import Trip
from kvmnet.doctor.view import Json


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
