"""Rates of tenants, measured: what all NICs of one send and receive together. Several of them share one measurement, so that a queue
for each of them would be seen."""
from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from kvmnet.check.idle import Idle
from kvmnet.check.model import Claim, Finding, skipped
from kvmnet.check.promises import Place
from kvmnet.check.rates import LARGEST, MORE, NO_HOST, Sender, Target, host_of, judged, measure, unmeasured
from kvmnet.policy.rates import usual_burst
from kvmnet.spec.guests import Nic
from kvmnet.spec.rates import TenantRate

MOST = 4
"""NICs that send or receive in turns."""


def measured(rates: Mapping[str, TenantRate], grounds: Sequence[tuple[Place, Sequence[Idle]]]) -> Iterator[Claim]:
    """Claims about the rates of tenants, each on the network with most idle NICs of it."""
    for name, rate in rates.items():
        for direction, most in (("in", rate.in_), ("out", rate.out)):
            if not most:
                continue
            found = [(place, list(able(place, idle, name, direction, most))) for place, idle in grounds]
            place, nics = max(found, key=lambda pair: len(pair[1]), default=(None, []))
            started = time.monotonic()
            finding = of_tenant(place, nics[:MOST], direction, most) if place and nics else skipped(
                "no idle NIC of it may send or receive as much, or no probe hears one")
            network = place.segment.name if place and nics else ""
            yield Claim(network, f"tenant {name}", f"rate {direction}", finding.verdict, finding.evidence, time.monotonic() - started)


def able(place: Place, idle: Sequence[Idle], tenant: str, direction: str, most: int) -> Iterator[Idle]:
    """NICs of the tenant of which each may send, or receive, more than all together."""
    for one in idle:
        member, declared = place.subject.allowed.nics.get(one.nic.tap), one.nic.declared
        own = narrowest(declared, direction, place.segment.network.rate.in_)
        if member and member.tenant == tenant and not unmeasured(place, one) and (own is None or own >= MORE * most):
            yield one


def narrowest(nic: Nic, direction: str, network: int | None) -> int | None:
    """The smallest other rate, in kbit/s, that what the host sends it, or what it sends to a probe, has to pass."""
    found = [rate for rate in ((nic.rate.in_, network) if direction == "in" else (nic.rate.out,)) if rate]
    return min(found, default=None)


def of_tenant(place: Place, nics: Sequence[Idle], direction: str, most: int) -> Finding:
    segment, stations = place.segment, [one.station for one in nics if one.station]
    if direction == "out":
        return among(len(stations), place, [(s, Target(place.peer.mac, place.peer.ip, place.peer.tap.name)) for s in stations], most)
    if not segment.address:
        return skipped(NO_HOST)
    with host_of(segment) as host:
        return among(len(stations), place, [(host, Target(s.mac, s.ip, s.tap.name)) for s in stations], most)


def among(count: int, place: Place, ways: Sequence[tuple[Sender, Target]], most: int) -> Finding:
    found = judged(partial(measure, ways, most, usual_burst(most), min(place.segment.mtu, LARGEST)), most)
    return Finding(found.verdict, f"{found.evidence}, by {count} NIC{'s' * (count != 1)} in turns")
