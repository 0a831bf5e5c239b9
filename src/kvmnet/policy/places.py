"""Places where frames pass, by the words of the document: what a mirror or a capture of them watches. Pure.

A frame that a guest sends comes *in* at its tap, and goes *out* by its macvtap, which is the guest's own end. Of a network
every frame is seen once, where it enters the network on this host: at the NIC that sent it, at the port that leads outside,
or where the host itself sends it.
"""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum

from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass
from kvmnet.spec import ways
from kvmnet.spec.models import Spec


class Direction(StrEnum):
    SENT = "sent"
    RECEIVED = "received"
    BOTH = "both"

    @property
    def has_sent(self) -> bool:
        return self is not Direction.RECEIVED

    @property
    def has_received(self) -> bool:
        return self is not Direction.SENT


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One side of one device."""

    device: str
    outgoing: bool
    """Frames that leave by the device, as the host sees it; else those that come in."""
    about: str
    """What passes there, in the document's words."""
    vlan: int | None = None
    """Only frames with the tag of this VLAN; 0: only those without one; None: all."""
    owner: str = ""
    """GUEST/NIC whose frames they are alone; '' for anybody's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The document on this host, as far as places need it."""

    spec: Spec
    segments: Mapping[str, Segment]
    outer: Collection[tuple[str, str]]
    """(port, bridge): ports of bridges by which somebody else's segment is reached."""

    def nics(self) -> Iterator[tuple[NicOnNetwork, Segment]]:
        return ((nic, segment) for segment in self.segments.values() for nic in segment.nics)


class NoSuchPlace(ValueError):
    """The document has no such thing, or nothing can be seen of it."""


def places(source: str, direction: Direction, layout: Layout) -> list[Place]:
    """Where the frames of *source* (see spec/values.py, ``mirrored``) pass. Raises NoSuchPlace."""
    kind, colon, name = source.partition(":")
    if not colon:
        return of_nics(chosen(source, layout), direction, source)
    match kind:
        case "network":
            return of_network(name, direction, layout)
        case "group":
            return of_nics([(n, s) for n, s in layout.nics() if name in n.declared.groups], direction, source)
        case "vlan":
            number, _, uplink = name.partition("@")
            return of_uplink(uplink, direction, layout, int(number))
    return of_uplink(name, direction, layout, None)


def chosen(source: str, layout: Layout) -> list[tuple[NicOnNetwork, Segment]]:
    """NICs of a guest, or the one that is named."""
    vm, slash, nic = source.partition("/")
    if vm not in layout.spec.vms:
        raise NoSuchPlace(f"there is no guest {vm}")
    found = [(n, s) for n, s in layout.nics() if n.vm == vm and (not slash or n.nic == nic)]
    if not found:
        raise NoSuchPlace(f"{vm} has no NIC {nic}")
    return found


def of_nics(nics: Iterable[tuple[NicOnNetwork, Segment]], direction: Direction, source: str) -> list[Place]:
    found = [place for nic, segment in nics for place in of_nic(nic, segment, direction)]
    if not found:
        raise NoSuchPlace(f"{source} has no NIC that passes the host: VFs are seen by the hardware alone")
    return found


def of_nic(nic: NicOnNetwork, segment: Segment, direction: Direction) -> Iterator[Place]:
    if not nic.tap:
        return
    name = f"{nic.vm}/{nic.nic}"
    if direction.has_sent:
        yield Place(nic.tap, bool(segment.parent), f"sent by {name}", owner=name)
    if direction.has_received:
        yield Place(nic.tap, not segment.parent, f"received by {name}", owner=name)


def of_network(name: str, direction: Direction, layout: Layout) -> list[Place]:
    segment = layout.segments.get(name)
    if segment is None:
        raise NoSuchPlace(f"there is no network {name}")
    if not segment.floor:
        raise NoSuchPlace(f"network {name} is made of VFs, which the hardware alone sees")
    found: list[Place] = []
    if direction.has_sent:
        found += [place for nic in segment.nics for place in of_nic(nic, segment, Direction.SENT)]
    if direction.has_received:
        found += entering(segment, layout)
    return found


def entering(segment: Segment, layout: Layout) -> Iterator[Place]:
    """Where frames enter that no guest of the document sent."""
    about = f"into network {segment.name}"
    if segment.parent:
        yield Place(segment.parent, False, f"{about} from outside")
    for port, bridge in sorted(layout.outer):
        if bridge == segment.bridge and not segment.parent:
            yield Place(port, False, f"{about} from outside", segment.network.vlan or 0 if segment.vlan else None)
    if segment.with_host and segment.bridge:
        yield Place(segment.bridge, True, f"{about} from the host")


def of_uplink(name: str, direction: Direction, layout: Layout, vlan: int | None) -> list[Place]:
    if name not in layout.spec.uplinks:
        raise NoSuchPlace(f"there is no uplink {name}")
    device = ways.device(name, layout.spec)
    what = f"by uplink {name}" + (f" on VLAN {vlan}" if vlan else "")
    sides = [(True, f"sent {what}")] * direction.has_sent + [(False, f"received {what}")] * direction.has_received
    return [Place(device, outgoing, about, vlan) for outgoing, about in sides]
