"""What each model is for QEMU, and one guest NIC as a backend and a device. Pure.

The same properties go to the command line (``keyval``) and to QMP (as they are), so a NIC that is
plugged in live is the one that a restart would give.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.records import dataclass

Value: TypeAlias = str | int | bool
Properties: TypeAlias = dict[str, Value]

PREFIX = "kvmnet-"
"""Beginning of the ids of everything in QEMU that is ours."""
BRIDGE = PREFIX + "pci"
"""Bridge that carries conventional PCI cards on both machine types."""
VF = "vf"
"""Model of a card that is a VF of the host's NIC."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What one model of card is and can do."""

    device: str
    """QEMU's device type."""
    pcie: bool = False
    """It is plugged into a PCIe root port of its own where the machine has them."""
    virtio: bool = False
    """It has rings, offloads, host_mtu and queues that QEMU can be told."""
    vnet_header: bool = False
    """It exchanges checksum and segmentation offloads with the tap."""
    libvirt: str = ""
    """libvirt's name of the model."""
    max_mtu: int = 1500
    """Largest MTU in bytes that its Linux driver takes."""
    backend: bool = True
    """It has a tap behind it."""
    fixed: tuple[tuple[str, Value], ...] = ()
    """Properties that it always gets."""


MODELS: Mapping[str, Traits] = {
    "virtio": Traits("virtio-net-pci", pcie=True, virtio=True, vnet_header=True, libvirt="virtio-non-transitional",
                     max_mtu=65535, fixed=(("disable-legacy", "on"),)),
    "virtio-transitional": Traits("virtio-net-pci-transitional", virtio=True, vnet_header=True,
                                  libvirt="virtio-transitional", max_mtu=65535),
    "e1000e": Traits("e1000e", pcie=True, vnet_header=True, libvirt="e1000e", max_mtu=9216),
    "e1000": Traits("e1000", libvirt="e1000", max_mtu=16110),
    "pcnet": Traits("pcnet", libvirt="pcnet"),
    "rtl8139": Traits("rtl8139", libvirt="rtl8139"),
    "vmxnet3": Traits("vmxnet3", pcie=True, vnet_header=True, libvirt="vmxnet3", max_mtu=9000),
}
"""Model of the document -> its traits. max_mtu: dev->max_mtu of the Linux 6.1 drivers."""
PASSED = Traits("vfio-pci", pcie=True, backend=False)
"""A VF: a device of the host, handed over as it is."""
MODEL_OF_DEVICE = {**{traits.device: model for model, traits in MODELS.items()}, PASSED.device: VF}

OFFLOADS: Mapping[str, str] = {
    "csum": "csum", "tso4": "host_tso4", "tso6": "host_tso6", "ufo": "host_ufo", "guest_csum": "guest_csum",
    "guest_tso4": "guest_tso4", "guest_tso6": "guest_tso6", "guest_ufo": "guest_ufo", "mrg_rxbuf": "mrg_rxbuf",
}
"""Offload of the document -> QEMU's property. ``host_*`` is what the guest may send to the host."""


@dataclass(frozen=True, slots=True)
class Handles:
    """How QEMU gets at a NIC's backend: numbers of inherited descriptors, or names given by getfd."""

    taps: tuple[str, ...]
    """One per queue pair."""
    vhosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a card is plugged in: a bus by its id, and the address on it ('' for the first free)."""

    bus: str
    address: str = ""


def device_id(nic: GuestNic) -> str:
    """Id of the card: ``kvmnet-nic0`` for the NIC ``web1/nic0``."""
    return PREFIX + nic.name.partition("/")[2]


def netdev_id(nic: GuestNic) -> str:
    """Id of the backend. Unlike the card's, as set_link looks in both."""
    return device_id(nic) + ".tap"


def netdev(nic: GuestNic, handles: Handles) -> Properties:
    """The backend: taps that are open already, so that QEMU needs no privilege."""
    properties: Properties = {"type": "tap", "id": netdev_id(nic)}
    several = len(handles.taps) > 1
    properties["fds" if several else "fd"] = ":".join(handles.taps)
    properties["vhost"] = bool(handles.vhosts)
    if handles.vhosts:
        properties["vhostfds" if several else "vhostfd"] = ":".join(handles.vhosts)
    return properties


def device(nic: GuestNic, place: Place) -> Properties:
    """The card. Only what differs from QEMU's default is told, so that plans stay readable."""
    traits = traits_of(nic)
    properties: Properties = {"driver": traits.device, "id": device_id(nic), **behind(nic), "bus": place.bus}
    if place.address:
        properties["addr"] = place.address
    properties |= card_properties(nic)
    return properties


def behind(nic: GuestNic) -> Properties:
    """What a card is connected to: its backend, or the VF that it is."""
    if traits_of(nic).backend:
        return {"netdev": netdev_id(nic)}
    found: Properties = {"host": nic.host or f"VF-{nic.vf}".replace(" ", "-")}
    if nic.pair:
        found["failover_pair_id"] = PREFIX + nic.pair.partition("/")[2]
    return found


def traits_of(nic: GuestNic) -> Traits:
    return PASSED if nic.model == VF else MODELS[nic.model or "virtio"]


def card_properties(nic: GuestNic) -> Properties:
    """Properties of the card that do not depend on where it is: shared with external guests."""
    traits = traits_of(nic)
    properties: Properties = dict(traits.fixed)
    if nic.mac:
        properties["mac"] = nic.mac
    if traits.virtio:
        properties |= virtio_properties(nic)
    if nic.bootindex is not None and nic.bootindex >= 0:
        properties["bootindex"] = nic.bootindex
    else:
        properties["romfile"] = ""    # else firmware starts iPXE for it: half a second, and a package more
    return properties


def virtio_properties(nic: GuestNic) -> Properties:
    properties: Properties = {"failover": True} if nic.standby else {}
    queues = nic.queues or 1
    if queues > 1:
        properties["mq"] = True
        properties["vectors"] = 2 * queues + 2    # one per ring, configuration, control (virtio 1.1, 5.1.2)
    if nic.host_mtu:
        properties["host_mtu"] = nic.host_mtu
    if nic.rx_ring and nic.rx_ring != 256:
        properties["rx_queue_size"] = nic.rx_ring
    if nic.tx_ring and nic.tx_ring != 256:
        properties["tx_queue_size"] = nic.tx_ring
    if nic.packed:
        properties["packed"] = True
    if nic.rss:
        properties["rss"] = True
    if nic.offloads is not None:
        properties |= {prop: False for name, prop in OFFLOADS.items() if name not in nic.offloads}
    return properties


def keyval(properties: Mapping[str, Value], first: str = "") -> str:
    """QEMU's command line form; the value of *first* stands without its name."""
    words = [escape(properties[first])] if first else []
    words += [f"{name}={escape(value)}" for name, value in properties.items() if name != first]
    return ",".join(words)


def escape(value: Value) -> str:
    """A comma inside a value is doubled (qemu(1), options with suboptions)."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value).replace(",", ",,")


def pcie_nics(nics: Sequence[GuestNic]) -> list[GuestNic]:
    """Those that take a root port of their own on a machine that has them."""
    return [n for n in nics if traits_of(n).pcie and not n.pci]
