"""What a benchmark claims: a measured number against its target, as a line of a table and as JSON."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.world import Spent

SIGNS = {"at most": "<=", "at least": ">="}


@dataclass(frozen=True)
class Claim:
    """One number that is promised. ``bound`` is "at most" or "at least"."""

    name: str
    value: float
    bound: str
    target: float
    unit: str
    """"x" for a ratio, "s" for seconds."""
    ours: float | None = None
    """Median of our side, seconds."""
    bare: float | None = None
    """Median of the bare tools, seconds."""
    processor: float | None = None
    """The same of processor time, which a busy machine hardly changes."""
    runs: int = 0

    @property
    def kept(self) -> bool:
        return self.value <= self.target if self.bound == "at most" else self.value >= self.target

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kept": self.kept}


def ratio(name: str, ours: Sequence[Spent], bare: Sequence[Spent], target: float) -> Claim:
    """Median of ours over median of bare, from interleaved runs."""
    (a, a_cpu), (b, b_cpu) = medians(ours), medians(bare)
    return Claim(name, round(a / b, 2), "at most", target, "x", a, b, round(a_cpu / b_cpu, 2), len(ours))


def seconds(name: str, taken: Sequence[Spent], target: float) -> Claim:
    """Median of whole processes, in seconds."""
    wall, cpu = medians(taken)
    return Claim(name, wall, "at most", target, "s", wall, None, cpu, len(taken))


def medians(taken: Sequence[Spent]) -> tuple[float, float]:
    return (round(statistics.median(t.wall for t in taken), 4),
            round(statistics.median(t.processor for t in taken), 4))


def table(title: str, claims: Sequence[Claim]) -> str:
    rows = [("", "kvmnet", "bare", "value", "of cpu", "target", "")]
    rows += [(c.name, told(c.ours), told(c.bare), f"{c.value:.2f} {c.unit}",
              "" if c.processor is None else f"{c.processor:.2f} {c.unit}",
              f"{SIGNS[c.bound]} {c.target:g} {c.unit}", "kept" if c.kept else "MISSED") for c in claims]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in
                       enumerate(zip(row, widths, strict=True))) for row in rows]
    return "\n".join([title, *("  " + line for line in lines)])


def told(value: float | None) -> str:
    return "" if value is None else f"{value * 1000:,.0f} ms"
