"""What every benchmark reports: values that were measured again and again, the machine, and what was seen. Pure."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from kvmnet.records import asdict, dataclass

Progress = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all; 0 when not known)."""


def digits(value: float, count: int = 4) -> str:
    """A number with so many digits that count, without an exponent where it is large."""
    return f"{value:.{count}g}" if abs(value) < 10 ** count else f"{value:.0f}"


@dataclass(frozen=True, slots=True)
class Figures:
    """One quantity, measured several times."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def most(self) -> float:
        return max(self.values)

    @property
    def spread(self) -> float:
        """Width of the middle half of the values (the interquartile range)."""
        if len(self.values) < 2:
            return 0.0
        low, _, high = quantiles(self.values, n=4, method="inclusive")
        return high - low

    def words(self) -> str:
        """``130 ms``; of several values ``130 ms (112 to 151, middle half within 12)``."""
        if not self.values:
            return "not measured"
        if len(self.values) == 1:
            return f"{digits(self.median)} {self.unit}"
        return (f"{digits(self.median)} {self.unit} ({digits(self.least)} to {digits(self.most)}, "
                f"middle half within {digits(self.spread, 3)})")

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"values": [round(v, 3) for v in self.values], "unit": self.unit}
        if self.values:
            found |= {"median": round(self.median, 3), "least": round(self.least, 3), "most": round(self.most, 3),
                      "spread": round(self.spread, 3)}
        return found


@dataclass(frozen=True, slots=True)
class Machine:
    """What figures hold for."""

    kernel: str
    processor: str
    cpus: int
    drivers: Mapping[str, str]
    """Device -> driver of the kernel."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a report: what was measured, on what, and the figures."""

    subject: str
    what: str
    figures: Figures
    remark: str = ""
    good: bool = True
    """Whether it is what was to be expected."""

    def to_json(self) -> dict[str, Any]:
        return {"subject": self.subject, "what": self.what, **self.figures.to_json(), "remark": self.remark, "good": self.good}


COLUMNS = ("of", "what", "figures", "remark")


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found."""

    scenario: str
    subject: str
    """What was measured, in words."""
    settings: Mapping[str, Any]
    """What was asked for, and what was measured: names and options."""
    machine: Machine
    rows: Sequence[Row]
    notes: Sequence[str]
    seconds: float

    @property
    def exit_code(self) -> int:
        """1 when a figure is not what was to be expected."""
        return int(not all(row.good for row in self.rows))

    def table(self) -> list[tuple[str, str, str, str]]:
        """Cells of the table under ``COLUMNS``."""
        return [(r.subject, r.what, r.figures.words(), r.remark) for r in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Stable data for other programs."""
        return {"format": 1, "scenario": self.scenario, "subject": self.subject, "settings": dict(self.settings), "machine": asdict(self.machine),
                "rows": [r.to_json() for r in self.rows], "notes": list(self.notes), "seconds": round(self.seconds, 2),
                "exit_code": self.exit_code}
