"""NICs whose guest does not run: this process takes the guest's place on the very tap, so that the
NIC's own guard, reservation and addresses are proved, and not only a probe's.

A tap that anybody has open is left alone: a second opener of a tap with several queues would be given
a part of the guest's packets.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from kvmnet.check.attacks import ATTACKS
from kvmnet.check.model import DROPS, Claim, Subject, Verdict, skipped
from kvmnet.check.promises import PROMISES, Place, Prove, single
from kvmnet.check.refusals import Range, fire, sender_of
from kvmnet.check.station import Station
from kvmnet.drivers.dnsmasq.driver import leases
from kvmnet.drivers.dnsmasq.wire import Lease
from kvmnet.host.macvtap import held
from kvmnet.host.packets import Tap, exists, has_carrier
from kvmnet.host.run import ToolFailed
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass, replace

MOST = 64
"""Idle NICs of a document that are tried; every network has an equal share, and one at least."""
BY_ROLE = {"dhcp-server": {"rogue-dhcp", "rogue-dhcp6", "dhcp-as-other"}, "router": {"rogue-ra", "hidden-ra"}, "querier": set[str]()}
"""Role of a NIC -> attacks that are its duty."""
TAGGED = {"vlan-tagged", "vlan-zero", "vlan-stacked"}


@dataclass(frozen=True, slots=True)
class Idle:
    """An idle NIC with this process in its guest's place; ``station`` is None where that cannot be."""

    nic: NicOnNetwork
    station: Station | None
    why: str = ""

    @property
    def name(self) -> str:
        return f"{self.nic.vm}/{self.nic.nic}"


def taken(subject: Subject, segment: Segment, stack: ExitStack) -> list[Idle]:
    """The idle NICs of a network, their taps held until *stack* ends."""
    share = max(1, MOST // len(subject.segments))
    lent = {lease.ip: lease for lease in leases(subject.paths, segment.name) if lease.iaid is not None}
    return [take(nic, lent.get(nic.ip6), stack, is_macvtap=bool(segment.parent)) for nic in idle_nics(subject, segment)[:share]]


def idle_nics(subject: Subject, segment: Segment) -> list[NicOnNetwork]:
    return [n for n in segment.nics if n.vm not in subject.running and n.declared.link == "up"]


def take(nic: NicOnNetwork, lent: Lease | None, stack: ExitStack, *, is_macvtap: bool) -> Idle:
    """*lent*: the lease of its IPv6 address that a guest which was stopped has left."""
    if not exists(nic.tap):
        return Idle(nic, None)
    if (nic.tap in held()) if is_macvtap else has_carrier(nic.tap):
        return Idle(nic, None, f"another program has {nic.tap} open")
    try:
        tap = stack.enter_context(Tap.hold_macvtap(nic.tap) if is_macvtap else Tap.hold(nic.tap))
    except ToolFailed as error:
        return Idle(nic, None, f"{nic.tap}: {error.detail}")
    station = Station(tap, nic.mac, nic.ip, nic.ip6, f"{nic.vm}/{nic.nic}")
    if lent and lent.iaid is not None and (duid := octets(lent.client)):
        station.stand_for(duid, lent.iaid)
    return Idle(nic, stack.enter_context(station))


def octets(client: str) -> bytes:
    """A DUID as a lease file has it; none when it is none."""
    try:
        return bytes.fromhex(client.replace(":", ""))
    except ValueError:
        return b""


def work_of(idle: Idle, place: Place, ground: Range) -> tuple[Place, list[Prove]]:
    """Where one NIC is proved from, and its claims in the order of the report."""
    assert idle.station
    own = replace(place, station=idle.station, mtu=idle.nic.mtu)
    aimed = replace(ground, place=own, sender=sender_of(own))
    if not place.subject.allowed.sends_anything(idle.nic.tap):
        kept = [single(f"dhcp{v}", PROMISES[f"dhcp{v}"]) for v, ip in ((4, idle.nic.ip), (6, idle.nic.ip6)) if ip]
        return own, [*kept, single("guard", lambda _: skipped("its groups limit what it sends, controls too"))]
    names = [f"{kind}{v}" for kind in ("dhcp", "gateway") for v, ip in ((4, idle.nic.ip), (6, idle.nic.ip6)) if ip]
    promised = [single(name, PROMISES[name]) for name in names]
    return own, [*promised, *forged(idle.nic, aimed)]


def forged(nic: NicOnNetwork, ground: Range) -> Iterator[Prove]:
    """The attacks that the NIC's guard must refuse: all, but for what the document lets it do."""
    for name in refused_to(nic):
        yield single(f"{DROPS}{name}", lambda _, attack=ATTACKS[name]: fire(ground, attack))  # type: ignore[misc]


def refused_to(nic: NicOnNetwork) -> Sequence[str]:
    declared = nic.declared
    if declared.guard == "off":
        return ()
    if declared.guard == "mac":
        return ("spoofed-mac",)
    duties = {attack for role in declared.extra.roles for attack in BY_ROLE[role]} | (TAGGED if declared.trunk else set())
    return [name for name in ATTACKS if name not in duties]


def unproved(segment: Segment, found: Sequence[Idle], subject: Subject) -> Iterator[Claim]:
    """NICs that are not there, or that were not tried."""
    for idle in found:
        if idle.station is None:
            verdict, why = (Verdict.SKIP, idle.why) if idle.why else (
                Verdict.FAIL, f"there is no tap {idle.nic.tap}; kvmnet apply makes it")
            yield Claim(segment.name, idle.name, "tap", verdict, why)
    left = len(idle_nics(subject, segment)) - len(found)
    if left:
        yield Claim(segment.name, "host", "idle NICs", Verdict.SKIP, f"{left} more were not tried, {len(found)} were")

