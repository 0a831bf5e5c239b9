"""What ``kvmnet bench peers`` compares, and what its record says: time to configure, and like with like. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping

from kvmnet.bench.model import Figures, Report, Row
from kvmnet.bench.peers.tasks import TASKS
from kvmnet.bench.record import Record
from kvmnet.bench.results import Result, results
from kvmnet.bench.scenarios import Better
from kvmnet.bench.statistics import Ratio, Verdict, ratio
from kvmnet.records import replace

WHO: Mapping[str, str] = {"kvmnet": "kvmnet", "bare": "the bare tools", "libvirt": "libvirt", "ovs": "Open vSwitch"}
"""Who configures -> in words."""
POINTS = ("guard=off", "guard=full", "by=bare", "by=libvirt", "by=clean-traffic", "by=ovs")
"""What carries traffic. The first is what the others are compared to."""
LIKE: tuple[tuple[str, str, str], ...] = (
    ("off", "libvirt", "guard off, against libvirt's default network"),
    ("full", "clean-traffic", "guard on, against libvirt's clean-traffic"),
)
"""(kvmnet's guard, the other, in words): like with like, of which kvmnet is never to be the slower one."""


def points(absent: Mapping[str, str]) -> list[str]:
    """Of those that are there."""
    return [p for p in POINTS if {"clean-traffic": "libvirt"}.get(by := p.removeprefix("by="), by) not in absent]


def extended(record: Record, report: Report) -> Report:
    """*report* of the traffic, with what else was compared before it."""
    rows = (*of_tasks(record), *like_with_like(record), *report.rows)
    said = [f"{WHO[by]}: {why}; not compared" for by, why in record.absent.items()]
    return replace(report, scenario="peers", rows=rows, notes=(*said, *report.notes))


def of_tasks(record: Record) -> Iterator[Row]:
    """Seconds of everybody, against kvmnet's."""
    for task, by_whom in record.configured.items():
        for by, seconds in by_whom.items():
            yield Row(WHO[by], f"to configure {TASKS[task].format(**record.wish.sizes)}", Figures(tuple(seconds), "s"),
                      against(ratio(by_whom["kvmnet"], seconds)) if by != "kvmnet" else "")


def against(found: Ratio | None) -> str:
    if found is None:
        return ""
    said = f"{found.value:.2f} times as long as kvmnet ({found.low:.2f} to {found.high:.2f})"
    return said if found.verdict() is not Verdict.UNKNOWN else f"{said}: {Verdict.UNKNOWN}"


def like_with_like(record: Record) -> Iterator[Row]:
    for guard, by, words in LIKE:
        for result in results(record):
            if result.quantity.main and (found := pair(record, result, guard, by)):
                slower = found.verdict(result.noise) is (Verdict.LESS if result.quantity.better is Better.HIGH else Verdict.MORE)
                yield Row(words, result.name, Figures((found.value,), "times"),
                          f"({found.low:.2f} to {found.high:.2f}): {judged(found, result)}", good=not slower)


def judged(found: Ratio, result: Result) -> str:
    match found.verdict(result.noise):
        case Verdict.MORE | Verdict.LESS as verdict:
            return "better" if (verdict is Verdict.MORE) is (result.quantity.better is Better.HIGH) else "worse: target missed"
        case other:
            return str(other)


def pair(record: Record, result: Result, guard: str, by: str) -> Ratio | None:
    """kvmnet's times the other's; None where one of them was not measured."""
    numbers = {(c.settings.get("by", "kvmnet"), c.settings.get("guard", "full")): n
               for n, c in enumerate(record.wish.configurations) if not c.twin}
    ours, theirs = numbers.get(("kvmnet", guard)), numbers.get((by, "full"))
    if ours is None or theirs is None:
        return None
    values = {c.number: c.figures.values for c in result.cells}
    return ratio(values[theirs], values[ours])
