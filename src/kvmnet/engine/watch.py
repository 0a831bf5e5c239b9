"""What must still be so after a change besides the wanted state: looked at before it, required after it."""
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from kvmnet.engine.driver import Seen

if TYPE_CHECKING:
    from kvmnet.engine.transaction import Planned


class Watch(Protocol):
    """One change under watch. Its transaction arms an undo of its own, also when nobody asked for a confirmation."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Who is watched, for the plan."""

    @property
    def outcome(self) -> tuple[str, ...]:
        """What became of it, when ``require`` was content."""

    def require(self, seen: Seen) -> None:
        """Raises StepFailed when what was so before the change is not so any more. ``seen``: the host after it."""

    def after_rollback(self) -> str:
        """What is still amiss when the change has been taken back; '' when nothing is."""


Guard = Callable[["Planned"], Watch | None]
"""Looks at the host before a change; None when the change is no concern of it. Raises KvmnetError."""


def unwatched(planned: Planned) -> None:
    """The guard of changes that cannot cut anything off."""
