"""mode bridge: guests on the uplink's own segment, or on a VLAN of it. Pure.

Three forms: a bridge that takes the uplink; a VLAN-aware bridge that takes the uplink and is shared by its
networks; a bridge of the network's own on a VLAN sub-interface. A bridge that the host has
already is used as it is.

The VLAN-aware bridge gives a new port no VLAN at all: until the port's own are added nothing passes. The
host's own traffic is untagged outside and has a VLAN of its own inside, which guests are on only when
their network has no VLAN.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kvmnet.drivers.linux.resources import BridgeVlan, vlan_name
from kvmnet.facts.model import Facts
from kvmnet.modes.hosted import addresses, allow_services, own_bridge
from kvmnet.modes.links import Way, vlan_link
from kvmnet.modes.segment import Part, Segment
from kvmnet.modes.uplink import join, move_host
from kvmnet.spec.names import carrier_name


@dataclass(frozen=True, slots=True)
class Trunk:
    """What the networks of one uplink share."""

    native: int
    """VLAN inside the bridge of what is untagged outside."""
    tagged: tuple[int, ...]
    stp: bool


def wire(segment: Segment, facts: Facts, way: Way | None = None, trunk: Trunk | None = None) -> Part:
    """``way``: the uplink; None when the bridge is the host's own. ``trunk``: for a VLAN-aware bridge."""
    part = Part()
    if way is None:
        allow_services(part, segment)
        return part
    if segment.network.vlan and trunk is None:
        way = sub_interface(part, segment, way)
    bridge = replace(own_bridge(segment, way.mac), addrgenmode=way.addrgenmode)
    if trunk:
        bridge = replace(bridge, mtu=way.mtu, alias=f"kvmnet uplink {segment.network.uplink}", vlan_filtering=True,
                         default_pvid=0, stp=trunk.stp, forward_delay=1500 if trunk.stp else 0)
        part.resources += trunk_vlans(segment.bridge, way.device, trunk)
    part.resources.append(bridge)
    part.policy.routers.add((segment.bridge, way.mac))
    part.policy.outer.add(segment.bridge)
    part.resources.append(port := join(way.device, segment.bridge, facts))
    resources, borrowed, notes = move_host(way.sources, segment.bridge, facts)
    part.resources += resources
    part.borrowed |= borrowed | {port.key}
    part.notes += notes
    part.resources += addresses(segment)
    allow_services(part, segment)
    return part


def sub_interface(part: Part, segment: Segment, way: Way) -> Way:
    """The VLAN that a network's own bridge takes."""
    name, vid = carrier_name(segment.name), segment.network.vlan or 0
    part.resources.append(vlan_link(name, way.device, vid, "802.1Q", way.mtu, f"kvmnet network {segment.name}"))
    return replace(way, device=name, sources=(name,))


def trunk_vlans(bridge: str, port: str, trunk: Trunk) -> Iterable[BridgeVlan]:
    """VLANs of the uplink's port, and of the bridge itself: the host."""
    for dev in (port, bridge):
        yield member(dev, bridge, trunk.native, pvid=True)
    for vid in trunk.tagged:
        yield member(port, bridge, vid, pvid=False)


def guest_vlans(segment: Segment, tap: str, tagged: Iterable[int]) -> list[BridgeVlan]:
    """VLANs of a guest's port: untagged that of its network, tagged those of its trunk."""
    if not segment.vlan:
        return []
    return [member(tap, segment.bridge, segment.vlan, pvid=True),
            *(member(tap, segment.bridge, vid, pvid=False) for vid in tagged if vid != segment.vlan)]


def member(dev: str, bridge: str, vid: int, *, pvid: bool) -> BridgeVlan:
    return BridgeVlan(name=vlan_name(dev, vid), dev=dev, bridge=bridge, pvid=pvid, untagged=pvid)
