"""Abuse limits, proved on the NICs whose guest does not run: more is sent from the NIC's own tap than its limit lets pass, and what
arrives is counted.

A limit holds a bucket: its burst at once, then its rate. So what may arrive is known from the time that the sending took, however
busy the machine is; at least half the bucket must arrive, else the limit, or something else, drops what it should not. Of the
NICs of a network with the same limits one is tried, after all other claims: a flood would be in their way.
"""
from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from kvmnet.check import frames
from kvmnet.check.attacks import PORTS, addresses
from kvmnet.check.frames import ARP, BROADCAST, IP4, NOBODY, TCP, UDP, ether, ip4, ip6, udp
from kvmnet.check.idle import Idle
from kvmnet.check.model import Finding, failed, passed, skipped
from kvmnet.check.refusals import Range, receiver_of, sender_of
from kvmnet.check.station import Listener, Station
from kvmnet.drivers.nftables.conntrack import cut
from kvmnet.drivers.nftables.limits import ROOM
from kvmnet.host.clock import wait_until
from kvmnet.records import dataclass
from kvmnet.spec.limits import HEADER, effective

MOST, MOST_TO_ALL = 25_000, 1_000
"""Frames of a bucket that is tried; of those that all guests of the network get."""
LONGEST = 2.0
"""Seconds of sending."""
LOT = 100
"""Frames sent before it is asked what has arrived: a tap holds 500 that nobody has read."""
QUIET = 0.15
"""Seconds without a further frame after which no more is on its way."""
MULTICAST = "01:00:5e:00:00:fb"
TO_ALL = frozenset({"broadcast", "multicast", "unknown", "neighbours"})
FIRST = {"bytes": ("packets",), "broadcast": ("packets",), "multicast": ("packets",), "unknown": ("packets",),
         "connections": ("packets", "concurrent"), "concurrent": ("packets", "connections")}
"""Limit -> others that count the same frames."""

Frame = Callable[[int], bytes]
"""A frame by its number; all bear the flood's mark."""


@dataclass(frozen=True, slots=True)
class Flood:
    """What is sent to try one limit."""

    limit: str
    says: str
    sender: Station
    ear: Listener
    mark: bytes
    frame: Frame
    rate: float
    """Frames a second that the limit lets pass."""
    bucket: float
    """Frames that it lets pass at once."""


@dataclass(slots=True)
class Tally:
    """Frames of a flood that were heard."""

    flood: Flood
    read: int
    found: int = 0
    flowing: bool = True
    """Most of what was sent last came."""

    def count(self) -> int:
        with self.flood.ear.news:
            fresh = self.flood.ear.heard[self.read:]
        self.read += len(fresh)
        self.found += sum(self.flood.mark in packet.raw for packet in fresh)
        return self.found


def proofs(idle: Sequence[Idle], ground: Range) -> Iterator[tuple[str, str, Finding]]:
    """(NIC, claim, finding) for each limit of the network's NICs. Where the guests of all with the same limits run, nobody floods in
    their name."""
    place, tried = ground.place, set()
    stations = {nic.nic.tap: nic.station for nic in idle}
    for nic in sorted(place.segment.nics, key=lambda n: stations.get(n.tap) is None):
        values, burst = effective(nic.declared.limits, place.segment.network.limits, place.segment.mtu)
        if not values or not nic.tap or (same := (tuple(sorted(values.items())), burst)) in tried:
            continue
        tried.add(same)
        station, name = stations.get(nic.tap), f"{nic.vm}/{nic.nic}"
        if station is None:
            yield name, "limits", skipped("a check floods in the name of idle NICs alone, and no idle one was tried that has the same limits")
        elif nic.declared.groups or nic.declared.rate.limited:
            yield name, "limits", skipped("its groups or its rate stand in the way of a flood")
        else:
            for flood in floods(station, values, burst, ground):
                yield name, f"limit {flood.limit}", prove(flood, values)
            forget_flows(station, place.peer)


def forget_flows(*senders: Station) -> None:
    """Nobody answered the flows of a flood; they would be counted for half a minute."""
    ours = {address for s in senders for address in (s.ip, s.ip6, s.local) if address}
    with suppress(OSError):  # a kernel that tracks no flows
        cut(lambda flow: flow.source in ours and flow.port == PORTS[1])


def floods(station: Station, values: Mapping[str, int], burst: int, ground: Range) -> Iterator[Flood]:
    """Limits that can be tried, those first that need few frames: packets counts them all."""
    place, aim = ground.place, ground.aims[0]
    by, mark = sender_of(place), os.urandom(12)
    by = type(by)(station.mac, station.ip, station.ip6, station.local, by.other_mac, by.other_ip, by.other_ip6)
    src, dst = addresses(by, aim.receiver)

    def datagram(mac: str, size: int = 0) -> Frame:
        packet = ip(src, dst, *PORTS, mark + bytes(size))
        whole = ether(mac, station.mac, frames.family(packet), packet)
        return lambda number: whole

    def of_a_flow(number: int) -> bytes:
        packet = ip(src, dst, 1024 + number % 60_000, PORTS[1], mark)
        return ether(aim.receiver.mac, station.mac, frames.family(packet), packet)

    made: dict[str, tuple[str, Frame]] = {
        "broadcast": ("broadcasts", datagram(BROADCAST)), "multicast": ("multicasts", datagram(MULTICAST)),
        "unknown": ("frames to a MAC that nobody has", datagram(place.other_mac)),
        "connections": ("flows begun", of_a_flow), "concurrent": ("flows at once", of_a_flow),
        "packets": ("packets", datagram(aim.receiver.mac))}
    if station.ip and place.other_ip:
        question = frames.arp(1, (station.mac, station.ip), (NOBODY, place.other_ip))
        asked = ether(BROADCAST, station.mac, ARP, question + mark)
        made = {"neighbours": ("ARP questions", lambda number: asked), **made}
    for name, (says, frame) in made.items():
        if name in values:
            rate = 0 if name == "concurrent" else values[name]
            yield Flood(name, says, station, aim.ear, mark, frame, rate, values[name] * (burst if rate else 1))
    length = place.segment.mtu
    if "bytes" in values and values["bytes"] != values.get("packets", 0) * (length + HEADER):
        full = datagram(aim.receiver.mac, length - (len(ip(src, dst, *PORTS, mark))))
        yield Flood("bytes", "packets of the full MTU", station, aim.ear, mark, full, values["bytes"] / length,
                    max(values["bytes"] * burst, ROOM) / length)
    yield from received(station, values, burst, place.peer if place.segment.meeting else None)


def received(station: Station, values: Mapping[str, int], burst: int, peer: Station | None) -> Iterator[Flood]:
    """Limits of what comes to the NIC: the probe beside it sends."""
    if peer is None or not (peer.ip and station.ip):
        return
    sequence, mark, to = secrets.randbits(32), os.urandom(12), receiver_of(station)
    if "syn" in values:
        known = PORTS[1].to_bytes(2, "big") + sequence.to_bytes(4, "big")

        def syn(number: int) -> bytes:
            segment = frames.tcp(peer.ip, to.ip, 1024 + number % 60_000, PORTS[1], 2, sequence)
            return ether(to.mac, peer.mac, IP4, ip4(peer.ip, to.ip, TCP, segment))
        yield Flood("syn", "SYN", peer, station, known, syn, values["syn"], values["syn"] * burst)
    if "receive_packets" in values:
        whole = ether(to.mac, peer.mac, IP4, ip(peer.ip, to.ip, *PORTS, mark))
        yield Flood("receive_packets", "packets to it", peer, station, mark, lambda number: whole, values["receive_packets"],
                    values["receive_packets"] * burst)


def ip(src: str, dst: str, sport: int, dport: int, payload: bytes) -> bytes:
    datagram = udp(src, dst, sport, dport, payload)
    return ip6(src, dst, UDP, datagram) if ":" in src else ip4(src, dst, UDP, datagram)


def why_not(flood: Flood, values: Mapping[str, int]) -> str:
    """Why a limit cannot be tried; '' when it can."""
    most = MOST_TO_ALL if flood.limit in TO_ALL else MOST
    if flood.bucket > most:
        return f"{flood.bucket:.0f} {flood.says} may come at once, more than the {most} that a check sends"
    for other in FIRST.get(flood.limit, ()):
        if other in values and values[other] < flood.bucket * 1.5 + LOT:
            return f"its limit of {other} holds first"
    return ""


def prove(flood: Flood, values: Mapping[str, int]) -> Finding:
    """Send until more is sent than can have passed, and count what came."""
    if why := why_not(flood, values):
        return skipped(why)
    tally, began, sent = Tally(flood, len(flood.ear.heard)), time.monotonic(), 0
    while (left := allowed(flood, began) + max(LOT, flood.bucket / 10) - sent) > 0:
        if time.monotonic() - began > LONGEST:
            return skipped(f"{sent} {flood.says} were sent in {LONGEST:.0f} s, {left:.0f} too few to be over the limit: this machine is too "
                           "slow to try it")
        for number in range(sent, sent + LOT):
            flood.sender.send(flood.frame(number))
        sent += LOT
        hear(tally)
    took, most = time.monotonic() - began, allowed(flood, began)
    arrived = settled(tally)
    words = f"{arrived} of {sent} {flood.says} arrived in {took:.2f} s; {flood.bucket:.0f} at once" + (
        f" and {flood.rate:.0f} a second may" if flood.rate else " may")
    if arrived > most * 1.02 + 1:
        return failed(words)
    return passed(words) if arrived >= flood.bucket / 2 else failed(f"{words}: it drops what is below it")


def allowed(flood: Flood, began: float) -> float:
    """Most that may have passed since *began*."""
    return flood.bucket + flood.rate * (time.monotonic() - began)


def hear(tally: Tally) -> None:
    """Wait for a lot that comes. Where half of one did not come the bucket is empty, and nobody waits for the next."""
    before = tally.count()
    if tally.flowing:
        with suppress(TimeoutError):
            wait_until(lambda: tally.count() >= before + LOT, 0.05, 0.001)
        tally.flowing = tally.found - before > LOT // 2


def settled(tally: Tally) -> int:
    """How many arrived, when no more come."""
    seen, last = tally.count(), time.monotonic()

    def quiet() -> bool:
        nonlocal seen, last
        if (now := tally.count()) != seen:
            seen, last = now, time.monotonic()
        return time.monotonic() - last > QUIET

    with suppress(TimeoutError):
        wait_until(quiet, 3.0, 0.02)
    return seen
