"""Two records of the same configurations, before and after. Pure.

They are not paired, so the interval is that of two independent series: the median of all ratios, and the inverted rank sum
test (H. Mann, D. Whitney 1947; J. Hodges, E. Lehmann 1963).
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import exp, log
from statistics import median
from typing import Any

from kvmnet.bench.model import Figures
from kvmnet.bench.record import Record
from kvmnet.bench.results import Result, results
from kvmnet.bench.scenarios import Better
from kvmnet.bench.statistics import LEAST_PAIRS, LEVEL, Ratio, Verdict
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity of one configuration in both records."""

    configuration: str
    result: Result
    before: Figures
    after: Figures
    ratio: Ratio | None
    noise: float

    @property
    def verdict(self) -> Verdict | None:
        return self.ratio.verdict(self.noise) if self.ratio else None

    @property
    def good(self) -> bool | None:
        """Whether it became better; None where no difference is shown, and of quantities that only explain."""
        if self.verdict not in (Verdict.MORE, Verdict.LESS) or not self.result.quantity.main:
            return None
        return (self.verdict is Verdict.MORE) == (self.result.quantity.better is Better.HIGH)

    def cells(self) -> tuple[str, str, str, str, str]:
        said = "not to be compared"
        if self.ratio:
            judged = {True: "better", False: "worse", None: str(self.verdict)}[self.good]
            said = f"{self.ratio.value:.2f} times ({self.ratio.low:.2f} to {self.ratio.high:.2f}): {judged}"
        return self.configuration, self.result.name, self.before.words(), self.after.words(), said

    def to_json(self) -> dict[str, Any]:
        r = self.ratio
        return {"configuration": self.configuration, "what": self.result.name, "before": self.before.to_json(),
                "after": self.after.to_json(), "ratio": r and round(r.value, 4), "low": r and round(r.low, 4),
                "high": r and round(r.high, 4), "verdict": self.verdict and self.verdict.value, "good": self.good}


def compared(before: Record, after: Record) -> list[Change]:
    """What both records have."""
    return list(changes(before, after))


def changes(before: Record, after: Record) -> Iterator[Change]:
    names = {c.name: n for n, c in enumerate(after.wish.configurations)}
    later = {r.name: r for r in results(after)}
    for one in results(before):
        other = later.get(one.name)
        for cell in one.cells if other else ():
            name = before.wish.configurations[cell.number].name
            if name in names and other:
                figures = other.cells[names[name]].figures
                yield Change(name, one, cell.figures, figures, unpaired(cell.figures.values, figures.values),
                             max(one.noise, other.noise))


def unpaired(first: Sequence[float], second: Sequence[float]) -> Ratio | None:
    """The ratio of *second* to *first*. None for values that are not positive."""
    if not first or not second or min(*first, *second) <= 0:
        return None
    logs = sorted(log(b / a) for a in first for b in second)
    cut = outside(len(first), len(second))
    return Ratio(exp(median(logs)), exp(logs[cut]), exp(logs[-1 - cut]), min(len(first), len(second), LEAST_PAIRS))


@cache
def outside(first: int, second: int) -> int:
    """How many of the ordered ratios lie outside the interval at each end: the largest k with P(U <= k) <= 2.5%."""
    counts = [[[1]] * (second + 1)] + [[[1]] + [[0]] * second for _ in range(first)]
    for a in range(1, first + 1):
        for b in range(1, second + 1):
            counts[a][b] = plus(counts[a - 1][b], b, counts[a][b - 1])
    total, below = sum(counts[first][second]), 0
    for statistic, count in enumerate(counts[first][second]):
        below += count
        if below / total > (1 - LEVEL) / 2:
            return max(0, statistic - 1)
    return 0


def plus(shifted: Sequence[int], by: int, other: Sequence[int]) -> list[int]:
    """The counts of *shifted*, *by* places up, and of *other*."""
    found = [0] * max(len(shifted) + by, len(other))
    for i, count in enumerate(shifted):
        found[i + by] += count
    for i, count in enumerate(other):
        found[i] += count
    return found


def unlike(before: Record, after: Record) -> list[str]:
    """What besides time is different between the records."""
    said = []
    if before.machine != after.machine:
        said.append(f"another machine: {before.machine.kernel}, {before.machine.processor} x {before.machine.cpus}, and then "
                    f"{after.machine.kernel}, {after.machine.processor} x {after.machine.cpus}")
    said += [f"{name}: {before.versions.get(name, 'not known')}, and then {value}" for name, value in after.versions.items()
             if before.versions.get(name) != value]
    only = {c.name for c in before.wish.configurations} ^ {c.name for c in after.wish.configurations}
    if only:
        said.append(f"in one of them only: {', '.join(sorted(only))}")
    return said
