"""Routing domains: who can be in one, and what can be promised there. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.linux.resources import PROTO, Address, Route
from kvmnet.errors import Problem
from kvmnet.spec import domains, ways
from kvmnet.spec.limits import FLOWS, effective
from kvmnet.spec.models import Spec
from kvmnet.spec.nearest import meant
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.pools import Family
from kvmnet.spec.rules.subject import Subject, wrong

ROUTING = frozenset({Mode.NAT, Mode.ROUTED, Mode.ISOLATED})
"""Modes in which the host routes."""
RESERVED_TABLES = {253: "default", 254: "main", 255: "local"}
UNSERVED = {
    "metadata": "the service listens outside of the domain",
    "proxy": "it answers by the host's own table",
}
"""Options of a network that are not for one in a domain -> why."""


def named(subject: Subject) -> Iterator[Problem]:
    """Domains that are not there, and tables that two have."""
    spec = subject.spec
    known = tuple(spec.vrfs)
    for kind, things in (("networks", spec.networks), ("uplinks", spec.uplinks)):
        for name, thing in things.items():
            if thing.vrf and thing.vrf not in spec.vrfs:
                yield wrong(f"{kind}.{name}.vrf", f"there is no VRF {thing.vrf}",
                            meant(thing.vrf, known, "VRFs") if known else f"add vrfs: {{{thing.vrf}: {{}}}}")
    tables: dict[int, str] = {}
    for name in spec.vrfs:
        number = domains.table(name, spec)
        first = tables.setdefault(number, name)
        if first != name:
            yield wrong(f"vrfs.{name}.table", f"{number} is the table of {first}, too", "write another number")
        if number in RESERVED_TABLES:
            yield wrong(f"vrfs.{name}.table", f"{number} is the host's own table {RESERVED_TABLES[number]}", "write another number")
    devices: dict[str, str] = {}
    for name in spec.vrfs:
        first = devices.setdefault(domains.device(name), name)
        if first != name:
            yield wrong(f"vrfs.{name}", f"its device would be that of {first}", "rename one of them")


def members(subject: Subject) -> Iterator[Problem]:
    """Networks that cannot be in a domain, and those whose uplink is in another."""
    spec = subject.spec
    for name, network in spec.networks.items():
        path = f"networks.{name}"
        uplink = spec.uplinks.get(network.uplink or "")
        if network.vrf and network.mode not in ROUTING:
            yield wrong(f"{path}.vrf", f"in mode {network.mode} the host routes nothing", "remove vrf, or write mode: nat, routed or isolated")
        elif uplink and uplink.vrf != network.vrf:
            here, there = (f"in the VRF {v}" if v else "in no VRF" for v in (network.vrf, uplink.vrf))
            yield wrong(f"{path}.uplink", f"{name} is {here}, and {network.uplink} {there}: no packet would get from one to the other",
                        f"write vrf: {network.vrf} at uplinks.{network.uplink}, or another uplink" if network.vrf
                        else f"write vrf: {uplink.vrf} here, or another uplink")
        if network.vrf:
            yield from _promises(path, network)
            yield from _forwards(spec, path, network)
        for position, peer in enumerate(network.peers):
            other = spec.networks.get(peer)
            if other and other.vrf != network.vrf:
                yield wrong(f"{path}.peers[{position}]", f"{peer} is in another routing domain than {name}",
                            "peers are joined inside of one; guests of two domains meet by what their uplinks lead to")


def _promises(path: str, network: Network) -> Iterator[Problem]:
    for option, why in UNSERVED.items():
        if getattr(network, option):
            yield wrong(f"{path}.{option}", f"not for a network in a VRF: {why}", f"remove {option}")


def _forwards(spec: Spec, path: str, network: Network) -> Iterator[Problem]:
    claimed = spec.uplinks[network.uplink].addresses if network.uplink in spec.uplinks else ()
    for position, forward in enumerate(network.forwards):
        if not forward.address and not claimed:
            yield wrong(f"{path}.forwards[{position}]", "in a VRF the address that packets are for must be known",
                        f"add address: here, or addresses: at uplinks.{network.uplink}")


def tracked(subject: Subject) -> Iterator[Problem]:
    """Policies that need a bridge to know flows: it alone can give what is routed the zone of its domain. Bridge netfilter hands such
    frames to the IP hooks for the bridge and once more for the domain (ip_sabotage_in() in net/bridge/br_netfilter_hooks.c)."""
    spec = subject.spec
    if not subject.links or not any(network.vrf for network in spec.networks.values()):
        return
    users = list(_users(subject))
    why = subject.facts.features.get("bridge-conntrack", "bridges cannot track flows") or subject.facts.features.get("nft-bridge-ibrname")
    if why:
        yield from (wrong(path, f"{what} in a document with networks in a VRF: {why}",
                          "use a kernel with CONFIG_NF_CONNTRACK_BRIDGE (Linux 5.3) and CONFIG_NFT_BRIDGE_META, or remove vrf from the networks")
                    for path, what in users)
    for name, uplink in spec.uplinks.items():
        if users and uplink.vrf and (bridge := _bridge_below(subject, name)):
            yield wrong(f"uplinks.{name}.vrf", f"it is on the bridge {bridge}, and groups, tenants, isolation or limits of flows ({users[0][0]}) "
                        "make bridges track flows: what comes in there would be in no VRF's zone", f"use an uplink that is not on {bridge}")


def _users(subject: Subject) -> Iterator[tuple[str, str]]:
    """(path, what is not done) of everything that makes bridges track flows."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if item.nic.groups:
            yield f"{item.path}.groups", "groups are not enforced"
        if network and effective(item.nic.limits, network.limits, 0)[0].keys() & FLOWS:
            yield item.path, "limits of flows are not held"
        if network and network.bridge and (network.isolated_ports if item.nic.isolated is None else item.nic.isolated):
            yield item.path, "NICs on a bridge of the host's own are not kept apart"
    yield from ((f"tenants.{name}", "tenants are not kept apart by rules") for name in subject.spec.tenants)


def _bridge_below(subject: Subject, uplink: str) -> str:
    """Bridge that is the device of an uplink, or carries it; '' for none."""
    spec, seen = subject.spec, set[str]()
    name: str | None = uplink
    while name in spec.uplinks and spec.uplinks[name].on and name not in seen and not ways.is_tunnel(spec.uplinks[name]):
        seen.add(name)
        name = spec.uplinks[name].on
    if name not in spec.uplinks or ways.is_tunnel(spec.uplinks[name]):
        return ""
    device = ways.carrier(name, spec) or ways.device(name, spec)
    while device not in seen and (link := subject.links.get(device)):
        if link.type == "bridge":
            return device
        seen.add(device)
        device = link.parent or ""
    return ""


def on_this_host(subject: Subject) -> Iterator[Problem]:
    """Kernels without domains, tables that others use, and NICs that the host itself lives by."""
    spec, facts = subject.spec, subject.facts
    for name in spec.vrfs:
        if reason := facts.features.get(domains.FEATURE, ""):
            yield wrong(f"vrfs.{name}", f"this host has no VRFs: {reason}", "install the distribution's full kernel")
        number, device = str(domains.table(name, spec)), domains.device(name)
        used = next((r.name for r in subject.routes if r.table == number and r.proto != PROTO and r.dev not in _devices(subject, name)), "")
        if used and device not in subject.links:
            yield wrong(f"vrfs.{name}.table", f"table {number} is in use on this host: {used}", "write another number")
    for name, network in spec.networks.items():
        served = network.vrf and any(subject.hosted(network, family) for family in Family)
        if served and (reason := facts.features.get(domains.SERVED, "")):
            yield wrong(f"networks.{name}.vrf", f"nothing can be served there: {reason}", "install the distribution's full kernel")
    yield from _lived_by(subject)


def _devices(subject: Subject, vrf: str) -> set[str]:
    return {ways.device(n, subject.spec) for n, u in subject.spec.uplinks.items() if u.vrf == vrf}


def _lived_by(subject: Subject) -> Iterator[Problem]:
    """What the host has on a NIC goes into the domain with it, or is lost: not what it lives by."""
    for name, uplink in subject.spec.uplinks.items():
        device = ways.device(name, subject.spec)
        link = subject.links.get(device)
        if not uplink.vrf or link is None or link.vrf == domains.device(uplink.vrf):
            continue
        if link.vrf or (link.master and not (subject.links[link.master].alias or "").startswith(ways.OURS) if link.master in subject.links else False):
            yield wrong(f"uplinks.{name}.vrf", f"{device} belongs to {link.vrf or link.master} already", f"take {device} out of it first")
        for thing in subject.facts.standing_on(device):
            lives = ((isinstance(thing, Route) and thing.table == "main" and thing.proto not in (PROTO, "kernel"))
                     or (isinstance(thing, Address) and thing.dynamic))
            if lives:
                yield wrong(f"uplinks.{name}.vrf", f"{device} has {thing.key} of the host, which would be lost in a VRF",
                            "take it away where the host configures it; write static addresses, gateway and routes at the uplink")
                break


RULES = (named, members)
HOST_RULES = (on_this_host, tracked)
