"""How often two equals are called equal: a long record of a configuration and its twin, cut into runs. Pure.

What a run says of a difference is worth what it says of none. A run of many rounds is as good as many runs of a few: each turn is a pair of its own.
"""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.bench.record import Record
from kvmnet.bench.scenarios import SCENARIOS
from kvmnet.bench.statistics import LEAST_PAIRS, Verdict, ratio
from kvmnet.errors import KvmnetError
from kvmnet.records import dataclass

PROMISED = 0.95
"""Share of runs in which equals are called equal."""


@dataclass(frozen=True, slots=True)
class Equals:
    """One quantity."""

    what: str
    runs: int
    equal: int
    """Runs that said "no difference shown"."""
    main: bool
    """Whether verdicts are passed on it; others explain."""

    @property
    def kept(self) -> bool:
        return self.equal >= PROMISED * self.runs or not self.main

    def to_json(self) -> dict[str, object]:
        return {"what": self.what, "runs": self.runs, "equal": self.equal, "main": self.main}


def equals(record: Record, rounds: int = LEAST_PAIRS) -> list[Equals]:
    """What runs of *rounds* rounds each would have said of the first configuration and its twin. Raises KvmnetError for a record from which
    not one such run can be cut."""
    twin = next((n for n, c in enumerate(record.wish.configurations) if c.twin), None)
    if twin is None:
        raise KvmnetError("the record has no twin of its first configuration", "kvmnet bench run measures one unless --no-twin is given")
    found = list(counted(record, twin, rounds))
    if not found:
        raise KvmnetError(f"no load of the record has {rounds} whole rounds", "kvmnet bench run --rounds 120, or a smaller --rounds here")
    return found


def counted(record: Record, twin: int, rounds: int) -> Iterator[Equals]:
    for name, place in record.wish.tasks():
        one, other = record.answers(name, place, 0), record.answers(name, place, twin)
        starts = range(0, len(one) - rounds + 1, rounds)
        for quantity in SCENARIOS[name].quantities if starts else ():
            made = [ratio([quantity.read(a) for a in one[s:s + rounds]], [quantity.read(a) for a in other[s:s + rounds]]) for s in starts]
            said = [r.verdict() for r in made if r is not None]
            if said:
                yield Equals(f"{name}, {place.value}: {quantity.name}", len(said), said.count(Verdict.SAME), quantity.main)
