"""Names in the document: those that others refer to, and those that become names of devices. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.names import UPLINK, tap_name
from kvmnet.spec.nearest import meant
from kvmnet.spec.networks import Mode
from kvmnet.spec.pools import Family
from kvmnet.spec.rules.subject import RESERVED, Subject, wrong


def unknown_names(subject: Subject) -> Iterator[Problem]:
    """Networks, uplinks and peers that the document does not have."""
    spec = subject.spec
    networks, uplinks = tuple(spec.networks), tuple(spec.uplinks)
    for item in subject.nics:
        if item.nic.network not in spec.networks:
            yield wrong(item.path if item.primary else f"{item.path}.network", f"there is no network {item.nic.network}",
                        meant(item.nic.network, networks, "networks"))
    for name, network in spec.networks.items():
        if network.uplink and network.uplink not in spec.uplinks:
            yield wrong(f"networks.{name}.uplink", f"there is no uplink {network.uplink}",
                        meant(network.uplink, uplinks, "uplinks"))
        for position, peer in enumerate(network.peers):
            yield from _peer(subject, name, f"networks.{name}.peers[{position}]", peer)


def _peer(subject: Subject, name: str, path: str, peer: str) -> Iterator[Problem]:
    other = subject.spec.networks.get(peer)
    if other is None:
        yield wrong(path, f"there is no network {peer}", meant(peer, tuple(subject.spec.networks), "networks"))
    elif peer == name:
        yield wrong(path, f"{name} is its own peer", "remove it; guests of one network reach each other anyway")
    else:
        for end in (name, peer):
            network = subject.spec.networks[end]
            if not any(subject.hosted(network, family) for family in Family):
                yield wrong(path, f"peers are joined by the host, which has no address on {end}",
                            f"give networks.{end} a subnet and an address")


def forward_targets(subject: Subject) -> Iterator[Problem]:
    """Port forwards to guests that are not there, or not on the network, or without an address."""
    for name, network in subject.spec.networks.items():
        here = subject.members[name]
        known = tuple(dict.fromkeys(item.vm for item in here))
        for position, forward in enumerate(network.forwards):
            path = f"networks.{name}.forwards[{position}].to"
            vm, slash, nic = forward.to.partition("/")
            found = [item for item in here if item.vm == vm and (not slash or item.name == nic)]
            if vm not in subject.spec.vms:
                yield wrong(path, f"there is no guest {vm}", meant(vm, known, f"guests on {name}"))
            elif not found:
                own = [item.name for item in here if item.vm == vm]
                yield wrong(path, f"{forward.to} has no NIC on {name}",
                            f"its NICs there: {', '.join(own)}" if own else meant(vm, known, f"guests on {name}"))
            elif found[0].nic.ip == "none" and (forward.address or found[0].nic.ip6 == "none"):
                yield wrong(path, f"{vm}/{found[0].name} has no address to forward to",
                            f"remove ip: none from {found[0].path}")


def nic_names(subject: Subject) -> Iterator[Problem]:
    """NICs of one guest that have the same name."""
    seen: dict[tuple[str, str], str] = {}
    for item in subject.nics:
        first = seen.setdefault((item.vm, item.name), item.path)
        if first != item.path:
            yield wrong(item.path, f"{item.vm} has two NICs named {item.name} (the other is {first})",
                        "give one of them another name:")


def hostnames(subject: Subject) -> Iterator[Problem]:
    """Guests of one network that DNS could not tell apart."""
    for name, here in subject.members.items():
        if not subject.spec.networks[name].dns.enabled or subject.spec.networks[name].mode is Mode.SRIOV:
            continue
        seen: dict[str, str] = {}
        for item in here:
            default = item.vm if item.position == 0 else f"{item.vm}-{item.name}"
            hostname = (item.nic.hostname or default).lower()
            first = seen.setdefault(hostname, item.path)
            if first != item.path:
                path = f"{item.path}.hostname" if item.nic.hostname else item.path
                yield wrong(path, f"the host name {hostname} is taken on {name} by {first}",
                            "give one of them another hostname:")


def devices(subject: Subject) -> Iterator[Problem]:
    """Names of devices that two things of the document would share, or that are reserved."""
    spec = subject.spec
    taken: dict[str, str] = {}
    for name, uplink in spec.uplinks.items():
        path = f"uplinks.{name}.device" if uplink.device else f"uplinks.{name}"
        device = ways.device(name, spec)
        first = taken.setdefault(device, path)
        if first != path:
            yield wrong(path, f"{device} is the device of {first} too", "one uplink per device; use one name")
        if uplink.device:
            yield from _reserved(path, uplink.device)
    bridges: dict[str, str] = {}  # apart: the device of a bridge may be an uplink as well
    for name, network in spec.networks.items():
        if network.mode is Mode.BRIDGE and network.bridge:
            path = f"networks.{name}.bridge"
            first = bridges.setdefault(network.bridge, path)
            if first != path:
                yield wrong(path, f"{network.bridge} is used by {first} too", "one network per bridge")
            yield from _reserved(path, network.bridge)
    for device, name in subject.own_bridges.items():
        yield from _claim(taken, device, f"networks.{name}")
    own = {subject.sharing(name) or f" {name}" for name, network in spec.networks.items()
           if not network.bridge and network.mode is not Mode.SRIOV}
    if len(subject.own_bridges) < len(own):
        yield wrong("networks", "two networks would share the name of a bridge", "rename one of them")
    for (vm, nic), path in {(item.vm, item.name): item.path for item in subject.nics if not subject.is_vf(item)}.items():
        yield from _claim(taken, tap_name(vm, nic), path)


def _claim(taken: dict[str, str], device: str, path: str) -> Iterator[Problem]:
    first = taken.setdefault(device, path)
    if first != path:
        yield wrong(path, f"its device would be {device}, which {first} has already", "rename one of them")


def _reserved(path: str, device: str) -> Iterator[Problem]:
    if device.startswith((*RESERVED, UPLINK)):
        yield wrong(path, f"{device} begins like the devices that kvmnet makes ({', '.join((*RESERVED, UPLINK))})",
                    "name a device of the host itself")


RULES = (unknown_names, forward_targets, nic_names, hostnames, devices)
