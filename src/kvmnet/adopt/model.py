"""What every format is read into and written from, and what became of each element of the input. Pure.

A parser takes the texts of files and gives a ``Layout``: the devices, and one ``Element`` for every key that
stood in the files. Nothing is dropped: a key that no table knows is an element of its own, ``unsupported``.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from kvmnet.records import dataclass, field


class Outcome(StrEnum):
    """What became of one element of the input."""

    MAPPED = "mapped"
    """It is in the document."""
    KEPT = "kept"
    """It stays with the host: kvmnet borrows the device and leaves this as it stands."""
    FOREIGN = "foreign"
    """It belongs to another program (libvirt, Docker); kvmnet never touches it."""
    UNSUPPORTED = "unsupported"
    """Not expressed and not understood."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an element stands. ``line`` is 1-based, 0 for none; a live host has no file."""

    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


NOWHERE = Place()


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One key of the input, or one thing of the host."""

    place: Place = NOWHERE
    path: str
    """How the input names it: ``network.ethernets.eth0.mtu``, ``iface eth0 bridge_ports``, ``link br0``."""
    value: str = ""
    outcome: Outcome
    words: str = ""
    """Why, or what to do."""
    device: str = ""

    def __str__(self) -> str:
        shown = f"{self.path} = {self.value}" if self.value else self.path
        return f"{self.place}: {shown}: {self.words}" if self.place.file else f"{shown}: {self.words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What every network device has. ``mtu`` in bytes, None when not said."""

    name: str
    mtu: int | None = None
    mac: str = ""
    place: Place = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic(Device):
    """A NIC of the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bond(Device):
    members: tuple[str, ...] = ()
    mode: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of ``uplinks.NAME.options``, as the document has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vlan(Device):
    parent: str = ""
    id: int = 0
    protocol: str = "802.1Q"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge(Device):
    ports: tuple[str, ...] = ()
    stp: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A static address without anything more to say of it."""

    dev: str
    cidr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A plain route of the main table. ``dst``: a prefix, 0.0.0.0/0 or ::/0 for the default route."""

    dev: str
    dst: str
    via: str = ""
    metric: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """A device that asks for its addresses. ``family``: 4 (DHCP), 6 (DHCPv6)."""

    dev: str
    family: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestPort:
    """A tap that a process holds, and whose guest it is."""

    tap: str
    bridge: str
    guest: str
    """Name of the guest, '' when the process has none."""
    mac: str = ""
    model: str = ""
    words: str = ""
    """Who holds it: ``QEMU, pid 812, uuid ...``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The devices of a host in no format's own words, each collection sorted by name."""

    nics: tuple[Nic, ...] = ()
    bonds: tuple[Bond, ...] = ()
    vlans: tuple[Vlan, ...] = ()
    bridges: tuple[Bridge, ...] = ()
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dynamic: tuple[Dynamic, ...] = ()
    guests: tuple[GuestPort, ...] = ()
    elements: tuple[Element, ...] = field(default=(), compare=False)

    @property
    def under(self) -> dict[str, str]:
        """Port or member -> the bridge or bond that it belongs to."""
        found = {member: bond.name for bond in self.bonds for member in bond.members}
        found.update((port, bridge.name) for bridge in self.bridges for port in bridge.ports)
        return found

    @property
    def uplinks(self) -> tuple[Device, ...]:
        """Devices that can be an uplink: NICs that are no port and no member of another, or carry a VLAN; bonds;
        VLANs, each after the one that carries it."""
        inner = self.under
        members = {member for bond in self.bonds for member in bond.members}
        carriers = {vlan.parent for vlan in self.vlans} - members
        nics = (d for d in self.nics if d.name not in inner or d.name in carriers)
        return (*nics, *self.bonds, *carried(self.vlans))


def carried(vlans: Iterable[Vlan]) -> list[Vlan]:
    """VLANs, each after the one that carries it; a ring comes last."""
    left = {vlan.name: vlan for vlan in vlans}
    found: list[Vlan] = []
    while ready := [vlan for vlan in left.values() if vlan.parent not in left]:
        found += ready
        for vlan in ready:
            del left[vlan.name]
    return [*found, *left.values()]


@dataclass(slots=True)
class Draft:
    """A layout while it is read: devices by name, and the rest in order."""

    nics: dict[str, Nic] = field(default_factory=dict)
    bonds: dict[str, Bond] = field(default_factory=dict)
    vlans: dict[str, Vlan] = field(default_factory=dict)
    bridges: dict[str, Bridge] = field(default_factory=dict)
    addresses: list[Address] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    dynamic: list[Dynamic] = field(default_factory=list)
    guests: list[GuestPort] = field(default_factory=list)
    elements: list[Element] = field(default_factory=list)

    def devices(self) -> Iterator[Device]:
        yield from (*self.nics.values(), *self.bonds.values(), *self.vlans.values(), *self.bridges.values())

    def layout(self) -> Layout:
        """Everything read so far, sorted, without repeats."""
        return Layout(
            nics=by_name(self.nics.values()), bonds=by_name(self.bonds.values()),
            vlans=by_name(self.vlans.values()), bridges=by_name(self.bridges.values()),
            addresses=tuple(sorted(set(self.addresses), key=lambda a: (a.dev, a.cidr))),
            routes=tuple(sorted(set(self.routes), key=lambda r: (r.dev, r.dst, r.via, r.metric or 0))),
            dynamic=tuple(sorted(set(self.dynamic), key=lambda d: (d.dev, d.family))),
            guests=tuple(self.guests), elements=tuple(self.elements))


D = TypeVar("D", bound=Device)


def by_name(devices: Iterable[D]) -> tuple[D, ...]:
    return tuple(sorted(devices, key=lambda d: d.name))


@dataclass(frozen=True, slots=True)
class Source:
    """One file, read."""

    path: str
    text: str
