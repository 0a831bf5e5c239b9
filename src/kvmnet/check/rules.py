"""Groups, tenants and isolation, proved between two at a time: what the rules forbid is sent, and counted where it would arrive; then
what they allow, which must.

The sender is an idle NIC on its own tap, a probe (a guest in no group), or the host, which also speaks in the name of addresses
outside. The receiver is such a NIC, the tap of a guest that runs, the host, or the wire behind the uplink; a guest that runs gets
only what is forbidden to it. Packets for somebody outside die at the next router.
"""
from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_interface
from typing import Protocol

from kvmnet.check import frames
from kvmnet.check.frames import ARP, IP6, NOBODY, ether
from kvmnet.check.idle import Idle
from kvmnet.check.kinds import (
    NOTHINGS,
    Kind,
    Shot,
    allows,
    are_apart,
    is_judged,
    kinds,
    rules_between,
    shot,
    strangers,
)
from kvmnet.check.model import PROBE, Claim, Subject, Verdict
from kvmnet.check.pairs import Control, Pair, Trial, claim_of, fire, forget
from kvmnet.check.promises import Place, gateway
from kvmnet.check.refusals import Range, Witness, are_peers
from kvmnet.check.station import Listener, Station
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.host.packets import Capture, exists
from kvmnet.host.run import run
from kvmnet.host.trace import send_raw
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.policy.flows import UDP, Judge
from kvmnet.records import dataclass
from kvmnet.spec.limits import effective
from kvmnet.spec.networks import Mode

PAIRS = 100
"""Pairs that are tried; of each kind of pair one before any other."""
RUNNING = 16
"""Taps of running guests that are listened to."""
ENOUGH = 1000
"""Packets or flows that a limit must let pass, else it would take part."""
TO_NEXT_ROUTER = 2
"""Hops: the host takes one."""


class Ground(Protocol):
    """One network, ready to be proved (``prove.Ground``)."""

    @property
    def place(self) -> Place: ...
    @property
    def range(self) -> Range: ...
    @property
    def idle(self) -> Sequence[Idle]: ...


@dataclass(frozen=True, slots=True)
class End:
    """Who sends or is sent to. ``nic`` None: the host. ``station`` None: it sends nothing here."""

    name: str
    place: Place
    nic: NicGroups | None
    mac: str
    ip: str
    ip6: str
    ear: Listener
    station: Station | None

    @property
    def segment(self) -> Segment:
        return self.place.segment

    def address(self, family: int) -> str:
        return self.ip if family == 4 else self.ip6


# -- who with whom ---------------------------------------------------------------------------------

def proved(grounds: Sequence[Ground], subject: Subject) -> list[Claim]:
    """A claim for each pair that is tried, one at the end for those that are not."""
    judge = subject.allowed.judge
    if judge is None:
        return []
    with ExitStack() as stack:
        ends = {g.place.segment.name: ends_of(g, subject, stack) for g in grounds if not g.place.segment.parent}
        introduce(e for found in ends.values() for e in found)
        possible = [*between_guests(grounds, ends, judge), *with_host(grounds, ends, judge)]
        chosen = sample(possible)
        pairs = [make() for _, make in chosen]
        hearing = fire(pairs)
        claims = [claim_of(pair, hearing) for pair in pairs if pair.trials]
        claims += [c for g in grounds for c in hindered(g.place.segment, subject)]
        forget(pairs)
    if left := len(possible) - len(chosen):
        claims.append(Claim(grounds[0].place.segment.name, "host", "rules", Verdict.SKIP,
                            f"{left} more pairs were not tried, {len(chosen)} were"))
    return claims


Possible = tuple[tuple[object, ...], Callable[[], Pair]]
"""What makes a pair the same as another, and the pair."""


def sample(possible: Sequence[Possible]) -> list[Possible]:
    """At most PAIRS in their order; of each kind one before others of a kind that is there."""
    seen: set[tuple[object, ...]] = set()
    first: list[int] = []
    rest: list[int] = []
    for number, (kind, _) in enumerate(possible):
        (rest if kind in seen else first).append(number)
        seen.add(kind)
    return [possible[n] for n in sorted((first + rest)[:PAIRS])]


def ends_of(ground: Ground, subject: Subject, stack: ExitStack) -> list[End]:
    """The probe, idle NICs, and guests that run."""
    place = ground.place
    found: list[End] = []
    for nic in place.segment.nics:
        known = subject.allowed.nics.get(nic.tap)
        station = next((i.station for i in ground.idle if i.nic.tap == nic.tap), None)
        if known is None or is_hindered(nic, place.segment) or not (station or (nic.vm in subject.running and len(found) < RUNNING and exists(nic.tap))):
            continue
        ear = station or stack.enter_context(Listener(stack.enter_context(Capture(nic.tap))))
        found.append(End(f"{nic.vm}/{nic.nic}", place, known, nic.mac, nic.ip, nic.ip6, ear, station))
    s, zone = place.station, next((e.nic.zone for e in found if e.nic), 0)
    probe = NicGroups(name=PROBE, groups=(), tenant="", zone=zone, isolated=place.segment.network.isolated_ports)
    return [End(PROBE, place, probe, s.mac, s.ip, s.ip6, s, s), *found]


def is_hindered(nic: NicOnNetwork, segment: Segment) -> bool:
    """Whether its limits would drop what its groups allow."""
    values, _ = effective(nic.declared.limits, segment.network.limits, segment.mtu)
    return any(values.get(name, ENOUGH) < ENOUGH for name in ("packets", "connections", "concurrent", "syn", "receive_packets"))


def hindered(segment: Segment, subject: Subject) -> Iterator[Claim]:
    for nic in segment.nics:
        if nic.tap in subject.allowed.nics and is_hindered(nic, segment):
            yield Claim(segment.name, f"{nic.vm}/{nic.nic}", "rules", Verdict.SKIP, f"its limits let less than {ENOUGH} packets or flows pass")


def introduce(ends: Iterable[End]) -> None:
    """Let the host know who has which address, as it would when a guest answers it: a packet that waits for an answer is no proof."""
    known = {(row["dst"], row.get("lladdr")) for row in json.loads(run(["ip", "-j", "neigh"]) or "[]")}
    lines = [f"neigh replace {address} lladdr {end.mac} dev {end.segment.bridge} nud reachable\n" for end in ends if end.segment.with_host
             for address, own in ((end.ip, end.segment.address), (end.ip6, end.segment.address6))
             if address and own and (address, end.mac) not in known]
    if lines:
        run(["ip", "-batch", "-"], stdin="".join(lines))


def between_guests(grounds: Sequence[Ground], ends: Mapping[str, Sequence[End]], judge: Judge) -> Iterator[Possible]:
    for here in grounds:
        for there in grounds:
            one, other = here.place.segment, there.place.segment
            if one is not other and not (are_peers(one, other) and one.with_host and other.with_host):
                continue
            for source in ends.get(one.name, ()):
                for target in ends.get(other.name, ()):
                    if source is not target and source.station and target.name != PROBE and is_judged(judge.policy, source.nic, target.nic):
                        yield kind_of(source, target), partial(guest_to_guest, source, target, judge, here.range.witness, there.range.witness)


def with_host(grounds: Sequence[Ground], ends: Mapping[str, Sequence[End]], judge: Judge) -> Iterator[Possible]:
    """The host and a guest, both ways, and the guest to somebody outside."""
    for ground in grounds:
        segment, witness = ground.place.segment, ground.range.witness
        for end in ends.get(segment.name, ()):
            if segment.with_host and (segment.address or segment.address6):
                if is_judged(judge.policy, None, end.nic):
                    yield kind_of(None, end), partial(host_to_guest, end, judge, witness)
                if end.station and is_judged(judge.policy, end.nic, None):
                    yield kind_of(end, None), partial(guest_to_host, end, judge, witness)
            if end.station and segment.network.mode in (Mode.NAT, Mode.ROUTED) and is_judged(judge.policy, end.nic, None):
                yield (*kind_of(end, None), "outside"), partial(guest_to_outside, end, judge)


def kind_of(*ends: End | None) -> tuple[object, ...]:
    return tuple((e.segment.name, e.nic.groups, e.nic.tenant, e.nic.isolated, e.station is None) if e and e.nic else None for e in ends)


# -- what is sent ----------------------------------------------------------------------------------

def guest_to_guest(source: End, target: End, judge: Judge, near: Witness, far: Witness) -> Pair:
    """On one network to the neighbour's MAC, else by way of the host; where both are isolated, both ways."""
    station = source.station
    assert station
    beside, apart = source.segment is target.segment, are_apart(source.nic, target.nic)
    trials = []
    for family in (4, 6):
        ends = source.address(family), target.address(family)
        if not all(ends) or not (beside or gateway(source.segment, family)):
            continue
        shots = [s for s in shots_of(judge, source.nic, target.nic, [ends]) if target.station or not s.allowed]
        to_host = question(station, family, near.mac, ends[1], near.ear)
        if beside:
            control = to_host if apart else question(station, family, target.mac, ends[1], target.ear)
            trials.append(Trial(family, shots, through(station, target.mac), [target.ear], [control]))
        if source.segment.with_host and (apart or not beside):
            around = shots_of(judge, source.nic, target.nic, [ends]) if beside else shots
            trials.append(Trial(family, around, through(station, near.mac), [target.ear], [to_host, asked_by(far, family, target)]))
    return Pair(source.segment.name, source.name, target.name, trials, spared=target.station is None)


def guest_to_host(source: End, judge: Judge, witness: Witness) -> Pair:
    station = source.station
    assert station
    segment, trials = source.segment, []
    for family, address in ((4, segment.address), (6, segment.address6)):
        ends = source.address(family), address
        if all(ends):
            control = question(station, family, witness.mac, address, witness.ear)
            trials.append(Trial(family, shots_of(judge, source.nic, None, [ends]), through(station, witness.mac), [witness.ear], [control]))
    return Pair(segment.name, source.name, "the host", trials)


def guest_to_outside(source: End, judge: Judge) -> Pair:
    """Out by the host's router: to each prefix that a rule names, and to somebody whom none names."""
    station = source.station
    assert station
    place, own, trials = source.place, own_prefixes(source.place.subject), []
    for family in (4, 6):
        src, via = source.address(family), gateway(source.segment, family)
        if not src or not via or not place.subject.target(family, source.segment.vrf) or not (mac := station.resolve(via)):
            continue
        ends = [(src, dst) for dst in strangers(rules_between(judge.policy, source.nic, None), judge.sets, own, family)]
        shots = shots_of(judge, source.nic, None, ends, hops=TO_NEXT_ROUTER)
        trials.append(Trial(family, shots, through(station, mac), place.uplinks, list(way_out(place, family, own))))
    return Pair(source.segment.name, source.name, "outside", trials)


def host_to_guest(target: End, judge: Judge, witness: Witness) -> Pair:
    """From the host's address, and in the name of those outside that rules tell apart. A guest that runs is not sent what it may answer."""
    own, trials = own_prefixes(target.place.subject), []
    for family, address in ((4, target.segment.address), (6, target.segment.address6)):
        if not address or not (dst := target.address(family)):
            continue
        others = strangers(rules_between(judge.policy, None, target.nic), judge.sets, own, family)
        shots = shots_of(judge, None, target.nic, [(src, dst) for src in (address, *others)])
        trials.append(Trial(family, [s for s in shots if target.station or not s.allowed], partial(send_raw, dst, vrf=target.segment.vrf), [target.ear],
                            [asked_by(witness, family, target)]))
    return Pair(target.segment.name, "host", target.name, trials, spared=target.station is None)


def shots_of(judge: Judge, source: NicGroups | None, target: NicGroups | None, ends: Iterable[tuple[str, str]], hops: int = 64) -> list[Shot]:
    rules = list(rules_between(judge.policy, source, target))
    return [shot(kind, pair, allowed=allows(judge, source, target, pair, kind), hops=hops)
            for pair in ends for kind in kinds(rules, 6 if ":" in pair[0] else 4)]


def own_prefixes(subject: Subject) -> list[str]:
    """Where nobody is outside: networks of the document, and those that the host has an address on."""
    listed = json.loads(run(["ip", "-j", "addr"]))
    near = [str(ip_interface(f"{a['local']}/{a['prefixlen']}").network) for link in listed for a in link.get("addr_info", ())]
    return [*near, *(n for s in subject.segments.values() for n in (s.network.subnet, s.network.subnet6) if n)]


def through(station: Station, mac: str) -> Callable[[bytes], None]:
    return lambda packet: station.send_ip(packet, mac)


# -- what no rule holds up -------------------------------------------------------------------------

def question(station: Station, family: int, mac: str, address: str, ear: Listener) -> Control:
    """A guest asks for the receiver by ARP or ND."""
    frame, mark = asking((station.mac, station.ip if family == 4 else station.ip6), mac, address)
    return Control(partial(station.send, frame), mark, [ear])


def asked_by(witness: Witness, family: int, target: End) -> Control:
    """The host asks for the receiver."""
    frame, mark = asking((witness.mac, witness.ip if family == 4 else witness.ip6), target.mac, target.address(family))
    return Control(partial(witness.mouth.send, frame), mark, [target.ear])


def asking(by: tuple[str, str], mac: str, address: str) -> tuple[bytes, bytes]:
    """The frame to *mac*, and its mark. Of IPv6 that is the whole packet, with a flow label of its own: what follows a packet is cut off
    by bridge netfilter."""
    own_mac, own = by
    if ":" not in address:
        mark = os.urandom(12)
        return ether(mac, own_mac, ARP, frames.arp(1, by, (NOBODY, address)) + mark), mark
    packet = frames.solicitation(own, own_mac, address)
    packet = (int.from_bytes(packet[:4], "big") | secrets.randbits(20)).to_bytes(4, "big") + packet[4:]
    return ether(mac, own_mac, IP6, packet), packet


def way_out(place: Place, family: int, own: Sequence[str]) -> Iterator[Control]:
    """A packet of the probe, which no group limits, by the same way."""
    probe = place.station
    src, to = probe.ip if family == 4 else probe.ip6, strangers((), {}, own, family)
    if src and to and (mac := probe.resolve(gateway(place.segment, family))):
        made = shot(Kind(family, UDP, NOTHINGS), (src, to[0]), allowed=True, hops=TO_NEXT_ROUTER)
        yield Control(partial(probe.send_ip, made.packet, mac), made.mark, place.uplinks, made.flow)
