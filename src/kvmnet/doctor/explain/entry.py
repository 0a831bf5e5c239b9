"""One thing that can be explained, and what a host shows of its causes. Pure."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from kvmnet.doctor.view import View
from kvmnet.records import dataclass


class Holds(StrEnum):
    """What this host says of a cause."""

    SEEN = "seen here"
    POSSIBLE = "possible here"
    RULED_OUT = "ruled out here"
    UNKNOWN = "cannot be told from here"


@dataclass(frozen=True, slots=True)
class Sign:
    holds: Holds
    evidence: str = ""


Look = Callable[[View, Mapping[str, str]], Sign]
"""A question to the host; the names are those in the message, ``dev`` for a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    what: str
    cure: tuple[str, ...] = ()
    """Commands, or the step that no command makes. ``{dev}`` is the device of the message."""
    look: Look | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    name: str
    """As people write it: ENOBUFS, or the fixed part of a line."""
    says: tuple[str, ...]
    """Regular expressions, without regard to case, that find it in a message; named groups are what the message names."""
    means: str
    causes: tuple[Cause, ...]
    """The most frequent first."""
    wrong: str = ""
    """The popular cure that does not cure, and why."""
    source: str
    """Where this is written down."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A cause with what the host shows."""

    what: str
    cure: tuple[str, ...]
    holds: Holds
    evidence: str


@dataclass(frozen=True, slots=True)
class Answer:
    entry: Entry
    named: Mapping[str, str]
    causes: tuple[Judged, ...]
    """What is seen first, what is ruled out last."""
    also: tuple[str, ...] = ()
    """Other entries that the words match, less exactly."""

    def to_json(self) -> dict[str, Any]:
        return {"known": True, "name": self.entry.name, "means": self.entry.means, "named": dict(self.named),
                "causes": [{"what": c.what, "holds": c.holds.name.lower(), "evidence": c.evidence, "cure": list(c.cure)} for c in self.causes],
                "wrong": self.entry.wrong, "source": self.entry.source, "also": list(self.also)}
