"""What the engine asks of a driver: four members, and that what it prints is what it runs."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Key, Resource, Wanted
from kvmnet.records import dataclass, field


@dataclass(slots=True)
class Seen:
    """What is on the host. ``ours``: the keys that carry our mark (or hang on something that does)."""

    state: dict[Key, Resource] = field(default_factory=dict)
    ours: set[Key] = field(default_factory=set)

    def update(self, other: Seen) -> None:
        self.state.update(other.state)
        self.ours |= other.ours


@dataclass(frozen=True, slots=True)
class Command:
    """One exact command: an argument list, and what it reads on standard input.

    ``lines[i]`` of a batch belongs to ``keys[i]``, so that an error can name its resource.
    A change that no command line makes (a QMP message, a file) has the nearest shell equivalent
    in ``argv`` and the work itself in the driver.
    """

    argv: tuple[str, ...]
    stdin: str = ""
    keys: tuple[Key, ...] = ()


class StepFailed(Exception):
    """A driver could not make a step. ``detail`` is the tool's own message (extack, daemon log)."""

    def __init__(self, key: Key | None, detail: str, hint: str = ""):
        super().__init__(f"{key}: {detail}" if key else detail)
        self.key, self.detail, self.hint = key, detail, hint


Progress = Callable[[int], None]
"""Called with the number of steps done since the last call."""


class Driver(Protocol):
    kinds: frozenset[str]

    def unavailable(self) -> str | None:
        """Why this driver cannot work here and what to install, or None."""

    def observe(self, intent: Wanted) -> Seen:
        """Everything of ``kinds`` on the host, in bulk. ``intent``: what is or was wanted, for
        drivers that would otherwise have to read the whole system (sysctl)."""

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        """Make *steps*, in this order, as one transaction or batch. Raises StepFailed."""

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        """The exact commands that ``apply`` runs for *steps*, for the operator to read."""
