"""mode macvtap: guests on the uplink's own segment by macvtaps, without a bridge. Pure.

The parent is the uplink, or a VLAN sub-interface of it. It stays what it is, with the host's addresses,
but a frame between the parent and a macvtap on it passes in neither direction (macvlan_queue_xmit() in
drivers/net/macvlan.c knows other macvlans and the wire only). So where the host has an address on the
network it gets a macvlan of its own beside the guests' macvtaps.

That address is often in the prefix that the parent is on already. Then the host's route to the prefix goes
by the parent, where guests do not answer: the macvlan gets no route of its own to the prefix, but one to each guest.
"""
from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network

from kvmnet.drivers.linux.resources import Address, Link, Route, Sysctl, route
from kvmnet.drivers.macvtap.resources import TapNode
from kvmnet.engine.resource import Key, Resource
from kvmnet.errors import ConflictError
from kvmnet.facts.model import Facts
from kvmnet.modes.bridge import sub_interface
from kvmnet.modes.hosted import addresses, allow_services, ipv6_settings, stable_mac
from kvmnet.modes.links import Way, lend
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Part, Segment
from kvmnet.policy.egress import counting_hook, guest_port, parent_hook
from kvmnet.policy.guard import zone_of
from kvmnet.policy.limits import limits_receipts
from kvmnet.policy.marking import mark_of
from kvmnet.records import replace
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import MacvtapMode

OWN = ("macvlan", "macvtap")
APART = ("guests of network {network} do not reach the host, nor the host them: a macvtap and its parent {parent} do not see "
         "each other (an address of the host on the network changes that)")
WITHOUT_HOST = {
    MacvtapMode.PRIVATE: "guests of network {network} do not reach the host, nor the host them, nor each other, unless the "
                         "switch at {parent} sends frames back where they came from",
    MacvtapMode.VEPA: "guests of network {network} reach the host and each other only by the switch at {parent}, if it sends "
                      "frames back where they came from (802.1Qbg); the host takes them for any other machine's",
    MacvtapMode.PASSTHRU: "{parent} belongs to the guest of network {network}: the host has no use of it",
}
"""Kind of the macvtaps -> who reaches whom where the host has no place."""


def wire(segment: Segment, facts: Facts, spec: Spec, way: Way) -> Part:
    """The parent, the host's macvlan, and what the plan must say. Raises ConflictError."""
    part = Part()
    refuse(segment, facts, way, spec)
    if segment.network.vlan:
        way = sub_interface(part, segment, way)
    elif device_is_lent(segment, spec):
        lend(part, Link(name=segment.parent, up=True))
    elif segment.alone and segment.nics:
        part.resources.append(Link(name=segment.parent, mac=segment.nics[0].mac))
    if not segment.alone:
        part.resources.append(parent_hook(segment.parent, zone_of(segment.domain)))
    if segment.address or segment.address6:
        host_macvlan(part, segment, facts, spec)
    else:
        part.notes.append(WITHOUT_HOST.get(segment.network.macvtap or MacvtapMode.BRIDGE, APART).format(network=segment.name,
                                                                                  parent=segment.parent))
    return part


def device_is_lent(segment: Segment, spec: Spec) -> bool:
    """Whether the parent is the host's own NIC, and not a bond or VLAN that is made."""
    uplink = spec.uplinks[segment.network.uplink or ""]
    return not uplink.members and uplink.vlan is None


def host_macvlan(part: Part, segment: Segment, facts: Facts, spec: Spec) -> None:
    """The host's own place on the segment: address, services, and routes to guests where they need one."""
    device, mac = segment.bridge, stable_mac(segment.name)
    part.resources.append(Link(
        name=device, type="macvlan", parent=segment.parent, passthru=False, macvlan_mode=MacvtapMode.BRIDGE.value,
        mtu=segment.mtu, mac=mac, up=True, master="", alias=f"kvmnet network {segment.name}", allmulticast=False, arp=True))
    part.policy.routers.add((device, mac))
    part.policy.outer.add(device)
    part.resources += ipv6_settings(device, wanted=bool(segment.address6))
    # Both devices hear a question for either address: each answers for its own.
    part.resources += [Sysctl(name=f"net/ipv4/conf/{device}/{name}", value=value, dev=device)
                       for name, value in (("arp_ignore", "1"), ("arp_announce", "2"))]
    allow_services(part, segment)
    shared = on_parent(segment, facts, spec)
    for address in addresses(segment):
        cidr = ip_interface(address.name.partition(" ")[2])
        if not any(cidr.version == n.version and cidr.network.overlaps(n) for n in shared):
            part.resources.append(address)
            continue
        part.resources.append(replace(address, flags=tuple(sorted({*(address.flags or ()), "noprefixroute"}))))
        part.resources += routes_to_guests(segment, cidr.version, str(cidr.ip))


def routes_to_guests(segment: Segment, version: int, source: str) -> Iterable[Route]:
    length = 32 if version == 4 else 128
    for nic in segment.nics:
        found = [a for a in (nic.ip, nic.ip6, *nic.prefixes) if a and (":" in a) == (version == 6)]
        for prefix in dict.fromkeys(str(ip_network(a if "/" in a else f"{a}/{length}")) for a in found):
            yield route(prefix, dev=segment.bridge, src=source)


def on_parent(segment: Segment, facts: Facts, spec: Spec) -> list[IPv4Network | IPv6Network]:
    """Prefixes that the host is on by the parent, or will be when a bridge of ours has given it back."""
    uplink = spec.uplinks[segment.network.uplink or ""]
    declared = () if segment.network.vlan else uplink.addresses
    devices = {segment.parent, *uplink.members}
    devices |= {link.master or "" for link in facts.state.values() if isinstance(link, Link) and link.name in devices}
    own = {segment.cidr, segment.cidr6}
    seen = [a.name.partition(" ")[2] for a in facts.state.values() if isinstance(a, Address) and a.dev in devices - {""}
            and a.name.partition(" ")[2] not in own]
    return [ip_interface(a).network for a in (*declared, *seen)]


def port(device: str, mac: str, segment: Segment, alias: str, to: str = "guest") -> list[Resource]:
    """A macvtap on the network and all that makes it a guarded port.

    The host speaks no ARP there: it would answer for its own addresses with the guest's MAC.
    """
    mode = segment.network.macvtap or MacvtapMode.BRIDGE
    return [Link(name=device, type="macvtap", parent=segment.parent, passthru=segment.alone, macvlan_mode=mode.value,
                 mtu=segment.mtu, mac=mac, master="", alias=alias, addrgenmode="none", allmulticast=True, arp=False),
            *guest_port(device, to)]


def guest_ports(nic: NicOnNetwork, segment: Segment) -> list[Resource]:
    """A guest's macvtap."""
    made = port(nic.tap, nic.mac, segment, f"kvmnet nic {nic.vm}/{nic.nic}", mark_of(nic.declared.mark) or "guest")
    return [*made, counting_hook(nic.tap)] if limits_receipts(nic, segment) else made


def node(nic: NicOnNetwork, user: int) -> TapNode:
    """The device file for a guest that another program starts."""
    return TapNode(name=nic.tap, dev=nic.tap, user=user, fits=True)


def refuse(segment: Segment, facts: Facts, way: Way, spec: Spec) -> None:
    """Raise ConflictError with every reason why the parent cannot carry the network's macvtaps."""
    device, passthru = way.device, segment.alone
    nic = facts.state.get(Key(Link.kind, device))
    reasons = []
    if isinstance(nic, Link) and nic.master and not segment.network.vlan:
        master = facts.state.get(Key(Link.kind, nic.master))
        if not (isinstance(master, Link) and (master.alias or "").startswith("kvmnet ")):
            reasons.append(f"{device} is a port of {nic.master}, and a port carries no macvtap")
    macs = {} if passthru else {way.mac: device}
    macs |= {link.mac or "": link.name for link in facts.state.values()
             if isinstance(link, Link) and link.type in OWN and link.parent == segment.parent
             and not (link.alias or "").startswith("kvmnet")}
    if segment.bridge and (segment.address or segment.address6):
        macs[stable_mac(segment.name)] = f"the host's macvlan {segment.bridge}"
    reasons += [f"{n.vm}/{n.nic} would have the MAC of {macs[n.mac]}, {n.mac}, which the kernel refuses: give it a mac"
                for n in segment.nics if n.mac in macs]
    if passthru and not segment.network.vlan:
        own = sorted(a.name.partition(" ")[2] for a in facts.state.values()
                     if isinstance(a, Address) and a.dev == device and a.scope != "link")
        if own or spec.uplinks[segment.network.uplink or ""].addresses:
            reasons.append(f"passthru takes {device} away from the host, which has "
                           f"{', '.join(own) or 'addresses'} there")
    if reasons:
        raise ConflictError(f"network {segment.name}: " + "; ".join(reasons),
                            "use another uplink" if passthru or not segment.nics else
                            "see the reasons; mode bridge has no such limits")
