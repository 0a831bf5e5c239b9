"""The transaction: the one way in which a host is changed.

lock -> recover -> observe -> plan -> record -> journal -> apply -> look until nothing is left to do
-> commit. Whatever goes wrong after the journal is written, the host is brought back to what the
journal says and that is verified; whoever dies half-way leaves the journal for the next command.

What lies where, and in which order, so that a death between any two lines has one meaning:

1. a pending row in the history (and the addresses): a full disk is found here;
2. the journal, and with it the timer's pid when a confirmation is wanted;
3. ``originals.next``: what is lent after this change; it replaces the originals after the commit;
4. the steps;
5. commit: the row is confirmed, the journal removed, ``originals.next`` renamed.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from kvmnet.engine import undo
from kvmnet.engine.borrow import (
    Originals,
    load_originals,
    release,
    remaining,
    remember,
    save_originals,
)
from kvmnet.engine.dispatch import Dispatch
from kvmnet.engine.driver import Driver, Progress, Seen, StepFailed
from kvmnet.engine.fingerprint import Fingerprint, fingerprint
from kvmnet.engine.history import Change, History, Status, counts, digest
from kvmnet.engine.journal import Codec, Image, Journal, Phase, read_journal, remove_journal
from kvmnet.engine.plan import Conflict, Step, plan
from kvmnet.engine.resource import Key, Wanted
from kvmnet.engine.result import Doing as Doing
from kvmnet.engine.result import Event as Event
from kvmnet.engine.result import Outcome as Outcome
from kvmnet.engine.result import Recovered as Recovered
from kvmnet.engine.result import Recovery as Recovery
from kvmnet.engine.result import Result as Result
from kvmnet.engine.rollback import EXPECTED, StillOff, named, restore, said
from kvmnet.engine.watch import Guard, Watch, unwatched
from kvmnet.errors import ApplyFailed, ConflictError, HostCannot, KvmnetError, RollbackFailed
from kvmnet.host import interrupts
from kvmnet.host.clock import wait_until
from kvmnet.host.files import remove_durably, rename_durably
from kvmnet.host.lock import exclusive
from kvmnet.host.paths import Paths
from kvmnet.host.process import boot_id, namespace_id, this_process, uptime
from kvmnet.records import dataclass, replace

SETTLE = 5.0
"""Seconds that a host gets to become as wanted after the last step."""


@dataclass(frozen=True)
class Planned:
    """A plan, and what it was made from."""

    seen: Seen
    wanted: Wanted
    """With everything laid over that is given back."""
    borrowed: frozenset[Key]
    steps: tuple[Step, ...]
    gone: tuple[Key, ...]
    lent: Originals
    """Originals to keep after the change."""

    @cached_property
    def fingerprint(self) -> Fingerprint:
        return fingerprint(self.seen.state, self.wanted, self.seen.ours)


Listener = Callable[[Event], None]
Probe = Callable[[str], None]


class Engine:
    """Plans and changes one host.

    ``settle``: seconds that the host gets to become as wanted. ``probe``: called with the name of each
    point that a transaction passes (journalled, lent, armed, step N, verified, reached, recorded, committed).
    """

    def __init__(self, drivers: Sequence[Driver], paths: Paths, codec: Codec, *, settle: float = SETTLE,
                 probe: Probe | None = None):
        self.dispatch = Dispatch(drivers)
        self.paths, self.codec, self.settle = paths, codec, settle
        self.history = History(paths.database)
        self.probe: Probe = probe or (lambda point: None)
        self.lock_fd: int | None = None

    # --- looking -----------------------------------------------------------------------------

    def observe(self, intent: Wanted) -> Seen:
        """The host now. ``intent``: what is wanted; what is lent to us is looked at too."""
        return self.dispatch.observe(self.with_lent(intent))

    def with_lent(self, intent: Wanted) -> Wanted:
        lent = load_originals(self.paths.originals, self.codec)
        return {**{key: original.value for key, original in lent.items()}, **intent}

    def plan(self, seen: Seen, wanted: Wanted, borrowed: Set[Key] = frozenset(),
             adopt: bool = False) -> Planned:
        """What would be done. Raises HostCannot, and ConflictError when strangers are in the way."""
        self.dispatch.require(wanted)
        self.dispatch.require_sight()
        lent = load_originals(self.paths.originals, self.codec)
        full = release(lent, wanted, seen.state, seen.ours)
        ours_or_lent = frozenset(borrowed) | full.borrowed
        try:
            steps = plan(seen.state, full.wanted, seen.ours, ours_or_lent, adopt)
        except Conflict as conflict:
            raise ConflictError(str(conflict), "remove or rename them, or take them over with --adopt") from None
        self.dispatch.require_kinds({step.key.kind for step in steps})
        after = remaining(remember(lent, seen.state, steps, seen.ours, ours_or_lent), wanted)
        return Planned(seen, full.wanted, ours_or_lent, steps, full.gone, after)

    @property
    def journal(self) -> Journal | None:
        """The change under way or waiting for its confirmation, if any."""
        return read_journal(self.paths.journal)

    # --- changing ----------------------------------------------------------------------------

    @contextmanager
    def writing(self, command: str, timeout: float = 0) -> Iterator[None]:
        """Be the one writer for as long as the body; may be nested. Raises ConflictError."""
        if self.lock_fd is not None:
            yield
            return
        with exclusive(self.paths.lock, command, timeout) as fd:
            self.lock_fd = fd
            try:
                yield
            finally:
                self.lock_fd = None

    def converge(self, wanted: Wanted, change: Change, *, borrowed: Set[Key] = frozenset(),
                 confirm: float | None = None, adopt: bool = False, expected: Fingerprint | None = None,
                 seen: Seen | None = None, guard: Guard = unwatched,
                 listen: Listener = lambda event: None) -> Result:
        """Make the host as *wanted*, or leave it as it was.

        ``confirm``: seconds after which the change is undone unless confirmed. ``guard``: what must still be so
        after it. ``expected``: refuse
        when the host moved since that plan was made. ``seen``: the host, if it was observed with
        *wanted* as the intent after ``writing`` was entered.
        Raises HostCannot, ConflictError, ApplyFailed, RollbackFailed, KvmnetError.
        """
        with self.writing(change.command), interrupts.raised():
            self.make_way()
            if seen is None:
                listen(Event(Doing.OBSERVE))
                seen = self.observe(wanted)
            planned = self.plan(seen, wanted, borrowed, adopt)
            if expected is not None and (moved := planned.fingerprint.moved(expected)):
                raise ConflictError(f"the host moved since the plan was made: {', '.join(moved[:5])}"
                                    + (f" and {len(moved) - 5} more" if len(moved) > 5 else ""),
                                    "plan again and look at what is different")
            return self.carry_out(planned, change, confirm=confirm, guard=guard, listen=listen)

    def carry_out(self, planned: Planned, change: Change, *, confirm: float | None = None, guard: Guard = unwatched,
                  listen: Listener = lambda event: None) -> Result:
        """The second half of ``converge``, for a plan that was made after ``writing`` and ``make_way``."""
        with self.writing(change.command), interrupts.raised():
            if not planned.steps:
                return self.unchanged(planned, change)
            return Transaction(self, planned, change, confirm, guard(planned), listen).run()

    def make_way(self) -> None:
        """Clear up what a dead writer left; raises ConflictError when a change waits for its confirmation."""
        found = self.recover()
        if found.left is not None:
            raise ConflictError(f"a change waits for its confirmation ({found.left:.0f} s left)",
                                "kvmnet confirm keeps it, kvmnet rollback undoes it now")

    def unchanged(self, planned: Planned, change: Change) -> Result:
        """Nothing to do on the host; a document that differs from the last one is recorded all the same."""
        last = self.history.last_confirmed()
        number = None
        if last is None or last.sha256 != digest(change.document):
            number = self.history.begin(change, counts(()), Status.CONFIRMED)
        elif change.allocations.items() - self.history.allocations().items():
            self.history.save_allocations(change.allocations)
        if planned.lent != load_originals(self.paths.originals, self.codec):
            self.save_lent(self.paths.originals, planned.lent)
        return Result(Outcome.UNCHANGED, (), planned.seen, number, gone=planned.gone)

    def confirm(self) -> int | None:
        """Keep the change that waits for it; gives its number. Raises ConflictError when none does."""
        with self.writing("kvmnet confirm", timeout=10):
            journal = self.journal
            if journal is None or journal.phase is not Phase.UNCONFIRMED or journal.boot != boot_id():
                raise ConflictError("no change waits for a confirmation", "see: kvmnet history")
            self.check_namespace(journal)
            self.commit(journal)
            if journal.timer is not None:
                journal.timer.terminate()
            return journal.revision

    def revert(self, listen: Listener = lambda event: None) -> int | None:
        """Undo the change that waits for its confirmation, now. Raises ConflictError when none does."""
        with self.writing("kvmnet rollback", timeout=10):
            journal = self.journal
            if journal is None or journal.phase is not Phase.UNCONFIRMED or journal.boot != boot_id():
                raise ConflictError("no change waits for a confirmation", "see: kvmnet history")
            self.roll_back(journal, "rolled back on request", listen)
            if journal.timer is not None:
                journal.timer.terminate()
            return journal.revision

    def recover(self, listen: Listener = lambda event: None) -> Recovered:
        """Deal with what a writer that died, or a restart of the host, left behind.

        Raises RollbackFailed, ConflictError, KvmnetError.
        """
        with self.writing("kvmnet recover", timeout=10):
            journal = self.journal
            if journal is None:
                self.settle_lent()
                self.history.abandon_pending("kvmnet or the host stopped before it was done")
                return Recovered(Recovery.NOTHING)
            if journal.boot != boot_id():
                self.forget(journal, Status.ROLLED_BACK, "the host restarted before it was confirmed")
                return Recovered(Recovery.DISCARDED, journal.revision)
            self.check_namespace(journal)
            left = (journal.deadline or 0) - uptime()
            if journal.phase is not Phase.UNCONFIRMED or left <= 0:
                why = ("not confirmed in time" if journal.phase is Phase.UNCONFIRMED
                       else "kvmnet stopped before it was done")
                self.roll_back(journal, why, listen)
                return Recovered(Recovery.ROLLED_BACK, journal.revision)
            if journal.timer is not None and journal.timer.alive():
                return Recovered(Recovery.WAITING, journal.revision, left)
            with undo.armed(self, journal.id) as timer:
                replace(journal, timer=timer).write(self.paths.journal)
            return Recovered(Recovery.REARMED, journal.revision, left)

    def check_namespace(self, journal: Journal) -> None:
        if journal.namespace not in (0, namespace_id()):
            raise ConflictError(
                f"{self.paths.journal}: the unfinished change belongs to another network namespace",
                f"run kvmnet in that namespace; if it is gone for good: rm {self.paths.journal}")

    # --- ends of a change --------------------------------------------------------------------

    def commit(self, journal: Journal) -> None:
        if journal.revision is not None:
            self.history.finish(journal.revision, Status.CONFIRMED)
        self.probe("recorded")
        remove_journal(self.paths.journal)
        self.probe("committed")
        self.settle_lent()

    def roll_back(self, journal: Journal, why: str, listen: Listener) -> None:
        """Bring the host back and verify it. Raises RollbackFailed and leaves the journal."""
        with interrupts.held_off():
            with suppress(KvmnetError):  # on a full disk the old phase means the same to recover
                replace(journal, phase=Phase.ROLLING_BACK).write(self.paths.journal)
            image = journal.image(self.paths.journal, self.codec)
            try:
                self.dispatch.require_kinds({key.kind for key in image.wanted})
                restore(self.dispatch, image, self.settle, counted(listen, Doing.ROLL_BACK))
            except (StillOff, HostCannot) as error:
                self.note(journal, Status.FAILED, f"{why}; rollback failed: {error}")
                raise RollbackFailed(f"{why}; the host could not be brought back: {error}",
                                     "remove the cause, then: kvmnet recover") from error
            self.forget(journal, Status.ROLLED_BACK, why)

    def forget(self, journal: Journal, status: Status, message: str) -> None:
        remove_durably(self.next_originals)
        remove_journal(self.paths.journal)
        self.note(journal, status, message)

    def note(self, journal: Journal, status: Status, message: str) -> None:
        """Finish the row if that is possible: a full disk must not stand in the way of a rollback."""
        if journal.revision is not None:
            with suppress(KvmnetError):
                self.history.finish(journal.revision, status, message)

    @property
    def next_originals(self) -> Path:
        return self.paths.originals.with_suffix(".next")

    def settle_lent(self) -> None:
        """After a commit, what is lent now takes the place of what was; renaming needs no space."""
        if self.next_originals.exists():
            rename_durably(self.next_originals, self.paths.originals)

    def save_lent(self, path: Path, lent: Originals) -> None:
        save_originals(path, lent, self.codec)


class Transaction:
    """One change from the journal to the commit."""

    def __init__(self, engine: Engine, planned: Planned, change: Change, confirm: float | None,
                 watch: Watch | None, listen: Listener):
        self.engine, self.planned, self.change, self.watch = engine, planned, change, watch
        self.grace, self.listen = confirm, listen
        self.journal: Journal | None = None

    def run(self) -> Result:
        engine, planned = self.engine, self.planned
        image = Image.of(planned.seen.state, planned.steps, planned.seen.ours)
        before = image.encode(engine.codec)
        number = engine.history.begin(self.change, counts(planned.steps))
        journal = Journal(
            id=os.urandom(8).hex(), phase=Phase.APPLYING, started=datetime.now(UTC).isoformat(timespec="seconds"),
            boot=boot_id(), namespace=namespace_id(), writer=this_process(), before=before, revision=number)
        try:
            self.journal = self.open(journal)
            seen = self.change_host()
            return self.close(self.journal, seen)
        except BaseException as error:
            self.fail(self.journal or journal, error)
            raise

    def open(self, journal: Journal) -> Journal:
        """From here on a death of this process leaves enough to undo everything."""
        engine = self.engine
        if self.grace is None and self.watch is None:
            journal.write(engine.paths.journal)
        else:
            with undo.armed(engine, journal.id) as timer:
                deadline = None if self.grace is None else uptime() + self.grace
                journal = replace(journal, timer=timer, grace=self.grace, deadline=deadline)
                journal.write(engine.paths.journal)
            engine.probe("armed")
        engine.probe("journalled")
        if self.planned.lent or engine.paths.originals.exists():
            engine.save_lent(engine.next_originals, self.planned.lent)
        engine.probe("lent")
        return journal

    def change_host(self) -> Seen:
        engine, planned = self.engine, self.planned
        engine.dispatch.apply(planned.steps, self.probed(counted(self.listen, Doing.APPLY)(len(planned.steps))))
        self.listen(Event(Doing.VERIFY))
        seen = self.verify()
        engine.probe("verified")
        if self.watch:
            self.listen(Event(Doing.REACH))
            self.watch.require(seen)
            engine.probe("reached")
        return seen

    def probed(self, progress: Progress) -> Progress:
        done = 0

        def step(count: int) -> None:
            nonlocal done
            done += count
            progress(count)
            self.engine.probe(f"step {done}")

        return step

    def verify(self) -> Seen:
        """Look until nothing is left to do. Raises StepFailed when time is over."""
        engine, planned = self.engine, self.planned
        intent = engine.with_lent(planned.wanted)
        touched = {key for step in planned.steps for key in (step.key, *getattr(step, "along", ()))}
        fulfilled = {key: r for key, r in planned.seen.state.items() if key not in touched}
        last: list[Seen] = []
        left: list[tuple[Step, ...]] = []

        def done() -> bool:
            seen = engine.dispatch.observe_again(planned.seen, planned.wanted, planned.steps, intent)
            rest = plan(seen.state, planned.wanted, seen.ours, planned.borrowed, adopt=True, fulfilled=fulfilled)
            last[:], left[:] = [seen], [rest]
            return not rest

        try:
            wait_until(done, engine.settle, 0.05)
        except TimeoutError:
            raise StepFailed(None, f"after {engine.settle:g} s the host still differs: {named(left[0])}") from None
        return last[0]

    def close(self, journal: Journal, seen: Seen) -> Result:
        engine, planned = self.engine, self.planned
        outcome = Outcome.CONFIRMED
        if self.grace is None:
            engine.commit(journal)
            if journal.timer is not None:
                journal.timer.terminate()
        else:
            outcome = Outcome.UNCONFIRMED
            replace(journal, phase=Phase.UNCONFIRMED, deadline=uptime() + self.grace).write(engine.paths.journal)
            engine.probe("unconfirmed")
        return Result(outcome, planned.steps, seen, journal.revision, self.grace, planned.gone,
                      self.watch.outcome if self.watch else ())

    def fail(self, journal: Journal, error: BaseException) -> None:
        """Roll back and say so. Raises ApplyFailed or RollbackFailed; returns for what is re-raised as it is."""
        engine = self.engine
        why = said(error)
        if not engine.paths.journal.exists():
            if self.journal is None:  # otherwise the commit was made, and the error came after it
                engine.note(journal, Status.FAILED, why)
            return
        engine.roll_back(journal, why, self.listen)
        if journal.timer is not None:
            journal.timer.terminate()
        if isinstance(error, EXPECTED):
            hint = getattr(error, "hint", "")
            amiss = self.watch.after_rollback() if self.watch else ""
            raise ApplyFailed(f"{why}; rolled back: the host is as it was" + (f", but {amiss}" if amiss else ""), hint) from error


def counted(listen: Listener, doing: Doing) -> Callable[[int], Progress]:
    """For a known total: a Progress that tells *listen* how far it is."""
    def begin(total: int) -> Progress:
        done = 0
        listen(Event(doing, 0, total))

        def progress(count: int) -> None:
            nonlocal done
            done += count
            listen(Event(doing, done, total))

        return progress

    return begin
