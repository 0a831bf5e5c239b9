"""Uplinks as links: bonds and VLANs that are made, NICs that are borrowed, and the host's addresses on them. Pure.

A bond is made with the MAC of its first member, so that neighbours notice nothing, and its members are
borrowed: destroy takes the bond away and the kernel gives each its MAC back. What the host has on the
members moves to the bond, or at once to the bridge that takes the bond.

A bond or VLAN that the host has already under that name, and that is the same thing (kind, mode, carrier, id), is
borrowed like a NIC: what the document says of it is claimed setting by setting, the rest is left as it is, and
destroy gives back what was changed. So a host whose own configuration makes its bond at boot, and one where
kvmnet makes it, have the same document.
"""
from __future__ import annotations

from kvmnet.drivers.linux.resources import PROTO, Address, Link, Route, Sysctl, address_name, route
from kvmnet.engine.resource import Key, Resource, narrow
from kvmnet.facts.model import Facts
from kvmnet.modes import vrf
from kvmnet.modes.segment import Part
from kvmnet.modes.tunnel import wire_tunnel
from kvmnet.modes.uplink import link_local_mode, move_host
from kvmnet.records import dataclass
from kvmnet.spec import domains, ways
from kvmnet.spec.disciplines import uplink_queues
from kvmnet.spec.hardware import tune
from kvmnet.spec.models import Spec
from kvmnet.spec.uplinks import BondMode, BondOptions, Uplink

MIIMON = 100
"""Milliseconds between looks at the carriers, where the document does not say."""
CHOOSES_BY_HASH = frozenset({BondMode.LACP, BondMode.XOR, BondMode.TLB})
HAS_PRIMARY = frozenset({BondMode.ACTIVE_BACKUP, BondMode.TLB, BondMode.ALB})
NO_ARP = frozenset({BondMode.LACP, BondMode.TLB, BondMode.ALB})
"""Modes that cannot watch by ARP (bond_opts in drivers/net/bonding/bond_options.c)."""


@dataclass(frozen=True, slots=True)
class Way:
    """An uplink as a device, with what a bridge around it must know."""

    device: str
    mtu: int
    mac: str
    addrgenmode: str | None
    sources: tuple[str, ...]
    """Devices that the host may have addresses on, the lowest first."""
    beside: tuple[str, ...] = ()
    """NICs that lead to the same segment: a bridge takes them, too."""


def find_ways(spec: Spec, facts: Facts) -> dict[str, Way]:
    """Every uplink that has all that it needs on this host."""
    found: dict[str, Way] = {}
    for name in ways.by_carrier(spec):
        uplink, device = spec.uplinks[name], ways.device(name, spec)
        mtu = ways.mtu(name, spec, facts.state) or 1500
        if there := ways.theirs(name, spec, facts.state):
            new = tuple(m for m in uplink.members if m not in (there.members or ()))
            found[name] = Way(device, mtu, uplink.mac or there.mac or "", link_local_mode(there), (device, *new), tuple(uplink.redundant))
            continue
        if uplink.on:
            below = found[uplink.on]
            if uplink.wireguard:
                found[name] = Way(device, mtu, "", "none", (device,))
                continue
            found[name] = Way(device, mtu, uplink.mac or below.mac, below.addrgenmode, (device,))
            continue
        nic = facts.state[Key(Link.kind, uplink.members[0] if uplink.members else ways.carrier(name, spec) or device)]
        assert isinstance(nic, Link)
        mac = uplink.mac or nic.own_mac or nic.mac or ""
        found[name] = Way(device, mtu, mac, link_local_mode(nic), (*uplink.members, device), tuple(uplink.redundant))
    return found


def wire_uplinks(spec: Spec, facts: Facts, found: dict[str, Way]) -> Part:
    """The links themselves, and what moves to bonds that no bridge takes."""
    part = Part()
    for name, way in found.items():
        uplink = spec.uplinks[name]
        if there := ways.theirs(name, spec, facts.state):
            borrow(part, uplink, way, there, facts)
        elif uplink.members:
            wire_bond(part, name, uplink, way)
            if ways.way_out(name, spec, facts.features) == way.device:
                resources, borrowed, notes = move_host(uplink.members, way.device, facts)
                part.resources += resources
                part.borrowed |= borrowed
                part.notes += notes
        elif uplink.wireguard:
            wire_tunnel(part, name, uplink.wireguard, way, ways.way_out(uplink.on, spec, facts.features), facts)
        elif ways.is_vlan(uplink):
            part.resources.append(vlan_link(way.device, ways.carrier(name, spec), uplink.vlan or 0, uplink.protocol,
                                            way.mtu, f"kvmnet uplink {name}", uplink.mac))
            if not uplink.on:
                lend(part, Link(name=uplink.device or "", up=True))
        elif uplink.mtu:
            lend(part, Link(name=way.device, mtu=uplink.mtu))
        if spec.vrfs:
            into_domain(part, uplink, way, spec, theirs=not ways.is_made(uplink) or bool(there))
        part.notes += outside_the_trunk(name, spec, facts)
        for setting in tune(uplink, facts.state):
            lend(part, setting)
        part.resources += uplink_queues(uplink)
        claim_host(part, ways.way_out(name, spec, facts.features), uplink, facts,
                   str(domains.table(uplink.vrf, spec)) if uplink.vrf else "main")
    return part


def outside_the_trunk(name: str, spec: Spec, facts: Facts) -> list[str]:
    """VLANs on *name* that the switch at one of its NICs does not announce. A switch that announces none says nothing."""
    uplink = spec.uplinks[name]
    nics = uplink.members or ((uplink.device,) if uplink.device and not uplink.on else ())
    own = (uplink.vlan,) if uplink.vlan and not uplink.on and uplink.protocol == "802.1Q" else ()
    above = [u.vlan for u in spec.uplinks.values() if u.on == name and u.vlan and u.protocol == "802.1Q" and not uplink.vlan]
    networks = [n.vlan for _, n in ways.bridged(name, spec) if n.vlan and not uplink.vlan]
    notes = []
    for vid in sorted({*own, *above, *networks}):
        for nic in nics:
            for there in facts.link_neighbours.get(nic, ()):
                if there.vlans and vid not in there.vlans:
                    notes.append(f"VLAN {vid} is outside the trunk of {nic}: {there.name}, port {there.port}, announces only "
                                 f"{', '.join(map(str, there.vlans))} (LLDP)")
    return notes


def borrow(part: Part, uplink: Uplink, way: Way, there: Link, facts: Facts) -> None:
    """What the document says of a bond or VLAN that is the host's own. NICs that are to join it bring along what
    the host has on them."""
    full = Link(name=way.device)
    if uplink.members:
        full = bond_link(way, "", uplink.bond or BondMode.ACTIVE_BACKUP, uplink.options, uplink.members)
    said = {f for option in uplink.options.model_fields_set for f in CLAIMS[option]}
    claim = {f: getattr(full, f) for f in said} | {"mtu": uplink.mtu, "mac": uplink.mac}
    if any(value is not None for value in claim.values()):
        lend(part, Link(name=way.device, **claim))
    for member in uplink.members:
        new = member not in (there.members or ())
        lend(part, Link(name=member, master=way.device, bonded=True, mtu=way.mtu if new else uplink.mtu, up=True if new else None))
    joining = way.sources[1:]
    if joining:
        resources, borrowed, notes = move_host(joining, way.device, facts)
        part.resources += [r for r in resources if not isinstance(r, Sysctl)]
        part.borrowed |= borrowed
        part.notes += notes
    further = sorted(set(there.members or ()) - set(uplink.members)) if uplink.members else []
    if further:
        part.notes.append(f"{way.device} is the host's own and has further members, which stay: {', '.join(further)}")


def lend(part: Part, claim: Resource) -> None:
    part.resources.append(claim)
    part.borrowed.add(claim.key)


def wire_bond(part: Part, name: str, uplink: Uplink, way: Way) -> None:
    """The bond, complete, and its members."""
    part.resources.append(bond_link(way, name, uplink.bond or BondMode.ACTIVE_BACKUP, uplink.options, uplink.members))
    for member in uplink.members:
        lend(part, Link(name=member, master=way.device, bonded=True, mtu=way.mtu, up=True))
    if len(uplink.members) == 1:
        part.notes.append(f"bond {way.device} has one member, {uplink.members[0]}: nothing takes over when it fails")


def bond_link(way: Way, name: str, mode: BondMode, options: BondOptions, members: tuple[str, ...]) -> Link:
    arp, lacp = options.arp, mode is BondMode.LACP
    watches_arp = mode not in NO_ARP
    return Link(
        name=way.device, type="bond", mtu=way.mtu, mac=way.mac, up=True, master="", alias=f"kvmnet uplink {name}",
        addrgenmode=way.addrgenmode, bond_mode=mode.value,
        bond_miimon=0 if arp else options.miimon or MIIMON,
        bond_updelay=options.updelay, bond_downdelay=options.downdelay,
        bond_arp_interval=(arp.interval if arp else 0) if watches_arp else None,
        bond_arp_targets=(tuple(sorted(arp.targets)) if arp else ()) if watches_arp else None,
        bond_arp_validate=(arp.check if arp else "none") if watches_arp else None,
        bond_primary=(options.primary or members[0]) if mode in HAS_PRIMARY else None,
        bond_primary_reselect=options.reselect if mode in HAS_PRIMARY else None,
        bond_hash=(options.hash or ("layer3+4" if lacp else "layer2")) if mode in CHOOSES_BY_HASH else None,
        bond_min_links=options.min_links, bond_peer_notify=options.peer_notify,
        bond_lacp_rate=(options.lacp_rate or "slow") if lacp else None,
        bond_ad_select=(options.ad_select or "stable") if lacp else None)


CLAIMS: dict[str, tuple[str, ...]] = {
    "primary": ("bond_primary",), "reselect": ("bond_primary_reselect",), "miimon": ("bond_miimon",),
    "updelay": ("bond_updelay",), "downdelay": ("bond_downdelay",),
    "arp": ("bond_miimon", "bond_arp_interval", "bond_arp_targets", "bond_arp_validate"), "hash": ("bond_hash",),
    "lacp_rate": ("bond_lacp_rate",), "ad_select": ("bond_ad_select",), "min_links": ("bond_min_links",),
    "peer_notify": ("bond_peer_notify",)}
"""Option of a bond -> settings of the link that it is about."""


def vlan_link(device: str, carrier: str, vid: int, protocol: str, mtu: int, alias: str, mac: str | None = None) -> Link:
    """A VLAN sub-interface, complete. Its MAC follows the carrier's when none is given."""
    return Link(name=device, type="vlan", parent=carrier, vlan_id=vid, vlan_protocol=protocol, vlan_qos=(), vlan_qos_in=(), mtu=mtu, mac=mac,
                up=True, master="", alias=alias)


def into_domain(part: Part, uplink: Uplink, way: Way, spec: Spec, *, theirs: bool) -> None:
    """The uplink as a member of its routing domain. A NIC is lent to it, and left alone where it is in none."""
    claim = Link(name=way.device, vrf=domains.device(uplink.vrf), up=True if uplink.vrf else None)
    if not theirs:
        part.resources.append(claim)
    elif uplink.vrf:
        lend(part, claim)
    vrf.join(part, way.device, uplink.vrf, domains.zones(spec))


def claim_host(part: Part, device: str, uplink: Uplink, facts: Facts, table: str = "main") -> None:
    """The host's own addresses and routes that the document claims on *device*. A route that the host has made
    itself is right as it is when it goes the same way."""
    for text in uplink.addresses:
        address = Address(name=address_name(device, text), dev=device, scope="global", dynamic="")
        part.resources.append(address)
        part.borrowed.add(address.key)
    defaults = [route("default", dev=device, via=gateway, table=table) for gateway in (uplink.gateway, uplink.gateway6) if gateway]
    for r in (*defaults, *(route(with_length(r.to), dev=device, via=r.via or "", metric=r.metric, table=table)
                           for r in uplink.routes)):
        seen = facts.state.get(r.key)
        theirs = isinstance(seen, Route) and seen.proto != PROTO and seen.lifetime is None
        part.resources.append(narrow(r, {"dev", "via"}) if theirs else r)
        part.borrowed.add(r.key)


def with_length(prefix: str) -> str:
    return prefix if "/" in prefix else f"{prefix}/{128 if ':' in prefix else 32}"
