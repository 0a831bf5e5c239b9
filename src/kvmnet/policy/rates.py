"""Rates of NICs as queues. Pure.

A queue is where a device sends. A guest receives what its tap sends, so ``in`` is a token bucket at the tap's root. What
it sends comes in by the tap: for ``out`` each frame makes a detour by a device of its own (ifb), waits there in a token
bucket, and comes back as if it had just come in. A macvtap is the inverse: there the guest's frames are those that the
device sends.

One device for each limited NIC: a shared one cannot tell NICs apart before any hook of nftables has seen the frame, and
has one lock for all of them. A filter that takes every frame is one look, however many NICs there are.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.tc.resources import MAJOR, Qdisc, detour, in_steps, qdisc_name
from kvmnet.engine.resource import Resource
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.spec.disciplines import NO_LEAF, root_queue
from kvmnet.spec.names import detour_name
from kvmnet.spec.rates import Rate

SLOW = 50_000
"""kbit/s below which a burst is small: 128 KiB would be a long time."""
SMALL, USUAL = 16 * 1024, 128 * 1024
"""Least bursts in bytes. A packet that the guest leaves to be cut later (GSO) has up to 64 KiB and is cut by tbf when
it does not fit into the burst (tbf_segment() in net/sched/sch_tbf.c)."""
BURST, QUEUE = 0.002, 0.05
"""Seconds that a burst takes, and that frames wait at most."""
LEAST_QUEUE, MOST_QUEUE = 64 * 1024, 16 * 2**20
"""Bytes."""
FLOWS, PACKETS = 128, 1024
"""fq_codel: the kernel's own 1,024 flows take 64 KiB for each NIC."""
FAIR = "tc-fq-codel"
"""Feature: flows of a limited NIC do not wait for each other."""


def nic_rates(nic: NicOnNetwork, segment: Segment, features: Mapping[str, str], pooled: Collection[str] = ()) -> Iterator[Resource]:
    """What limits one NIC; nothing for one without rates. ``pooled``: taps with a class for what they send in the queue of their tenant."""
    rate: Rate = nic.declared.rate
    sent, detoured = (rate.out, rate.in_) if segment.parent else (rate.in_, rate.out)
    if not (sent or detoured or nic.declared.qdisc):
        return
    inner = own_leaf(nic) or usual_leaf(features)
    if sent:
        yield from bucket(nic.tap, sent, rate.burst, inner)
    elif nic.declared.qdisc:
        yield root_queue(nic.tap, nic.declared.qdisc)
    if detoured and nic.tap not in pooled:
        device = detour_name(nic.vm, nic.nic)
        yield Link(name=device, type="ifb", mtu=segment.mtu, up=True, master="", alias=f"kvmnet rate {nic.vm}/{nic.nic}",
                   addrgenmode="none")
        yield from bucket(device, detoured, rate.burst, inner)
        yield detour(nic.tap, device)


def usual_leaf(features: Mapping[str, str]) -> str:
    """How frames wait inside of a rate; '' for one line."""
    return "fq_codel" if features.get(FAIR) == "" else ""


def own_leaf(nic: NicOnNetwork) -> str:
    """How those of a NIC wait there, as the document says; '' when it does not."""
    chosen = nic.declared.qdisc or ""
    return "" if chosen in NO_LEAF else chosen


def sizes(discipline: str) -> dict[str, int]:
    """What of its settings is ours to say: where there is one for each NIC the kernel's own sizes are large."""
    return {"packets": PACKETS, "flows": FLOWS} if discipline == "fq_codel" else {}


def bucket(dev: str, rate: int, burst: int | None, inner: str = "") -> Iterator[Qdisc]:
    """A token bucket as the root of *dev*. ``rate``: kbit/s. ``inner``: how frames wait in it; '' for one line."""
    root = qdisc_name(dev)
    yield Qdisc(name=root, dev=dev, parent="root", below="", of="", discipline="tbf", rate=rate,
                burst=burst or usual_burst(rate), limit=queue(rate))
    if inner:
        yield Qdisc(name=qdisc_name(dev, MAJOR + 1), dev=dev, parent=f"{MAJOR:x}:1", below=root, of="", discipline=inner, **sizes(inner))


def usual_burst(rate: int) -> int:
    """Bytes, for a rate in kbit/s."""
    return in_steps(max(SMALL if rate < SLOW else USUAL, rate * 125 * BURST))


def queue(rate: int) -> int:
    """Bytes that may wait, for a rate in kbit/s."""
    return in_steps(min(MOST_QUEUE, max(LEAST_QUEUE, rate * 125 * QUEUE)))


def notes(limited: bool, features: Mapping[str, str]) -> tuple[str, ...]:
    """What the plan says of the fallback."""
    reason = features.get(FAIR)
    if not limited or not reason:
        return ()
    return (f"rates: flows of a limited NIC or tenant wait in one line, and one that sends much delays the others: {reason}",)
