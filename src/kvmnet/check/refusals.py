"""What a network forbids its guests, proved by trying: forged frames, and ways that must be closed.

A frame counts as dropped only when one of the same shape, sent after it through the same port, has
arrived where the forbidden one did not: silence alone proves nothing.
"""
from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from kvmnet.check import frames
from kvmnet.check.attacks import ATTACKS, Attack, Receiver, Sender, Shot, from_address
from kvmnet.check.echo import knock, ping
from kvmnet.check.model import Finding, Verdict, failed, passed, skipped
from kvmnet.check.promises import SHORT, Place, Prove, gateway, own_address
from kvmnet.check.station import PATIENCE, Listener, Station
from kvmnet.host.packets import Capture
from kvmnet.modes.segment import Segment
from kvmnet.spec.models import Mode

SOMEWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Addresses that nobody has (RFC 5737, RFC 3849)."""
COMMON = (22, 111, 443)
"""TCP ports that hosts often listen on."""


@dataclass(frozen=True, slots=True)
class Aim:
    """A receiver, and the ear at its place."""

    receiver: Receiver
    ear: Listener


@dataclass(frozen=True, slots=True)
class Range:
    """Where shots are fired: the attacker, and everybody it may hit."""

    place: Place
    sender: Sender
    aims: Sequence[Aim]


def fire(ground: Range, attack: Attack) -> Finding | None:
    """Each receiver gets the forbidden frame, then its control: the allowed frame of the same shape."""
    hit, arrived = [], []
    for aim in ground.aims:
        forbidden, allowed = (make(ground.sender, aim.receiver) for make in (attack.forbidden, attack.allowed))
        if forbidden is None or allowed is None:
            continue
        since = len(aim.ear.heard)
        ground.place.station.send(forbidden.frame)
        controlled = sent(ground.place.station, allowed, aim.ear, since)
        if aim.ear.carried(forbidden.mark, since):
            hit.append(aim.receiver.name)
        elif not controlled:
            return failed(f"cannot be proved: the allowed frame did not reach {aim.receiver.name} either")
        arrived.append(aim.receiver.name)
    if hit:
        return failed(f"{attack.says} reached {' and '.join(hit)}")
    if not arrived:
        return None
    return passed(f"{attack.says} did not reach {' or '.join(arrived)}; its control did")


def sent(station: Station | Capture, shot: Shot, ear: Listener, since: int = 0) -> bool:
    """Whether *shot* arrives, sent up to three times."""
    for _ in range(3):
        station.send(shot.frame)
        if ear.wait_for(shot.mark, PATIENCE / 3, since):
            return True
    return False


# -- ways ------------------------------------------------------------------------------------------

def host_is_closed(place: Place) -> Finding | None:
    """TCP ports of the host that the document does not open."""
    segment, station = place.segment, place.station
    target = segment.address if station.ip else segment.address6 if station.ip6 else ""
    if not target:
        return None
    control = ping(station, target)
    if not control.answered:
        return failed(f"cannot be proved: {control.words}")
    opened = {a.port for a in segment.network.allow if a.protocol == "tcp"} | {53}
    high = next(p for p in iter(lambda: 20000 + secrets.randbelow(40000), 0) if p not in opened)
    ports = [p for p in (*COMMON, high) if p not in opened]
    answers = knock(station, target, [*ports, 53], SHORT)
    if wrong := [f"{port} ({answers[port]})" for port in ports if port in answers]:
        return failed(f"{target} answers on TCP {', '.join(wrong)}, which the document does not open")
    heard = "is open on 53" if answers.get(53) == "open" else "answers echo"
    return passed(f"{target} is silent on TCP {', '.join(map(str, ports))}, and {heard}")


def no_way_out(place: Place, family: int, uplinks: Sequence[Listener]) -> Finding | None:
    """From an isolated network nothing is routed."""
    segment, station = place.segment, place.station
    via = segment.address if family == 4 else segment.address6
    if segment.network.mode is not Mode.ISOLATED or not via or not own_address(station, family):
        return None
    control = ping(station, via)
    if not control.answered:
        return failed(f"cannot be proved: {control.words}")
    named = [a for a in place.subject.outside if ip_address(a).version == family]
    target, nonce = (named or [SOMEWHERE[family]])[0], os.urandom(12)
    echo = ping(station, target, via=via, patience=SHORT, nonce=nonce)
    if echo.answered:
        return failed(f"{target} answers echo")
    if any(ear.carried(nonce) for ear in uplinks):
        return failed(f"a packet for {target} left by an uplink")
    if echo.refused and "prohibited" in echo.words:
        return passed(f"{echo.words}, for {target}")
    if echo.refused:
        return skipped(f"the host has no way there itself ({echo.words})")
    if not named or not uplinks:
        return skipped(f"the host has no IPv{family} way out to leak by; name an address with --outside")
    return passed(f"{target} is silent and nothing left by an uplink; {via} answers echo")


@dataclass(frozen=True, slots=True)
class Beyond:
    """Another network: a probe on it, and the host's own way to send to that probe."""

    segment: Segment
    far: Station
    door: Capture


def other_network(place: Place, there: Beyond) -> Finding | None:
    """A network that is no peer is out of reach, also for frames; a peer is within reach."""
    findings = [f for family in (4, 6) if (f := routed_to(place, there, family))]
    if wrong := [f for f in findings if f.verdict is not Verdict.PASS]:
        return wrong[0]
    if are_peers(place.segment, there.segment):
        return findings[0] if findings else None
    far, station = there.far, place.station
    shot = from_address(sender_of(place), receiver_of(far), station.local, far.local)
    control = from_address(sender_of(place), receiver_of(far), station.local, far.local)
    assert shot and control
    station.send(shot.frame)
    if not sent(there.door, control, far):
        return failed(f"cannot be proved: the probe on {there.segment.name} hears nothing")
    if far.carried(shot.mark):
        return failed(f"a frame from {place.segment.name} came out on {there.segment.name}")
    return passed("; ".join((*(f.evidence for f in findings), "no frame came out there; the host's own did")))


def are_peers(one: Segment, other: Segment) -> bool:
    return other.name in one.network.peers or one.name in other.network.peers


def routed_to(place: Place, there: Beyond, family: int) -> Finding | None:
    station, target = place.station, own_address(there.far, family)
    via = place.segment.address if family == 4 else place.segment.address6
    if not target or not via or not own_address(station, family) or not gateway(there.segment, family):
        return None
    nonce, peers = os.urandom(12), are_peers(place.segment, there.segment)
    echo = ping(station, target, via=via, patience=PATIENCE if peers else SHORT, nonce=nonce)
    if peers:
        return passed(f"{target} answers echo") if echo.answered else failed(echo.words)
    if echo.answered or there.far.carried(nonce):
        return failed(f"a packet reached {target}")
    control = ping(station, via)
    if not control.answered:
        return failed(f"cannot be proved: {control.words}")
    return passed(f"{target} is out of reach" + (f" ({echo.words})" if echo.refused else f"; {via} answers echo"))


def sender_of(place: Place) -> Sender:
    s = place.station
    return Sender(s.mac, s.ip, s.ip6, s.local, place.other_mac, place.other_ip, place.other_ip6)


def receiver_of(station: Station, gateway4: str = "", gateway6: str = "") -> Receiver:
    return Receiver(station.ip or station.local, station.mac, station.ip, station.ip6, gateway4, gateway6)


def firing_range(place: Place, host: Listener, host_mac: str) -> Range:
    """The peer, unless ports are isolated, and the host. In front of the host only addresses that
    nobody has are claimed, so that an attack that gets through does not cut off its real neighbours."""
    segment, sender = place.segment, sender_of(place)
    nobody6 = place.other_ip6 or frames.link_local(place.other_mac)
    to_peer = receiver_of(place.peer, gateway(segment, 4) or place.other_ip, gateway(segment, 6) or nobody6)
    to_host = Receiver("the host", host_mac, segment.address, segment.address6, place.other_ip, nobody6)
    aims = [Aim(to_host, host)]
    if not segment.network.isolated_ports:
        aims.insert(0, Aim(to_peer, place.peer))
    return Range(place, sender, aims)


def guests_apart(place: Place, host: Aim) -> Finding | None:
    """Isolated ports do not reach each other; the host they do."""
    if not place.segment.network.isolated_ports:
        return None
    peer = place.peer
    shot = from_address(sender_of(place), receiver_of(peer), place.station.local, peer.local)
    control = from_address(sender_of(place), host.receiver, place.station.local, frames.link_local(host.receiver.mac))
    assert shot and control
    place.station.send(shot.frame)
    if not sent(place.station, control, host.ear):
        return failed("cannot be proved: the host does not hear the probe")
    if peer.carried(shot.mark):
        return failed("a frame from one isolated port reached another")
    return passed("a frame for another isolated port did not reach it; one for the host did")


def refusals(ground: Range, uplinks: Sequence[Listener], others: Sequence[Beyond]) -> Iterator[tuple[str, Prove]]:
    """Claims of what is forbidden -> their proofs, in the order of the report."""
    for name, attack in ATTACKS.items():
        yield f"drops {name}", lambda _, attack=attack: fire(ground, attack)  # type: ignore[misc]
    yield "guests-apart", lambda p: guests_apart(p, ground.aims[-1])
    yield "host-closed", host_is_closed
    yield "no-way-out4", lambda p: no_way_out(p, 4, uplinks)
    yield "no-way-out6", lambda p: no_way_out(p, 6, uplinks)
    for there in others:
        word = "reaches" if are_peers(ground.place.segment, there.segment) else "apart from"
        yield f"{word} {there.segment.name}", lambda p, there=there: other_network(p, there)  # type: ignore[misc]
