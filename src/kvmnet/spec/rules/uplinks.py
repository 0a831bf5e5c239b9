"""Uplinks: what a NIC, a bond and a VLAN need and take, and MTUs that hold all the way. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.nearest import meant
from kvmnet.spec.rules.subject import RESERVED, Subject, wrong
from kvmnet.spec.uplinks import BondMode, BondOptions, Uplink

ONLY_IN = {
    "primary": (BondMode.ACTIVE_BACKUP, BondMode.TLB, BondMode.ALB),
    "arp": (BondMode.ACTIVE_BACKUP, BondMode.XOR, BondMode.ROUND_ROBIN, BondMode.BROADCAST),
    "hash": (BondMode.LACP, BondMode.XOR, BondMode.TLB),
    "lacp_rate": (BondMode.LACP,),
    "ad_select": (BondMode.LACP,),
}
"""Options of a bond that not every mode has (bond_opts in drivers/net/bonding/bond_options.c)."""


def forms(subject: Subject) -> Iterator[Problem]:
    """What is neither NIC nor bond nor VLAN, or two of them at once."""
    for name, uplink in subject.spec.uplinks.items():
        path = f"uplinks.{name}"
        if ways.is_tunnel(uplink):
            continue  # what it takes is in rules/tunnels.py
        if uplink.members and uplink.vlan:
            yield wrong(f"{path}.vlan", "a bond and its VLAN are two uplinks",
                        f"add another uplink: {{vlan: {uplink.vlan}, on: {name}}}")
        elif uplink.members:
            yield from _bond(path, uplink)
        elif uplink.on and not uplink.vlan:
            yield wrong(f"{path}.on", "on names the carrier of a VLAN", "add vlan: ID, or remove on")
        elif not uplink.device and not uplink.on:
            yield wrong(path, "an uplink needs a NIC", "add device: NAME, members: [NAME, NAME], or vlan: ID and on: UPLINK")
        if not uplink.members:
            for option in ("bond", "options"):
                if option in uplink.model_fields_set:
                    yield wrong(f"{path}.{option}", f"{option} is for a bond, and no NICs are given",
                                "add members: [NAME, NAME]")
        if uplink.mac and not ways.is_made(uplink):
            yield wrong(f"{path}.mac", "the MAC of the host's own NIC is not changed",
                        "remove mac; a bond or a VLAN can have one")
        if uplink.protocol != "802.1Q" and not uplink.vlan:
            yield wrong(f"{path}.protocol", "protocol is the kind of a VLAN's tag", "add vlan: ID, or remove protocol")


def _bond(path: str, uplink: Uplink) -> Iterator[Problem]:
    mode, options = uplink.bond or BondMode.ACTIVE_BACKUP, uplink.options
    for option, modes in ONLY_IN.items():
        if getattr(options, option) is not None and mode not in modes:
            yield wrong(f"{path}.options.{option}", f"{option} is for {', '.join(m.value for m in modes)}, not for {mode.value}",
                        f"remove {option}, or write another bond:")
    if options.arp and options.miimon:
        yield wrong(f"{path}.options.miimon", "members are watched by their carrier or by ARP, not by both",
                    "remove miimon or arp")
    yield from _delays(path, options)
    if options.primary and options.primary not in uplink.members:
        yield wrong(f"{path}.options.primary", f"{options.primary} is no member of the bond",
                    meant(options.primary, uplink.members, "members"))
    if options.min_links > len(uplink.members):
        yield wrong(f"{path}.options.min_links", f"{options.min_links} is more than the {len(uplink.members)} members",
                    f"write at most {len(uplink.members)}")
    for position, member in enumerate(uplink.members):
        if member in uplink.members[:position]:
            yield wrong(f"{path}.members[{position}]", f"{member} stands there twice", "remove one")
        elif member == uplink.device:
            yield wrong(f"{path}.members[{position}]", f"{member} is the name of the bond itself",
                        "give the bond another device:")


def _delays(path: str, options: BondOptions) -> Iterator[Problem]:
    step = options.miimon or 100
    for option in ("updelay", "downdelay"):
        value = getattr(options, option)
        if value and options.arp:
            yield wrong(f"{path}.options.{option}", f"{option} counts looks at the carrier, and members are watched by ARP",
                        f"remove {option}")
        elif value % step:
            yield wrong(f"{path}.options.{option}", f"{value} is no multiple of miimon, {step}: the kernel rounds it down",
                        f"write {option}: {value // step * step or step}")


def carriers(subject: Subject) -> Iterator[Problem]:
    """VLANs on what is not there or on themselves, twice the same one, and NICs that two uplinks use."""
    spec = subject.spec
    ordered = set(ways.by_carrier(spec))
    vlans: dict[tuple[str, int], str] = {}
    users: dict[str, str] = {}
    for name, uplink in spec.uplinks.items():
        path = f"uplinks.{name}"
        if uplink.on and uplink.on not in spec.uplinks:
            yield wrong(f"{path}.on", f"there is no uplink {uplink.on}", meant(uplink.on, tuple(spec.uplinks), "uplinks"))
            continue
        if name not in ordered:
            yield wrong(f"{path}.on", f"{name} is carried by itself", "name an uplink that does not lie on this one")
            continue
        if uplink.vlan:
            first = vlans.setdefault((ways.carrier(name, spec), uplink.vlan), path)
            if first != path:
                yield wrong(f"{path}.vlan", f"VLAN {uplink.vlan} of {ways.carrier(name, spec)} is {first} already",
                            "use one of them")
        for position, member in enumerate(uplink.members):
            users.setdefault(member, f"{path}.members[{position}]")
    yield from _used_twice(subject, users)
    for name, network in spec.networks.items():
        if network.uplink in spec.uplinks and network.vlan and not network.bridge:
            first = vlans.get((ways.device(network.uplink, spec), network.vlan), "")
            if first:
                yield wrong(f"networks.{name}.vlan", f"VLAN {network.vlan} of {network.uplink} is {first}, which would "
                            "take its frames before the bridge", f"remove vlan and write uplink: {first.removeprefix('uplinks.')}")


def _used_twice(subject: Subject, users: dict[str, str]) -> Iterator[Problem]:
    """NICs that are members of a bond and something else as well."""
    for name, uplink in subject.spec.uplinks.items():
        for position, member in enumerate(uplink.members):
            path = f"uplinks.{name}.members[{position}]"
            first = users.get(member, path)    # unknown where what carries the bond is wrong
            if first.partition(".members")[0] != f"uplinks.{name}":
                yield wrong(path, f"{member} is a member of {first.partition('.members')[0]} already",
                            "a NIC can be in one bond only")
        if not uplink.members and uplink.device in users and not uplink.on:
            yield wrong(f"uplinks.{name}.device", f"{uplink.device} is a member of a bond ({users[uplink.device]})",
                        "name the bond: on: UPLINK for a VLAN, or use the bond's uplink itself")


def reached(subject: Subject) -> Iterator[Problem]:
    """Addresses of ``reach`` that cannot be asked, or that prove nothing."""
    own = {a.name.split()[1].partition("/")[0] for a in subject.addresses}
    for position, address in enumerate(subject.spec.reach):
        path = f"reach[{position}]"
        if ip_address(address).is_link_local:
            yield wrong(path, f"{address} is a link-local address, which does not say by which device",
                        "name an address that is routed; gateways are looked after by themselves")
        elif address in own:
            yield wrong(path, f"{address} is the host's own address, so its answer would prove nothing",
                        "name a machine that can only be reached by the uplink")


def mtus(subject: Subject) -> Iterator[Problem]:
    """MTUs that do not hold from the NIC to the VLAN."""
    spec, state = subject.spec, subject.facts.state
    for name in ways.by_carrier(spec):
        uplink, path = spec.uplinks[name], f"uplinks.{name}"
        below = uplink.on if uplink.on in spec.uplinks else None
        outer = ways.mtu(below, spec, state) if below else None
        if not below and ways.is_vlan(uplink) and uplink.device in subject.links:
            outer = subject.links[uplink.device].mtu
            same = [u for u in spec.uplinks.values() if u.device == uplink.device and not u.vlan and u.mtu]
            outer = same[0].mtu if same else outer
        if ways.is_tunnel(uplink):
            continue
        if uplink.mtu and outer and uplink.mtu > outer:
            where = f"uplinks.{below}.mtu" if below else f"an uplink with device: {uplink.device} and mtu"
            yield wrong(f"{path}.mtu", f"{uplink.mtu} is larger than the {outer} of {ways.carrier(name, spec)}, which carries "
                        "the VLAN", f"write mtu: {outer}, or {where}: {uplink.mtu}")
        found = {m: link.mtu for m in uplink.members if (link := subject.links.get(m)) and link.mtu}
        if uplink.members and not uplink.mtu and len(set(found.values())) > 1:
            told = ", ".join(f"{m} has {v}" for m, v in found.items())
            yield wrong(f"{path}.members", f"the members' MTUs differ: {told}", f"write mtu: {min(v or 0 for v in found.values())}, "
                        "which all get")
        for device in uplink.members or ((uplink.device,) if uplink.device and not uplink.on else ()):
            link = subject.links.get(device or "")
            if uplink.mtu and link and link.most_mtu and uplink.mtu > link.most_mtu:
                yield wrong(f"{path}.mtu", f"{device} takes an MTU of at most {link.most_mtu}", f"write mtu: {link.most_mtu}")


def members(subject: Subject) -> Iterator[Problem]:
    """NICs of the host that cannot be in a bond, and bonds and VLANs of the host that are not what the document says."""
    made = {ways.device(n, subject.spec) for n, u in subject.spec.uplinks.items() if u.members}
    for name, uplink in subject.spec.uplinks.items():
        there = ways.theirs(name, subject.spec, subject.facts.state)
        for position, member in enumerate(uplink.members):
            link, path = subject.links.get(member), f"uplinks.{name}.members[{position}]"
            if link is None or (there and member in (there.members or ())):
                continue
            if link.type in ("bridge", "bond", "vlan", "tap", "loopback"):
                yield wrong(path, f"{member} ({link.type}) cannot be a member of a bond", "name NICs of the host")
            elif link.master and link.master not in made and not _of_ours(subject, link.master):
                use = f", or write device: {link.master} to use it" if subject.links[link.master].type == "bond" else ""
                yield wrong(path, f"{member} belongs to {link.master} already", f"take it out of {link.master} first{use}")
            carried = [n for n, other in subject.links.items() if other.type == "vlan" and other.parent == member
                       and not (other.alias or "").startswith(ways.OURS)]
            if carried:
                yield wrong(path, f"{member} carries {', '.join(carried)}, which would lose its way out",
                            f"make the VLAN on the bond: {{vlan: ID, on: {name}}}, and remove {carried[0]}")
        if there:
            yield from _another(subject, name, there)


def _another(subject: Subject, name: str, there: Link) -> Iterator[Problem]:
    """A link of the host's own that has the name of the uplink's and is something else: it would have to be made anew."""
    uplink, device = subject.spec.uplinks[name], there.name
    kind = "bond" if uplink.members else "vlan"
    if there.type != kind:
        yield wrong(f"uplinks.{name}", f"this host has a {there.type} {device} already, not made by kvmnet",
                    "write device: with another name, or to use it as it is, device: alone")
        return
    mode, options = uplink.bond or BondMode.ACTIVE_BACKUP, uplink.options
    wanted = {"bond": (mode.value, there.bond_mode), "options.lacp_rate": (options.lacp_rate, there.bond_lacp_rate),
              "options.ad_select": (options.ad_select, there.bond_ad_select)} if uplink.members else {
        "vlan": (uplink.vlan, there.vlan_id), "protocol": (uplink.protocol, there.vlan_protocol),
        "on" if uplink.on else "device": (ways.carrier(name, subject.spec), there.parent)}
    for option, (value, found) in wanted.items():
        if value is not None and found is not None and value != found:
            yield wrong(f"uplinks.{name}.{option}", f"{device} of this host has {found}, and kvmnet did not make it: for "
                        f"{value} it would have to be made anew", f"write {found}, or change it where the host configures it, "
                        "or write device: with another name")


def _of_ours(subject: Subject, device: str) -> bool:
    link = subject.links.get(device)
    return bool(link and (link.alias or "").startswith("kvmnet ")) or device.startswith(RESERVED)


def claims(subject: Subject) -> Iterator[Problem]:
    """Addresses that two uplinks claim, and gateways on no network of theirs."""
    seen: dict[tuple[str | None, str], str] = {}
    for name, uplink in subject.spec.uplinks.items():
        for position, text in enumerate(uplink.addresses):
            path = f"uplinks.{name}.addresses[{position}]"
            first = seen.setdefault((uplink.vrf, text), path)
            if first != path:
                yield wrong(path, f"{text} is {first} too", "remove one")
            elif (owner := _holder(subject, name, text)):
                yield wrong(path, f"{text} is on {owner} already", "remove it here or there")


def _holder(subject: Subject, name: str, text: str) -> str:
    """The device of the host, beside this uplink's own, that has the address."""
    uplink = subject.spec.uplinks[name]
    own = {ways.device(name, subject.spec), ways.way_out(name, subject.spec, subject.facts.features), *uplink.members}
    own |= {ways.device(n, subject.spec) for n, u in subject.spec.uplinks.items() if u.vrf != uplink.vrf}
    return next((a.dev or "" for a in subject.addresses if isinstance(a, Address) and a.name.rpartition(" ")[2] == text
                 and a.dev not in own and not _of_ours(subject, a.dev or "")), "")


RULES = (forms, carriers, mtus, claims, reached)
HOST_RULES = (members,)
