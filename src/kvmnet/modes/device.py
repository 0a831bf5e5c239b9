"""The device that a guest gets for one NIC of the document: every property decided. Pure."""
from __future__ import annotations

from kvmnet.drivers.qemu.devices import VF
from kvmnet.drivers.qemu.resources import GuestNic, GuestThreads
from kvmnet.drivers.sriov.resources import Vf
from kvmnet.engine.resource import Key, must_recreate
from kvmnet.facts.model import Facts
from kvmnet.modes.model import NicOnNetwork
from kvmnet.records import replace
from kvmnet.spec.guests import Model, Nic, Offloads, Pin, Run, Vm

VIRTIO = frozenset({Model.VIRTIO, Model.VIRTIO_TRANSITIONAL})
DEFAULT_RING = 256
"""QEMU's ring size where the document does not say."""
MOST_QUEUES = 8
"""``queues: auto`` stops here: beyond it memory and vhost threads cost more than they bring."""


def guest_nic(nic: NicOnNetwork, vm: Vm, facts: Facts) -> GuestNic:
    """What QEMU is told. Properties that a model does not have get their neutral value.

    The MTU that a card is made with is fixed; the guest may go below it, never above. So a card that is there
    and has room stays as it is, unless it is made anew for another reason.
    """
    declared: Nic = nic.declared
    if nic.vf:
        return vf_card(nic, facts)
    virtio = declared.model in VIRTIO
    wanted = GuestNic(
        name=f"{nic.vm}/{nic.nic}", vm=nic.vm, tap=nic.tap, model=declared.model.value, mac=nic.mac,
        vf="", host="", standby=nic.standby, pair="", link=declared.link != "down", host_mtu=nic.mtu if virtio else 0, mtu=nic.mtu,
        queues=queue_pairs(declared, vm), packed=declared.packed and virtio, rss=declared.rss and virtio,
        rx_ring=(declared.rx_ring or DEFAULT_RING) if virtio else 0,
        tx_ring=(declared.tx_ring or DEFAULT_RING) if virtio else 0,
        offloads=offloads_on(declared.offloads) if virtio else (),
        vhost=virtio and uses_vhost(declared, facts),
        bootindex=-1 if declared.boot is None else declared.boot, pci=declared.pci or "")
    seen = facts.state.get(wanted.key)
    if isinstance(seen, GuestNic) and (seen.host_mtu or 0) > nic.mtu:
        roomy = replace(wanted, host_mtu=seen.host_mtu)
        return wanted if must_recreate(seen, roomy) else roomy
    return wanted


def threads(name: str, run: Run | None, facts: Facts) -> list[GuestThreads]:
    """Where the threads of a running guest may run; nothing where the document says nothing."""
    if run is None or run.pin == Pin():
        return []
    everywhere = (facts.cpu_set,)
    return [GuestThreads(name=name, vcpus=run.pin.vcpus or everywhere, vhost=run.pin.vhost or everywhere, qemu=run.pin.qemu or everywhere)]


def vf_card(nic: NicOnNetwork, facts: Facts) -> GuestNic:
    """A VF: all that it may is told to its PF."""
    seen = facts.state.get(Key(Vf.kind, nic.vf))
    return GuestNic(
        name=f"{nic.vm}/{nic.nic}", vm=nic.vm, tap="", vf=nic.vf, host=seen.pci or "" if isinstance(seen, Vf) else "", model=VF,
        mac="", link=True, host_mtu=0, mtu=None, queues=1, packed=False, rss=False, rx_ring=0, tx_ring=0, offloads=(), vhost=False, standby=False,
        pair=nic.pair, bootindex=-1 if nic.declared.boot is None else nic.declared.boot, pci=nic.declared.pci or "")


def queue_pairs(nic: Nic, vm: Vm) -> int:
    """Queue pairs of the NIC; ``auto`` is one per vCPU where the model has several."""
    if nic.queues != "auto":
        return nic.queues
    return min(vm.run.cpus if vm.run else 1, MOST_QUEUES) if nic.model in VIRTIO else 1


def offloads_on(offloads: Offloads) -> tuple[str, ...]:
    """Offload properties that stay on: all but those that the document turns off."""
    return tuple(sorted(name for name in Offloads.model_fields if getattr(offloads, name) is not False))


def uses_vhost(nic: Nic, facts: Facts) -> bool:
    """RSS is QEMU's own: the kernel's backend would need eBPF for it."""
    return nic.vhost == "on" or (nic.vhost == "auto" and not nic.rss and facts.features.get("vhost-net", "absent") == "")
