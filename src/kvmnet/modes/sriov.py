"""mode sriov: NICs are virtual functions (VFs) of the uplink's NIC, driven by the guests themselves. Pure.

Nothing of the host is between the guest and the wire: no tap, no bridge, no nftables. What holds a guest is the
NIC: it drops frames with another source MAC (spoofchk) and puts what is left on the network's VLAN. It looks no
further, so that a guard of addresses cannot be had here.

VFs that kvmnet made are wholly ours: each is told everything, also those that no guest has. VFs that were there
are borrowed, one by one and setting by setting.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.sriov.resources import VFIO, Vf, VfPool, pf_of, pool_of, vf_name, vfs_of
from kvmnet.errors import ConflictError
from kvmnet.facts.model import Facts
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Part
from kvmnet.spec import vfs, ways
from kvmnet.spec.guests import Nic
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode, Network

CARRIER = {"up": "auto", "down": "disable", "always": "enable"}
"""Carrier of the document -> IFLA_VF_LINK_STATE."""


def wire_pools(spec: Spec, facts: Facts, nics: Mapping[str, Iterable[NicOnNetwork]]) -> Part:
    """The VFs of every uplink that has or needs some, each as it shall be. ``nics``: by network. Raises ConflictError
    when VFs that others use stand in the way."""
    part = Part()
    for name, uplink in spec.uplinks.items():
        here = {n: network for n, network in spec.networks.items() if network.mode is Mode.SRIOV and network.uplink == name}
        if not (uplink.vfs or here):
            continue
        dev = ways.device(name, spec)
        part.resources.append(claim := Link(name=dev, up=True))
        part.borrowed.add(claim.key)
        wanted = {nic.vf: assigned(nic, here[n], dev, facts) for n in here for nic in nics.get(n, ())}
        ours = wire_pool(part, name, dev, spec, facts)
        refuse_held(name, dev, wanted, facts)
        if ours:
            idle = (vf_name(dev, number) for number in range(vfs.count(name, spec, facts.state)))
            wanted = {**{vf: unused(vf, dev) for vf in idle}, **wanted}
        part.resources += wanted.values()
        part.borrowed |= {vf.key for vf in wanted.values()}
        part.notes += notes(name, dev, here, facts)
    return part


def wire_pool(part: Part, uplink: str, dev: str, spec: Spec, facts: Facts) -> bool:
    """The VFs as such. False when they are others', and are left as they are."""
    seen = pool_of(facts.state, dev)
    if vfs.kept(uplink, spec, facts.state):
        if seen and spec.uplinks[uplink].vfs not in (None, seen.count):
            part.notes.append(f"{dev} has {seen.count} VFs that kvmnet did not make: they are used as they are, and stay")
        return False
    wanted = VfPool(name=dev, dev=dev, count=vfs.count(uplink, spec, facts.state), made=True)
    if seen and seen.count != wanted.count:
        held = [f"VF {number} ({vf.holder})" for number, vf in vfs_of(facts.state, dev).items() if vf.holder]
        if held:
            raise ConflictError(f"uplink {uplink}: to have {wanted.count} VFs, {dev} has to lose its present {seen.count} first, and "
                                f"others use {', '.join(held)}", f"free those VFs, or write uplinks.{uplink}.vfs: {seen.count}")
    part.resources.append(wanted)
    part.borrowed.add(wanted.key)
    return True


def refuse_held(uplink: str, dev: str, wanted: Mapping[str, Vf], facts: Facts) -> None:
    """Raise ConflictError when a NIC asks for a VF that somebody else uses."""
    held = [f"VF {number} ({vf.holder})" for number, vf in vfs_of(facts.state, dev).items() if vf.holder and vf.name in wanted]
    if held:
        raise ConflictError(f"uplink {uplink}: a NIC has {', '.join(held)} of {dev}", "free it, or give the NIC another vf:")


def assigned(nic: NicOnNetwork, network: Network, dev: str, facts: Facts) -> Vf:
    """The VF of a guest: everything that its PF can be told."""
    declared: Nic = nic.declared
    pf = pf_of(facts.state, dev)
    return Vf(name=nic.vf, pool=dev, mac=nic.mac, vlan=network.vlan or 0, qos=network.qos,
              protocol=network.protocol if network.vlan else "802.1Q", max_rate=(declared.rate.out or 0) // 1000,
              min_rate=(declared.rate.min or 0) // 1000, spoofchk=declared.guard != "off", trust=declared.trust,
              carrier=CARRIER[declared.link], driver=VFIO if pf and pf.pci else "")


def unused(name: str, dev: str) -> Vf:
    """A VF of ours that no guest has: nothing is left of the last one that would matter."""
    return Vf(name=name, pool=dev, vlan=0, qos=0, protocol="802.1Q", max_rate=0, min_rate=0, trust=False, carrier="auto",
              driver="")


def notes(uplink: str, dev: str, networks: Mapping[str, Network], facts: Facts) -> Iterable[str]:
    pf = pf_of(facts.state, dev)
    if pf and not pf.pci:
        yield f"the VFs of {dev} are no PCI devices: they are told everything, and no guest can be given one"
    if pf and (pf.numa if pf.numa is not None else -1) >= 0:
        yield f"{dev} is on NUMA node {pf.numa}: guests with its VFs are fastest with processors and memory of that node"
    for name, network in networks.items():
        if not network.vlan:
            yield (f"network {name} has no vlan: its guests may put any VLAN tag on their frames, and the switch behind "
                   f"{dev} decides which of them pass")
