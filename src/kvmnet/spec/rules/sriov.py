"""VFs: what a network of them, its NICs and the NIC that is split take, and what this host has of it. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.sriov.resources import pf_of, vfs_of
from kvmnet.errors import Problem
from kvmnet.spec import vfs, ways
from kvmnet.spec.guests import Nic, Offloads
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.pools import PlacedNic
from kvmnet.spec.rules.subject import Subject, wrong

IOMMU, VFIO = "iommu", "vfio"
"""Features of the host that a guest with a VF needs."""
ABSENT = "the host is not on a network of mode sriov"
HOST_ONLY = {
    **dict.fromkeys(("bridge", "stp", "querier", "neigh_suppress", "macvtap"), "there is no bridge: the NIC itself is the switch"),
    "isolated_ports": "the NIC decides which VFs reach each other", "forwards": ABSENT, "allow": ABSENT, "peers": ABSENT,
    "metadata": ABSENT, "proxy": ABSENT, "address": ABSENT, "address6": ABSENT, "vxlan": "the frames go out as they are",
}
"""Options of a network that need the host on the way -> why mode sriov has them not."""
SERVICES = ("dhcp", "dns", "ra")
OF_VF = {"vf": None, "trust": False, "failover": None}
"""Options of a NIC that only a VF has -> value when not given."""
OF_TAP = ("model", "queues", "vhost", "rx_ring", "tx_ring", "packed", "rss", "offloads")
"""Options of a card that QEMU makes: a VF is what it is, and only the card that stands by for it has them."""


def networks(subject: Subject) -> Iterator[Problem]:
    """What mode sriov needs, what it does not take, and what only it has."""
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}"
        if network.mode is not Mode.SRIOV:
            for option, usual in (("qos", 0), ("protocol", "802.1Q")):
                if getattr(network, option) != usual:
                    yield wrong(f"{path}.{option}", f"{option} is told to the NIC that VFs belong to; it is for mode sriov, not for "
                                f"{network.mode}", f"remove {option}")
            continue
        if not network.uplink:
            yield wrong(path, "mode sriov needs an uplink: the NIC that is split", "add uplink: NAME")
        elif (uplink := subject.spec.uplinks.get(network.uplink)) and ways.is_made(uplink):
            yield wrong(f"{path}.uplink", f"{network.uplink} is a {'bond' if uplink.members else 'VLAN'}; VFs are of a NIC",
                        "make an uplink of the NIC itself: {device: NAME, vfs: N}")
        for option, why in HOST_ONLY.items():
            if getattr(network, option) not in (None, False, (), "none"):
                yield wrong(f"{path}.{option}", f"{why}; {option} cannot be had here", f"remove {option}, or write mode: bridge")
        yield from _services(path, network)
        if not network.vlan:
            for option, usual in (("qos", 0), ("protocol", "802.1Q")):
                if getattr(network, option) != usual:
                    yield wrong(f"{path}.{option}", f"{option} is of the VLAN's tag, and the network has no vlan", "add vlan: ID")


def _services(path: str, network: Network) -> Iterator[Problem]:
    for option in SERVICES:
        value = getattr(network, option)
        if option in network.model_fields_set and value != "off" and getattr(value, "enabled", True):
            off = "off" if option == "ra" else "{enabled: false}"
            yield wrong(f"{path}.{option}", f"{ABSENT} and serves nothing there: guests ask a server of the outer segment",
                        f"remove {option}, or write {option}: {off}")


def uplinks(subject: Subject) -> Iterator[Problem]:
    """VFs of what is no NIC."""
    for name, uplink in subject.spec.uplinks.items():
        if uplink.vfs and ways.is_made(uplink):
            what = "bond" if uplink.members else "VLAN"
            yield wrong(f"uplinks.{name}.vfs", f"a {what} has no VFs; they are of a NIC", "make an uplink of the NIC itself: "
                        "{device: NAME, vfs: N}")


def nics(subject: Subject) -> Iterator[Problem]:
    """Options that only a VF has, or that a VF has not."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network is None or item.primary:
            continue
        if network.mode is Mode.SRIOV:
            yield from _vf(subject, item, network)
            continue
        for option, usual in OF_VF.items():
            if getattr(item.nic, option) != usual:
                yield wrong(f"{item.path}.{option}", f"{option} is for a VF, and network {item.nic.network} is of mode {network.mode}",
                            f"remove {option}, or use a network in mode sriov")
        if item.nic.link == "always":
            yield wrong(f"{item.path}.link", "always is for a VF, which has its carrier from its NIC otherwise", "write link: up")


def _vf(subject: Subject, item: PlacedNic, network: Network) -> Iterator[Problem]:
    nic, path = item.nic, item.path
    if nic.guard == "full":
        yield wrong(f"{path}.guard" if "guard" in nic.model_fields_set else path,
                    "guard: full binds a NIC to its addresses, and a VF looks at MAC and VLAN only: its frames never pass the host",
                    "write guard: mac; to bind addresses too use a network in mode bridge")
    if nic.trust and nic.guard == "mac":
        yield wrong(f"{path}.trust", "a guest that is trusted may change its MAC, so guard: mac would not hold",
                    "remove trust, or write guard: off")
    if nic.trunk:
        yield wrong(f"{path}.trunk", "a NIC puts a VF on one VLAN, or leaves tags to its guest altogether",
                    "remove trunk; without vlan on the network the guest tags its frames itself")
    if nic.mtu:
        yield wrong(f"{path}.mtu", "a VF tells its guest no MTU", "remove mtu, and set it in the guest")
    if nic.isolated is not None:
        yield wrong(f"{path}.isolated", "the NIC decides which VFs reach each other", "remove isolated")
    if nic.failover is None:
        yield from _of_tap(path, nic)
    else:
        yield from _failover(subject, item, nic)


def _of_tap(path: str, nic: Nic) -> Iterator[Problem]:
    for option in OF_TAP:
        if option in nic.model_fields_set and getattr(nic, option) not in (None, False, Offloads()):
            yield wrong(f"{path}.{option}", f"a VF is a card of its own: {option} is of cards that QEMU makes",
                        f"remove {option}" + ("" if option == "model" else ", or add failover: NETWORK, whose card has it"))
    for option, value in (("macs", nic.extra.macs), ("addresses", nic.extra.addresses), ("roles", nic.extra.roles)):
        if value and nic.guard != "off":
            yield wrong(f"{path}.extra.{option}", "a VF lets its own MAC pass and nothing else, whatever the addresses",
                        f"remove extra.{option}, or write guard: off")


def _failover(subject: Subject, item: PlacedNic, nic: Nic) -> Iterator[Problem]:
    path, other = f"{item.path}.failover", subject.spec.networks.get(nic.failover or "")
    if "model" in nic.model_fields_set:
        yield wrong(f"{item.path}.model", "the card that stands by for a VF is virtio", "remove model")
    if other and other.mode is Mode.SRIOV:
        yield wrong(path, f"{nic.failover} is of mode sriov too: the card that stands by has to be one that can move",
                    "name a network in mode bridge")
    vm = subject.spec.vms[item.vm]
    if vm.run and vm.run.machine != "q35":
        yield wrong(path, "a VF with a card that stands by for it needs a PCIe port, which machine pc has not",
                    f"write vms.{item.vm}.run.machine: q35")


def numbers(subject: Subject) -> Iterator[Problem]:
    """One VF for two NICs, numbers that the uplink does not have, and more NICs than VFs."""
    for name, here in vfs.members(subject.spec, subject.nics).items():
        most = subject.spec.uplinks[name].vfs
        enough = max(most or 0, vfs.kept(name, subject.spec, subject.facts.state))
        seen: dict[int, str] = {}
        for item in here:
            number = item.nic.vf
            if number is None:
                continue
            first = seen.setdefault(number, item.path)
            if first != item.path:
                yield wrong(f"{item.path}.vf", f"VF {number} of {name} is {first} too", "give one of them another, or remove vf")
            elif most and number >= enough:
                yield wrong(f"{item.path}.vf", f"uplink {name} has VFs 0 to {enough - 1}", f"write a larger uplinks.{name}.vfs, or remove vf")
        if most and len(here) > enough:
            yield wrong(f"uplinks.{name}.vfs", f"{len(here)} NICs want a VF, and {name} has {enough}", f"write vfs: {len(here)}")


def room(subject: Subject) -> Iterator[Problem]:
    """NICs of the host that cannot be split so, and what it lacks to hand VFs to guests."""
    if not subject.links:
        return
    state, spec = subject.facts.state, subject.spec
    used = {n.uplink for n in spec.networks.values() if n.mode is Mode.SRIOV}
    for name, uplink in spec.uplinks.items():
        dev = ways.device(name, spec)
        if not (uplink.vfs or name in used) or dev not in subject.links:
            continue
        pf, path = pf_of(state, dev), f"uplinks.{name}.{'vfs' if uplink.vfs else 'device'}"
        if pf is None:
            yield wrong(path, f"{dev} cannot be split into VFs", _those(subject))
            continue
        if uplink.vfs and pf.total and uplink.vfs > pf.total:
            yield wrong(path, f"{dev} has at most {pf.total} VFs, not {uplink.vfs}", f"write vfs: {pf.total}")
        elif not uplink.vfs and not vfs_of(state, dev):
            yield wrong(path, f"{dev} has no VFs yet", f"write uplinks.{name}.vfs: N, and kvmnet makes them"
                        + (f"; it can have {pf.total}" if pf.total else ""))
        if pf.pci:
            yield from _passing(subject, name, dev, iommu=bool(pf.iommu))


def _those(subject: Subject) -> str:
    able = sorted(key.name for key in subject.facts.state if key.kind == "pf")
    return f"NICs of this host that can be: {', '.join(able)}" if able else (
        "no NIC of this host can: SR-IOV may be switched off in the firmware, or the driver be too simple")


def _passing(subject: Subject, uplink: str, dev: str, *, iommu: bool) -> Iterator[Problem]:
    """What stands between the VFs of a PCI device and the guests."""
    path, known = f"uplinks.{uplink}", subject.facts.features
    if not iommu:
        yield wrong(path, f"{dev} is behind no IOMMU, and a guest with a VF could write all memory of the host: "
                    f"{known.get(IOMMU) or 'its PCI segment is left out'}", "add intel_iommu=on (Intel) or amd_iommu=on (AMD) to the "
                    "kernel command line, and switch VT-d or AMD-Vi on in the firmware")
    elif reason := known.get(VFIO, ""):
        yield wrong(path, f"this host cannot hand devices to guests: {reason}", "install the distribution's full kernel")
    wanted = {item.nic.vf for item in vfs.members(subject.spec, subject.nics).get(uplink, ()) if item.nic.vf is not None}
    for number, vf in vfs_of(subject.facts.state, dev).items():
        if vf.group and number in wanted:
            yield wrong(path, f"VF {number} of {dev} ({vf.pci}) shares its IOMMU group with {', '.join(vf.group)}",
                        "a guest would reach them too: bind them to vfio-pci or unbind them, or put the card into another slot")


RULES = (networks, uplinks, nics, numbers)
HOST_RULES = (room,)
