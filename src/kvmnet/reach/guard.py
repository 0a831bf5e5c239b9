"""The guard of a change: looks who answers before it, and requires that they answer after it."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from kvmnet.drivers.linux.driver import ip_json
from kvmnet.engine.driver import Seen, StepFailed
from kvmnet.engine.resource import State
from kvmnet.engine.transaction import Planned
from kvmnet.errors import ConflictError
from kvmnet.host.run import ToolFailed, run
from kvmnet.reach.probe import Proof, Question, ask_all
from kvmnet.reach.session import peer
from kvmnet.reach.targets import (
    GATEWAY,
    NAMED,
    SESSION,
    Hit,
    Target,
    after,
    gateways,
    patience,
)
from kvmnet.records import dataclass

BEFORE = 1.0
"""Seconds that a target gets to answer before the change."""
HINT = "what stands at the other end: VLANs of the switch port, MTU, bond mode, gateway? --reach none does without"
ANY = frozenset({Proof.NEIGHBOUR})


@dataclass(frozen=True, slots=True)
class Reach:
    """What the guard is told. ``within``: seconds to answer after the change; chosen by the change when not given.
    ``confirmed``: whether the change waits for a confirmation."""

    named: tuple[str, ...] = ()
    within: float | None = None
    confirmed: bool = False
    session: Callable[[], str] = peer

    def __call__(self, planned: Planned) -> Watch | None:
        """The watch of a change; None when it leaves the way out alone. Raises ConflictError when the session comes
        in by what is changed and nobody answers who could tell that it still does."""
        if not (hit := Hit.by(planned.steps)) or not (questions := self.ask(planned.seen.state, hit)):
            return None
        watch = Watch(planned, tuple(questions), self.within or patience(planned.steps))
        session = [q.target for q in questions if q.target.why == SESSION]
        if session and not watch.answered and not self.confirmed:
            raise ConflictError(
                f"this session comes from {session[0].address} by what the change touches, and nobody answers "
                f"who could tell whether it is still reached: {', '.join(dict.fromkeys(q.target.address for q in questions))}",
                "add --confirm 60: everything goes back unless you confirm; or --reach ADDRESS with one that answers")
        return watch

    def ask(self, state: State, hit: Hit) -> list[Question]:
        """The targets that the change concerns, each asked."""
        chosen = [Target(a, NAMED) for a in self.named]
        if far := self.session():
            chosen.append(Target(far, SESSION))
        found: dict[tuple[str, str], Question] = {}
        for target in (*gateways(state), *chosen):
            question = place(target)
            place_of = target.address, question.way  # every link may have a router fe80::1
            if question.way != "lo" and place_of not in found and hit.concerns(target, question.way, state):
                found[place_of] = question
        ask_all(list(found.values()), BEFORE)
        return list(found.values())


def named(question: Question) -> str:
    return f"{question.target.address} ({question.target.why})"


def place(target: Target) -> Question:
    """The question for *target* as the kernel's way to it is now: on a segment of the host, or further out."""
    if target.dev:
        return Question(target, target.dev, target.dev)
    way = route_to(target.address)
    dev = str(way.get("dev", ""))
    return Question(target, dev, "" if "gateway" in way or "via" in way else dev)


def route_to(address: str) -> dict[str, object]:
    """The kernel's way to an address; empty when it has none."""
    try:
        return next(iter(ip_json("route", "get", address)), {})
    except ToolFailed:
        return {}


@dataclass
class Watch:
    """One change: what was asked before it, and what must be answered after it."""

    planned: Planned
    questions: Sequence[Question]
    within: float
    unanswered: Sequence[Question] = ()
    found: tuple[str, ...] = ()

    @property
    def answered(self) -> list[Question]:
        return [q for q in self.questions if q.proofs]

    @property
    def notes(self) -> tuple[str, ...]:
        if held := self.answered:
            return (f"must answer within {self.within:g} s after the change, or everything goes back: "
                    f"{', '.join(map(named, held))}", *self.silent)
        return self.silent

    @property
    def silent(self) -> tuple[str, ...]:
        """Who is not required, and what follows when that is everybody."""
        told = [f"{named(q)} does not answer before the change, and is not required to after it"
                for q in self.questions if not q.proofs]
        if not self.answered:
            told.append("nobody can tell whether this change cuts the host off: use --confirm, or --reach ADDRESS with one "
                        "that answers")
        return tuple(told)

    @property
    def outcome(self) -> tuple[str, ...]:
        answer = (f"answered before and after: {', '.join(map(named, self.answered))}",) if self.answered else ()
        return (*answer, *self.silent, *self.found)

    def require(self, seen: Seen) -> None:
        """Raises StepFailed when somebody who answered before does not answer any more."""
        needed, deadline = self.needed(seen.state), monotonic() + self.within
        for question in needed:
            forget(question)
        ask_all(needed, self.within)
        self.unanswered = [q for q in needed if q.missing]
        if self.unanswered:
            took = self.within - max(0.0, deadline - monotonic())
            raise StepFailed(None, f"after the change, within {took:.0f} s: " + "; ".join(
                f"{named(q)}: {q.words()}" for q in self.unanswered), HINT)

    def needed(self, state: State) -> list[Question]:
        """What must be answered now. Raises StepFailed for a gateway whose route is gone by itself."""
        before = {q.target.address: q for q in self.answered} | {(q.target.address, q.way): q for q in self.answered}
        then = after([q.target for q in self.answered if q.target.why == GATEWAY],
                     self.planned.seen.state, state, self.planned.steps)
        self.found = then.notes
        if then.lost:
            raise StepFailed(None, f"after the change the default route by {', '.join(then.lost)} is gone", HINT)
        needed = []
        for target in (*then.required, *(q.target for q in self.answered if q.target.why != GATEWAY)):
            question = place(target)
            old = before.get((target.address, question.way)) or before.get(target.address)
            if old is None:  # a new gateway: only that it is there
                question.needs = ANY if question.neighbour else frozenset({Proof.ECHO})
            else:
                question.needs = frozenset(old.proofs)
                if not question.neighbour:
                    question.needs = question.needs - ANY or frozenset({Proof.ECHO})
            needed.append(question)
        return needed

    def after_rollback(self) -> str:
        """Who does not answer although everything is as it was."""
        again = [Question(q.target, q.way, q.neighbour, frozenset(q.proofs)) for q in self.answered]
        ask_all(again, self.within)
        silent = [q for q in again if q.missing]
        return "; ".join(f"{q.target.address} does not answer now either: {q.words()}" for q in silent)


def forget(question: Question) -> None:
    """Have the kernel ask for its neighbour anew: the old MAC may be that of another device. What somebody entered for
    ever stays."""
    if question.neighbour:
        with suppress(ToolFailed):  # only a help: nothing is proved by what the kernel remembers
            run(("ip", "neigh", "flush", "to", question.target.address, "dev", question.neighbour))
