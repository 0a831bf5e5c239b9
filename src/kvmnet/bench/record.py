"""The record of a run: one line of JSON for what was to be done, then one for each thing that was measured.

A line is whole or not there, so a run that was stopped, killed or cut off by a power failure goes on from its record, and a
report can be made of any record.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from kvmnet.bench.matrix import Configuration
from kvmnet.bench.model import Machine
from kvmnet.bench.scenarios import SCENARIOS, Place
from kvmnet.errors import KvmnetError
from kvmnet.records import asdict, dataclass, field

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be measured."""

    configurations: tuple[Configuration, ...]
    """The first is what the others are compared to."""
    scenarios: tuple[str, ...]
    places: tuple[Place, ...]
    rounds: int
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Of what is configured against the clock, ``networks`` and ``nics``; none when that is not asked for."""

    def to_json(self) -> dict[str, Any]:
        return {"configurations": [c.to_json() for c in self.configurations], "scenarios": list(self.scenarios),
                "places": [p.value for p in self.places], "rounds": self.rounds,
                **({"sizes": dict(self.sizes)} if self.sizes else {})}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(tuple(Configuration(c["settings"], c["twin"]) for c in data["configurations"]),
                   tuple(s for s in data["scenarios"] if s in SCENARIOS), tuple(map(Place, data["places"])), int(data["rounds"]),
                   data.get("sizes", {}))

    def tasks(self) -> list[tuple[str, Place]]:
        """Scenarios at places, in the order in which a round goes through them."""
        return [(s, p) for p in self.places for s in self.scenarios if p in SCENARIOS[s].places]


@dataclass(frozen=True, slots=True)
class Taken:
    """One answer: a load that one configuration carried in one round."""

    round: int
    scenario: str
    place: Place
    configuration: int
    answer: Mapping[str, Any]


@dataclass
class Record:
    wish: Wish
    machine: Machine
    versions: Mapping[str, str]
    began: str
    """Date and time, ISO 8601."""
    taken: list[Taken] = field(default_factory=list)
    negotiated: dict[str, Any] = field(default_factory=dict)
    """Configuration's name -> what its guest has: driver, features, queues, MTU."""
    loads: list[float] = field(default_factory=list)
    """Load average of each sitting before its guests were started: what others did to this machine."""
    configured: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Task -> by whom -> seconds that it took to configure, of each round."""
    absent: dict[str, str] = field(default_factory=dict)
    """Who was to be compared and is not there -> why."""
    seconds: float = 0.0
    ended: bool = False

    def whole_rounds(self, scenario: str, place: Place) -> list[int]:
        """Rounds in which every configuration was measured."""
        have: dict[int, set[int]] = {}
        for one in self.taken:
            if (one.scenario, one.place) == (scenario, place):
                have.setdefault(one.round, set()).add(one.configuration)
        return sorted(r for r, done in have.items() if len(done) == len(self.wish.configurations))

    def answers(self, scenario: str, place: Place, configuration: int) -> list[Mapping[str, Any]]:
        """Of whole rounds, in their order; of a round that was measured twice the last."""
        found = {one.round: one.answer for one in self.taken
                 if (one.scenario, one.place, one.configuration) == (scenario, place, configuration)}
        return [found[r] for r in self.whole_rounds(scenario, place)]

    def missing(self) -> list[tuple[int, str, Place]]:
        """What is still to be measured, whole rounds of a scenario at a place: a pair is never made of two sittings."""
        done = {(r, s, p) for s, p in self.wish.tasks() for r in self.whole_rounds(s, p)}
        return [(r, s, p) for r in range(self.wish.rounds) for s, p in self.wish.tasks() if (r, s, p) not in done]

    def header(self) -> dict[str, Any]:
        return {"kvmnet bench": FORMAT, "wish": self.wish.to_json(), "machine": asdict(self.machine),
                "versions": dict(self.versions), "began": self.began, **({"absent": self.absent} if self.absent else {})}


def line_of(taken: Taken) -> dict[str, Any]:
    return {"round": taken.round, "scenario": taken.scenario, "place": taken.place.value,
            "configuration": taken.configuration, "answer": dict(taken.answer)}


def loads(text: str, source: str) -> Record:
    """A record from its text. A last line that was cut off is left out. Raises KvmnetError for what is none."""
    lines = text.split("\n")
    try:
        first = json.loads(lines[0])
        if first["kvmnet bench"] != FORMAT:
            raise KvmnetError(f"{source}: a record of format {first['kvmnet bench']}, which this kvmnet does not know")
        record = Record(Wish.from_json(first["wish"]), Machine(**first["machine"]), first["versions"], first["began"],
                        absent=first.get("absent", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise KvmnetError(f"{source} is no record of kvmnet bench", "kvmnet bench run --record FILE makes one") from wrong
    for place, line in enumerate(lines[1:-1], 2):    # what stands behind the last line's end was cut off
        try:
            add(record, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as wrong:
            raise KvmnetError(f"{source}:{place}: the record is damaged: {wrong}") from wrong
    return record


def add(record: Record, data: Any) -> None:
    if not isinstance(data, dict):
        raise TypeError("no object")
    if "answer" in data:
        number = int(data["configuration"])
        if data["scenario"] in record.wish.scenarios and 0 <= number < len(record.wish.configurations):
            record.taken.append(Taken(int(data["round"]), data["scenario"], Place(data["place"]), number, data["answer"]))
    elif "versions" in data:
        record.versions = data["versions"]
    elif "load" in data:
        record.loads.append(float(data["load"]))
    elif "negotiated" in data:
        record.negotiated.update(data["negotiated"])
    elif "configured" in data:
        record.configured = data["configured"]
    elif "seconds" in data:
        record.seconds += float(data["seconds"])
        record.ended = bool(data["ended"])


def read(path: Path) -> Record:
    """Raises KvmnetError."""
    try:
        return loads(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise KvmnetError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


class Pen:
    """Writes a record, a line at a time."""

    def __init__(self, path: Path):
        self.path = path

    def begin(self, record: Record) -> None:
        """A new record. Raises KvmnetError when there is one already, or it cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "x", encoding="utf-8") as file:
                file.write(json.dumps(record.header()) + "\n")
        except FileExistsError:
            raise KvmnetError(f"{self.path} is there already", f"kvmnet bench resume {self.path} goes on with it") from None
        except OSError as error:
            raise KvmnetError(f"cannot write {self.path}: {error.strerror}") from error

    def go_on(self) -> None:
        """Before more is written: what a cut-off left of a last line goes."""
        content = self.path.read_bytes()
        if not content.endswith(b"\n"):
            with open(self.path, "r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def write(self, *lines: Mapping[str, Any] | Taken) -> None:
        data: Sequence[Mapping[str, Any]] = [line_of(x) if isinstance(x, Taken) else x for x in lines]
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(x) + "\n" for x in data))
