"""``kvmnet bench failover``: members of a bond are lost one at a time, and the time without answers is measured.

A turn: wait until every probe is answered; lose the member; wait until every probe is answered again; give the member
back; wait until the bond uses it. A process of its own gives it back if this one does not.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic

from kvmnet.bench.failover.balance import WANTED, Share, share, spreads
from kvmnet.bench.failover.bonds import LACP, Bond, read_bond
from kvmnet.bench.failover.losses import WORDS, Loss, commands
from kvmnet.bench.failover.paths import Way, ways
from kvmnet.bench.failover.probe import Announcement, Probe, probing
from kvmnet.bench.failover.timeline import Outage
from kvmnet.bench.machine import machine
from kvmnet.bench.model import Figures, Progress, Report, Row
from kvmnet.errors import ConflictError, KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.host.put_back import lit
from kvmnet.records import dataclass, field

CALM = 0.5
"""Seconds in which every probe is answered before a turn begins, and before it is over."""
STEADY = 15.0
"""Seconds for that before a turn."""
LEAST = 1.0
"""Seconds that a loss lasts at least."""
RETURN = 45.0
"""Seconds for a member to be used again: a slow LACP partner speaks every 30."""
MARGIN = 5.0
"""Seconds after the limit at which the other process gives the member back."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be measured."""

    bond: str
    target: str
    """Address beyond the bond that answers pings, or ARP where the host has no address."""
    members: tuple[str, ...] = ()
    """Members to lose; those that carry something to the target if none is named."""
    loss: Loss = Loss.LINK
    times: int = 5
    interval: float = 0.01
    """Seconds between two probes."""
    limit: float = 10.0
    """Longest time in seconds that a member stays lost."""
    flows: int = 10_000
    """UDP flows for the shares; 0 for no such measurement."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One loss of one member."""

    member: str
    loss: Outage
    back: Outage
    """When it was given back."""
    announced: tuple[Announcement, ...]
    """Between its loss and its return."""


@dataclass
class Found:
    turns: list[Turn] = field(default_factory=list)
    share: Share | None = None
    notes: list[str] = field(default_factory=list)


def promise(wish: Wish) -> list[str]:
    """What will be done, in words, before it is. Raises KvmnetError and HostCannot when it cannot be done."""
    bond = read_bond(wish.bond)
    found = ways(bond, wish.target, wish.members)
    refuse_the_last(bond, [w.member for w in found])
    names = ", ".join(w.member for w in found)
    lines = [f"{wish.times} times each: {names} of {bond.name} ({bond.mode}) {WORDS[wish.loss]}, for {LEAST:g} to "
             f"{wish.limit:g} s, and is given back, also when this command is killed.",
             f"Meanwhile {found[0].words} every {wish.interval * 1000:g} ms. Everything that uses {bond.name} loses what is "
             "sent in the gaps."]
    if wish.flows:
        lines.append(f"Then {wish.flows} UDP datagrams of as many flows to {wish.target}, port 9 (discard).")
    lines.append(f"It takes about {round(len(found) * wish.times * (CALM + LEAST + 2) + 2)} s, longer when nothing takes over.")
    return lines


def refuse_the_last(bond: Bond, members: Sequence[str]) -> None:
    """Raise ConflictError when a member has none beside it that could take over."""
    for name in members:
        if not bond.others(name):
            raise ConflictError(f"{name} is the last member of {bond.name} with a carrier: without it everything behind "
                                f"{bond.name} would be cut off", "bring another member up first")


def measure(wish: Wish, progress: Progress) -> Report:
    """Lose members, and report. Every member has been given back when this returns or raises.

    Raises KvmnetError (nothing answers), ConflictError (the last member), HostCannot, ToolFailed.
    """
    began, found = monotonic(), Found()
    bond = read_bond(wish.bond)
    turns = list(planned(wish, bond))
    for done, member in enumerate(turns):
        progress(f"{member or bond.name}: {wish.loss} loss", done, len(turns))
        found.turns.append(turn(wish, member))
    if wish.flows:
        progress(f"{wish.flows} flows", len(turns), len(turns))
        found.share = share(read_bond(wish.bond), wish.target, wish.flows)
    settings = {"bond": bond.name, "options": dict(bond.options), "members": [m.name for m in bond.members],
                "target": wish.target, "loss": wish.loss.value, "times": wish.times,
                "interval_ms": wish.interval * 1000, "limit_s": wish.limit, "flows": wish.flows}
    subject = f"{bond.name}, " + ", ".join(f"{k} {spelled(v)}" for k, v in bond.options.items())
    return Report("failover", subject, settings, machine(m.name for m in bond.members), list(rows(wish, bond, found)),
                  list(notes(wish, bond, found)), monotonic() - began)


def spelled(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def planned(wish: Wish, bond: Bond) -> Iterator[str]:
    """The member of each turn; '' for the one that is in use then (active-backup may stay with the other)."""
    one_at_a_time = bond.mode == "active-backup" and not wish.members
    found = [""] if one_at_a_time else [w.member for w in ways(bond, wish.target, wish.members)]
    for _ in range(wish.times):
        yield from found


def turn(wish: Wish, member: str) -> Turn:
    """Lose one member once. It is usable when this begins, and when it ends."""
    bond = read_bond(wish.bond)
    way = ways(bond, wish.target, (member,) if member else ())[0]
    refuse_the_last(bond, [way.member])
    make, undo = commands(wish.loss, way.member)
    with (lit(undo, wish.limit + MARGIN) as fuse,
          probing(way.ask, [m.name for m in bond.members], wish.interval) as probe):
        if not probe.calm_within(CALM, STEADY):
            raise KvmnetError(f"{wish.target} does not answer {way.words} steadily by {way.member}: nothing can be measured",
                              "name another address with --to, or ask less often with --interval")
        began = monotonic()
        with fuse.disturbed(make):
            lost = monotonic()
            wait_least(lost + max(LEAST, telling(bond)))
            probe.calm_within(CALM, wish.limit - (monotonic() - lost), lost)
            ended = monotonic()
        given = monotonic()
        come_back(wish, way, probe, given)
        return Turn(way.member, probe.timeline.outage(began, ended),
                    probe.timeline.outage(ended, monotonic()), announced(probe, began, ended))


def telling(bond: Bond) -> float:
    """Seconds that the announcements of a failover may take."""
    apart = max(bond.number("peer_notify_delay"), bond.number("miimon"), bond.number("arp_interval"))
    return 0.5 + bond.number("num_peer_notif") * apart / 1000


def wait_least(until: float) -> None:
    with suppress(TimeoutError):
        wait_until(lambda: monotonic() >= until, max(0.0, until - monotonic()))


def come_back(wish: Wish, way: Way, probe: Probe, since: float) -> None:
    """Wait until the bond has the member again and everything is answered. Raises KvmnetError."""
    def usable() -> bool:
        member = read_bond(wish.bond).member(way.member)
        return member is not None and member.usable

    try:
        wait_until(usable, RETURN, 0.1)
    except TimeoutError:
        raise KvmnetError(f"{way.member} was given back, but {wish.bond} has not used it for {RETURN:g} s",
                          f"cat /proc/net/bonding/{wish.bond} shows why") from None
    wait_least(since + LEAST)
    probe.calm_within(CALM, STEADY, since)


def announced(probe: Probe, since: float, until: float) -> tuple[Announcement, ...]:
    return tuple(a for a in probe.announced if since <= a.when <= until)


# -- the report --------------------------------------------------------------------------------------

def rows(wish: Wish, bond: Bond, found: Found) -> Iterator[Row]:
    for member in dict.fromkeys(t.member for t in found.turns):
        yield from member_rows(wish, bond, member, [t for t in found.turns if t.member == member])
    if found.share:
        yield from share_rows(bond, found.share)


def member_rows(wish: Wish, bond: Bond, member: str, turns: Sequence[Turn]) -> Iterator[Row]:
    over = [t for t in turns if t.loss.over]
    left = len(turns) - len(over)
    yield Row(member, f"gap at {wish.loss} loss", Figures(tuple(t.loss.gap_ms for t in over), "ms"),
              f"{left} of {len(turns)} times nothing took over within {wish.limit:g} s" if left else "", not left)
    yield Row(member, "probes lost", Figures(tuple(float(t.loss.lost) for t in turns), "probes"),
              f"one every {wish.interval * 1000:g} ms")
    back = [t for t in over if t.back.over]
    yield Row(member, "gap at return", Figures(tuple(t.back.gap_ms for t in back), "ms"),
              f"{len(over) - len(back)} of {len(over)} times not over" if len(back) < len(over) else "", len(back) == len(over))
    if bond.mode == "active-backup" or any(t.announced for t in turns):
        yield Row(member, "announcements", Figures(tuple(float(len(t.announced)) for t in turns), "messages"),
                  told(turns))


def told(turns: Sequence[Turn]) -> str:
    """What was announced in the last turn, and when the first of all came."""
    delays = [1000 * (t.announced[0].when - t.loss.began) for t in turns if t.announced and t.loss.began is not None]
    kinds: dict[str, int] = {}
    for a in turns[-1].announced:
        words = f"{a.kind} of {a.address} by {a.member}"
        kinds[words] = kinds.get(words, 0) + 1
    return "; ".join([*(f"{count} {words}" for words, count in kinds.items()),
                      *([f"the first {Figures(tuple(delays), 'ms').median:.0f} ms after the first lost probe"] if delays else [])])


def share_rows(bond: Bond, found: Share) -> Iterator[Row]:
    for member, count in found.by_member.items():
        yield Row(member, "share", Figures((found.percent(member),), "%"), f"{count} of {found.flows} flows")
    why = spreads(bond)
    yield Row(bond.name, "balance", Figures((found.balance,), "%"),
              why or "of an even share on the least used member", bool(why) or found.balance >= WANTED)


def notes(wish: Wish, bond: Bond, found: Found) -> Iterator[str]:
    worst = max((o.exact for t in found.turns for o in (t.loss, t.back)), default=0.0)
    yield f"gaps are exact to {max(worst, wish.interval) * 1000:.0f} ms, the time between two probes where they begin and end"
    if wish.loss is Loss.SILENT:
        yield ("silent loss is made on this host, by dropping what the member sends and receives; a far end that fails may "
               "behave otherwise")
        if bond.number("miimon") and bond.mode != LACP:
            yield f"{bond.name} watches carriers (miimon): it does not see a silent loss; options.arp does"
    if bond.mode == LACP and found.turns and all(t.loss.lost == 0 for t in found.turns):
        yield "no probe was lost: the far end and the hash may have kept the flow off the member"
