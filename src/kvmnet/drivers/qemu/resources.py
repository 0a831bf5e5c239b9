"""The NIC of a running guest, as QEMU has it. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GuestNic(Resource):
    """A device and its backend inside one running QEMU; named ``VM/NIC``.

    Only the carrier and the guest's own MTU change live. QEMU 7.2 refuses every other property of a realized device; it
    takes bootindex, but the boot ROM that goes with it is read when the device is made.
    """

    kind: ClassVar[str] = "guest-nic"
    vm: str | None = option(doc="the guest", recreate=True)
    tap: str | None = option(doc="tap that it opens", ref="link", on_delete="delete", recreate=True,
                             guest="replug")
    vf: str | None = option(doc="VF that it is, as 'DEV NUMBER'; '' for a card with a tap", ref="vf", on_delete="delete",
                            recreate=True, guest="replug")
    host: str | None = option(doc="PCI address of the VF; '' while it is not there yet", once=True)
    standby: bool | None = option(doc="virtio: it stands by for a VF with the same MAC", recreate=True, guest="replug")
    pair: str | None = option(doc="VF: NIC that stands by for it; '' for none", ref="guest-nic", on_delete="delete",
                              recreate=True, guest="replug")
    model: str | None = option(doc="virtio, e1000e, ..., or vf", recreate=True, guest="replug")
    mac: str | None = option(doc="hardware address; '' for a VF, which has that of its PF's choice", recreate=True, guest="replug")
    link: bool | None = option(doc="carrier that the guest sees", guest="live")
    host_mtu: int | None = option(doc="virtio: MTU told to the guest; 0 for none", recreate=True, guest="replug")
    mtu: int | None = option(doc="MTU that the guest has: its agent sets it, at most host_mtu", guest="live", top_down=True)
    queues: int | None = option(doc="queue pairs", recreate=True, guest="replug")
    rx_ring: int | None = option(doc="virtio: receive ring entries", recreate=True, guest="replug")
    tx_ring: int | None = option(doc="virtio: transmit ring entries", recreate=True, guest="replug")
    packed: bool | None = option(doc="virtio: packed ring layout", recreate=True, guest="replug")
    rss: bool | None = option(doc="virtio: the guest says which queue gets which flow", recreate=True, guest="replug")
    offloads: tuple[str, ...] | None = option(doc="virtio: offload properties that are on, sorted",
                                              recreate=True, guest="replug")
    vhost: bool | None = option(doc="in-kernel backend", recreate=True, guest="replug")
    backend: str | None = option(doc="virtio: who moves its packets now: vhost (the kernel), qemu, or '' while the guest has no "
                                     "driver running", once=True)
    bootindex: int | None = option(doc="boot order; -1 for none", recreate=True, guest="replug")
    pci: str | None = option(doc="PCI slot.function on the bus; '' for automatic", recreate=True, guest="replug")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestThreads(Resource):
    """CPUs that the threads of a running guest may use; named by the guest. One set for all of a kind, or one for each in turn."""

    kind: ClassVar[str] = "guest-threads"
    vcpus: tuple[str, ...] | None = option(doc="virtual CPUs in their order")
    vhost: tuple[str, ...] | None = option(doc="kernel threads that move its NICs' packets")
    qemu: tuple[str, ...] | None = option(doc="QEMU's main loop, which moves them where there is no vhost")
