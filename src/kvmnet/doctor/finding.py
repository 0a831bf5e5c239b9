"""A finding: what is wrong, where, how that is known, and what mends it. Pure."""
from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from kvmnet.records import asdict, dataclass, replace


class Severity(StrEnum):
    """The worst first."""

    BLOCKS = "blocks"
    """Packets do not get through."""
    DEGRADES = "degrades"
    """Some do not, or late."""
    RISK = "risk"
    """Nothing yet."""
    NOTE = "note"


class Certainty(StrEnum):
    PROVED = "proved"
    """Follows from what the kernel said, or a packet showed it."""
    LIKELY = "likely"
    """Follows from an assumption that the finding names."""
    UNKNOWN = "unknown"
    """Cannot be judged from here; shown so that nobody takes it for ruled out."""


SEVERITIES, CERTAINTIES = tuple(Severity), tuple(Certainty)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found. Ordered by ``rank``."""

    code: str
    """Stable name of the kind (``port-isolated``): programs go by it, and `kvmnet explain` knows it."""
    severity: Severity
    where: str
    """The thing on the host: a link, a rule, a setting."""
    what: str
    """One line: what is wrong there."""
    why: str = ""
    """Why that loses the packet, in a sentence."""
    evidence: tuple[str, ...] = ()
    """What was read, as it was read."""
    fix: tuple[str, ...] = ()
    """Commands that mend it, in order; empty where only a person can decide."""
    certainty: Certainty = Certainty.PROVED

    @property
    def rank(self) -> tuple[int, int, str, str]:
        return SEVERITIES.index(self.severity), CERTAINTIES.index(self.certainty), self.code, self.where

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


SILENCES = ("neighbour-silent", "guest-unseen")
"""Findings that say of somebody only that he is not heard."""


def ranked(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; of what is equally bad a silence comes behind what may explain it, and the rest stays in the order in which it was found. What was found twice (there and on
    the way back) is one, as bad as the worse, with the evidence and the cures of both."""
    once: dict[tuple[str, str, str], Finding] = {}
    for finding in findings:
        key = finding.code, finding.where, finding.what
        known = once.get(key, finding)
        once[key] = replace(min(known, finding, key=lambda f: f.rank[:2]), evidence=tuple(dict.fromkeys((*known.evidence, *finding.evidence))), fix=tuple(dict.fromkeys((*known.fix, *finding.fix))))
    return tuple(sorted(once.values(), key=lambda f: (*f.rank[:2], f.code in SILENCES)))
