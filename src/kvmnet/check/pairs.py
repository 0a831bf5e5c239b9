"""Packets between two: what is forbidden first, then what is allowed, and what came of each."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from kvmnet.check.kinds import Kind, Shot
from kvmnet.check.model import RULES, Claim, Finding, failed, passed, skipped
from kvmnet.check.station import PATIENCE, Listener, is_error
from kvmnet.drivers.nftables.conntrack import cut
from kvmnet.host.clock import wait_until
from kvmnet.records import dataclass, field

TRIES = 3
SOON = 0.25
"""Seconds until the next pair has its turn, when something does not come at once."""
LONGEST_LIST = 6


@dataclass(frozen=True, slots=True)
class Control:
    """A frame that no rule holds up."""

    send: Callable[[], None]
    mark: bytes
    ears: Sequence[Listener]
    flow: tuple[str, str, int, int] | None = None
    """What it leaves in the table of flows."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Packets of one family from one to another."""

    family: int
    shots: Sequence[Shot]
    send: Callable[[bytes], None]
    ears: Sequence[Listener]
    controls: Sequence[Control] = ()
    """They show that the way is there when no kind is allowed; none where nothing can show it."""


@dataclass(frozen=True, slots=True)
class Pair:
    network: str
    source: str
    target: str
    trials: Sequence[Trial]
    spared: bool = False
    """The receiver is a guest that runs: what it may answer is not sent."""


@dataclass
class Hearing:
    """Which marks were heard where."""

    wanted: dict[Listener, set[bytes]] = field(default_factory=dict)
    read: dict[Listener, int] = field(default_factory=dict)
    found: set[tuple[Listener, bytes]] = field(default_factory=set)

    def expect(self, ears: Iterable[Listener], marks: Iterable[bytes]) -> None:
        for ear in ears:
            self.wanted.setdefault(ear, set()).update(marks)
            self.read.setdefault(ear, len(ear.heard))

    def look(self) -> None:
        for ear, marks in self.wanted.items():
            with ear.news:
                fresh = ear.heard[self.read[ear]:]
            self.read[ear] += len(fresh)
            for packet in (p for p in fresh if not is_error(p)):  # errors quote what did not get through
                here = {mark for mark in marks if mark in packet.raw}
                marks -= here
                self.found |= {(ear, mark) for mark in here}

    def has(self, ears: Iterable[Listener], mark: bytes) -> bool:
        return any((ear, mark) in self.found for ear in ears)


# -- trying, and what came -------------------------------------------------------------------------

def fire(pairs: Sequence[Pair]) -> Hearing:
    """Send what is forbidden, then what is allowed; what does not come is sent again, as on any wire."""
    hearing, trials = Hearing(), [t for pair in pairs for t in pair.trials]
    flowing = True
    for trial in trials:
        hearing.expect(trial.ears, [s.mark for s in trial.shots])
        for control in trial.controls:
            hearing.expect(control.ears, [control.mark])
        for s in sorted(trial.shots, key=lambda s: s.allowed):
            trial.send(s.packet)
        for control in trial.controls:
            control.send()
        flowing = came(hearing, [trial], SOON if flowing else SOON / 10)
    for _ in range(TRIES):
        if came(hearing, trials, 0):
            break
        for trial in trials:
            again(trial, hearing)
        came(hearing, trials, PATIENCE / 2)
    return hearing


def missing(trial: Trial, hearing: Hearing) -> list[Shot]:
    """What is allowed and has not come."""
    return [s for s in trial.shots if s.allowed and not hearing.has(trial.ears, s.mark)]


def unheard(trial: Trial, hearing: Hearing) -> list[Control]:
    return [c for c in trial.controls if not hearing.has(c.ears, c.mark)]


def came(hearing: Hearing, trials: Sequence[Trial], timeout: float) -> bool:
    def all_of_it() -> bool:
        hearing.look()
        return not any(missing(t, hearing) or unheard(t, hearing) for t in trials)

    with suppress(TimeoutError):
        wait_until(all_of_it, timeout, 0.005)
        return True
    return False


def again(trial: Trial, hearing: Hearing) -> None:
    for s in missing(trial, hearing):
        trial.send(s.packet)
    for control in unheard(trial, hearing):
        control.send()


# -- what it means ---------------------------------------------------------------------------------

@dataclass
class Tally:
    """What became of a pair's packets."""

    leaked: list[Kind] = field(default_factory=list)
    kept: list[Kind] = field(default_factory=list)
    arrived: list[Kind] = field(default_factory=list)
    missing: list[Kind] = field(default_factory=list)
    unproved: str = ""
    """Why silence proves nothing."""
    closed: bool = False
    """Nothing may pass that could show the way."""
    spared: bool = False


def claim_of(pair: Pair, hearing: Hearing) -> Claim:
    tally = Tally(spared=pair.spared)
    for trial in pair.trials:
        count(trial, hearing, tally)
    found = judged(tally)
    return Claim(pair.network, pair.source, f"{RULES}{pair.target}", found.verdict, found.evidence)


def count(trial: Trial, hearing: Hearing, tally: Tally) -> None:
    reached = [s for s in trial.shots if hearing.has(trial.ears, s.mark)]
    silent = [s for s in trial.shots if s not in reached]
    arrived = [s.kind for s in reached if s.allowed]
    tally.leaked += [s.kind for s in reached if not s.allowed]
    tally.missing += [s.kind for s in silent if s.allowed]
    tally.arrived += arrived
    if arrived or (trial.controls and not unheard(trial, hearing)):
        tally.kept += [s.kind for s in silent if not s.allowed]
    elif trial.controls:
        tally.unproved = f"by IPv{trial.family} not even what always passes arrived"
    else:
        tally.closed = True


def judged(tally: Tally) -> Finding:
    words = []
    if tally.leaked:
        words.append(f"{len(tally.leaked)} of {len(tally.leaked) + len(tally.kept)} forbidden kinds of packets arrived: {listed(tally.leaked)}")
    if tally.missing:
        words.append(f"{len(tally.missing)} of {len(tally.missing) + len(tally.arrived)} allowed kinds did not arrive: {listed(tally.missing)}")
    if words:
        return failed("; ".join(words))
    if tally.unproved:
        return failed(f"cannot be proved: {tally.unproved}")
    if tally.closed and not (tally.kept or tally.arrived):
        return skipped("nothing is allowed that could show that there is a way")
    kept = f"0 of {len(tally.kept)} forbidden kinds of packets arrived" + (f" ({listed(tally.kept)})" if tally.kept else "")
    if tally.arrived:
        return passed(f"{kept}; all {len(tally.arrived)} allowed ones did ({listed(tally.arrived)})")
    return passed(f"{kept}; " + ("its guest runs, what is allowed was not sent" if tally.spared else "none is allowed"))


def listed(kinds: Sequence[Kind]) -> str:
    names = list(dict.fromkeys(map(str, kinds)))
    return ", ".join(names[:LONGEST_LIST]) + (", ..." if len(names) > LONGEST_LIST else "")


def forget(pairs: Iterable[Pair]) -> None:
    """Nobody answered these flows; they would be counted for half a minute."""
    trials = [t for pair in pairs for t in pair.trials]
    ours = {s.flow for t in trials for s in t.shots} | {c.flow for t in trials for c in t.controls}
    with suppress(OSError):  # a kernel that tracks no flows
        cut(lambda flow: (flow.source, flow.destination, flow.protocol, flow.port) in ours)
