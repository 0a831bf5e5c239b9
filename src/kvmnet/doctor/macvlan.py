"""Guests behind macvtaps and macvlans: they share a device of the host, below its bridge and its IP (drivers/net/macvlan.c). Pure.

The device below sorts frames by MAC. Two of mode bridge reach each other directly; private ones never; those of mode vepa by a switch that sends back.
What the host itself sends by that device goes to the wire alone, in any mode.
"""
from __future__ import annotations

from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.filters import filters
from kvmnet.doctor.finding import Certainty
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.routed import come_up, to_host, way_out
from kvmnet.doctor.routing import Way
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.segment import device
from kvmnet.doctor.trip import Trip
from kvmnet.policy.marks import GUEST

KINDS = ("macvtap", "macvlan")


def is_shared(scene: Scene, end: End) -> bool:
    return end.place is Place.NIC and scene.kind(end.dev) in KINDS and not scene.master(end.dev)


def below(scene: Scene, dev: str) -> str:
    return str(scene.links.get(dev, {}).get("link", ""))


def mode(scene: Scene, dev: str) -> str:
    return str(scene.data(dev).get("mode", "vepa"))


def from_shared(trip: Trip, a: End, b: End) -> None:
    """A guest sends by its macvtap."""
    scene, lower = trip.scene, below(trip.scene, a.dev)
    device(trip, a.dev, "port")
    judged(trip, a.dev)
    filters(trip, a.dev, "egress")
    if b.place is Place.NIC and is_shared(scene, b) and below(scene, b.dev) == lower:
        beside(trip, a.dev, b.dev, lower)
        arrive(trip, b.dev)
        return
    if b.place is Place.HOST and b.segment == lower:
        device(trip, lower, "uplink")
        host_below(trip, a, lower)
        return
    if b.place is Place.HOST and scene.kind(b.segment) in KINDS and below(scene, b.segment) == lower:
        beside(trip, a.dev, b.segment, lower)
        device(trip, b.segment, "port")
        come_up(trip, b.segment)
        to_host(trip, b.segment)
        return
    way_out(trip, lower)
    trip.hop("outside", "outside", f"by {lower}; what is beyond is not seen from here")


def judged(trip: Trip, dev: str) -> None:
    """What a guest sends passes rules before it comes to filters of tc (__dev_queue_xmit() in net/core/dev.c). Where a guard of ours refuses it, the
    gate behind is asked as if it had not: that is the same refusal."""
    found = trip.at("netdev", "egress", oif=dev, where=dev)
    if any(p.verdict is not Verdict.ACCEPT for p in found) and isinstance(trip.context.mark, int):
        trip.context.mark |= GUEST


def to_shared(trip: Trip, way: Way, b: End) -> None:
    """The host sends to a guest behind a macvtap, by the device of its route."""
    scene, lower = trip.scene, below(trip.scene, b.dev)
    if way.dev == lower:
        device(trip, lower, "uplink")
        host_below(trip, b, lower)
    elif scene.kind(way.dev) in KINDS and below(scene, way.dev) == lower:
        device(trip, way.dev, "port")
        beside(trip, way.dev, b.dev, lower)
    else:
        way_out(trip, way.dev)
        trip.hop("outside", "outside", f"by {way.dev}; it may come back by {lower}, which is not seen from here")
    arrive(trip, b.dev)


def into_shared(trip: Trip, b: End) -> None:
    """From the wire to a guest behind a macvtap."""
    lower = below(trip.scene, b.dev)
    device(trip, lower, "uplink")
    filters(trip, lower, "ingress")
    trip.at("netdev", "ingress", iif=lower, where=lower)
    arrive(trip, b.dev)


def arrive(trip: Trip, dev: str) -> None:
    """At the guest's own device, where it comes in once more (macvlan_handle_frame())."""
    filters(trip, dev, "ingress")
    trip.at("netdev", "ingress", iif=dev, where=dev)
    device(trip, dev, "port")


def host_below(trip: Trip, guest: End, lower: str) -> None:
    trip.blocks("macvtap-host", lower, f"the host and {guest.title} do not reach each other: both use {lower}, the guest by {trip.scene.kind(guest.dev)} {guest.dev}",
                "what the host sends by the device below goes to the wire alone, and what a macvtap sends to the host's MAC does, too; only a switch that sends frames back where they came from (802.1Qbg) changes that", f"ip -d link show {guest.dev}: {trip.scene.kind(guest.dev)} mode {mode(trip.scene, guest.dev)} on {lower}",
                fix=(f"ip link add link {lower} name host0 type macvlan mode bridge   # and the host's address on host0 instead of {lower}", "or a second NIC of the guest in a bridge of the host"), certainty=Certainty.LIKELY if mode(trip.scene, guest.dev) == "vepa" else Certainty.PROVED)


def beside(trip: Trip, first: str, second: str, lower: str) -> None:
    """Two devices on one."""
    first, second = sorted((first, second))
    modes = {mode(trip.scene, first), mode(trip.scene, second)}
    trip.hop(lower, "uplink", f"{first} and {second} are on it: mode {', '.join(sorted(modes))}")
    if "private" in modes:
        trip.blocks("macvtap-private", lower, f"{first} and {second} share {lower}, and mode private keeps them apart", "frames between them are dropped, also those that a switch sends back", f"ip -d link show {first}: mode {mode(trip.scene, first)}; {second}: mode {mode(trip.scene, second)}",
                    fix=tuple(f"ip link set {dev} type {trip.scene.kind(dev)} mode bridge" for dev in (first, second) if mode(trip.scene, dev) == "private"))
    elif modes != {"bridge"}:
        trip.blocks("macvtap-vepa", lower, f"frames between {first} and {second} go out by {lower}, and the switch has to send them back", "mode vepa leaves it to a switch that reflects (802.1Qbg); most do not: they send no frame back by the port that it came by",
                    f"ip -d link show {first}: mode {mode(trip.scene, first)}; {second}: mode {mode(trip.scene, second)}", certainty=Certainty.LIKELY,
                    fix=tuple(f"ip link set {dev} type {trip.scene.kind(dev)} mode bridge" for dev in (first, second) if mode(trip.scene, dev) != "bridge"))
