"""What a network forbids its guests, proved by trying: forged frames, and ways that must be closed.

A frame counts as dropped only when one of the same shape, sent after it through the same port, has
arrived where the forbidden one did not: silence alone proves nothing.
"""
from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network

from kvmnet.check import frames
from kvmnet.check.attacks import ATTACKS, Attack, Receiver, Sender, Shot, from_address
from kvmnet.check.echo import error_words, knock, ping
from kvmnet.check.model import DROPS, Finding, Verdict, failed, passed, skipped
from kvmnet.check.promises import SHORT, Place, Prove, gateway, own_address, single
from kvmnet.check.station import PATIENCE, Listener, Station, is_error
from kvmnet.host.packets import Capture
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass
from kvmnet.spec.networks import CLOSED

SOMEWHERE = {4: "198.51.100.1", 6: "2001:db8::1"}
"""Addresses that nobody has (RFC 5737, RFC 3849)."""
COMMON = (22, 111, 443)
"""TCP ports that hosts often listen on."""


@dataclass(frozen=True, slots=True)
class Witness:
    """Who hears every port of a network and can send to it: the host, or a port that is not isolated."""

    name: str
    mac: str
    ip: str
    ip6: str
    ear: Listener
    mouth: Station | Capture

    def may_send(self, to: Station) -> Shot:
        """A frame that gets from here to *to*."""
        local = frames.link_local(self.mac)
        shot = from_address(Sender(self.mac, self.ip, self.ip6, local, "", "", ""), receiver_of(to), local, to.local)
        assert shot
        return shot


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
    witness: Witness


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
    if not ping(station, target).answered:
        return failed(f"cannot be proved: {target} stopped answering echo")
    if wrong := [f"{port} ({answers[port]})" for port in ports if port in answers]:
        return failed(f"{target} answers on TCP {', '.join(wrong)}, which the document does not open")
    heard = "is open on 53" if answers.get(53) == "open" else "answers echo"
    return passed(f"{target} is silent on TCP {', '.join(map(str, ports))}, and {heard}")


def no_way_out(place: Place, family: int) -> Finding | None:
    """From an isolated network nothing is routed."""
    segment, station = place.segment, place.station
    via = segment.address if family == 4 else segment.address6
    if segment.network.mode not in CLOSED or not via or not own_address(station, family):
        return None
    control = ping(station, via)
    if not control.answered:
        return failed(f"cannot be proved: {control.words}")
    named, nonce = place.subject.target(family), os.urandom(12)
    target = named or SOMEWHERE[family]
    echo = ping(station, target, via=via, patience=SHORT, nonce=nonce)
    if echo.answered:
        return failed(f"{target} answers echo")
    if not ping(station, via).answered:
        return failed(f"cannot be proved: {via} stopped answering echo")
    if any(ear.carried(nonce) for ear in place.uplinks):
        return failed(f"a packet for {target} left by an uplink")
    if echo.refused and "prohibited" in echo.words:
        return passed(f"{echo.words}, for {target}")
    if echo.refused:
        return skipped(f"the host has no way there itself ({echo.words})")
    if not named or not place.uplinks:
        return skipped(f"the host has no IPv{family} way out to leak by; name an address with --outside")
    return passed(f"{target} is silent and nothing left by an uplink; {via} answers echo")


@dataclass(frozen=True, slots=True)
class Beyond:
    """Another network: a probe on it, and who can send to that probe."""

    segment: Segment
    far: Station
    door: Witness


def apartness(place: Place, others: Sequence[Beyond]) -> Iterator[tuple[str, Finding]]:
    """Networks that are no peers are out of reach, routed or as frames. All are tried, then waited for
    once: the time does not grow with their number."""
    controls = {family: ping(place.station, via) for family, via in
                ((4, place.segment.address), (6, place.segment.address6)) if via and own_address(place.station, family)}
    tries: list[tuple[Beyond, list[Try], Shot]] = []
    since = len(place.station.heard)
    for there in others:
        tried = [t for family in controls if controls[family].answered and (t := attempt(place, there, family))]
        shot = to_local(place, there.far)
        for frame in (*(t.frame for t in tried), shot.frame):
            place.station.send(frame)
        tries.append((there, tried, shot))
    deadline = time.monotonic() + SHORT
    broken = [f"cannot be proved: {c.words}" for c in controls.values() if not c.answered]
    for there, tried, shot in tries:
        name = f"apart from {there.segment.name}"
        if not sent(there.door.mouth, there.door.may_send(there.far), there.far):
            yield name, failed(f"cannot be proved: the probe on {there.segment.name} hears nothing")
        elif broken:
            yield name, failed(broken[0])
        elif there.far.carried(shot.mark):
            yield name, failed(f"a frame from {place.segment.name} came out on {there.segment.name}")
        else:
            yield name, judged(place, there, tried, deadline, since)


@dataclass(frozen=True, slots=True)
class Try:
    """An echo request for a probe beyond."""

    target: str
    frame: bytes
    nonce: bytes
    also_here: bool
    """The address is one of the own routing domain, too (another has equal ones): an answer proves nothing."""


def attempt(place: Place, there: Beyond, family: int) -> Try | None:
    """An echo for the probe *there* by way of the host; None when no address leads there."""
    station, target = place.station, own_address(there.far, family)
    via = place.segment.address if family == 4 else place.segment.address6
    if not target or not gateway(there.segment, family):
        return None
    # Now the host knows the far probe's MAC: a packet that gets through arrives at once, before the control.
    ping(there.far, gateway(there.segment, family))
    nonce = os.urandom(12)
    packet = frames.echo(station.address_for(target), target, secrets.randbits(16), nonce)
    own = [s.network.subnet if family == 4 else s.network.subnet6 for s in place.subject.segments.values() if s.vrf == place.segment.vrf]
    return Try(target, frames.ether(station.resolve(via), station.mac, frames.family(packet), packet), nonce,
               place.segment.vrf != there.segment.vrf and any(net and ip_address(target) in ip_network(net) for net in own))


def judged(place: Place, there: Beyond, tried: Sequence[Try], deadline: float, since: int) -> Finding:
    words = []
    for t in tried:
        answer = place.station.wait(lambda p, t=t: t.nonce in p.raw,  # type: ignore[misc]
                                    max(0.0, deadline - time.monotonic()), since)
        if there.far.carried(t.nonce) or (answer and not is_error(answer) and not t.also_here):
            return failed(f"a packet reached {t.target}")
        if t.also_here:
            words.append(f"{t.target} there got nothing that was sent to {t.target} here")
            continue
        words.append(f"{t.target} is out of reach ({error_words(answer) if answer else 'silence'})")
    return passed("; ".join((*words, f"no frame came out there, {there.door.name}'s did")))


def to_local(place: Place, to: Station) -> Shot:
    """A frame between link-local addresses, which every station has."""
    shot = from_address(sender_of(place), receiver_of(to), place.station.local, to.local)
    assert shot
    return shot


def reaches_peer(place: Place, there: Beyond) -> Finding | None:
    """A peer network is within reach, in both families if it has them."""
    found = [routed_to(place, there, family) for family in (4, 6)]
    made = [f for f in found if f]
    wrong = [f for f in made if f.verdict is not Verdict.PASS]
    if wrong or not made:
        return wrong[0] if wrong else None
    return passed("; ".join(f.evidence for f in made))


def are_peers(one: Segment, other: Segment) -> bool:
    return other.name in one.network.peers or one.name in other.network.peers


def routed_to(place: Place, there: Beyond, family: int) -> Finding | None:
    station, target = place.station, own_address(there.far, family)
    via = place.segment.address if family == 4 else place.segment.address6
    if not target or not via or not own_address(station, family) or not gateway(there.segment, family):
        return None
    echo = ping(station, target, via=via)
    return passed(f"{target} answers echo") if echo.answered else failed(echo.words)


def sender_of(place: Place) -> Sender:
    s = place.station
    return Sender(s.mac, s.ip, s.ip6, s.local, place.other_mac, place.other_ip, place.other_ip6)


def receiver_of(station: Station, gateway4: str = "", gateway6: str = "") -> Receiver:
    return Receiver(station.ip or station.local, station.mac, station.ip, station.ip6, gateway4, gateway6)


def firing_range(place: Place, witness: Witness) -> Range:
    """The peer, unless ports are apart, and the witness. In front of the host only addresses that
    nobody has are claimed, so that an attack that gets through does not cut off its real neighbours."""
    segment, sender = place.segment, sender_of(place)
    nobody6 = place.other_ip6 or frames.link_local(place.other_mac)
    to_peer = receiver_of(place.peer, gateway(segment, 4) or place.other_ip, gateway(segment, 6) or nobody6)
    to_witness = Receiver(witness.name, witness.mac, witness.ip, witness.ip6, place.other_ip, nobody6)
    aims = [Aim(to_witness, witness.ear)]
    if segment.meeting:
        aims.insert(0, Aim(to_peer, place.peer))
    return Range(place, sender, aims, witness)


def guests_apart(place: Place, witness: Witness) -> Finding | None:
    """Ports that are apart do not reach each other; the witness they do, and the witness them."""
    if not place.segment.apart:
        return None
    peer = place.peer
    shot = from_address(sender_of(place), receiver_of(peer), place.station.local, peer.local)
    to = Receiver(witness.name, witness.mac, witness.ip, witness.ip6, "", "")
    control = from_address(sender_of(place), to, place.station.local, frames.link_local(witness.mac))
    assert shot and control
    place.station.send(shot.frame)
    if not sent(place.station, control, witness.ear):
        return failed(f"cannot be proved: {witness.name} does not hear the probe")
    if place.segment.parent:    # what a switch sends back comes after the control, which was heard on its way out
        reached = peer.wait_for(shot.mark, SHORT)
    elif sent(witness.mouth, witness.may_send(peer), peer):    # now the peer has heard all that came before
        reached = peer.carried(shot.mark)
    else:
        return failed(f"cannot be proved: the other port does not hear {witness.name}")
    if reached:
        return failed("a frame from one isolated port reached another")
    return passed(f"a frame for another isolated port did not reach it; one for {witness.name} did")


def refusals(ground: Range, others: Sequence[Beyond]) -> Iterator[Prove]:
    """Proofs of what is forbidden (and of the way to peers), in the order of the report."""
    for name, attack in ATTACKS.items():
        yield single(f"{DROPS}{name}", lambda _, attack=attack: fire(ground, attack))  # type: ignore[misc]
    yield single("guests-apart", lambda p: guests_apart(p, ground.witness))
    yield single("host-closed", host_is_closed)
    yield single("no-way-out4", lambda p: no_way_out(p, 4))
    yield single("no-way-out6", lambda p: no_way_out(p, 6))
    here = ground.place.segment
    peers = [o for o in others if are_peers(here, o.segment)]
    for there in peers:
        yield single(f"reaches {there.segment.name}", lambda p, there=there: reaches_peer(p, there))  # type: ignore[misc]
    yield lambda p: apartness(p, [o for o in others if o not in peers])
