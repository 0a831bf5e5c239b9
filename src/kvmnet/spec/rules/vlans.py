"""VLANs that the switch does not carry, trunks and multicast of networks. Pure."""
from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvmnet.errors import Problem
from kvmnet.spec import ways
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.rules.subject import Subject, wrong

OF_OUR_BRIDGE = {"querier": "asks for multicast", "neigh_suppress": "answers for guests"}
"""Options that change the bridge, which an existing one is not."""


def carried(subject: Subject) -> Iterator[Problem]:
    """VLANs of networks, trunks and sub-interfaces that are not among those of their uplink."""
    spec = subject.spec
    for name, uplink in spec.uplinks.items():
        if uplink.vlan:
            below = [uplink.on or ""] if uplink.on else [
                n for n, u in spec.uplinks.items() if u.device == uplink.device and not ways.is_vlan(u)]
            for other in below:
                yield from _outside(subject, f"uplinks.{name}.vlan", other, (uplink.vlan,))
    for name, network in spec.networks.items():
        if (network.mode.on_segment or network.mode is Mode.SRIOV) and network.uplink and not network.bridge:
            yield from _outside(subject, f"networks.{name}.vlan", network.uplink, (network.vlan,) if network.vlan else ())
    for item in subject.nics:
        found = spec.networks.get(item.nic.network)
        if found and found.mode.on_segment and found.uplink and not found.bridge:
            yield from _outside(subject, f"{item.path}.trunk", found.uplink, item.nic.trunk)


def _outside(subject: Subject, path: str, uplink: str, ids: Iterable[int]) -> Iterator[Problem]:
    """Those of *ids* that the switch does not carry to *uplink*."""
    there = subject.spec.uplinks.get(uplink)
    if there is None or not there.vlans:
        return
    if missing := sorted(set(ids).difference(there.vlans)):
        one = len(missing) == 1
        yield wrong(path, f"VLAN{'' if one else 's'} {ranges(missing)} {'is' if one else 'are'} not among those of uplink "
                    f"{uplink}, {ranges(there.vlans)}", f"use one of these, or add it to uplinks.{uplink}.vlans and to the "
                    "port of the switch")


def ranges(ids: Iterable[int]) -> str:
    """*ids*, sorted, as they are written: ``100, 200-299``."""
    found: list[list[int]] = []
    for vid in ids:
        if found and vid == found[-1][1] + 1:
            found[-1][1] = vid
        else:
            found.append([vid, vid])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def trunks(subject: Subject) -> Iterator[Problem]:
    """What a NIC sends with and without tags."""
    owners = {uplink: _owners(subject, uplink) for uplink in subject.spec.bridged}
    for item in subject.nics:
        nic, network = item.nic, subject.spec.networks.get(item.nic.network)
        if network is None or (nic.untagged and not nic.trunk):
            continue
        on_uplink = network.mode is Mode.BRIDGE and bool(network.uplink) and not network.bridge
        if not nic.untagged and not (nic.trunk and on_uplink):
            yield wrong(f"{item.path}.untagged", "a NIC that sends only tags needs a trunk, on a network in mode bridge "
                        "with an uplink", "add trunk: [ID], or remove untagged")
        elif nic.untagged and on_uplink and network.vlan in nic.trunk:
            yield wrong(f"{item.path}.trunk", f"VLAN {network.vlan} is its network {nic.network}, on which it is untagged",
                        f"take {network.vlan} out of trunk, or write untagged: false")
        for vid in nic.trunk if on_uplink else ():
            if taker := owners[network.uplink or ""].get(vid):
                yield wrong(f"{item.path}.trunk", f"VLAN {vid} is {taker}, which has a device of its own that takes its frames "
                            "before the bridge does", f"take {vid} out of trunk")


def _owners(subject: Subject, uplink: str) -> dict[int, str]:
    """VLANs of an uplink whose frames another device takes before they reach the bridge, and whose that is."""
    spec = subject.spec
    networks = {n.vlan: f"network {name}" for name, n in spec.bridged[uplink].items() if n.vlan and n.needs_device}
    return networks | {u.vlan: f"uplink {name}" for name, u in spec.uplinks.items() if u.vlan and u.on == uplink}


def multicast(subject: Subject) -> Iterator[Problem]:
    """Queriers that nobody hears, and existing bridges, which are not changed."""
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}"
        if network.bridge:
            yield from _existing(path, network)
        elif network.querier and not network.snooping:
            yield wrong(f"{path}.querier", "nobody makes use of the answers with snooping: false",
                        "remove querier, or snooping: false")


def _existing(path: str, network: Network) -> Iterator[Problem]:
    for option, what in OF_OUR_BRIDGE.items():
        if getattr(network, option):
            yield wrong(f"{path}.{option}", f"an existing bridge is used as it is: whether it {what} is not changed",
                        f"remove {option}")
    if not network.snooping:
        yield wrong(f"{path}.snooping", "an existing bridge is used as it is: its snooping is not changed",
                    "remove snooping")


def queriers(subject: Subject) -> Iterator[Problem]:
    """Queriers on VLANs of a kernel that cannot tell the VLANs apart."""
    reason = subject.facts.features.get(ways.MULTICAST, "")
    for name, network in subject.spec.networks.items():
        if reason and network.querier and subject.sharing(name):
            yield wrong(f"networks.{name}.querier", f"a VLAN of a shared bridge cannot have a querier here: {reason}",
                        "remove querier")


RULES = (carried, trunks, multicast)
HOST_RULES = (queriers,)
