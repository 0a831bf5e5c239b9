"""Rates and marks, proved with frames: what passes in a second behind the queue, by the kernel's own stamps, and how it is marked.

A measurement sends a third more than the rate, for as long as the burst lasts and then a second or more, one NIC after the other: it disturbs,
so it is made only when asked for (``check --rates``). UDP in frames of full size; TCP needs a guest. A mark costs one frame.
"""
from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import partial
from typing import Protocol

from kvmnet.check import frames
from kvmnet.check.idle import Idle
from kvmnet.check.model import Claim, Finding, failed, passed, skipped
from kvmnet.check.promises import Place
from kvmnet.check.station import Station
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture, Stamped, device_mac, steady
from kvmnet.modes.segment import Segment
from kvmnet.policy import shares
from kvmnet.policy.rates import queue, usual_burst
from kvmnet.records import dataclass
from kvmnet.spec.guests import Nic
from kvmnet.spec.networks import Mode

SECONDS = 1.0
"""Least time that is measured, behind the burst."""
SMALL = 0.03
"""A burst is at most this part of what is measured: it comes again whenever this process was held up for as long as the queue lasts."""
MORE = 1.35
"""How much more than the rate is sent."""
NEAR = 0.05
"""What counted and asked may differ by."""
LONGEST = 12.0
"""Seconds that one measurement may take with its burst: a slow rate with a large burst is not tried."""
TRIES = 6
"""Measurements until one is not disturbed."""
TOGETHER = 16
"""Frames sent without a look at the clock."""
LARGEST = 1500
"""Bytes of a packet, though the network may take larger ones."""
TOLD = 46
"""DSCP that a guest would give its packets."""
PORT = 9
NO_HOST = "the host has no IPv4 address there, and others may send a tenant's guests nothing"


class Sender(Protocol):
    """Who sends frames."""

    @property
    def mac(self) -> str: ...
    @property
    def ip(self) -> str: ...
    def send(self, frame: bytes, /) -> None: ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where frames go."""

    mac: str
    ip: str
    device: str
    """Device that sends them when they have waited."""


@dataclass(frozen=True, slots=True)
class Router:
    """The host on a network. Guests of no tenant may ask no tenant's, and the host may."""

    mac: str
    ip: str
    device: Capture

    def send(self, frame: bytes) -> None:
        self.device.send(frame)


@contextmanager
def host_of(segment: Segment) -> Iterator[Router]:
    """The host as a sender on a network where it has an IPv4 address."""
    with closing(Capture(segment.bridge)) as device:
        device.sends_ahead()
        yield Router(device_mac(segment.bridge), segment.address, device)


@dataclass(frozen=True, slots=True)
class Counted:
    """What was sent and what passed, in kbit/s of frames."""

    sent: float
    passed: float
    pause: float
    """Longest time in seconds that this process was held up, by others."""


def measured(place: Place, idle: Sequence[Idle]) -> Iterator[Claim]:
    """Claims about the rates of a network's idle NICs, made one after the other."""
    for one in idle:
        declared: Nic = one.nic.declared
        for direction, rate in (("in", declared.rate.in_), ("out", declared.rate.out)):
            if rate:
                started = time.monotonic()
                finding = of_nic(place, one, direction, rate)
                yield Claim(place.segment.name, one.name, f"rate {direction}", finding.verdict, finding.evidence,
                            time.monotonic() - started)
    shared = place.segment.network.rate
    for direction, rate in (("in", shared.in_), ("out", shared.out)):
        if rate:
            finding = of_network(place, idle, direction, rate)
            yield Claim(place.segment.name, "guests", f"rate {direction}", finding.verdict, finding.evidence)


def of_network(place: Place, idle: Sequence[Idle], direction: str, rate: int) -> Finding:
    """What guests send or receive together, from the host or to it, by one that may have as much alone."""
    segment = place.segment
    if segment.network.mode not in (Mode.NAT, Mode.ROUTED) or not segment.address:
        return skipped("it would flood the segment outside" if direction == "out" else "somebody outside would have to send it")
    able = [i.station for i in idle if i.station and i.station.ip and not unmeasured(place, i)
            and ((i.nic.declared.rate.out if direction == "out" else i.nic.declared.rate.in_) or MORE * rate) >= MORE * rate]
    if not able:
        return skipped(f"no idle NIC may {'send' if direction == 'out' else 'receive'} as much alone")
    with host_of(segment) as host:
        source: Sender = host if direction == "in" else able[0]
        router = Target(host.mac, segment.address, shares.ways(segment).out)
        there = router if direction == "out" else Target(able[0].mac, able[0].ip, able[0].tap.name)
        return judged(partial(measure, [(source, there)], rate, usual_burst(rate), min(segment.mtu, LARGEST)), rate)


def of_nic(place: Place, idle: Idle, direction: str, rate: int) -> Finding:
    """One rate, in kbit/s."""
    station, burst = idle.station, idle.nic.declared.rate.burst or usual_burst(rate)
    if reason := unmeasured(place, idle):
        return skipped(reason)
    assert station
    if window(rate, burst) + lasts(rate, burst) > LONGEST:
        return skipped(f"beside its burst it would take {window(rate, burst) + lasts(rate, burst):.0f} s")
    member = place.subject.allowed.nics.get(idle.nic.tap)
    by_host = direction == "in" and bool(member and member.tenant)
    if by_host and not place.segment.address:
        return skipped(NO_HOST)
    with host_of(place.segment) if by_host else nullcontext(place.peer) as other:
        source, target = (other, station) if direction == "in" else (station, place.peer)
        there = Target(target.mac, target.ip, target.tap.name)
        return judged(partial(measure, [(source, there)], rate, burst, min(place.segment.mtu, LARGEST)), rate)


def judged(measurement: Callable[[], Counted], rate: int) -> Finding:
    """A measurement counts when the queue never ran dry; it is made again otherwise, a few times."""
    full = queue(rate) / (rate * 125)
    for _ in range(TRIES):
        counted = measurement()
        if counted.pause < full or counted.sent < rate / 2:
            break
    else:
        return skipped(f"other work held this process up for {counted.pause * 1000:.0f} ms and longer, and the queue ran dry")
    if counted.sent < (1 + NEAR) * rate:
        return skipped(f"this process sends {words(counted.sent)}, too little to try {words(rate)}")
    off = counted.passed / rate - 1
    said = f"{words(counted.passed)} of {words(counted.sent)} passed, {off:+.1%} of {words(rate)}, in UDP packets of full size"
    return passed(said) if abs(off) <= NEAR else failed(said)


def unmeasured(place: Place, idle: Idle) -> str:
    """Why the rates of a NIC cannot be measured here; '' when they can."""
    return "frames that a macvtap receives are seen before the queue alone" if place.segment.parent else unheard(place, idle)


def unheard(place: Place, idle: Idle) -> str:
    """Why no probe hears what a NIC sends; '' when one does."""
    if idle.station is None:
        return idle.why or "its tap is not there"
    if not place.segment.meeting:
        return "guests of the network do not reach each other, and no probe hears this one"
    if idle.nic.declared.groups or not place.subject.allowed.sends_anything(idle.nic.tap):
        return "its groups limit what it sends and receives"
    if not (idle.station.ip and place.peer.ip):
        return "no IPv4 address for the NIC or for a probe"
    return ""


def window(rate: int, burst: int) -> float:
    """Seconds that are measured."""
    return max(SECONDS, burst / (SMALL * rate * 125))


def lasts(rate: int, burst: int) -> float:
    """Seconds until what is sent too much has used up the burst and filled the queue."""
    return burst / ((MORE - 1) * rate * 125)


def measure(ways: Sequence[tuple[Sender, Target]], rate: int, burst: int, mtu: int) -> Counted:
    """Send more than *rate*, in turns by each of *ways*, and count what leaves the targets' devices behind the burst."""
    nonce = os.urandom(12)
    shots = [(source, datagram(source, target, nonce, mtu)) for source, target in ways]
    rounds = max(1, TOGETHER // len(shots))
    octets = rounds * sum(len(frame) for _, frame in shots)
    wanted, seconds = MORE * rate * 125, window(rate, burst) + lasts(rate, burst)
    with ExitStack() as stack:
        ears = [stack.enter_context(Stamped(device, nonce)) for device in dict.fromkeys(target.device for _, target in ways)]
        began, sent = time.monotonic(), 0
        spent = pause = 0.0
        while spent < seconds:
            before, spent = spent, time.monotonic() - began
            pause = max(pause, spent - before)
            if sent > spent * wanted:
                wait_until(lambda: sent <= (time.monotonic() - began) * wanted, LONGEST, 0.001)  # noqa: B023 (asked at once)
            for _ in range(rounds):
                for source, frame in shots:
                    source.send(frame)
            sent += octets
            for heard in ears:
                heard.drain()
        for heard in ears:
            heard.drain()
        passed_by = sorted(moment for heard in ears for moment in heard.sent)
    return Counted(sent * 8 / 1000 / spent, steady(passed_by, window(rate, burst)) * 8 / 1000, pause)


def datagram(source: Sender, target: Station | Target, nonce: bytes, size: int, dscp: int = 0) -> bytes:
    """A frame with a UDP packet of *size* bytes that nobody asked for."""
    body = nonce + bytes(max(0, size - 28 - len(nonce)))
    packet = bytearray(frames.ip4(source.ip, target.ip, 17, frames.udp(source.ip, target.ip, PORT, PORT, body)))
    packet[1] = dscp << 2
    packet[10:12] = b"\0\0"
    packet[10:12] = frames.checksum(bytes(packet[:20])).to_bytes(2, "big")
    return frames.ether(target.mac, source.mac, frames.IP4, bytes(packet))


def words(rate: float) -> str:
    """*rate*, in kbit/s, with a fitting unit."""
    for unit, size in (("Gbit/s", 1e6), ("Mbit/s", 1e3)):
        if rate >= size:
            return f"{rate / size:.4g} {unit}"
    return f"{rate:.4g} kbit/s"


def marked(place: Place, idle: Idle) -> Finding | None:
    """DSCPs of the packets that another port gets, of a guest that sets none and of one that does."""
    mark = idle.nic.declared.mark
    if mark.dscp is None:
        return None
    if reason := unheard(place, idle):
        return skipped(reason)
    assert idle.station
    wanted = {0: mark.dscp, TOLD: TOLD if mark.trust else mark.dscp}
    found = {told: arrives_with(idle.station, place.peer, told) for told in wanted}
    said = ", ".join(f"{told} arrives as {'nothing' if got is None else got}" for told, got in found.items())
    return passed(f"DSCP {said}") if found == wanted else failed(f"DSCP {said}; wanted " + ", ".join(
        f"{told} as {code}" for told, code in wanted.items()))


def arrives_with(source: Station, target: Station, dscp: int) -> int | None:
    nonce = os.urandom(12)
    answer = source_asks(source, target, datagram(source, target, nonce, 100, dscp), nonce)
    return None if answer is None else answer[15] >> 2


def source_asks(source: Station, target: Station, frame: bytes, nonce: bytes) -> bytes | None:
    """The frame as *target* gets it."""
    since = len(target.heard)
    source.send(frame)
    packet = target.wait(lambda p: nonce in p.raw, 2.0, since)
    return packet.raw if packet else None
