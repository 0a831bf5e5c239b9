"""The host as it runs -> Layout: what is seen, judged. Pure.

What the document can say becomes a device of the layout; every other thing of the host becomes an element that
says why not. Bridges of libvirt, Docker and the like are known by the names that they give.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

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
    dnsmasq: Mapping[int, str] = field(default_factory=dict)
    """Process -> command line, of dnsmasqs that are not ours."""
    forwarding: Mapping[str, str] = field(default_factory=dict)
    """Kernel setting -> value, of those that make the host a router."""


def layout_of(host: Host) -> Layout:
    """Everything of the host that is not ours."""
    draft = Draft()
    links = {r.name: r for r in host.seen.state.values() if isinstance(r, linux.Link)}
    foreign = {n: link for n, link in links.items() if link.key not in host.seen.ours}
    owners = {n: owner for n, link in foreign.items() if link.type == "bridge" and (owner := owner_of(n, host.libvirt))}
    used: set[str | None] = {r.dev for r in host.seen.state.values() if isinstance(r, linux.Address | linux.Route) and r.dev}
    for link in foreign.values():
        judge_link(draft, link, links, owners, used, host)
    guest_ports(draft, foreign, owners, host.holders)
    layer3(draft, host.seen, {d.name for d in draft.devices()}, owners)
    others(draft, host)
    return draft.layout()


def owner_of(bridge: str, libvirt: Mapping[str, str]) -> str:
    """Whose bridge it is, in words; '' for the host's own."""
    if bridge in libvirt:
        return f"libvirt's network {libvirt[bridge]}"
    return next((owner for pattern, owner in OWNERS if pattern.fullmatch(bridge)), "")


def say(draft: Draft, path: str, outcome: Outcome, words: str, *, value: str = "", feature: str = "",
        device: str = "") -> None:
    draft.elements.append(Element(path=path, value=v.one_line(value), outcome=outcome, words=words, feature=feature,
                                  device=device))


# -- links -----------------------------------------------------------------------------------------

def judge_link(draft: Draft, link: linux.Link, links: Mapping[str, linux.Link], owners: Mapping[str, str],
               used: set[str | None], host: Host) -> None:
    path, master = f"link {link.name}", link.master or ""
    detail = host.details.get(link.name, {})
    data = detail.get("linkinfo", {}).get("info_data", {})
    said: dict[str, Any] = {"name": link.name, "mtu": None if link.mtu == 1500 else link.mtu, "mac": link.mac or ""}

    def tell(outcome: Outcome, words: str, feature: str = "") -> None:
        say(draft, path, outcome, words, feature=feature, device=link.name)

    if link.type == "loopback":
        tell(*v.LOOPBACK[:2])
    elif link.name in owners:
        tell(Outcome.FOREIGN, f"bridge of {owners[link.name]}")
    elif master in owners and link.type != "tap":
        tell(Outcome.FOREIGN, f"port of {master}, a bridge of {owners[master]}")
    elif link.type == "bridge":
        ports = tuple(sorted(n for n, x in links.items() if x.master == link.name))
        draft.bridges[link.name] = Bridge(**said, ports=ports, stp=link.stp)
        tell(Outcome.MAPPED, f"networks.NAME.bridge; ports: {' '.join(ports) or 'none'}")
    elif link.type == "bond":
        members = tuple(sorted(n for n, x in host.details.items() if x.get("master") == link.name))
        draft.bonds[link.name] = Bond(**said, members=members, mode=str(data.get("mode", "")))
        say(draft, path, Outcome.LATER, f"{v.BOND.words}; mode {data.get('mode')}, members {' '.join(members)}",
            feature="bonds", device=link.name)
    elif link.type == "vlan":
        parent, number = str(detail.get("link", "")), int(data.get("id", 0))
        draft.vlans[link.name] = Vlan(**said, parent=parent, id=number)
        tell(Outcome.LATER, f"{v.VLAN.words}; id {number} on {parent}", "vlans")
    elif link.type == "physical" or (link.type in ADDRESSED and link.name in used and not master):
        draft.nics[link.name] = Nic(**said)
        tell(Outcome.MAPPED, f"port of {master}, which is used as it is" if master else "uplinks.NAME.device")
    elif link.type != "tap":
        words = f"a port of {master}, which is used as it is" if master else "a kind of device that the document does not have"
        tell(Outcome.KEPT if master else Outcome.UNSUPPORTED, f"{link.type}: {words}")


def guest_ports(draft: Draft, foreign: Mapping[str, linux.Link], owners: Mapping[str, str],
                holders: Iterable[Holder]) -> None:
    """Every foreign tap with who holds it."""
    held = {tap: (holder, fd) for holder in holders for fd, tap in holder.taps.items()}
    for link in foreign.values():
        if link.type != "tap":
            continue
        port = guest_port(link, *held.get(link.name, (None, -1)))
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
    """Addresses and routes of the host: they stay."""
    for key, thing in seen.state.items():
        if key in seen.ours or not isinstance(thing, linux.Address | linux.Route | linux.ProxyNeighbour):
            continue
        dev = thing.dev or ""
        if dev in owners:
            say(draft, str(key), Outcome.FOREIGN, f"on a bridge of {owners[dev]}", device=dev)
            continue
        how = {"dhcp": " (by DHCP)", "ra": " (by router advertisement)"}.get(getattr(thing, "dynamic", "") or "", "")
        say(draft, str(key), Outcome.KEPT, v.ADDRESS.words + how, device=dev)
        if dev not in devices:
            continue
        if isinstance(thing, linux.Address):
            if thing.dynamic == "dhcp":
                draft.dynamic.append(Dynamic(dev=dev, family=6 if ":" in thing.name else 4))
            draft.addresses.append(Address(dev=dev, cidr=thing.name.split()[1]))
        elif isinstance(thing, linux.Route):
            dst = ("::/0" if thing.family == 6 else "0.0.0.0/0") if thing.dst == "default" else thing.dst or ""
            draft.routes.append(Route(dev=dev, dst=dst, via=thing.via or "", metric=thing.metric))


def others(draft: Draft, host: Host) -> None:
    """Tables of rules, DNS and DHCP servers and switches that are not ours, and what else the drivers see."""
    covered = (linux.Link, linux.Address, linux.Route, linux.ProxyNeighbour, linux.Sysctl)
    for key, thing in host.seen.state.items():
        if key in host.seen.ours or isinstance(thing, covered):
            continue
        words = "foreign rules; kvmnet leaves them alone" if isinstance(thing, NftTable) else "not ours; left alone"
        say(draft, str(key), Outcome.FOREIGN, words)
    for pid, command in host.dnsmasq.items():
        owner = "libvirt's" if "/libvirt/" in command else "not ours"
        say(draft, f"dnsmasq pid {pid}", Outcome.FOREIGN, f"{owner}; left alone", value=command)
    for name, value in host.forwarding.items():
        say(draft, f"sysctl {name}", Outcome.KEPT, "the host routes by itself; kvmnet leaves the switch as it stands",
            value=value)
