"""Proves an applied document with packets: probes on every network, and the guests that answer."""
from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial

from kvmnet.check import limits, rates, rules, synproxy, tags, tenants
from kvmnet.check.guests import prove_guests
from kvmnet.check.idle import Idle, idle_nics, taken, unproved, work_of
from kvmnet.check.mirrors import compared
from kvmnet.check.model import PROBE, Claim, Progress, Report, Subject, Verdict
from kvmnet.check.one_tree import one_tree
from kvmnet.check.probe import Probe, await_forwarding, design, drops_kept, free_address, free_mac, placed
from kvmnet.check.promises import Place, Prove, promises, single
from kvmnet.check.refusals import Beyond, Range, Witness, firing_range, refusals
from kvmnet.check.station import Listener, Station
from kvmnet.check.tunnels import prove_tunnels
from kvmnet.check.underlay import prove_underlay
from kvmnet.drivers.recorder.process import recording
from kvmnet.host.interrupts import raised
from kvmnet.host.lock import exclusive
from kvmnet.host.packets import Capture, device_mac, exists
from kvmnet.host.run import ToolFailed, run
from kvmnet.modes.segment import Segment
from kvmnet.policy.marks import REJECTED
from kvmnet.records import dataclass, replace
from kvmnet.spec.pools import Family

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another writer."""
WORKERS = 12
"""Claims of one network that are proved side by side."""
OUTSIDE = 1 << 16
"""Number of the MAC that stands for somebody on the wire: no probe has it."""
NETWORKS = 4
"""Networks that are proved side by side."""


def prove(subject: Subject, progress: Progress) -> Report:
    """Every claim of the document, with its evidence.

    The writer's lock is held meanwhile (two networks: 1-3 s), so that nobody takes the probes for
    drift. Raises ConflictError when another writer keeps it, HostCannot and KvmnetError when no probe
    can be placed.
    """
    started = time.monotonic()
    order = {name: i for i, name in enumerate(subject.segments)}
    claims = [Claim(s.name, "host", "vfs", Verdict.SKIP, "the frames of VFs never pass the host, so it cannot try them; "
                    "kvmnet status shows what their NIC was told") for s in subject.segments.values() if not s.floor]
    subject = replace(subject, segments={name: s for name, s in subject.segments.items() if s.floor})
    lacking = {s.name: device for s in subject.segments.values()
               for device in (s.floor, s.bridge if s.with_host else s.floor) if not exists(device)}
    present = [s for s in subject.segments.values() if s.name not in lacking and not s.alone and s.guarded]
    claims += [Claim(s.name, PROBE, "guard", Verdict.SKIP, f"{s.bridge} is the host's own and no NIC of the document is on it: "
                     "nothing is guarded there") for s in subject.segments.values() if not s.guarded]
    claims += [Claim(name, "host", "device" if subject.segments[name].parent else "bridge", Verdict.FAIL,
                     f"there is no {'device' if subject.segments[name].parent else 'bridge'} {device}; kvmnet apply makes it")
               for name, device in lacking.items()]
    claims += [Claim(s.name, PROBE, "guard", Verdict.SKIP, "passthru: one NIC has the uplink, there is no room for a probe")
               for s in subject.segments.values() if s.alone and s.name not in lacking]
    total = len(present) + 1
    progress("placing probes", 0, total)
    allow_many_files()
    with raised(), exclusive(subject.paths.lock, "kvmnet check", LOCK_TIMEOUT), ExitStack() as stack:
        grounds = prepare(subject, present, stack)
        mirrors = stack.enter_context(compared(subject.copies, {device: recording(subject.paths.run, name) for device, name in subject.recorders.items()}))
        judged = rules.proved(grounds, subject)
        with ThreadPoolExecutor(NETWORKS + 3) as pool:
            guests = pool.submit(prove_guests, subject)
            underlay = pool.submit(prove_underlay, present)
            tunnels = pool.submit(prove_tunnels, subject.tunnels)
            found = pool.map(prove_network, grounds)
            for done, (ground, more) in enumerate(zip(grounds, found, strict=True), 1):
                progress(f"checked {ground.place.segment.name}", done, total)
                claims += more
            claims += guests.result() + underlay.result() + tunnels.result()
        claims += judged + mirrors.claims()
        for ground in grounds if subject.rates else ():
            progress(f"measuring {ground.place.segment.name}", total, total)
            claims += rates.measured(ground.place, ground.idle)
        if subject.rates:
            claims += tenants.measured(subject.tenants, [(ground.place, ground.idle) for ground in grounds])
    claims.sort(key=lambda c: order.get(c.network, len(order)))    # tunnels last
    return Report(tuple(claims), time.monotonic() - started)


def allow_many_files() -> None:
    """Every probe and idle NIC takes two descriptors; the usual limit of 1,024 is soft."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Ground:
    """One network, ready to be proved."""

    place: Place
    range: Range
    others: Sequence[Beyond]
    idle: Sequence[Idle]


def prepare(subject: Subject, segments: Sequence[Segment], stack: ExitStack) -> list[Ground]:
    """Two probes on every network, and ears on the host's side, or a third probe where the host has none; all of
    it ends with *stack*."""
    stack.enter_context(drops_kept(subject.paths, [n.tap for s in segments for n in idle_nics(subject, s)]))
    probes = design(subject, [s for s in segments for _ in range(3 if s.meeting and not s.with_host else 2)])
    stations: dict[str, list[Station]] = {}
    for probe, station in zip(probes, stack.enter_context(placed(probes, subject.paths)), strict=True):
        stations.setdefault(probe.segment.name, []).append(station)
    uplinks = [watch(stack, d)[1] for d in ways_out(subject)]
    witnesses = {s.name: witness_of(s, stations[s.name], subject, probes, stack) for s in segments}
    ends = [Beyond(s, stations[s.name][0], witnesses[s.name]) for s in segments if s.with_host or s.meeting]
    grounds = []
    for segment in segments:
        own = [p for p in probes if p.segment is segment]
        station, peer, *_ = stations[segment.name]
        place = Place(segment, subject, station, peer, free_mac(subject, segment.name, 0),
                      *nobodys(subject, segment, own), number=own[0].number, uplinks=uplinks)
        ground = firing_range(place, witnesses[segment.name])
        others = [e for e in ends if e.segment is not segment]
        grounds.append(Ground(place, ground, others, taken(subject, segment, stack)))
    await_forwarding([n.nic.tap for g in grounds for n in g.idle if n.station and not g.place.segment.parent])
    return grounds


def witness_of(segment: Segment, stations: Sequence[Station], subject: Subject, probes: Sequence[Probe],
               stack: ExitStack) -> Witness:
    """The host; another port where the host is not; the wire where ports do not hear each other either."""
    if segment.with_host:
        return host_side(segment, stack)
    if segment.meeting:
        return port(stations[2])
    capture, ear = watch(stack, segment.parent)    # spoken to is somebody whom nobody is
    taken = [a for p in probes if p.segment is segment for a in (p.ip, p.ip6)]
    ip, ip6 = nobodys(subject, segment, (), [*taken, *nobodys(subject, segment, (), taken)])
    return Witness("the wire", free_mac(subject, segment.name, OUTSIDE), ip, ip6, ear, capture)


def host_side(segment: Segment, stack: ExitStack) -> Witness:
    """The host, which hears what comes to its bridge; but for what its IP stack gets only to refuse it with an answer."""
    capture, ear = watch(stack, segment.bridge, REJECTED)
    return Witness("the host", device_mac(segment.bridge), segment.address, segment.address6, ear, capture)


def port(station: Station) -> Witness:
    return Witness("another port", station.mac, station.ip, station.ip6, station, station)


def prove_network(ground: Ground) -> list[Claim]:
    """Claims of one network in the order of the report, proved side by side."""
    place = ground.place
    work = [(PROBE, place, prove) for prove in (*promises(), single("one tree", one_tree), *refusals(ground.range, ground.others))]
    for idle in ground.idle:
        if idle.station:
            own, more = work_of(idle, place, ground.range)
            work += [(idle.name, own, prove) for prove in more]
            work.append((idle.name, place, single("mark", partial(rates.marked, idle=idle))))
            work.append((idle.name, place, single("tag", partial(tags.tagged, idle=idle))))

    def timed(task: tuple[str, Place, Prove]) -> list[Claim]:
        by, where, prove = task
        started = time.monotonic()
        found = [(name, finding) for name, finding in prove(where) if finding]
        seconds = time.monotonic() - started
        return [Claim(place.segment.name, by, name, f.verdict, f.evidence, seconds) for name, f in found]

    with ThreadPoolExecutor(WORKERS) as pool:
        claims = [claim for claims in pool.map(timed, work) for claim in claims]
    claims += [Claim(place.segment.name, by, name, found.verdict, found.evidence)
               for by, name, found in (*limits.proofs(ground.idle, ground.range), *synproxy.proofs(ground.idle, place))]
    return claims + list(unproved(place.segment, ground.idle, place.subject))


def ways_out(subject: Subject) -> list[str]:
    """Devices that a packet for the outside could leave by."""
    devices = {s.way_out for s in subject.segments.values()}
    for address in subject.outside:
        with suppress(ToolFailed):    # no route there
            devices |= {str(r.get("dev", "")) for r in json.loads(run(["ip", "-j", "route", "get", address]))}
    return sorted(d for d in devices if d and exists(d))


def watch(stack: ExitStack, device: str, without: int = 0) -> tuple[Capture, Listener]:
    capture = stack.enter_context(Capture(device, without))
    return capture, stack.enter_context(Listener(capture))


def nobodys(subject: Subject, segment: Segment, probes: Sequence[Probe], more: Sequence[str] = ()) -> tuple[str, str]:
    """An address of each family that neither a guest nor a probe has."""
    taken = [*more, *(a for p in probes for a in (p.ip, p.ip6))]
    return (free_address(subject, segment, Family.IPV4, taken), free_address(subject, segment, Family.IPV6, taken))
