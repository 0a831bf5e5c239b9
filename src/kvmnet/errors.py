"""Errors by who must act, each with the exit code of the CLI contract."""
from __future__ import annotations

from collections.abc import Sequence

from kvmnet.records import dataclass


class KvmnetError(Exception):
    """A problem that the user can act on. ``hint`` says how."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong with a document: where it is, what it is and what to do."""

    line: int
    """1-based; 0 when the problem belongs to no line."""
    column: int
    path: str
    """Dotted path in the document, e.g. ``vms.web1.nics[0].model``."""
    message: str
    hint: str = ""


class SpecError(KvmnetError):
    """The document is wrong: every problem at once, each with its line."""

    exit_code = 10

    def __init__(self, source: str, problems: Sequence[Problem]):
        self.source, self.problems = source, tuple(sorted(problems))
        super().__init__(f"{source}: {len(self.problems)} problem(s)")


class HostCannot(KvmnetError):
    """This host lacks what the document needs (a tool, a kernel feature, a device)."""

    exit_code = 11


class ConflictError(KvmnetError):
    """Something that is not ours is in the way, or the host moved since the plan was made."""

    exit_code = 12


class ApplyFailed(KvmnetError):
    """A step failed; everything was rolled back."""

    exit_code = 13


class RollbackFailed(KvmnetError):
    """A step failed and the host could not be brought back; ``kvmnet recover`` tries again."""

    exit_code = 14
