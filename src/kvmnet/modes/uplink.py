"""A NIC of the host joins a bridge, and what the host has on it moves to the bridge. Pure.

The bridge has the NIC's MAC and MTU, so that neighbours notice nothing. Every address and route is
wanted absent on the NIC and present on the bridge; ``replaces`` keeps the two beside each other at the
end of the plan, in one ``ip -batch``: the gap is milliseconds. What is absent on the NIC is borrowed,
so that destroy gives it back.

Time bombs, each of which would cut the host off minutes later:

* Addresses and routes from router advertisements have a lifetime. They move with what is left of it,
  and the bridge listens to advertisements (accept_ra=2), so that the next one renews them there. A
  connected route with a lifetime is not taken along when its address goes, so it moves by itself.
  The NIC needs no accept_ra=0: what comes in by a port goes to the bridge alone.
* An address from DHCP belongs to a daemon that renews it on the NIC. That is refused, with the way out.
* Rules, nftables and settings that name the NIC go on naming it: they are listed as notes.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_interface, ip_network
from itertools import pairwise

from kvmnet.drivers.linux.resources import (
    PROTO,
    Address,
    Link,
    Route,
    Sysctl,
    address_name,
    route_name,
)
from kvmnet.engine.resource import Absent, Key, Resource
from kvmnet.errors import ConflictError
from kvmnet.facts.model import Facts
from kvmnet.modes.forwarding import accepts_advertisements
from kvmnet.records import dataclass, field, replace

COPIED = (
    *(f"ipv4 {n}" for n in ("rp_filter", "arp_announce", "arp_filter", "arp_ignore", "accept_local", "proxy_arp",
                            "accept_redirects", "send_redirects")),
    *(f"ipv6 {n}" for n in ("disable_ipv6", "autoconf", "use_tempaddr", "accept_ra_defrtr", "accept_ra_pinfo",
                            "accept_ra_rtr_pref", "accept_redirects")),
)
"""Settings of the NIC that the bridge takes over: a host that filters, or has no IPv6 there, goes on so."""
SECRET = "stable_secret"
"""A mode that needs a secret of its own on the bridge, which is not ours to copy."""
MENTIONED = ("ipv4 arp_accept", "ipv4 route_localnet", "ipv4 src_valid_mark", "ipv6 proxy_ndp", "ipv6 hop_limit")
"""Settings of the NIC that stop to matter once it is a port; mentioned when not the default."""


def uplink_sysctls(device: str, bridge: str) -> tuple[str, ...]:
    """Settings to observe so that ``take_uplink`` and ``stale_references`` know them."""
    both = ("ipv6 accept_ra", "ipv6 forwarding", *COPIED)
    return tuple(sysctl(dev, name) for devices, names in (((device, bridge), both), ((device, "default"), MENTIONED))
                 for dev in devices for name in names)


def sysctl(device: str, setting: str) -> str:
    """Path of ``ipv4 rp_filter`` and the like for one device."""
    family, name = setting.split()
    return f"net/{family}/conf/{device}/{name}"


def take_uplink(device: str, bridge: str,
                facts: Facts) -> tuple[list[Resource | Absent], set[Key], list[str]]:
    """What makes *device* a port of *bridge*: resources, which of them are borrowed, and notes. Raises what
    ``move_host`` raises."""
    port = join(device, bridge, facts)
    resources, borrowed, notes = move_host((device,), bridge, facts)
    return [port, *resources], borrowed | {port.key}, notes


def join(device: str, bridge: str, facts: Facts) -> Link:
    """The claim that makes *device* a port of *bridge*."""
    seen = facts.state.get(Key(Link.kind, device))
    return Link(name=device, master=bridge, up=True,
                bonded=False if isinstance(seen, Link) and seen.bonded else None)


def move_host(sources: Sequence[str], target: str,
              facts: Facts) -> tuple[list[Resource | Absent], set[Key], list[str]]:
    """What the host has on the *sources*, the lowest first, moves to *target*: a bridge that takes a NIC, a bond
    that takes several, a bridge that takes a bond with its members.

    The same whether it has moved already or not: what is on the target stays there. Raises ConflictError
    when an address or route cannot be moved, with all reasons.
    """
    for device in sources:
        refuse(device, target, facts, sources)
    there = facts.standing_on(*dict.fromkeys((*sources, target)))
    addresses = [a for a in there if isinstance(a, Address)]
    routes = [r for r in there if isinstance(r, Route)]
    move = Move(tuple(dict.fromkeys((*sources, *(d for d in facts.lent if d != target)))), list(bridge_settings(sources, target, facts, addresses, routes)))
    for address in addresses:
        if address.dev != target:
            move.goes(address.key, move_address(address, target))
    prefixes = {ip_interface(a.name.split()[1]).network for a in move.moved.values()
                if isinstance(a, Address) and "noprefixroute" not in (a.flags or ())}
    for route in routes:
        if route.dev != target:
            carried = connected(route) and ip_network(route.dst or "::/0") in prefixes
            move.goes(route.key, None if carried else move_route(route, target))
    if any(has_taken(device, target, facts) for device in sources):
        for device in sources:
            for key, stays in there_already(addresses, routes, device, target):
                move.goes(key, stays if stays.key not in move.moved else None)
    notes = [n for device in sources for n in stale_references(device, facts)]
    return [*move.resources, *move.moved.values()], move.borrowed, list(dict.fromkeys(notes))


@dataclass(slots=True)
class Move:
    """What is wanted of a move, as it is found out."""

    sources: tuple[str, ...]
    resources: list[Resource | Absent]
    borrowed: set[Key] = field(default_factory=set)
    moved: dict[Key, Resource] = field(default_factory=dict)

    def goes(self, old: Key, new: Resource | None) -> None:
        """*old* must not be on its device, nor may it come back on another source or on one that was one before;
        *new*, if any, is on the target."""
        gone = [old]
        if isinstance(new, Address):
            gone += [Key(Address.kind, address_name(device, new.name.split()[1])) for device in self.sources]
        elif isinstance(new, Route):
            gone += [move_route(new, device).key for device in self.sources]
        for key in dict.fromkeys(k for k in gone if k not in self.borrowed):
            self.resources.append(Absent(key))
            self.borrowed.add(key)
        if new is not None:
            self.moved[new.key] = new


def move_address(address: Address, bridge: str) -> Address:
    """The address on the bridge. It was checked for duplicates on the NIC: without nodad it would be
    unusable for a second (RFC 4862, section 5.4)."""
    cidr = address.name.split()[1]
    flags = set(address.flags or ()) | ({"nodad"} if ":" in cidr else set())
    label = (address.label or "").replace(address.dev or "", bridge, 1)
    return replace(address, name=address_name(bridge, cidr), dev=bridge, flags=tuple(sorted(flags)),
                   label=label if len(label) <= 15 else bridge, replaces=address.name)


def move_route(route: Route, bridge: str) -> Route:
    """The same route over the bridge."""
    words = (route.options or "").split()
    marks = [f"tos {words[words.index('tos') + 1]}"] if "tos" in words else []
    marks += [f"via {route.via}"] if route.proto == "ra" and route.via else []
    name = route_name(route.dst or "default", family=route.family or 4, dev=bridge, table=route.table or "main",
                      metric=route.metric, mark=" ".join(marks))
    return replace(route, name=name, dev=bridge, replaces=route.name)


def link_local_mode(nic: Link) -> str | None:
    """How the bridge makes its link-local address: as the NIC did, so that the host keeps it."""
    return None if nic.addrgenmode == SECRET else nic.addrgenmode


def connected(route: Route) -> bool:
    return route.proto == "kernel"


def has_taken(device: str, bridge: str, facts: Facts) -> bool:
    """Whether the bridge is one that took the NIC, also when somebody detached that since: it has its MAC.
    The same name may have been a network of another mode, whose addresses are nobody's to keep."""
    nic, seen = (facts.state.get(Key(Link.kind, name)) for name in (device, bridge))
    return isinstance(nic, Link) and isinstance(seen, Link) and (nic.mac == seen.mac or nic.master == bridge)


def there_already(addresses: list[Address], routes: list[Route], device: str,
                  bridge: str) -> Iterator[tuple[Key, Resource]]:
    """What stands on the bridge from an earlier move: its key on the NIC, and the thing as it is."""
    for address in addresses:
        if address.dev == bridge and not address.dynamic:
            yield Key(Address.kind, address_name(device, address.name.split()[1])), address
    for route in routes:
        if route.dev == bridge and route.lifetime is None and route.proto not in ("ra", "dhcp", PROTO):
            yield move_route(replace(route, proto=""), device).key, route


def bridge_settings(sources: Sequence[str], bridge: str, facts: Facts, addresses: list[Address],
                    routes: list[Route]) -> list[Sysctl]:
    """Settings of the bridge: those of the first source, and it listens to advertisements where one did."""
    device = sources[0]
    listens = (any(accepts_advertisements(d, facts) for d in (*sources, bridge) if d == bridge or not is_ours(facts, d))
               or any(a.dynamic == "ra" for a in addresses) or any(r.proto == "ra" for r in routes))
    settings = [Sysctl(name=sysctl(bridge, "ipv6 accept_ra"), value="2" if listens else "0", dev=bridge)]
    for name in COPIED:
        seen = facts.state.get(Key(Sysctl.kind, sysctl(device, name)))
        if isinstance(seen, Sysctl):
            settings.append(Sysctl(name=sysctl(bridge, name), value=seen.value, dev=bridge))
    return settings


def refuse(device: str, bridge: str, facts: Facts, beside: Sequence[str] = ()) -> None:
    """Raise ConflictError when the NIC cannot be taken, with every reason. ``beside``: what it may belong to
    already."""
    nic = facts.state.get(Key(Link.kind, device))
    reasons = []
    if isinstance(nic, Link) and nic.master not in (None, "", bridge, *beside) and not is_ours(facts, nic.master):
        reasons.append(f"it is a port of {nic.master} already (to use that bridge: bridge: {nic.master})")
    for resource in facts.standing_on(device, ""):
        match resource:
            case Address(dev=dev, dynamic="dhcp") if dev == device:
                daemon = facts.dhcp_clients.get(device) or facts.dhcp_clients.get("") or "a DHCP client"
                reasons.append(f"{resource.name.split()[1]} comes from DHCP and is renewed on {device} by {daemon}; "
                               "on a bridge it would run out")
            case Route(options=str(options)) if "?" in options and resource.dev == device:
                reasons.append(f"route {resource.name} has settings that kvmnet cannot make again: {options}")
            case Route(dev="", options=str(options)) if f" dev {device} " in f"{options} ":
                reasons.append(f"route {resource.name} shares its packets between several devices: {options}")
    if reasons:
        raise ConflictError(f"{device} cannot become a port of {bridge}: " + "; ".join(reasons), WAY_OUT)


def is_ours(facts: Facts, device: str | None) -> bool:
    """Whether a bridge or bond is one that kvmnet made: the plan takes the NIC out of it."""
    link = facts.state.get(Key(Link.kind, device or ""))
    return isinstance(link, Link) and (link.alias or "").startswith("kvmnet ")


WAY_OUT = ("let the host's own network configuration make a bridge with this NIC and its address "
           "(systemd-networkd: Bridge=, NetworkManager: nmcli connection add type bridge, ifupdown: "
           "bridge_ports), then write bridge: NAME instead of uplink; or give the host a static address")


def stale_references(device: str, facts: Facts) -> list[str]:
    """What goes on naming the NIC after its addresses have moved, each as a note for the plan."""
    notes = [f"policy rule names {device}, which packets no longer come in by: ip rule {rule}"
             for rule in facts.rules if names_device(rule, device)]
    notes += [f"nftables names {device}: {line.strip()}"
              for line in facts.ruleset.splitlines() if f'"{device}"' in line]
    for name in MENTIONED:
        own, usual = (facts.state.get(Key(Sysctl.kind, sysctl(dev, name))) for dev in (device, "default"))
        if isinstance(own, Sysctl) and isinstance(usual, Sysctl) and own.value != usual.value:
            notes.append(f"setting of {device} that the bridge does not take over: {own.name} = {own.value}")
    return notes


def names_device(rule: str, device: str) -> bool:
    words = rule.split()
    return any(a in ("iif", "oif") and b == device for a, b in pairwise(words))
