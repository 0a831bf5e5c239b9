"""What a capture watches: the words of the command line as devices with a filter each. Pure."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum

from kvmnet.bpf.code import packed, program
from kvmnet.bpf.tree import ANCILLARY, EVERYTHING, Field, Is, Node, Not, every, some, untagged, vlan
from kvmnet.modes.segment import Segment
from kvmnet.policy.places import Direction, Layout, NoSuchPlace, Place, chosen, of_uplink, places
from kvmnet.records import dataclass

OUTGOING = Is(Field(ANCILLARY + 4, 4), 4)
"""SKF_AD_PKTTYPE is PACKET_OUTGOING (linux/if_packet.h)."""
DEVICE = "device:"
MOST = 128
"""Devices of one capture: each has a ring of its own, of at least half a megabyte."""


class Hop(StrEnum):
    TAP = "tap"
    BRIDGE = "bridge"
    UPLINK = "uplink"


@dataclass(frozen=True, slots=True)
class Watch:
    device: str
    about: str
    """What passes there."""
    label: str
    """The same, short."""
    program: bytes
    """Classic BPF, as a packet socket is told."""


def watches(sources: Sequence[str], hops: Sequence[Hop], direction: Direction, condition: Node | None, snap: int,
            layout: Layout | None) -> list[Watch]:
    """``snap``: bytes of a frame that are kept. ``layout``: None where no document is applied. Raises NoSuchPlace."""
    by_device: dict[str, list[Place]] = {}
    for source in sources:
        for place in found_at(source, hops, direction, layout):
            here = by_device.setdefault(place.device, [])
            if place not in here:
                here.append(place)
    if len(by_device) > MOST:
        raise NoSuchPlace(f"{len(by_device)} devices, and a capture watches {MOST}: name fewer guests, or a network's bridge")
    return [Watch(device, "; ".join(dict.fromkeys(p.about for p in here)), label(device, here),
                  packed(program(every(condition or EVERYTHING, some(*sides(here))), snap)))
            for device, here in by_device.items()]


def label(device: str, here: Iterable[Place]) -> str:
    owners = dict.fromkeys(place.owner for place in here)
    return next(iter(owners)) if len(owners) == 1 and "" not in owners else device


def sides(here: Sequence[Place]) -> Iterator[Node]:
    for place in here:
        tag = EVERYTHING if place.vlan is None else vlan(place.vlan) if place.vlan else untagged()
        yield every(OUTGOING if place.outgoing else Not(OUTGOING), tag)


def found_at(source: str, hops: Sequence[Hop], direction: Direction, layout: Layout | None) -> Iterator[Place]:
    if source.startswith(DEVICE):
        yield from both_sides(source.removeprefix(DEVICE), direction)
        return
    if layout is None:
        raise NoSuchPlace(f"{source}: no document is applied on this host")
    for hop in hops:
        if hop is Hop.TAP:
            yield from places(source, direction, layout)
            continue
        for segment in segments_of(source, layout):
            yield from at_bridge(segment) if hop is Hop.BRIDGE else at_uplink(segment, direction, layout)


def both_sides(device: str, direction: Direction, about: str = "") -> Iterator[Place]:
    what = about or f"device {device}"
    if direction.has_sent:
        yield Place(device, True, f"sent by {what}")
    if direction.has_received:
        yield Place(device, False, f"received by {what}")


def segments_of(source: str, layout: Layout) -> list[Segment]:
    """Networks of the guests that *source* names."""
    kind, colon, name = source.partition(":")
    if not colon:
        found = [segment for _, segment in chosen(source, layout)]
    elif kind == "network":
        found = [s for s in layout.segments.values() if s.name == name]
    elif kind == "group":
        found = [s for nic, s in layout.nics() if name in nic.declared.groups]
    else:
        raise NoSuchPlace(f"{source} is at one place, and has no hops")
    if not found:
        raise NoSuchPlace(f"there is no {kind} {name}" if colon else f"there is no guest {source}")
    return list({s.name: s for s in found}.values())


def at_bridge(segment: Segment) -> Iterator[Place]:
    if not segment.floor:
        raise NoSuchPlace(f"network {segment.name} has no bridge")
    device = segment.bridge if segment.with_host and segment.bridge else segment.floor
    yield from both_sides(device, Direction.BOTH, f"the host on network {segment.name}")


def at_uplink(segment: Segment, direction: Direction, layout: Layout) -> Iterator[Place]:
    uplink = segment.network.uplink
    if not uplink:
        raise NoSuchPlace(f"network {segment.name} has no uplink")
    yield from of_uplink(uplink, direction, layout, segment.network.vlan)
