"""The host as it runs -> Layout: what is seen, judged. Pure.

What the document can say becomes a device of the layout; every other thing of the host becomes an element that
says why not. Bridges of libvirt, Docker and the like are known by the names that they give.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kvmnet.adopt import bonds
from kvmnet.adopt import verdicts as v
from kvmnet.adopt.model import (
    Address,
    Bond,
    Bridge,
    Draft,
    Dynamic,
    Element,
    GuestPort,
    Layout,
    Nic,
    Outcome,
    Route,
    Vlan,
)
from kvmnet.adopt.qemu_words import machine
from kvmnet.drivers.linux import resources as linux
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.engine.driver import Seen
from kvmnet.records import dataclass, field, replace

if TYPE_CHECKING:
    from kvmnet.adopt.tap_holders import Holder

OWNERS = (
    (re.compile(r"virbr\d+(-nic)?"), "libvirt"), (re.compile(r"docker0|docker_gwbridge|br-[0-9a-f]{12}"), "Docker"),
    (re.compile(r"(cni-)?podman\d+|cni\d+"), "Podman"), (re.compile(r"lxcbr\d+"), "LXC"), (re.compile(r"lxdbr\d+"), "LXD"),
    (re.compile(r"incusbr\d+"), "Incus"), (re.compile(r"ovs-system|br-int|br-tun|br-ex"), "Open vSwitch"),
    (re.compile(r"fwbr\d+i\d+"), "Proxmox's firewall"),
)
"""Name of a bridge -> the program that makes it."""
ADDRESSED = frozenset({"veth", "macvlan", "ipvlan", "team", "dummy"})
"""Kinds that are an uplink where the host has an address or a route on them (a container's eth0)."""


@dataclass(frozen=True, slots=True)
class Host:
    """What was read of a host, beside the drivers' own observation."""

    seen: Seen
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Link -> what ``ip -json -details link`` prints for it."""
    holders: Sequence[Holder] = ()
    libvirt: Mapping[str, str] = field(default_factory=dict)
    """Bridge -> libvirt's network."""
    domains: Mapping[str, GuestPort] = field(default_factory=dict)
    """Tap -> the guest that libvirt says it is of."""
    dnsmasq: Mapping[int, str] = field(default_factory=dict)
    """Process -> command line, of dnsmasqs that are not ours."""
    rules: Sequence[str] = ()
    """Policy rules that are not the kernel's own three."""
    forwarding: Mapping[str, str] = field(default_factory=dict)
    """Kernel setting -> value, of those that make the host a router."""


def layout_of(host: Host) -> Layout:
    """Everything of the host that is not ours."""
    draft = Draft()
    links = {r.name: r for r in host.seen.state.values() if isinstance(r, linux.Link)}
    foreign = {n: link for n, link in links.items() if link.key not in host.seen.ours}
    owners = {n: owner for n, link in foreign.items() if link.type == "bridge" and (owner := owner_of(n, host.libvirt))}
    used: set[str | None] = {r.dev for r in host.seen.state.values() if isinstance(r, linux.Address | linux.Route) and r.dev}
    used |= {link.parent for link in links.values() if link.parent}
    for link in foreign.values():
        judge_link(draft, link, links, owners, used, host)
    guest_ports(draft, foreign, owners, host)
    layer3(draft, host.seen, {d.name for d in draft.devices()}, owners)
    others(draft, host)
    return draft.layout()


def owner_of(bridge: str, libvirt: Mapping[str, str]) -> str:
    """Whose bridge it is, in words; '' for the host's own."""
    if bridge in libvirt:
        return f"libvirt's network {libvirt[bridge]}"
    return next((owner for pattern, owner in OWNERS if pattern.fullmatch(bridge)), "")


def say(draft: Draft, path: str, outcome: Outcome, words: str, *, value: str = "", device: str = "") -> None:
    draft.elements.append(Element(path=path, value=v.one_line(value), outcome=outcome, words=words, device=device))


# -- links -----------------------------------------------------------------------------------------

def judge_link(draft: Draft, link: linux.Link, links: Mapping[str, linux.Link], owners: Mapping[str, str],
               used: set[str | None], host: Host) -> None:
    master = link.master or ""
    judge = JUDGES.get(link.type or "")
    if link.type == "loopback":
        say(draft, f"link {link.name}", *v.LOOPBACK, device=link.name)
    elif link.name in owners:
        say(draft, f"link {link.name}", Outcome.FOREIGN, f"bridge of {owners[link.name]}", device=link.name)
    elif master in owners and link.type != "tap":
        words = f"port of {master}, a bridge of {owners[master]}"
        say(draft, f"link {link.name}", Outcome.FOREIGN, words, device=link.name)
    elif link.type == "vrf" or link.vrf:
        words = f"a routing domain, table {link.vrf_table}" if link.type == "vrf" else f"{link.type} in the routing domain {link.vrf}"
        say(draft, f"link {link.name}", Outcome.UNSUPPORTED, f"{words} of the host's own: the document has only those that kvmnet makes",
            device=link.name)
    elif link.bonded:
        say(draft, f"link {link.name}", *v.MEMBERS, device=master)
    elif judge:
        judge(draft, link, links, host)
    elif link.type in ADDRESSED and link.name in used:
        judge_nic(draft, link, links, host)
    elif link.type != "tap":
        words = f"a port of {master}, which is used as it is" if master else v.KIND.words
        say(draft, f"link {link.name}", Outcome.KEPT if master else v.KIND.outcome, f"{link.type}: {words}", device=link.name)


def judge_nic(draft: Draft, link: linux.Link, links: Mapping[str, linux.Link], host: Host) -> None:
    draft.nics[link.name] = Nic(name=link.name, mtu=None if link.mtu == 1500 else link.mtu, mac=link.mac or "")
    carries = any(other.parent == link.name for other in links.values())
    if link.master and not carries:
        say(draft, f"link {link.name}", Outcome.MAPPED, f"port of {link.master}, which is used as it is", device=link.name)
    else:
        say(draft, f"link {link.name}", *v.uplink("device"), device=link.name)


def judge_bridge(draft: Draft, link: linux.Link, links: Mapping[str, linux.Link], host: Host) -> None:
    ports = tuple(sorted(n for n, x in links.items() if x.master == link.name))
    draft.bridges[link.name] = Bridge(name=link.name, mtu=link.mtu, mac=link.mac or "", ports=ports, stp=link.stp)
    how = f"{', by VLANs' if link.vlan_filtering else ''}{', with a spanning tree' if link.stp else ''}"
    say(draft, f"link {link.name}", Outcome.MAPPED, f"networks.NAME.bridge{how}; ports: {' '.join(ports) or 'none'}",
        device=link.name)


def judge_bond(draft: Draft, link: linux.Link, links: Mapping[str, linux.Link], host: Host) -> None:
    """A bond with everything that the document can say of it; what it cannot is named."""
    members = link.members or ()
    first = links.get(members[0]) if members else None
    own = (first.own_mac or first.mac) if first else ""
    usual_mtu = first.mtu if first else 1500
    draft.bonds[link.name] = Bond(
        name=link.name, mtu=None if link.mtu == 1500 == usual_mtu else link.mtu, mac="" if link.mac == own else link.mac or "",
        members=members, mode=link.bond_mode or "", options=bonds.of_link(link))
    say(draft, f"link {link.name}", Outcome.MAPPED, "uplinks.NAME.bond", value=f"{link.bond_mode} of {' '.join(members)}",
        device=link.name)
    data = host.details.get(link.name, {}).get("linkinfo", {}).get("info_data", {})
    for option, value in bonds.unsaid(data).items():
        say(draft, f"link {link.name} {option}", Outcome.UNSUPPORTED, "the document has no words for it; the bond keeps it "
            "while the host makes it", value=value, device=link.name)


def judge_vlan(draft: Draft, link: linux.Link, links: Mapping[str, linux.Link], host: Host) -> None:
    below = links.get(link.parent or "")
    draft.vlans[link.name] = Vlan(
        name=link.name, mtu=None if below and link.mtu == below.mtu else link.mtu,
        mac="" if below and link.mac == below.mac else link.mac or "", parent=link.parent or "", id=link.vlan_id or 0,
        protocol=link.vlan_protocol or "802.1Q")
    say(draft, f"link {link.name}", Outcome.MAPPED, "uplinks.NAME.vlan", value=f"{link.vlan_protocol} {link.vlan_id} on {link.parent}",
        device=link.name)


JUDGES: dict[str, Callable[[Draft, linux.Link, Mapping[str, linux.Link], Host], None]] = {
    "physical": judge_nic, "bridge": judge_bridge, "bond": judge_bond, "vlan": judge_vlan}
"""Type of a link -> what describes it."""


def guest_ports(draft: Draft, foreign: Mapping[str, linux.Link], owners: Mapping[str, str], host: Host) -> None:
    """Every foreign tap with who holds it, or whose libvirt says it is."""
    held = {tap: (holder, fd) for holder in host.holders for fd, tap in holder.taps.items()}
    for link in foreign.values():
        if link.type != "tap":
            continue
        port = guest_port(link, *held.get(link.name, (None, -1)))
        if not port.guest and (domain := host.domains.get(link.name)):
            port = replace(domain, bridge=link.master or "")
        where = f"on {link.master}" + (f", a bridge of {owners[link.master]}" if link.master in owners else "") \
            if link.master else "on no bridge"
        whose = f"guest {port.guest}, " if port.guest else ""
        say(draft, f"link {link.name}", Outcome.FOREIGN if link.master in owners else Outcome.KEPT,
            f"tap of {whose}{port.words}, {where}: it stays with who made it", device=link.name)
        if link.master in draft.bridges:
            draft.guests.append(port)


def guest_port(link: linux.Link, holder: Holder | None, fd: int) -> GuestPort:
    # libvirt gives the tap the guest's MAC with fe: in front (virNetDevTapCreateInBridgePort()).
    guessed = f"52{link.mac[2:]}" if link.mac and link.mac.startswith("fe:54:00:") else ""
    if holder is None:
        return GuestPort(tap=link.name, bridge=link.master or "", guest="", mac=guessed, words="no process that is known")
    guest = machine(holder.command)
    if guest is None:
        program = holder.command[0].rpartition("/")[2] if holder.command else "a process"
        return GuestPort(tap=link.name, bridge=link.master or "", guest="", mac=guessed,
                         words=f"{program}, pid {holder.pid}")
    cards = [c for c in guest.cards if c.tap == link.name or fd in c.descriptors]
    cards = cards or [c for c in guest.cards if len(guest.cards) == 1]
    card = cards[0] if cards else None
    words = f"QEMU, pid {holder.pid}" + (f", uuid {guest.uuid}" if guest.uuid else "") \
        + (", run by libvirt" if guest.libvirt else "")
    return GuestPort(tap=link.name, bridge=link.master or "", guest=guest.name, words=words,
                     mac=card.mac if card and card.mac else guessed, model=card.model if card else "")


# -- what is on them -------------------------------------------------------------------------------

def layer3(draft: Draft, seen: Seen, devices: set[str], owners: Mapping[str, str]) -> None:
    """Addresses and routes of the host. Plain ones of an uplink are the document's, the others stay."""
    for key, thing in seen.state.items():
        if key in seen.ours or not isinstance(thing, linux.Address | linux.Route | linux.ProxyNeighbour):
            continue
        dev = thing.dev or ""
        if dev in owners:
            say(draft, str(key), Outcome.FOREIGN, f"on a bridge of {owners[dev]}", device=dev)
            continue
        how = {"dhcp": " (by DHCP)", "ra": " (by router advertisement)"}.get(getattr(thing, "dynamic", "") or "", "")
        if dev in devices and isinstance(thing, linux.Address) and plain_address(thing):
            draft.addresses.append(Address(dev=dev, cidr=thing.name.split()[1]))
            say(draft, str(key), *v.HOST_ADDRESS, device=dev)
        elif dev in devices and isinstance(thing, linux.Route) and (route := plain_route(thing)):
            draft.routes.append(route)
            say(draft, str(key), *v.ROUTE, device=dev)
        else:
            say(draft, str(key), Outcome.KEPT, v.ADDRESS.words + how, device=dev)
        if dev in devices and getattr(thing, "dynamic", "") == "dhcp":
            draft.dynamic.append(Dynamic(dev=dev, family=6 if ":" in thing.name else 4))


def plain_address(address: linux.Address) -> bool:
    """Whether the document can have the address: it is static and nothing more is to be said of it."""
    return not (address.dynamic or address.peer or set(address.flags or ()) - {"nodad"}) and address.scope == "global"


def plain_route(route: linux.Route) -> Route | None:
    """A route that the document can have; None for one of a daemon, of another table, or with further settings."""
    usual = (route.scope in ("global", "link") and (route.scope == "link") == (not route.via)) or route.family == 6
    if (route.table != "main" or route.proto not in ("boot", "static") or route.options or route.src or route.flags
            or route.lifetime is not None or not usual):
        return None
    dst = ("::/0" if route.family == 6 else "0.0.0.0/0") if route.dst == "default" else route.dst or ""
    metric = None if route.metric == linux.default_metric(route.family or 4) else route.metric
    return Route(dev=route.dev or "", dst=dst, via=route.via or "", metric=metric)


def others(draft: Draft, host: Host) -> None:
    """Tables of rules, DNS and DHCP servers and switches that are not ours, and what else the drivers see."""
    covered = (linux.Link, linux.Address, linux.Route, linux.ProxyNeighbour, linux.Sysctl, linux.BridgeVlan)
    for key, thing in host.seen.state.items():
        if key in host.seen.ours or isinstance(thing, covered):
            continue
        words = "foreign rules; kvmnet leaves them alone" if isinstance(thing, NftTable) else "not ours; left alone"
        say(draft, str(key), Outcome.FOREIGN, words)
    for dev, (bridge, vlans) in port_vlans(host.seen).items():
        say(draft, f"vlans of {dev}", Outcome.KEPT, f"VLANs of {'a port of ' if dev != bridge else ''}{bridge} stay as they are",
            value=vlans, device=dev)
    for pid, command in host.dnsmasq.items():
        owner = "libvirt's" if "/libvirt/" in command else "not ours"
        say(draft, f"dnsmasq pid {pid}", Outcome.FOREIGN, f"{owner}; left alone", value=command)
    for rule in host.rules:
        say(draft, "ip rule", Outcome.KEPT, "policy routing of the host stays as it is", value=rule)
    for name, value in host.forwarding.items():
        say(draft, f"sysctl {name}", Outcome.KEPT, "the host routes by itself; kvmnet leaves the switch as it stands",
            value=value)


def port_vlans(seen: Seen) -> dict[str, tuple[str, str]]:
    """Port of a foreign VLAN-aware bridge -> (bridge, its VLANs: ``1 (untagged) 10-20``)."""
    found: dict[str, tuple[str, list[linux.BridgeVlan]]] = {}
    for key, thing in seen.state.items():
        if isinstance(thing, linux.BridgeVlan) and key not in seen.ours:
            found.setdefault(thing.dev or "", (thing.bridge or "", []))[1].append(thing)
    return {dev: (bridge, ranges(vlans)) for dev, (bridge, vlans) in found.items()}


def ranges(vlans: Iterable[linux.BridgeVlan]) -> str:
    """VLANs of one port, those beside each other as a range; the untagged one by itself."""
    parts: list[list[int]] = []
    untagged = []
    for vlan in sorted(vlans, key=lambda x: int(x.name.split()[1])):
        vid = int(vlan.name.split()[1])
        if vlan.pvid or vlan.untagged:
            how = "untagged" if vlan.pvid and vlan.untagged else "in only" if vlan.pvid else "out only"
            untagged.append(f"{vid} ({how})")
        elif parts and parts[-1][1] == vid - 1:
            parts[-1][1] = vid
        else:
            parts.append([vid, vid])
    return " ".join([*untagged, *(f"{a}-{b}" if a != b else str(a) for a, b in parts)])
