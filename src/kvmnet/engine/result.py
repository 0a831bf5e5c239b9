"""What a transaction says: events while it is at work, and how it ended. Pure."""
from __future__ import annotations

from enum import StrEnum

from kvmnet.engine.driver import Seen
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Key
from kvmnet.records import dataclass


class Doing(StrEnum):
    OBSERVE = "observe"
    APPLY = "apply"
    VERIFY = "verify"
    REACH = "reach"
    ROLL_BACK = "roll back"


@dataclass(frozen=True, slots=True)
class Event:
    doing: Doing
    done: int = 0
    total: int = 0


class Outcome(StrEnum):
    UNCHANGED = "unchanged"
    CONFIRMED = "confirmed"
    UNCONFIRMED = "unconfirmed"


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    steps: tuple[Step, ...]
    seen: Seen
    """The host afterwards."""
    revision: int | None
    """Its number in the history; None when nothing was recorded."""
    grace: float | None = None
    """Seconds left to confirm."""
    gone: tuple[Key, ...] = ()
    """Borrowed objects that vanished: their settings could not be given back."""
    notes: tuple[str, ...] = ()
    """What was found out on the way, e.g. who did not answer before the change."""


class Recovery(StrEnum):
    NOTHING = "nothing to recover"
    ROLLED_BACK = "rolled back"
    DISCARDED = "the host restarted since; nothing is left to roll back"
    WAITING = "waiting for its confirmation"
    REARMED = "waiting for its confirmation; the timer was dead and runs again"


@dataclass(frozen=True, slots=True)
class Recovered:
    what: Recovery
    revision: int | None = None
    left: float | None = None
    """Seconds until an unconfirmed change is undone."""
