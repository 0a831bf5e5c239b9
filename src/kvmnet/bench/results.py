"""From a record to what it says: figures of each configuration, ratios to the first, verdicts, a report. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

from kvmnet.bench.histogram import Histogram
from kvmnet.bench.model import Figures, Report, Row
from kvmnet.bench.record import Record
from kvmnet.bench.scenarios import SCENARIOS, Better, Place, Quantity, Scenario
from kvmnet.bench.statistics import LEAST_PAIRS, LEVEL, Ratio, Verdict, noise_of, ratio
from kvmnet.bench.virtio import unmet
from kvmnet.records import dataclass

BUSY = 0.5
"""Load average per processor beyond which others weigh on what is measured, not only on how well."""
LOUD = 0.10
"""Two equals that differ by more than this were measured on a machine that is too busy to tell."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One quantity of one configuration, against the first one."""

    number: int
    """Of the configuration."""
    figures: Figures
    ratio: Ratio | None
    """None for the first configuration, and where nothing can be compared."""
    verdict: Verdict | None

    def good(self, better: Better) -> bool | None:
        """Whether it is better than the first; None where no difference is shown."""
        if self.verdict not in (Verdict.MORE, Verdict.LESS):
            return None
        return (self.verdict is Verdict.MORE) == (better is Better.HIGH)


@dataclass(frozen=True, slots=True)
class Result:
    """One quantity of one scenario at one place, of every configuration."""

    scenario: Scenario
    place: Place
    quantity: Quantity
    cells: tuple[Cell, ...]
    noise: float
    """By how much the first configuration and its twin differ; 0 without a twin."""

    @property
    def name(self) -> str:
        return f"{self.scenario.name}, {self.place.value}: {self.quantity.name}"

    @property
    def title(self) -> str:
        return f"{self.scenario.words}, {self.place.value}"


def results(record: Record) -> list[Result]:
    return [result for name, place in record.wish.tasks() for result in of_scenario(record, SCENARIOS[name], place)]


def of_scenario(record: Record, scenario: Scenario, place: Place) -> Iterator[Result]:
    many = range(len(record.wish.configurations))
    answers = [record.answers(scenario.name, place, number) for number in many]
    if not answers[0]:
        return
    for quantity in scenario.quantities:
        values = [tuple(quantity.read(a) for a in some) for some in answers]
        ratios = [ratio(values[0], some) if number else None for number, some in enumerate(values)]
        noise = noise_of(next((ratios[n] for n in many if record.wish.configurations[n].twin), None))
        cells = [Cell(n, Figures(values[n], quantity.unit), r,
                      None if r is None else r.verdict(0.0 if record.wish.configurations[n].twin else noise))
                 for n, r in enumerate(ratios)]
        yield Result(scenario, place, quantity, tuple(cells), noise)


def words(cell: Cell, quantity: Quantity) -> str:
    """``1.42 times, 1.31 to 1.55: better``."""
    if cell.ratio is None or cell.verdict is None:
        return ""
    said = f"{cell.ratio.value:.2f} times ({cell.ratio.low:.2f} to {cell.ratio.high:.2f})"
    good = cell.good(quantity.better)
    if good is None:
        return f"{said}: {cell.verdict}"
    return f"{said}: {'better' if good else 'worse'}"


def times(record: Record, scenario: str, place: Place, number: int) -> Histogram:
    """All times that a configuration was measured to take, of every round."""
    return reduce(add, (Histogram.from_pairs(a["times"]) for a in record.answers(scenario, place, number)), Histogram())


def wrong(record: Record) -> list[str]:
    """Answers that are no result, in words."""
    return [f"{one.scenario}, {one.place.value}, {record.wish.configurations[one.configuration].name}: {said}"
            for one in record.taken if (said := SCENARIOS[one.scenario].whole(one.answer))]


def notes(record: Record, found: Sequence[Result]) -> list[str]:
    configurations = record.wish.configurations
    said = wrong(record)
    if record.loads and max(record.loads) > BUSY * record.machine.cpus:
        said.append(f"busy: the load average was {max(record.loads):.1f} on {record.machine.cpus} processors before any guest was started; "
                    "what is shown holds for a machine in that state")
    said += [f"{c.name}: asked for {words}" for c in configurations if c.name in record.negotiated
             for words in unmet(c.settings, record.negotiated[c.name])]
    if not any(c.twin for c in configurations):
        said.append("without a twin of the first configuration the noise is not known; a difference below 2% is called none")
    loud = [r for r in found if r.noise > LOUD and r.quantity.main]
    said += [f"loud: {r.name} of two equals differs by {r.noise * 100:.0f}%, so smaller differences are called none" for r in loud]
    said += [f"{r.name}: two equals seem to differ, {words(c, r.quantity)}; no more is believed of others"
             for r in found for c in r.cells if configurations[c.number].twin and r.quantity.main
             and c.verdict in (Verdict.MORE, Verdict.LESS)]
    by_sender = {(o.scenario, o.place.value) for o in record.taken if o.answer.get("by_sender")}
    said += [f"{s}, {p}: the sender could send no faster; what is behind it may carry more" for s, p in sorted(by_sender)]
    if record.wish.rounds < LEAST_PAIRS:
        said.append(f"{record.wish.rounds} rounds are too few for a verdict: {LEAST_PAIRS} are needed")
    if left := len(record.missing()):
        said.append(f"{left} of {record.wish.rounds * len(record.wish.tasks())} turns are not measured: kvmnet bench resume goes on")
    return said


def rows(record: Record, found: Sequence[Result]) -> Iterator[Row]:
    broken = {(o.scenario, o.place, o.configuration) for o in record.taken if SCENARIOS[o.scenario].whole(o.answer)}
    for r in found:
        for cell in r.cells:
            yield Row(record.wish.configurations[cell.number].name, r.name, cell.figures, words(cell, r.quantity),
                      (r.scenario.name, r.place, cell.number) not in broken)


def report(record: Record) -> Report:
    found = results(record)
    first = record.wish.configurations[0].name
    settings: dict[str, Any] = {**record.wish.to_json(), "versions": dict(record.versions), "began": record.began,
                                "negotiated": record.negotiated, "loads": record.loads, "level": LEVEL}
    return Report("run", f"each compared to {first}, {LEVEL:.0%} intervals, {record.wish.rounds} rounds", settings,
                  record.machine, list(rows(record, found)), notes(record, found), record.seconds)


def comparisons(record: Record) -> list[dict[str, Any]]:
    """Ratios and verdicts as data."""
    names = [c.name for c in record.wish.configurations]
    return [{"scenario": r.scenario.name, "place": r.place.value, "quantity": r.quantity.name, "configuration": names[c.number],
             "to": names[0], "ratio": round(c.ratio.value, 4), "low": round(c.ratio.low, 4), "high": round(c.ratio.high, 4),
             "pairs": c.ratio.pairs, "noise": round(r.noise, 4), "verdict": c.verdict.value if c.verdict else None,
             "better": c.good(r.quantity.better)}
            for r in results(record) for c in r.cells if c.ratio]
