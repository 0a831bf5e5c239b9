"""Mirrors: sources and receivers that are there, no copy of a copy, no frames for tenants whose they are not. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.mirrors import Receiver
from kvmnet.spec.names import UPLINK
from kvmnet.spec.nearest import meant
from kvmnet.spec.networks import Mode
from kvmnet.spec.pools import PlacedNic
from kvmnet.spec.rules.subject import RESERVED, Subject, wrong
from kvmnet.spec.tenancy import owners, tenant_of

FEATURE, VXLAN, GRE, IFB, SHAPER = "tc-mirror", "vxlan", "gre", "ifb", "tc-tbf"
PLAIN = frozenset({"physical", "veth", "dummy", "tap", "ifb"})
"""Types of devices that may take copies: what is sent by them goes nowhere else on this host."""


def sources(subject: Subject) -> Iterator[Problem]:
    """Sources that the document does not have, and NICs that the host sees nothing of."""
    spec = subject.spec
    for name, mirror in spec.mirrors.items():
        for position, source in enumerate(mirror.from_):
            path = f"mirrors.{name}.from[{position}]"
            kind, colon, rest = source.partition(":")
            if not colon:
                yield from _guest(subject, path, source)
                continue
            target = rest.partition("@")[2] if kind == "vlan" else rest
            known = tuple(spec.networks if kind == "network" else spec.groups if kind == "group" else spec.uplinks)
            what = "uplink" if kind == "vlan" else kind
            if target not in known:
                yield wrong(path, f"there is no {what} {target}", meant(target, known, f"{what}s"))
            elif kind == "network" and spec.networks[target].mode is Mode.SRIOV:
                yield wrong(path, f"network {target} is made of VFs, whose frames the host does not see", "use mode: bridge")
            elif kind == "group" and not _in_group(subject, target):
                yield wrong(path, f"no NIC is in group {target}", "remove it, or put a NIC into the group")
            elif kind == "vlan" and (carried := spec.uplinks[target].vlans) and int(rest.partition("@")[0]) not in carried:
                yield wrong(path, f"uplink {target} does not carry VLAN {rest.partition('@')[0]}", f"add it to uplinks.{target}.vlans")


def _guest(subject: Subject, path: str, source: str) -> Iterator[Problem]:
    vm, _, nic = source.partition("/")
    if vm not in subject.spec.vms:
        yield wrong(path, f"there is no guest {vm}", meant(vm, tuple(subject.spec.vms), "guests"))
        return
    here = _nics(subject, source)
    if not here:
        yield wrong(path, f"{vm} has no NIC {nic}", "it has " + ", ".join(i.name for i in subject.nics if i.vm == vm))
    elif all(subject.is_vf(item) for item in here):
        yield wrong(path, f"{source} is a VF, whose frames the host does not see", "use a NIC on a bridge or a macvtap")


def _nics(subject: Subject, source: str) -> list[PlacedNic]:
    vm, slash, nic = source.partition("/")
    return [i for i in subject.nics if i.vm == vm and (not slash or i.name == nic)]


def _in_group(subject: Subject, group: str) -> list[PlacedNic]:
    return [i for i in subject.nics if group in i.nic.groups]


def _watched(subject: Subject, source: str) -> list[PlacedNic]:
    """NICs that a source names one by one; those of a network are not."""
    kind, colon, name = source.partition(":")
    if not colon:
        return _nics(subject, source)
    return _in_group(subject, name) if kind == "group" else []


def receivers(subject: Subject) -> Iterator[Problem]:
    """Receivers: one for each mirror, that can take copies."""
    for name, mirror in subject.spec.mirrors.items():
        path, to = f"mirrors.{name}.to", mirror.to
        given = [field for field in Receiver.model_fields if getattr(to, field) is not None]
        if len(given) != 1:
            yield wrong(path, f"{' and '.join(given)} at once" if given else "no receiver",
                        f"write one of {', '.join(Receiver.model_fields)}")
        elif to.nic is not None:
            yield from _nic(subject, path, to.nic)
        elif to.device is not None:
            yield from _device(subject, f"{path}.device", to.device)
        elif to.tunnel is not None:
            yield from _addresses(subject, f"{path}.{given[0]}", to.tunnel.remote, to.tunnel.local)
        elif to.file is not None:
            first = next(other for other, m in subject.spec.mirrors.items() if m.to.file and m.to.file.path == to.file.path)
            if first != name:
                yield wrong(f"{path}.file.path", f"mirror {first} writes there already", "write another name")


def _nic(subject: Subject, path: str, nic: str) -> Iterator[Problem]:
    vm = nic.partition("/")[0]
    here = _nics(subject, nic)
    if vm not in subject.spec.vms:
        yield wrong(path, f"there is no guest {vm}", meant(vm, tuple(subject.spec.vms), "guests"))
    elif not here:
        yield wrong(path, f"{vm} has no NIC {nic.partition('/')[2]}", "it has " + ", ".join(i.name for i in subject.nics if i.vm == vm))
    elif "/" not in nic and len(here) > 1:
        yield wrong(path, f"{vm} has {len(here)} NICs", f"write one of {', '.join(f'{vm}/{i.name}' for i in here)}")
    else:
        network = subject.spec.networks.get(here[0].nic.network)
        if network and network.mode in (Mode.SRIOV, Mode.MACVTAP):
            yield wrong(path, f"{nic} is on a network of mode {network.mode}: what the host sends there goes to the wire, and not "
                        "to the guest", "use a NIC on a network of another mode, e.g. isolated")


def _device(subject: Subject, path: str, device: str) -> Iterator[Problem]:
    spec = subject.spec
    taken = {device for name in spec.uplinks for device in (ways.device(name, spec), ways.carrier(name, spec))}
    taken |= {member for uplink in spec.uplinks.values() for member in uplink.members}
    taken |= {network.bridge or "" for network in spec.networks.values()}
    if device.startswith((*RESERVED, UPLINK)):
        yield wrong(path, f"{device} begins like the devices that kvmnet makes", "write to: GUEST/NIC for a NIC of a guest")
    elif device in taken:
        yield wrong(path, f"{device} carries the document's own traffic, and copies on it would be copied again", "use another device")


def _addresses(subject: Subject, path: str, remote: str, local: str | None) -> Iterator[Problem]:
    own = {a.name.rpartition(" ")[2].partition("/")[0] for a in subject.addresses}
    own |= {text.partition("/")[0] for uplink in subject.spec.uplinks.values() for text in uplink.addresses}
    if remote in own:
        yield wrong(f"{path}.remote", f"{remote} is this host", "write the address of another machine; for a device of this host "
                    "write to: {device: NAME}")
    if ip_address(remote).is_multicast or ip_address(remote).is_loopback:
        yield wrong(f"{path}.remote", f"{remote} is not an address of another machine", "write the receiver's address")
    if ":" in remote and not path.endswith(".vxlan"):
        yield wrong(f"{path}.remote", "copies in GRE and ERSPAN travel over IPv4: over IPv6 the kernel answers the sender of a large "
                    "packet that was only copied", "write an IPv4 address, or vxlan:")
    if local and ip_address(local).version != ip_address(remote).version:
        yield wrong(f"{path}.local", f"{local} and {remote} are of two IP versions", "write both of one")


def circles(subject: Subject) -> Iterator[Problem]:
    """Copies of copies: what receives some is watched by no mirror, and a tunnel's way by no mirror that feeds it."""
    spec = subject.spec
    taking = {_key(subject, m.to.nic): name for name, m in spec.mirrors.items() if m.to.nic and _key(subject, m.to.nic)}
    for name, mirror in spec.mirrors.items():
        for position, source in enumerate(mirror.from_):
            path = f"mirrors.{name}.from[{position}]"
            both = [item for item in _watched(subject, source) if (item.vm, item.name) in taking]
            for item in both[:1]:
                yield wrong(path, f"{item.vm}/{item.name} gets the copies of mirror {taking[item.vm, item.name]}, which would be copied "
                            "again", "name its guest's other NICs one by one" if ":" not in source else "take it out of the group")
            kind, _, uplink = source.partition(":")
            if kind == "uplink" and mirror.to.tunnel and uplink in spec.uplinks:
                device = way_to(subject, mirror.to.tunnel.remote)
                if device and device in {ways.device(uplink, spec), ways.way_out(uplink, spec, subject.facts.features)}:
                    yield wrong(path, f"the copies leave by uplink {uplink} themselves", "name the guests, networks or VLANs that are meant, "
                                "or send the copies another way")


def _key(subject: Subject, nic: str) -> tuple[str, str] | None:
    return next(((i.vm, i.name) for i in _nics(subject, nic)), None)


def way_to(subject: Subject, remote: str) -> str:
    """Device that packets to *remote* take now; '' when no route says it."""
    address = ip_address(remote)
    best, found = -1, ""
    for route in subject.routes:
        if route.family != address.version or route.table not in (None, "main"):
            continue
        net = ip_network("0.0.0.0/0" if address.version == 4 else "::/0") if route.dst == "default" else ip_network(route.dst or "", False)
        if address in net and net.prefixlen > best:
            best, found = net.prefixlen, route.dev or ""
    return found


def tenants(subject: Subject) -> Iterator[Problem]:
    """A guest of a tenant sees its own tenant's frames, and those of tenants that let it. Guests without a tenant, devices and
    tunnels are the operator's."""
    spec, owner = subject.spec, owners(subject.spec)
    for name, tenant in spec.tenants.items():
        for position, other in enumerate(tenant.mirrored_to):
            if other not in spec.tenants:
                yield wrong(f"tenants.{name}.mirrored_to[{position}]", f"there is no tenant {other}",
                            meant(other, tuple(spec.tenants), "tenants"))
    for name, mirror in spec.mirrors.items():
        here = _nics(subject, mirror.to.nic) if mirror.to.nic else []
        sees = tenant_of(spec.vms[here[0].vm], here[0].nic.network, owner) if here else None
        if sees is None:
            continue
        for position, source in enumerate(mirror.from_):
            path = f"mirrors.{name}.from[{position}]"
            if source.partition(":")[0] in ("uplink", "vlan"):
                yield wrong(path, f"{mirror.to.nic} belongs to tenant {sees}, and everybody's frames pass there",
                            "name the tenant's guests, groups or networks")
                continue
            for whose in _tenants_of(subject, source):
                if whose != sees and (whose not in spec.tenants or sees not in spec.tenants[whose].mirrored_to):
                    yield wrong(path, f"{mirror.to.nic} belongs to tenant {sees}, and the frames to "
                                + (f"tenant {whose}" if whose else "no tenant, which means to the operator"),
                                f"write tenants.{whose}.mirrored_to: [{sees}] if {whose} lets it" if whose
                                else "send the copies to a guest without a tenant")
                    break


def _tenants_of(subject: Subject, source: str) -> list[str | None]:
    spec, owner = subject.spec, owners(subject.spec)
    kind, colon, name = source.partition(":")
    if colon and kind == "network":
        items = subject.members.get(name, [])
        found: list[str | None] = list(owner.get(name, []))
    else:
        items, found = _watched(subject, source), []
    found += [tenant_of(spec.vms[i.vm], i.nic.network, owner) for i in items]
    return list(dict.fromkeys(found))


def only_copies(subject: Subject) -> Iterator[Problem]:
    """NICs for copies: of a mode that has taps, without what belongs to a port of a network."""
    spec = subject.spec
    taking = {_key(subject, m.to.nic) for m in spec.mirrors.values() if m.to.nic}
    for item in subject.nics:
        if item.nic.receives != "copies":
            continue
        network = spec.networks.get(item.nic.network)
        if network and network.mode in (Mode.SRIOV, Mode.MACVTAP):
            yield wrong(f"{item.path}.receives", f"a NIC for copies is a tap of the host's, not one of mode {network.mode}",
                        "put it on a network of another mode; it is no port of it")
        for subnet, own, option in ((network and network.subnet, item.nic.ip, "ip"), (network and network.subnet6, item.nic.ip6, "ip6")):
            if subnet and own != "none":
                yield wrong(f"{item.path}.receives", f"a NIC for copies reaches nobody, and an address of {subnet} is of no use to it",
                            f"write {option}: none")
        for option in ("groups", "trunk", "failover"):
            if getattr(item.nic, option):
                yield wrong(f"{item.path}.{option}", "a NIC for copies is no port of a network", f"remove {option}")
        if (item.vm, item.name) not in taking:
            yield wrong(f"{item.path}.receives", "no mirror sends copies to it", f"write mirrors.NAME.to: {item.vm}/{item.name}")


def limits(subject: Subject) -> Iterator[Problem]:
    """Limits on devices that something else sends by, too: the queue would be everybody's."""
    mirrors = subject.spec.mirrors
    for name, mirror in mirrors.items():
        if mirror.limit is None:
            continue
        path = f"mirrors.{name}.limit"
        if mirror.to.device:
            yield wrong(path, f"{mirror.to.device} is the host's own, and its queue is left as it is", "send the copies to a NIC or a tunnel, "
                        "or remove limit")
        elif mirror.to.nic:
            here = _nics(subject, mirror.to.nic)
            others = [other for other, m in mirrors.items() if other != name and m.to.nic and here and _key(subject, m.to.nic) == _key(subject, mirror.to.nic)]
            if here and here[0].nic.receives != "copies":
                yield wrong(path, f"{mirror.to.nic} has traffic of its own, which would be limited as well",
                            "write receives: copies for it, or rate: {in: ...}")
            elif others:
                yield wrong(path, f"{mirror.to.nic} gets the copies of mirror {others[0]}, too", f"limit the NIC: rate: {{in: ...}} at {mirror.to.nic}")
            elif here and here[0].nic.rate.in_:
                yield wrong(path, f"{mirror.to.nic} has a rate.in already", "remove one of them")


def filters(subject: Subject) -> Iterator[Problem]:
    """Conditions that are too long for the kernel."""
    if not subject.spec.mirrors:
        return
    from kvmnet.bpf.code import program
    from kvmnet.spec.frames import FOUND, condition

    for name, mirror in subject.spec.mirrors.items():
        try:
            program(condition(mirror.filter), FOUND)
        except ValueError as long:
            yield wrong(f"mirrors.{name}.filter", str(long), "split the mirror in several")


def host(subject: Subject) -> Iterator[Problem]:
    """What this host lacks for mirrors, and devices that it does not have or that lead somewhere."""
    if not subject.links:
        return
    for name, mirror in subject.spec.mirrors.items():
        needed = [VXLAN] if mirror.to.vxlan else [GRE] if mirror.to.tunnel else [IFB] if mirror.to.file else []
        for feature in (FEATURE, *needed, *([SHAPER] if mirror.limit else [])):
            if why := subject.facts.features.get(feature):
                yield wrong(f"mirrors.{name}", f"this host cannot copy frames: {why}", "install the distribution's full kernel")
        if mirror.to.device:
            yield from _here(subject, f"mirrors.{name}.to.device", mirror.to.device)


def _here(subject: Subject, path: str, device: str) -> Iterator[Problem]:
    link = subject.links.get(device)
    if link is None:
        yield wrong(path, f"this host has no device {device}", "ip link lists them")
    elif link.master:
        yield wrong(path, f"{device} belongs to {link.master}: copies on it would go on from there", "use a device of its own")
    elif link.type not in PLAIN or device == "lo" or (link.type == "veth" and link.peer):
        what = f"a veth to {link.peer} on this host" if link.peer else link.type
        yield wrong(path, f"{device} ({what}) leads to other devices of this host, where copies would go on", "use a NIC of its own")


RULES = (sources, receivers, circles, tenants, only_copies, limits, filters)
HOST_RULES = (host,)
