"""mode bridge: guests on the uplink's own segment, or on a VLAN of it. Pure.

Three forms: a bridge that takes the uplink; a VLAN-aware bridge that takes the uplink and is shared by its
networks; a bridge of the network's own on a VLAN sub-interface. A bridge that the host has
already is used as it is.

The VLAN-aware bridge gives a new port no VLAN at all: until the port's own are added nothing passes. The
host's own traffic is untagged outside and has a VLAN of its own inside, which guests are on only when
their network has no VLAN.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, VlanMulticast, vlan_name
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.modes.hosted import addresses, allow_services, neighbours, own_bridge, spanning
from kvmnet.modes.links import Way, vlan_link
from kvmnet.modes.segment import Part, Segment
from kvmnet.modes.uplink import join, move_host
from kvmnet.records import dataclass, replace
from kvmnet.spec import ways
from kvmnet.spec.guests import Nic
from kvmnet.spec.names import carrier_name
from kvmnet.spec.networks import Network


@dataclass(frozen=True, slots=True)
class Trunk:
    """What the networks of one uplink share."""

    uplink: str
    native: int
    """VLAN inside the bridge of what is untagged outside."""
    tagged: tuple[int, ...]
    networks: Mapping[int, Network]
    """VLAN -> the network that it is; the native one among them where guests are on it."""

    @property
    def spanning(self) -> Network | None:
        """A network that wants a spanning tree. Those that do want the same."""
        return next((n for n in self.networks.values() if n.stp), None)


def wire(segment: Segment, facts: Facts, way: Way | None = None, trunk: Trunk | None = None) -> Part:
    """``way``: the uplink; None when the bridge is the host's own. ``trunk``: for a VLAN-aware bridge."""
    part = Part()
    if way is None:
        allow_services(part, segment)
        return part
    if segment.network.vlan and trunk is None:
        way = sub_interface(part, segment, way)
    bridge = own_bridge(segment, way.mac)
    if trunk:
        part.resources.append(aware(bridge, way, trunk, facts))
        part.resources += trunk_vlans(segment.bridge, (way.device, *way.beside), trunk)
        part.resources += multicast(segment.bridge, way.device, trunk, facts)
    else:
        asks = segment.network.querier and (bool(segment.address) or has_address4({segment.bridge, *way.sources}, facts))
        part.resources.append(replace(bridge, mcast_query_use_ifaddr=asks, addrgenmode=way.addrgenmode))
        part.resources += neighbours(segment)
    part.policy.routers.add((segment.bridge, way.mac))
    part.policy.outer.add(segment.bridge)
    ports = [join(way.device, segment.bridge, facts), *(replace(join(nic, segment.bridge, facts), mtu=way.mtu) for nic in way.beside)]
    part.resources += ports
    resources, borrowed, notes = move_host((*way.sources, *way.beside), segment.bridge, facts)
    part.resources += resources
    part.borrowed |= borrowed | {port.key for port in ports}
    part.notes += notes
    on_shared(part, segment)
    return part


def wire_shared(segment: Segment) -> Part:
    """A network on a VLAN-aware bridge that another network has wired already."""
    part = Part()
    on_shared(part, segment)
    return part


def on_shared(part: Part, segment: Segment) -> None:
    """What each network of a bridge adds to it."""
    part.resources += addresses(segment)
    allow_services(part, segment)


def has_address4(devices: Set[str], facts: Facts) -> bool:
    """Whether the host has an IPv4 address on one of *devices*."""
    return any(isinstance(a, Address) and ":" not in a.name for a in facts.standing_on(*devices))


def aware(bridge: Link, way: Way, trunk: Trunk, facts: Facts) -> Link:
    """*bridge* as one that goes by VLANs. Where the kernel cannot snoop for each VLAN by itself, it does not at
    all: a querier on one of them would silence multicast on the others."""
    snoops = facts.features.get(ways.MULTICAST, "") == ""
    return replace(bridge, mtu=way.mtu, addrgenmode=way.addrgenmode, alias=f"kvmnet uplink {trunk.uplink}",
                   vlan_filtering=True, default_pvid=0, mcast_snooping=snoops, mcast_vlan_snooping=snoops or None,
                   mcast_querier=False, mcast_query_use_ifaddr=False, **spanning(bridge.name, trunk.spanning))


def multicast(bridge: str, port: str, trunk: Trunk, facts: Facts) -> Iterable[VlanMulticast]:
    """How the bridge handles multicast on each VLAN: what the networks want, and the kernel's defaults where
    somebody has changed them."""
    if facts.features.get(ways.MULTICAST, ""):
        return
    for vid in (trunk.native, *trunk.tagged):
        network = trunk.networks.get(vid)
        wanted = (network.snooping, network.querier) if network else (True, False)
        seen = facts.state.get(Key(VlanMulticast.kind, vlan_name(bridge, vid)))
        if wanted != (True, False) or (isinstance(seen, VlanMulticast) and (seen.snooping, seen.querier) != wanted):
            yield VlanMulticast(name=vlan_name(bridge, vid), bridge=bridge, member=vlan_name(port, vid),
                                snooping=wanted[0], querier=wanted[1])


def sub_interface(part: Part, segment: Segment, way: Way) -> Way:
    """The VLAN that a network's own bridge takes."""
    name, vid = carrier_name(segment.name), segment.network.vlan or 0
    part.resources.append(vlan_link(name, way.device, vid, "802.1Q", way.mtu, f"kvmnet network {segment.name}"))
    return replace(way, device=name, sources=(name,))


def trunk_vlans(bridge: str, ports: Sequence[str], trunk: Trunk) -> Iterable[BridgeVlan]:
    """VLANs of the uplink's ports, and of the bridge itself: the host."""
    for dev in (*ports, bridge):
        yield member(dev, bridge, trunk.native, pvid=True)
    for vid in trunk.tagged:
        for port in ports:
            yield member(port, bridge, vid, pvid=False)


def guest_vlans(segment: Segment, tap: str, nic: Nic) -> list[BridgeVlan]:
    """VLANs of a guest's port: untagged that of its network, tagged those of its trunk."""
    if not segment.vlan:
        return []
    tagged = [member(tap, segment.bridge, vid, pvid=False) for vid in guest_tags(segment, nic)]
    return [member(tap, segment.bridge, segment.vlan, pvid=True), *tagged] if nic.untagged else tagged


def guest_tags(segment: Segment, nic: Nic) -> tuple[int, ...]:
    """VLAN ids that a guest may use in tags: those of its trunk, and that of its network if it sends nothing
    untagged."""
    own = segment.network.vlan or 0
    if nic.untagged or not segment.vlan:  # the rules refuse a trunk with the network's own VLAN then
        return nic.trunk
    return tuple(sorted({*nic.trunk, own} - {0}))


def member(dev: str, bridge: str, vid: int, *, pvid: bool) -> BridgeVlan:
    return BridgeVlan(name=vlan_name(dev, vid), dev=dev, bridge=bridge, pvid=pvid, untagged=pvid)
