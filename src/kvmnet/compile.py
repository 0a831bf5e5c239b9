"""compile(spec, facts, allocations) -> everything wanted on the host. Pure.

The order of work: settle every network into a Segment, let its mode wire it, guard and attach every
NIC, describe the devices of guests that run, merge what the networks want of the host's own table.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from ipaddress import ip_network
from typing import TYPE_CHECKING

from kvmnet.drivers.files.resources import unmanaged
from kvmnet.drivers.linux.resources import Link, Sysctl
from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.sriov.resources import vf_name
from kvmnet.engine.resource import Absent, Key, Resource, merge
from kvmnet.facts.model import Allocations, Facts
from kvmnet.modes import bridge, isolated, macvtap, nat, routed, sriov, vrf, vxlan
from kvmnet.modes.device import guest_nic, queue_pairs, threads
from kvmnet.modes.links import Way, find_ways, wire_uplinks
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.peers import join
from kvmnet.modes.segment import HostPolicy, Overlay, Part, Segment
from kvmnet.modes.services import services
from kvmnet.modes.trees import spanning_trees
from kvmnet.modes.tunnel import TunnelWay, tunnel_ways
from kvmnet.modes.vrf import wire_vrfs
from kvmnet.policy import rates
from kvmnet.policy.egress import TABLE as EGRESS
from kvmnet.policy.egress import egress_table
from kvmnet.policy.grouping import Grouping, grouping, tracking_of
from kvmnet.policy.guard import TABLE, guard_table, nic_guard, zone_of
from kvmnet.policy.host import host_table
from kvmnet.policy.keeper import guard_keeper
from kvmnet.policy.limits import Limiting, limiting
from kvmnet.policy.pooled import classes_out, tenant_rates, tree_names
from kvmnet.policy.shares import Shares, trees
from kvmnet.policy.synproxy import synproxied
from kvmnet.records import dataclass, field
from kvmnet.spec import domains, overlays, pools, ways
from kvmnet.spec.guests import Nic, Vm
from kvmnet.spec.knobs import KNOBS
from kvmnet.spec.models import Spec
from kvmnet.spec.names import carrier_name, overlay_name, standby_name, tap_name
from kvmnet.spec.networks import SHARED, Mode, Network
from kvmnet.spec.tenancy import owners, tenant_of

if TYPE_CHECKING:
    from kvmnet.policy.mirrors import Wired

ROOT = 0
"""uid that owns a tap which nobody else shall open: one without an owner can be opened by every user
(tun_not_capable() in drivers/net/tun.c)."""

MODES = {Mode.NAT: nat.wire, Mode.ROUTED: routed.wire, Mode.ISOLATED: isolated.wire, Mode.VXLAN: vxlan.wire}


@dataclass(slots=True)
class Compiled:
    """What the document means on this host."""

    wanted: dict[Key, Resource | Absent] = field(default_factory=dict)
    borrowed: set[Key] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    segments: dict[str, Segment] = field(default_factory=dict)
    outer: frozenset[tuple[str, str]] = frozenset()
    """(port, bridge): ports of bridges by which somebody else's segment is reached."""
    tunnels: tuple[TunnelWay, ...] = ()
    mirrors: dict[str, Wired] = field(default_factory=dict)
    devices: Callable[[], Mapping[str, tuple[GuestNic, ...]]] = dict
    """What ``guest_nics`` is, once it is asked for."""

    @property
    def guest_nics(self) -> Mapping[str, tuple[GuestNic, ...]]:
        """Devices of every guest, running or not, in order."""
        return self.devices()

    def add(self, *resources: Resource | Absent) -> None:
        """Several claims on one thing are one claim: a bond that is a bridge's port."""
        for resource in resources:
            before = self.wanted.get(resource.key)
            both = isinstance(before, Resource) and isinstance(resource, Resource)
            self.wanted[resource.key] = merge(before, resource) if both else resource  # type: ignore[arg-type]

    def group(self, groups: Grouping) -> None:
        """What groups and tenants add; the bridges as their back end needs them."""
        self.add(*groups.members, *groups.sets, *filter(None, [groups.routed]))
        self.wanted |= {key: groups.bridge(link) for key, link in self.wanted.items() if isinstance(link, Link)}
        self.notes += groups.notes

    def share(self, spec: Spec, facts: Facts) -> None:
        """Queues that the NICs of a network share, and what marks packets and tells their class."""
        shares = Shares()
        majors = trees(self.segments.values(), limited_tenants(spec))
        for segment in self.segments.values():
            shares.add(segment, majors, facts.features)
        # What waited in a class of its tenant's does not take that to the next queue.
        shares.queues = dict.fromkeys(pooled_classes(spec, self.segments, facts.features), 0) | shares.queues
        self.notes += shares.notes
        self.add(*shares.resources, *shares.tables())
        for device in shares.qos.keys() | shares.trusted.keys():
            self.add(Link(name=device, vlan_qos=shares.qos.get(device), vlan_qos_in=shares.trusted.get(device)))

    def take(self, part: Part) -> None:
        self.add(*part.resources)
        self.borrowed |= part.borrowed
        self.notes += (n for n in part.notes if n not in self.notes)


def compile_spec(spec: Spec, facts: Facts, allocations: Allocations) -> Compiled:
    """Everything wanted. ``spec`` has passed spec.checks, ``allocations`` cover its every NIC."""
    out = Compiled()
    nics = place_nics(spec, facts, allocations)
    policy = HostPolicy()
    found = find_ways(spec, facts)
    out.take(domain := wire_vrfs(spec))
    policy.merge(domain.policy)
    out.take(way := wire_uplinks(spec, facts, found))
    policy.merge(way.policy)
    out.tunnels = tunnel_ways(spec, facts)
    for name, value in spec.tuning.items():
        out.add(setting := Sysctl(name=KNOBS[name].path, value=value, dev=""))
        out.borrowed.add(setting.key)
    out.take(sriov.wire_pools(spec, facts, nics))
    joined = joined_networks(spec)
    for name, network in spec.networks.items():
        out.segments[name] = segment = settle(name, network, spec, facts, tuple(nics.get(name, ())), joined.get(name, ()))
        wire_network(out, policy, segment, spec, facts, found)
    for name, network in spec.networks.items():
        for peer in network.peers:
            out.take(pair := join(out.segments[name], out.segments[peer], facts))
            policy.merge(pair.policy)
    keeper = guard_keeper()
    out.outer = outer = frozenset(outer_ports(out, spec, facts))
    if any(segment.guarded for segment in out.segments.values()):
        groups = grouping(spec, facts, out.segments, policy.routers, outer)
        on_bridges, on_macvtaps = limits_of(spec, facts, out.segments, policy)
        numbers = {m.name: m.number or 0 for m in groups.members} if groups else {}
        out.add(guard_table(outer, groups.bridge_text if groups else "", on_bridges.text(tracking_of(facts))), keeper,
                host_table(policy, (groups.host_text if groups else "")
                           + on_bridges.host_text(tracking_of(facts), numbers), synproxied(out.segments.values())),
                *unmanaged(facts.services))
        if groups:
            out.group(groups)
        if zones := [zone_of(s.domain) for s in out.segments.values() if s.parent]:
            out.add(egress_table(zones, on_macvtaps.text()))
        out.add(*on_bridges.members, *on_macvtaps.members)
    elif policy.tunnels or policy.vrf_zones:
        out.add(host_table(policy))
    attach_nics(out, spec, nics, facts, keeper.name)
    out.share(spec, facts)
    share_tenants(out, spec, facts)
    limited = any(n.tap and n.declared.rate.limited for here in nics.values() for n in here) or any(t.rate.limited for t in spec.tenants.values())
    out.notes += rates.notes(limited, facts.features)
    if spec.mirrors:
        from kvmnet.policy.mirrors import wire_mirrors
        from kvmnet.policy.places import Layout

        made, out.mirrors = wire_mirrors(Layout(spec, out.segments, out.outer))
        out.add(*made)
    return out


def limits_of(spec: Spec, facts: Facts, segments: Mapping[str, Segment], policy: HostPolicy) -> tuple[Limiting, Limiting]:
    """Abuse limits of the NICs on bridges, and of macvtaps."""
    return (limiting(spec, TABLE, [s for s in segments.values() if not s.parent], tracking_of(facts), policy.routers),
            limiting(spec, EGRESS, [s for s in segments.values() if s.parent]))


def place_nics(spec: Spec, facts: Facts, allocations: Allocations) -> dict[str, list[NicOnNetwork]]:
    """Every NIC with its addresses, by network."""
    placed: dict[str, list[NicOnNetwork]] = {}
    for item in spec.placed:
        vm, nic, got = item.vm, item.nic, allocations[item.key]
        network = spec.networks[nic.network]
        vf = vf_name(ways.device(network.uplink, spec), got.vf) if network.mode is Mode.SRIOV and network.uplink else ""
        placed.setdefault(nic.network, []).append(NicOnNetwork(
            vm=vm, nic=item.name, tap="" if vf else tap_name(vm, item.name), mac=got.mac, ip=got.ip, ip6=got.ip6,
            hostname=nic.hostname or (vm if item.position == 0 else f"{vm}-{item.primary or item.name}"),
            mtu=nic.mtu or network_mtu(network, spec, facts), declared=nic, vf=vf, standby=bool(item.primary),
            pair=f"{vm}/{standby_name(item.name)}" if nic.failover else ""))
    return placed


def network_mtu(network: Network, spec: Spec, facts: Facts) -> int:
    """The network's own MTU, else the uplink's (less the headers of an overlay), else 1500 bytes."""
    if network.mtu:
        return network.mtu
    if network.vxlan:
        return overlays.mtu(network, spec, facts.state)
    if network.uplink and not network.bridge:
        return ways.mtu(network.uplink, spec, facts.state) or 1500
    seen = facts.state.get(Key("link", network.bridge)) if network.bridge else None
    return seen.mtu if isinstance(seen, Link) and seen.mtu else 1500


def joined_networks(spec: Spec) -> dict[str, set[str]]:
    """Network -> those that it reaches through the host: its peers, and whose peer it is."""
    joined: dict[str, set[str]] = {}
    for name, network in spec.networks.items():
        for peer in network.peers:
            joined.setdefault(name, set()).add(peer)
            joined.setdefault(peer, set()).add(name)
    return joined


def settle(name: str, network: Network, spec: Spec, facts: Facts, nics: tuple[NicOnNetwork, ...], joined: Iterable[str] = ()) -> Segment:
    hosted = network.mode not in SHARED
    return Segment(
        name=name, network=network, bridge=ways.bridge_of(name, spec, facts.features),
        mtu=network_mtu(network, spec, facts), nics=nics,
        address=host_address(network.address, network.subnet, default=hosted),
        address6=host_address(network.address6, network.subnet6, default=hosted),
        vrf=domains.device(network.vrf),
        outside=tuple(a.partition("/")[0] for a in spec.uplinks[network.uplink].addresses) if network.vrf and network.uplink else (),
        way_out="" if network.vxlan else ways.way_out(network.uplink, spec, facts.features),
        overlay=overlay_of(name, network, spec, facts), parent=ways.parent_of(name, spec),
        vlan=inner_vlan(name, network, spec, facts), wire=ways.wire_of(name, spec, facts.features),
        port=ways.port_of(name, spec, facts.features, facts.state),
        joined=tuple(sorted(subnet for peer in joined if (subnet := spec.networks[peer].subnet))))


def overlay_of(name: str, network: Network, spec: Spec, facts: Facts) -> Overlay | None:
    if network.vxlan is None:
        return None
    return Overlay(overlay_name(name), overlays.underlay(network, spec, facts.features),
                   overlays.local_address(network, spec, facts.state, facts.features),
                   overlays.HEADERS[overlays.family(network.vxlan)])


def inner_vlan(name: str, network: Network, spec: Spec, facts: Facts) -> int:
    """VLAN of the network inside a shared bridge, or 0."""
    if network.mode is not Mode.BRIDGE or not network.uplink or not ways.shares(name, network, spec, facts.features):
        return 0
    return network.vlan or ways.native(network.uplink, spec)


def host_address(declared: str | None, subnet: str | None, *, default: bool) -> str:
    """The declared address, else the first of the prefix where the host has one by default."""
    if declared == "none" or not subnet:
        return ""
    return declared or (str(ip_network(subnet)[1]) if default else "")


def wire_network(out: Compiled, policy: HostPolicy, segment: Segment, spec: Spec, facts: Facts,
                 found: Mapping[str, Way]) -> None:
    network = segment.network
    if network.mode is Mode.SRIOV:
        return
    if segment.vlan and Key(Link.kind, segment.bridge) in out.wanted:
        part = bridge.wire_shared(segment)
    elif network.mode is Mode.BRIDGE:
        way = found[network.uplink] if network.uplink and not network.bridge else None
        part = bridge.wire(segment, facts, way, trunk_of(segment, spec))
        if way and network.vlan and not segment.vlan:
            part.notes.append(own_bridge_note(segment, spec, facts))
        if segment.vlan and facts.features.get(ways.MULTICAST):
            part.notes.append(f"no multicast snooping on {segment.bridge}: {facts.features[ways.MULTICAST]}")
    elif network.mode is Mode.MACVTAP:
        part = macvtap.wire(segment, facts, spec, found[network.uplink or ""])
    else:
        part = MODES[network.mode](segment, facts)
    vrf.join(part, segment.bridge, network.vrf, domains.zones(spec))
    out.take(part)
    out.add(*spanning_trees(part.resources, network, spec))
    policy.merge(part.policy)
    if segment.address or segment.address6:
        out.add(*services(segment, facts.resolvers))


def trunk_of(segment: Segment, spec: Spec) -> bridge.Trunk | None:
    """What the VLAN-aware bridge of a network carries; None when it is on none."""
    uplink = segment.network.uplink
    if not segment.vlan or not uplink:
        return None
    native = ways.native(uplink, spec)
    return bridge.Trunk(uplink, native, tuple(sorted(ways.carried(uplink, spec))),
                        {n.vlan or native: n for _, n in ways.bridged(uplink, spec) if not (n.vlan and n.needs_device)})


def own_bridge_note(segment: Segment, spec: Spec, facts: Facts) -> str:
    reason = ways.why_alone(segment.network, spec, facts.features)
    return (f"network {segment.name} has a bridge of its own on a sub-interface for VLAN {segment.network.vlan}: "
            f"{reason}")


def protected(segment: Segment) -> tuple[str, ...]:
    """Addresses that no guest of the network may ever use, unless they are declared for it: the host's,
    the routers', and link-locals of other guests (those of VRRP routers, RFC 9568), which the guard
    would otherwise give to the first that uses them."""
    network = segment.network
    fixed = (segment.address, segment.address6, network.gateway, network.gateway6)
    declared = {a for nic in segment.nics for a in (nic.ip6, *nic.prefixes) if a.startswith("fe80:") and "/" not in a}
    return (*(a for a in fixed if a), *sorted(declared))


def outer_ports(out: Compiled, spec: Spec, facts: Facts) -> set[tuple[str, str]]:
    """(device, bridge) of the ports by which somebody else's segment is reached: uplinks, overlays, and the
    host's own NICs on bridges that were there before."""
    found = {(s.overlay.port, s.bridge) for s in out.segments.values() if s.overlay}
    for name, network in spec.networks.items():
        if network.mode is Mode.BRIDGE:
            bridge = out.segments[name].bridge
            if network.uplink and not network.bridge:
                alone = network.vlan and not out.segments[name].vlan
                found.add((carrier_name(name) if alone else ways.device(network.uplink, spec), bridge))
                found |= {(nic, bridge) for nic in spec.uplinks[network.uplink].redundant}
            if network.bridge:
                found |= {(port, bridge) for port in ways.leading_outside(bridge, facts.state)}
    return found


def attach_nics(out: Compiled, spec: Spec, nics: Mapping[str, list[NicOnNetwork]], facts: Facts,
                keeper: str) -> None:
    """Guard, tap and, for guests that run, device of every NIC."""
    pooled = pooled_classes(spec, out.segments, facts.features)
    for network, placed in nics.items():
        segment = out.segments[network]
        kept = protected(segment)
        own = out.wanted.get(Key(Link.kind, segment.bridge))
        spanning = isinstance(own, Link) and bool(own.stp)    # one of ours never listens to guests
        for nic in placed:
            if nic.vf:
                continue
            vm = spec.vms[nic.vm]
            out.add(guard_of(nic, segment, kept), *rates.nic_rates(nic, segment, facts.features, pooled))
            if segment.parent:
                out.add(*macvtap.guest_ports(nic, segment),
                        *([] if vm.run else [macvtap.node(nic, owner_of(vm, facts))]))
            else:
                out.add(tap_of(nic, vm, segment, facts, keeper, spanning=spanning),
                        *(() if nic.declared.receives == "copies" else bridge.guest_vlans(segment, nic.tap, nic.declared)))
    out.devices = cache(partial(devices, spec, nics, facts))
    for name in facts.running if facts.running else ():
        if name in spec.vms and (run := spec.vms[name].run) is not None and (found := out.guest_nics.get(name)):
            out.add(*found, *threads(name, run, facts))


def devices(spec: Spec, nics: Mapping[str, list[NicOnNetwork]], facts: Facts) -> dict[str, tuple[GuestNic, ...]]:
    """Devices of every guest, in order."""
    made: dict[str, list[GuestNic]] = {}
    for placed in nics.values():
        for nic in placed:
            made.setdefault(nic.vm, []).append(guest_nic(nic, spec.vms[nic.vm], facts))
    for name, found in made.items():
        if len(found) > 1:
            order = {item.name: i for i, item in enumerate(pools.nics_of(name, spec.vms[name]))}
            found.sort(key=lambda d: order[d.name.partition("/")[2]])
    return {name: tuple(found) for name, found in made.items()}


def share_tenants(out: Compiled, spec: Spec, facts: Facts) -> None:
    """Queues that all NICs of a tenant share."""
    if not (trees_of := limited_tenants(spec)):
        return
    own, majors = tenant_nics(spec, out.segments.values()), trees(out.segments.values(), trees_of)
    for name, tenant in spec.tenants.items():
        out.add(*tenant_rates(name, tenant.rate, own.get(name, ()), majors, facts.features))


def pooled_classes(spec: Spec, segments: Mapping[str, Segment], features: Mapping[str, str]) -> dict[str, str]:
    """Tap of a tenant's NIC -> the class that what its guest sends waits in, where there is one."""
    if not (trees_of := limited_tenants(spec)):
        return {}
    own, majors = tenant_nics(spec, segments.values()), trees(segments.values(), trees_of)
    return {tap: place for name, tenant in spec.tenants.items()
            for tap, place in classes_out(name, tenant.rate, own.get(name, ()), majors, features).items()}


def limited_tenants(spec: Spec) -> list[str]:
    """Trees of classes of the tenants that have a rate."""
    return tree_names(name for name, tenant in spec.tenants.items() if tenant.rate.limited)


def tenant_nics(spec: Spec, segments: Iterable[Segment]) -> dict[str, list[tuple[NicOnNetwork, Segment]]]:
    """Tenant -> its NICs."""
    owner = owners(spec)
    found: dict[str, list[tuple[NicOnNetwork, Segment]]] = {}
    for segment in segments:
        for nic in segment.nics:
            if tenant := tenant_of(spec.vms[nic.vm], segment.name, owner):
                found.setdefault(tenant, []).append((nic, segment))
    return found


def guard_of(nic: NicOnNetwork, segment: Segment, kept: tuple[str, ...]) -> NicGuard:
    declared: Nic = nic.declared
    hosts, prefixes = split_extra(declared)
    return nic_guard(nic.tap, level=declared.guard, macs=(nic.mac, *declared.extra.macs),
                     addresses=tuple(a for a in (nic.ip, nic.ip6, *hosts) if a), prefixes=prefixes,
                     vlans=bridge.guest_tags(segment, declared), roles=declared.extra.roles, bridge=segment.domain,
                     protected=kept, table=EGRESS if segment.parent else TABLE)


def split_extra(nic: Nic) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Extra addresses as single hosts and as prefixes."""
    nets = [ip_network(a) for a in nic.extra.addresses]
    return (tuple(str(n[0]) for n in nets if n.num_addresses == 1),
            tuple(str(n) for n in nets if n.num_addresses > 1))


def owner_of(vm: Vm, facts: Facts) -> int:
    """uid of the user that may open a guest's taps."""
    return facts.users.get(vm.owner, ROOT) if vm.owner else ROOT


def tap_of(nic: NicOnNetwork, vm: Vm, segment: Segment, facts: Facts, keeper: str, *, spanning: bool) -> Link:
    declared: Nic = nic.declared
    isolated = declared.isolated if declared.isolated is not None else segment.network.isolated_ports
    if declared.receives == "copies":
        return Link(name=nic.tap, type="tap", mtu=segment.mtu, up=True, master="", alias=f"kvmnet nic {nic.vm}/{nic.nic}",
                    guard=nic.tap, keeper=keeper, addrgenmode="none", multi_queue=queue_pairs(declared, vm) > 1,
                    user=owner_of(vm, facts))
    # A bridge that is not ours may take the lowest MAC of its ports as its own: none is higher than fe:.
    mac = f"fe{nic.mac[2:]}" if segment.network.bridge else None
    return Link(name=nic.tap, type="tap", mtu=segment.mtu, mac=mac, up=True, master=segment.bridge, guard=nic.tap,
                keeper=keeper, alias=f"kvmnet nic {nic.vm}/{nic.nic}", addrgenmode="none",
                multi_queue=queue_pairs(declared, vm) > 1,
                user=owner_of(vm, facts),
                isolated=isolated, hairpin=False, learning=True, flood=True, mcast_flood=True,
                bpdu_guard=spanning and declared.guard != "off", root_guard=spanning,
                neigh_suppress=segment.network.neigh_suppress and declared.guard == "full")
