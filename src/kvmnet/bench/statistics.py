"""What two series that were measured in turns say of each other. Pure.

Pairs are judged by their ratio: what both suffer alike (a busy machine, a warm cache) falls out. The interval is exact,
without an assumption on how the noise is distributed but that a pair of equals is as likely one way round as the other:
that is what taking turns (A B, B A, A B, ...) gives. It inverts Wilcoxon's signed-rank test (F. Wilcoxon 1945; J. Hodges,
E. Lehmann 1963).
"""
from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import cache
from math import exp, log
from statistics import median

from kvmnet.records import dataclass

LEVEL = 0.95
"""Share of intervals that hold the true ratio."""
LEAST_PAIRS = 6
"""With fewer pairs no interval of this level exists: 2 / 2^5 is more than 5%."""
FLOOR = 0.02
"""A difference below this is none that anybody would act on."""


class Verdict(StrEnum):
    MORE = "more"
    LESS = "less"
    SAME = "no difference shown"
    UNKNOWN = "too few pairs"


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times the second of two is the first, with the interval that holds it."""

    value: float
    low: float
    high: float
    pairs: int

    def verdict(self, noise: float = 0.0) -> Verdict:
        """*noise*: by how much two equals were seen to differ (0.03 for 3%). What is within it shows nothing."""
        if self.pairs < LEAST_PAIRS:
            return Verdict.UNKNOWN
        margin = 1 + max(noise, FLOOR)
        if self.low > margin:
            return Verdict.MORE
        return Verdict.LESS if self.high < 1 / margin else Verdict.SAME


def ratio(first: Sequence[float], second: Sequence[float]) -> Ratio | None:
    """The ratio of *second* to *first*, pair by pair. None when nothing can be said: a value that is not positive."""
    if len(first) != len(second) or not first or min(*first, *second) <= 0:
        return None
    logs = [log(b / a) for a, b in zip(first, second, strict=True)]
    walsh = sorted((x + y) / 2 for i, x in enumerate(logs) for y in logs[i:])
    cut = tail(len(logs), (1 - LEVEL) / 2)
    return Ratio(exp(median(walsh)), exp(walsh[cut]), exp(walsh[-1 - cut]), len(logs))


def tail(pairs: int, probability: float) -> int:
    """How many of the ordered means of two lie outside the interval at each end; 0 where there are too few pairs."""
    counts, below, total = ranks(pairs), 0, 2 ** pairs
    for statistic, count in enumerate(counts):
        below += count
        if below / total > probability:
            return max(0, statistic - 1)
    return 0


@cache
def ranks(pairs: int) -> tuple[int, ...]:
    """How many of the 2^n signs give each sum of positive ranks (the null distribution of Wilcoxon's statistic)."""
    counts = [1]
    for rank in range(1, pairs + 1):
        grown = counts + [0] * rank
        for i, count in enumerate(counts):
            grown[i + rank] += count
        counts = grown
    return tuple(counts)


def noise_of(twins: Ratio | None) -> float:
    """By how much two that are the same were seen to differ, e.g. 0.03."""
    return 0.0 if twins is None else max(twins.value, 1 / twins.value) - 1


def fairness(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all have the same, 1/n when one has everything (R. Jain 1984)."""
    squares = sum(s * s for s in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 0.0


def imbalance(shares: Sequence[float]) -> float:
    """How much more than its even share the largest has, in percent."""
    total = sum(shares)
    return (max(shares) * len(shares) / total - 1) * 100 if total else 0.0
