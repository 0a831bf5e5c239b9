"""What queues of rates do, for ``kvmnet status``. All of it comes out of one dump of all queues; what passes now, out of two."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from kvmnet.compile import limited_tenants, tenant_nics
from kvmnet.drivers.sriov.resources import Vf
from kvmnet.drivers.tc.resources import Qdisc, TcClass, class_name, qdisc_name
from kvmnet.drivers.tc.wire import Counts
from kvmnet.engine.driver import Seen
from kvmnet.engine.resource import Key
from kvmnet.facts.counters import Traffic
from kvmnet.modes.segment import Segment
from kvmnet.policy import shares
from kvmnet.records import dataclass
from kvmnet.spec.names import detour_name, tenant_queue

if TYPE_CHECKING:
    from kvmnet.modes.model import NicOnNetwork
    from kvmnet.spec.models import Spec


@dataclass(frozen=True, slots=True)
class RateStatus:
    """What a rate did since it was set. Of a VF only the rate is known."""

    rate: int
    """Most, in bits per second."""
    dropped: int = 0
    """Packets that found the queue full."""
    waiting: int = 0
    """Bytes in the queue now."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue of a device that the document has chosen (``qdisc``)."""

    discipline: str
    dropped: int
    """Packets that found it full, or that were dropped to keep it short."""
    waiting: int
    """Bytes in it now."""


@dataclass(frozen=True, slots=True)
class ClassStatus:
    """One part of what the guests of a network send, or receive, together."""

    direction: str
    """out or in."""
    name: str
    """A class of the document, a NIC (``web1/nic0``), or ``rest`` for what is in none of these."""
    least: int
    """What it gets in any case, in bits per second."""
    most: int
    priority: int
    now: float
    """What passes, in bits per second."""
    sent: int
    """Bytes that left it since it was made."""
    dropped: int
    """Packets that found its queue full, or that were dropped to keep it short."""
    waiting: int
    """Bytes in its queue now."""


@dataclass(frozen=True, slots=True)
class TenantStatus:
    name: str
    nics: int
    """NICs of its guests."""
    addresses: int
    """IP addresses that these have, further ones as the document counts them."""
    rates: Mapping[str, RateStatus]
    """in, out -> how all its NICs together are limited in that direction."""
    sends: float
    """Bits per second from its guests."""
    receives: float


@dataclass(frozen=True, slots=True)
class Queues:
    """One look at all queues of ours."""

    roots: Mapping[str, Counts]
    """Device -> what its queue did."""
    leaves: Mapping[str, Counts]
    """Class -> what its queue did."""
    moment: float
    """When, in seconds of the monotonic clock."""


def rates_of(nic: NicOnNetwork, segment: Segment, seen: Seen, queues: Queues | None, pooled: Mapping[str, str]) -> dict[str, RateStatus]:
    """How each direction is limited, as the host has it now. ``pooled``: tap -> class of what it sends in its tenant's queue."""
    if nic.vf:
        vf = seen.state.get(Key(Vf.kind, nic.vf))
        return {"out": RateStatus(vf.max_rate * 1_000_000)} if isinstance(vf, Vf) and vf.max_rate else {}
    own, other = ("out", "in") if segment.parent else ("in", "out")
    found = buckets(((own, nic.tap), (other, detour_name(nic.vm, nic.nic))), seen, queues.roots if queues else {})
    here = seen.state.get(Key(TcClass.kind, pooled.get(nic.tap, "")))
    if nic.declared.rate.out and isinstance(here, TcClass) and here.ceil:
        counts = queues.leaves.get(here.name) if queues else None
        found["out"] = RateStatus(here.ceil * 1000, counts.dropped if counts else 0, counts.backlog if counts else 0)
    return found


def buckets(devices: Iterable[tuple[str, str]], seen: Seen, queues: Mapping[str, Counts]) -> dict[str, RateStatus]:
    """Direction -> the rate that the device for it has. ``devices``: (direction, device)."""
    found = {}
    for direction, device in devices:
        queue, counts = seen.state.get(Key(Qdisc.kind, qdisc_name(device))), queues.get(device)
        if isinstance(queue, Qdisc) and queue.rate:
            found[direction] = RateStatus(queue.rate * 1000, counts.dropped if counts else 0, counts.backlog if counts else 0)
    return found


def chosen_queues(devices: Iterable[str], seen: Seen, queues: Mapping[str, Counts]) -> dict[str, Waiting]:
    """Device -> its queue, where it is there."""
    found = {}
    for device in devices:
        queue, counts = seen.state.get(Key(Qdisc.kind, qdisc_name(device))), queues.get(device)
        if isinstance(queue, Qdisc) and queue.discipline:
            found[device] = Waiting(queue.discipline, counts.dropped if counts else 0, counts.backlog if counts else 0)
    return found


def of_root(device: str, seen: Seen, queues: Mapping[str, Counts]) -> RateStatus | None:
    """The rate of a device's queue, be it one line or a tree of classes."""
    queue = next((q for q in seen.state.values() if isinstance(q, Qdisc) and (q.dev, q.parent) == (device, "root")), None)
    whole = next((c for c in seen.state.values() if isinstance(c, TcClass) and queue and (c.qdisc, c.parent) == (queue.name, "")), None)
    rate = whole.ceil if isinstance(whole, TcClass) else queue.rate if isinstance(queue, Qdisc) else None
    counts = queues.get(device)
    return RateStatus(rate * 1000, counts.dropped if counts else 0, counts.backlog if counts else 0) if rate else None


def tenant_statuses(spec: Spec, segments: Mapping[str, Segment], seen: Seen, now: Mapping[str, Traffic],
                    queues: Mapping[str, Counts]) -> Iterator[TenantStatus]:
    nics = tenant_nics(spec, segments.values())
    for name in spec.tenants:
        own = [nic for nic, _ in nics.get(name, ())]
        moving = [now[nic.tap] for nic in own if nic.tap in now]
        rates = {way: found for way in ("in", "out") if (found := of_root(tenant_queue(name, way), seen, queues))}
        yield TenantStatus(name, len(own), sum(bool(nic.ip) + bool(nic.ip6) + len(nic.prefixes) for nic in own), rates,
                           sum(t.rx_rate for t in moving), sum(t.tx_rate for t in moving))


def shared_rates(segment: Segment, spec: Spec, seen: Seen, queues: Mapping[str, Counts]) -> dict[str, RateStatus]:
    """How the guests of a network are limited together."""
    if not segment.network.has_queues:
        return {}
    way = shares.ways(segment)
    found = {}
    for direction, device in (("in", way.inward), ("out", way.out)):
        here = of_root(device, seen, queues) if (segment.network.rate.in_ if direction == "in" else segment.network.rate.out) else None
        if here:
            found[direction] = here
    return found


def class_statuses(segments: Mapping[str, Segment], spec: Spec, seen: Seen, before: Queues | None,
                   after: Queues | None) -> dict[str, tuple[ClassStatus, ...]]:
    """Network -> its classes as the host has them now, out and in: those of the document, then NICs, then what is in none."""
    majors = shares.trees(segments.values(), limited_tenants(spec))
    found: dict[str, tuple[ClassStatus, ...]] = {}
    for name, segment in segments.items():
        if not (segment.network.has_queues and after):
            continue
        way = shares.ways(segment)
        for direction, dev, major, ids in (("out", way.out, majors[name], shares.minors(segment)),
                                           ("in", way.inward, majors[name + shares.INWARD], shares.receiving(segment))):
            names = {n: n for n in segment.network.classes} | {f"{nic.vm}/{nic.nic}": nic.tap for nic in segment.nics}
            places = {shown: ids[key] for shown, key in names.items() if key in ids} | {"rest": shares.REST}
            found[name] = (*found.get(name, ()), *(made for shown, minor in places.items() if (made := class_status(
                direction, shown, class_name(dev, major, minor), seen, before, after))))
    return found


def class_status(direction: str, shown: str, key: str, seen: Seen, before: Queues | None, after: Queues) -> ClassStatus | None:
    here, counts = seen.state.get(Key(TcClass.kind, key)), after.leaves.get(key)
    if not isinstance(here, TcClass) or counts is None:
        return None
    earlier = before.leaves.get(key) if before else None
    passed = counts.sent - earlier.sent if earlier and before and counts.sent >= earlier.sent else 0
    span = after.moment - before.moment if before else 0.0
    return ClassStatus(direction, shown, (here.rate or 0) * 1000, (here.ceil or 0) * 1000, here.priority or 0, passed * 8 / span if span else 0.0,
                       counts.sent, counts.dropped, counts.backlog)


def is_limited(spec: Spec) -> bool:
    """Whether some network, tenant or NIC of the document has a rate, or an uplink a queue that it has chosen."""
    return any(u.qdisc for u in spec.uplinks.values()) or any(n.has_queues for n in spec.networks.values()) or any(t.rate.limited for t in spec.tenants.values()) or any(
        nic.rate.limited for vm in spec.vms.values() for nic in vm.nics)
