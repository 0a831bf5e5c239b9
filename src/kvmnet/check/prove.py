"""Proves an applied document with packets: probes on every network, and the guests that answer."""
from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

from kvmnet.check.model import Claim, Finding, Progress, Report, Subject, Verdict
from kvmnet.check.probe import Probe, design, free_address, free_mac, placed
from kvmnet.check.promises import PROMISES, Place, Prove
from kvmnet.check.refusals import Beyond, firing_range, refusals
from kvmnet.check.station import Listener
from kvmnet.host.interrupts import raised
from kvmnet.host.lock import exclusive
from kvmnet.host.packets import Capture, device_mac, exists
from kvmnet.host.run import ToolFailed, run
from kvmnet.modes.segment import Segment
from kvmnet.spec.pools import Family

LOCK_TIMEOUT = 10.0
"""Seconds to wait for another writer; one network is proved under one hold of the lock."""
WORKERS = 12


def prove(subject: Subject, progress: Progress) -> Report:
    """Every claim of the document, with its evidence.

    Probes are placed while the writer's lock is held and gone when it is given back. Raises
    ConflictError when another writer keeps it, HostCannot and KvmnetError when no probe can be placed.
    """
    started = time.monotonic()
    claims: list[Claim] = []
    with raised():
        for done, segment in enumerate(subject.segments.values()):
            progress(f"checking {segment.name}", done, len(subject.segments))
            claims += prove_network(subject, segment)
    return Report(tuple(claims), time.monotonic() - started)


def prove_network(subject: Subject, segment: Segment) -> list[Claim]:
    """Claims of one network, from two probes on it and one on every other network."""
    if not exists(segment.bridge):
        return [Claim(segment.name, "host", "bridge", Verdict.FAIL,
                      f"there is no bridge {segment.bridge}; kvmnet apply makes it")]
    others = [s for s in subject.segments.values() if s.name != segment.name and exists(s.bridge)]
    with exclusive(subject.paths.lock, "kvmnet check", LOCK_TIMEOUT), ExitStack() as stack:
        probes = design(subject, [segment, segment, *others])
        stations = stack.enter_context(placed(probes, segment.name, subject.paths))
        host = watch(stack, segment.bridge)
        uplinks = [watch(stack, d) for d in ways_out(subject)]
        beyond = [Beyond(s, far, stack.enter_context(Capture(s.bridge)))
                  for s, far in zip(others, stations[2:], strict=True)]
        place = Place(segment, subject, stations[0], stations[1], free_mac(subject, segment.name, 0),
                      *nobodys(subject, segment, probes[:2]))
        ground = firing_range(place, host, device_mac(segment.bridge))
        return at_once(segment.name, "probe", place, [*PROMISES.items(), *refusals(ground, uplinks, beyond)])


def ways_out(subject: Subject) -> list[str]:
    """Devices that a packet for the outside could leave by."""
    devices = {s.way_out for s in subject.segments.values()}
    for address in subject.outside:
        with suppress(ToolFailed):    # no route there
            devices |= {str(r.get("dev", "")) for r in json.loads(run(["ip", "-j", "route", "get", address]))}
    return sorted(d for d in devices if d and exists(d))


def watch(stack: ExitStack, device: str) -> Listener:
    return stack.enter_context(Listener(stack.enter_context(Capture(device))))


def nobodys(subject: Subject, segment: Segment, probes: Sequence[Probe]) -> tuple[str, str]:
    """An address of each family that neither a guest nor a probe has."""
    taken = [a for p in probes for a in (p.ip, p.ip6)]
    return (free_address(subject, segment, Family.IPV4, taken), free_address(subject, segment, Family.IPV6, taken))


def at_once(network: str, subject: str, place: Place, work: Sequence[tuple[str, Prove]]) -> list[Claim]:
    """Claims proved side by side, in the order of *work*; without those that the document does not make."""
    def timed(prove: Prove) -> tuple[Finding | None, float]:
        started = time.monotonic()
        return prove(place), time.monotonic() - started

    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(pool.map(timed, [prove for _, prove in work]))
    return [Claim(network, subject, name, finding.verdict, finding.evidence, seconds)
            for (name, _), (finding, seconds) in zip(work, found, strict=True) if finding]
