"""All drivers as one: observe them side by side, hand each the longest run of steps that is its own."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set
from functools import partial
from itertools import groupby
from typing import Protocol, runtime_checkable

from kvmnet.engine.driver import Command, Driver, Progress, Seen
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Absent, Key, Resource, Wanted, ref_fields
from kvmnet.errors import HostCannot
from kvmnet.host.side import together


@runtime_checkable
class LooksUp(Protocol):
    """A driver that can read single things without a look at everything."""

    def look_up(self, asked: Wanted, seen: Seen) -> Seen:
        """Those of *asked* that exist. ``seen``: the rest of the host."""


@runtime_checkable
class WorksBeside(Protocol):
    """A driver part of whose work goes on beside the steps that follow."""

    def begin(self, steps: Sequence[Step], progress: Progress) -> None:
        """As ``apply``, but returns when all that the steps of other drivers need is done."""

    def wait(self) -> None:
        """Until the rest is done, too. Raises what ``apply`` raises."""


@runtime_checkable
class LooksAhead(Protocol):
    """A driver that can look at what its steps made while those of other drivers go on."""

    def look_ahead(self) -> None:
        """Begin with it. What it finds counts at the next ``observe`` if nothing has changed by then."""


@runtime_checkable
class MakesAhead(Protocol):
    """A driver that can make a part of what is to come before its turn, beside the steps of others."""

    def look_over(self, runs: Sequence[Sequence[Step]]) -> int | None:
        """Before which of *runs*, of which those of other drivers are empty, a part of later ones can be begun with; ``apply`` and
        ``commands`` leave it out then. None: nothing is."""

    def begin_ahead(self) -> None:
        """Begin with it. ``apply`` waits for it and raises what it raised."""

    def commands_ahead(self) -> Sequence[Command]:
        """The commands of ``begin_ahead``."""

    def end_ahead(self) -> None:
        """Wait until it is done or has failed; nothing is left out any more."""


@runtime_checkable
class GoesOn(Protocol):
    """A driver whose commands for a run depend on what the runs before have made."""

    def commands_in_turn(self, runs: Sequence[Sequence[Step]]) -> Sequence[Sequence[Command]]:
        """As ``commands``, for all runs of one change."""


@runtime_checkable
class SeesWithoutTool(Protocol):
    """A driver that looks into files and sockets, so that it sees what is there when its tool is gone, too."""

    sees_without_tool: bool


class Dispatch:
    """The drivers of one host."""

    def __init__(self, drivers: Sequence[Driver]):
        self.drivers = tuple(drivers)
        self.by_kind = {kind: driver for driver in self.drivers for kind in driver.kinds}
        self.reasons: dict[int, str | None] = {}

    def require(self, wanted: Wanted) -> None:
        """Raises HostCannot when *wanted* needs a driver that cannot work here."""
        self.require_kinds({key.kind for key, resource in wanted.items() if not isinstance(resource, Absent)})

    def require_kinds(self, kinds: Set[str]) -> None:
        """Raises HostCannot when a driver of *kinds* cannot work here."""
        lacking = dict.fromkeys(reason for kind in sorted(kinds) if (reason := self.lacks(kind)))
        if lacking:
            raise HostCannot("; ".join(lacking), "install what is missing, then try again")

    def require_sight(self) -> None:
        """Raises HostCannot when a driver cannot look: what it does not see it would leave behind."""
        blind = dict.fromkeys(self.reason(d) or "" for d in self.drivers if not self.sees(d))
        if blind:
            raise HostCannot("; ".join(blind), "install what is missing, then try again")

    def sees(self, driver: Driver) -> bool:
        return isinstance(driver, SeesWithoutTool) or self.reason(driver) is None

    def lacks(self, kind: str) -> str | None:
        driver = self.by_kind.get(kind)
        return f"nothing on this host handles {kind}" if driver is None else self.reason(driver)

    def reason(self, driver: Driver) -> str | None:
        """Why a driver cannot work here; asked once."""
        if id(driver) not in self.reasons:
            self.reasons[id(driver)] = driver.unavailable()
        return self.reasons[id(driver)]

    def observe(self, intent: Wanted, only: Sequence[Driver] | None = None) -> Seen:
        """Everything that the drivers which can look here see, in bulk and in parallel."""
        able = [d for d in (self.drivers if only is None else only) if self.sees(d)]
        seen = Seen()
        for part in together([partial(d.observe, intent) for d in able]):
            seen.update(part)
        return seen

    def look_up(self, seen: Seen, wanted: Wanted) -> None:
        """Add to *seen* what *wanted* names and drivers read only when asked (kernel settings)."""
        missing: dict[int, dict[Key, Resource | Absent]] = {}
        for key, resource in wanted.items():
            if isinstance(resource, Resource) and resource.permanent and key not in seen.state:
                missing.setdefault(id(self.by_kind.get(key.kind)), {})[key] = resource
        for driver in self.drivers:
            if (asked := missing.get(id(driver))) and self.reason(driver) is None:
                seen.update(driver.look_up(asked, seen) if isinstance(driver, LooksUp) else driver.observe(asked))

    def observe_again(self, seen: Seen, wanted: Wanted, steps: Iterable[Step], intent: Wanted) -> Seen:
        """*seen* with a fresh look at everything that *steps* can have changed.

        That is the drivers of the kinds that were touched, and of the kinds that refer to those.
        """
        touched = {step.key.kind for step in steps}
        classes = {type(r) for r in seen.state.values()} | {type(r) for r in wanted.values()
                                                            if isinstance(r, Resource)}
        while more := {c.kind for c in classes if c.kind not in touched
                       and any(kind in touched for _, kind, _ in ref_fields(c))}:
            touched |= more
        stale = [d for d in self.drivers if not touched.isdisjoint(d.kinds)]
        if len(stale) == len(self.drivers):
            return self.observe(intent)
        kinds = frozenset(kind for d in stale for kind in d.kinds)
        fresh = Seen({k: r for k, r in seen.state.items() if k.kind not in kinds},
                     {k for k in seen.ours if k.kind not in kinds})
        fresh.update(self.observe(intent, stale))
        return fresh

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        """Make *steps* in their order. Raises what drivers raise: StepFailed, KvmnetError, OSError."""
        beside: dict[int, WorksBeside] = {}
        runs = [*self.runs(steps)]
        last = {id(driver): at for at, (driver, _) in enumerate(runs)}
        try:
            ahead = self.look_over(runs)
            for at, (driver, run) in enumerate(runs):
                for early in ahead.get(at, ()):
                    early.begin_ahead()
                if reason := self.reason(driver):
                    raise HostCannot(reason)
                if isinstance(driver, WorksBeside):
                    beside[id(driver)] = driver
                    driver.begin(run, progress)
                else:
                    driver.apply(run, progress)
                if isinstance(driver, LooksAhead) and last[id(driver)] == at < len(runs) - 1:
                    driver.look_ahead()
        finally:
            for early in self.early():
                early.end_ahead()
            for worker in beside.values():
                worker.wait()

    def commands(self, steps: Sequence[Step]) -> list[Command]:
        """The exact commands that ``apply`` runs, for people to read."""
        runs = [*self.runs(steps)]
        try:
            ahead = self.look_over(runs)
            in_turn = {id(driver): iter(driver.commands_in_turn([run for other, run in runs if id(other) == id(driver)]))
                       for driver in self.drivers if isinstance(driver, GoesOn)}
            made: list[Command] = []
            for at, (driver, run) in enumerate(runs):
                made += (command for early in ahead.get(at, ()) for command in early.commands_ahead())
                made += next(in_turn[id(driver)]) if id(driver) in in_turn else driver.commands(run)
            return made
        finally:
            for early in self.early():
                early.end_ahead()

    def early(self) -> list[MakesAhead]:
        return [driver for driver in self.drivers if isinstance(driver, MakesAhead)]

    def look_over(self, runs: Sequence[tuple[Driver, Sequence[Step]]]) -> dict[int, list[MakesAhead]]:
        """Number of a run -> who begins ahead before it."""
        found: dict[int, list[MakesAhead]] = {}
        for early in self.early():
            at = early.look_over([run if id(driver) == id(early) else () for driver, run in runs])
            if at is not None:
                found.setdefault(at, []).append(early)
        return found

    def runs(self, steps: Sequence[Step]) -> Iterator[tuple[Driver, list[Step]]]:
        for driver, run in groupby(steps, key=lambda s: self.by_kind[s.key.kind]):
            yield driver, list(run)
