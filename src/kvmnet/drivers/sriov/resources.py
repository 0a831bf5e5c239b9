"""A NIC that can be split (PF), the virtual functions that it is split into, and each of them (VF). Pure.

The VFs of a NIC come and go together: sriov_numvfs takes another number only after 0
(sriov_numvfs_store() in drivers/pci/pci-sysfs.c). So their existence is one resource, made anew when the
number changes, and each VF hangs on it.
"""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Key, Resource, State, option
from kvmnet.records import dataclass

VFIO = "vfio-pci"
"""Driver that hands a PCI device to a guest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Pf(Resource):
    """A NIC that can be split; named by its link. Only looked at."""

    kind: ClassVar[str] = "pf"
    permanent: ClassVar[bool] = True
    dev: str | None = option(doc="the link", ref="link", on_delete="cascade")
    total: int | None = option(doc="most VFs that it can have; 0 when it does not say")
    pci: str | None = option(doc="PCI address; '' for none")
    numa: int | None = option(doc="NUMA node; -1 for none")
    iommu: bool | None = option(doc="it is behind an IOMMU")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class VfPool(Resource):
    """The VFs of a NIC, all together; named by the link. Without any there is none."""

    kind: ClassVar[str] = "vf-pool"
    dev: str | None = option(doc="the link", ref="link", on_delete="cascade", recreate=True)
    count: int | None = option(doc="number of VFs; another one takes all of them away first", recreate=True)
    made: bool | None = option(doc="made by kvmnet", once=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Vf(Resource):
    """One VF as its PF treats it, and the driver that it is bound to; named ``DEV NUMBER``."""

    kind: ClassVar[str] = "vf"
    permanent: ClassVar[bool] = True
    pool: str | None = option(doc="the VFs that it is one of", ref="vf-pool", on_delete="cascade")
    mac: str | None = option(doc="hardware address; 00:00:00:00:00:00 when the guest chooses")
    vlan: int | None = option(doc="VLAN that its frames are put on; 0 for none")
    qos: int | None = option(doc="priority in the VLAN tag")
    protocol: str | None = option(doc="kind of the VLAN tag: 802.1Q or 802.1ad")
    max_rate: int | None = option(doc="most that it sends, Mbit/s; 0 for no limit")
    min_rate: int | None = option(doc="what it may send at least, Mbit/s; 0 for nothing promised")
    spoofchk: bool | None = option(doc="frames with another source MAC (or VLAN) are dropped")
    trust: bool | None = option(doc="its guest may change its MAC and see frames of others")
    carrier: str | None = option(doc="auto (the PF's), enable, disable")
    driver: str | None = option(doc="driver that it is bound to; '' for none")
    pci: str | None = option(doc="PCI address; '' for none", once=True)
    group: tuple[str, ...] | None = option(doc="other devices of its IOMMU group that are not on vfio-pci", once=True)
    holder: str | None = option(doc="who else uses it; '' for nobody", once=True)


def vf_name(dev: str, number: int) -> str:
    """Name of a Vf."""
    return f"{dev} {number}"


def split_name(name: str) -> tuple[str, int]:
    """The inverse of ``vf_name``."""
    dev, _, number = name.rpartition(" ")
    return dev, int(number)


def pool_of(state: State, dev: str) -> VfPool | None:
    found = state.get(Key(VfPool.kind, dev))
    return found if isinstance(found, VfPool) else None


def pf_of(state: State, dev: str) -> Pf | None:
    found = state.get(Key(Pf.kind, dev))
    return found if isinstance(found, Pf) else None


def vfs_of(state: State, dev: str) -> dict[int, Vf]:
    """The VFs of a NIC by their number."""
    pool = pool_of(state, dev)
    found = (state.get(Key(Vf.kind, vf_name(dev, n))) for n in range((pool.count or 0) if pool else 0))
    return {split_name(vf.name)[1]: vf for vf in found if isinstance(vf, Vf)}
