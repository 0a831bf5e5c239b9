"""``kvmnet bench run``: every configuration carries every load in every round, in turns.

Rounds go through the configurations forwards and backwards by turns (A B C, C B A, ...), so that what changes steadily on the
machine weighs on all alike. What one turn gives is on the disk before the next begins.
"""
from __future__ import annotations

import json
from collections.abc import Sequence
from time import monotonic
from typing import Any

from kvmnet.bench.ground import Ground
from kvmnet.bench.matrix import GROUP, Seat
from kvmnet.bench.model import Progress
from kvmnet.bench.record import Pen, Record, Taken
from kvmnet.bench.scenarios import SCENARIOS, Place, Scenario, arguments
from kvmnet.bench.search import Trial, search
from kvmnet.errors import KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.records import dataclass, field, replace

LEAST_RATE, MOST_RATE = 100.0, 20e6
"""Packets per second between which the rate without loss is looked for."""
SHORT = 300
"""Milliseconds of load before a way is lost."""
CALM = 60.0
"""Seconds for one of those to lose nothing."""


@dataclass
class Bench:
    """The run of a record on a ground."""

    record: Record
    pen: Pen
    ground: Ground
    progress: Progress
    rates: dict[tuple[str, Place, int], float] = field(default_factory=dict)
    """Rates without loss that were found last: where the next search begins."""
    start_cost: dict[int, float] = field(default_factory=dict)
    """Seconds of processor time that QEMU needs to start a load at all, which is no part of the load."""

    def run(self) -> None:
        """Measure what is missing. What is interrupted goes on from the record."""
        began, missing = monotonic(), self.record.missing()
        try:
            self.begin(missing)
            for done, (number, name, place) in enumerate(missing):
                self.progress(f"round {number + 1} of {self.record.wish.rounds}: {SCENARIOS[name].words}", done, len(missing))
                taken = [Taken(number, name, place, seat.number, self.turn(SCENARIOS[name], place, seat))
                         for seat in (self.ground.seats[::-1] if number % 2 else self.ground.seats)]
                self.pen.write(*taken)
                self.record.taken += taken
        finally:
            seconds = monotonic() - began
            self.record.seconds += seconds
            self.record.ended = not self.record.missing()
            self.pen.write({"seconds": round(seconds, 2), "ended": self.record.ended})

    def begin(self, missing: Sequence[tuple[int, str, Place]]) -> None:
        """What comes before the first turn: what was negotiated, what a start costs, and a warm-up whose answers are not kept."""
        for seat in self.ground.seats:
            self.record.negotiated[seat.configuration.name] = self.ground.negotiated(seat)
            self.start_cost[seat.number] = min(self.idle(seat) for _ in range(3))
        self.pen.write({"negotiated": self.record.negotiated})
        for name, place in dict.fromkeys((name, place) for _, name, place in missing if not SCENARIOS[name].loses):
            for seat in self.ground.seats:
                self.progress(f"warming up: {SCENARIOS[name].words}", 0, len(missing))
                self.turn(shortened(SCENARIOS[name]), place, seat)

    def idle(self, seat: Seat) -> float:
        before = self.ground.processor_time(seat)
        self.ground.loaded(seat, ["turns", f"to={self.ground.far_end(seat, self.record.wish.places[0])}", "count=1", "by=tcp"], 0)
        return self.ground.processor_time(seat) - before

    def turn(self, scenario: Scenario, place: Place, seat: Seat) -> dict[str, Any]:
        """One load on one configuration: what it gave."""
        with self.ground.turn_of(seat):
            if scenario.rate:
                return self.searched(scenario, place, seat)
            if scenario.loses:
                self.calm(scenario, place, seat)
                with self.ground.losing(seat):
                    return self.answer(seat, arguments(scenario, self.ground.far_end(seat, place)), scenario)
            return self.answer(seat, arguments(scenario, self.ground.far_end(seat, place)), scenario)

    def calm(self, scenario: Scenario, place: Place, seat: Seat) -> None:
        """Wait until a short load loses nothing: what the return of a way costs, and what is learned by first packets, is no part of the next
        loss. Raises KvmnetError."""
        words = arguments(replace(scenario, options={**scenario.options, "ms": SHORT}), self.ground.far_end(seat, place))
        try:
            wait_until(lambda: not json.loads(self.ground.loaded(seat, words, SHORT / 1000))["lost"], CALM, 0.0)
        except TimeoutError:
            raise KvmnetError(f"{seat.configuration.name}: requests are lost though both ways are usable, for {CALM:g} s") from None

    def answer(self, seat: Seat, words: Sequence[str], scenario: Scenario) -> dict[str, Any]:
        before = self.ground.processor_time(seat)
        text = self.ground.loaded(seat, words, float(scenario.options.get("ms", 0)) / 1000)
        spent = self.ground.processor_time(seat) - before - self.start_cost[seat.number]
        try:
            found: dict[str, Any] = json.loads(text)
        except ValueError as wrong:
            raise KvmnetError(f"{seat.configuration.name}: {' '.join(words)}: no answer can be read: {text[:200]!r}") from wrong
        return found | {"busy_host": round(max(0.0, spent), 4)}

    def searched(self, scenario: Scenario, place: Place, seat: Seat) -> dict[str, Any]:
        """The highest rate without loss, with what all trials took."""
        key = (scenario.name, place, seat.number)
        to, asked = self.ground.far_end(seat, place), [self.ground.far_end(seat, place)]
        if scenario.name == "multicast":
            to, asked = GROUP, [seat.address(2), seat.host]
        sums = {"sent": 0, "busy_here": 0.0, "busy_host": 0.0, "seconds": 0.0}

        def send(rate: float) -> Trial:
            got = self.answer(seat, arguments(scenario, to, asked, max(1, round(rate))), scenario)
            for name in sums:
                sums[name] += got[name]
            return Trial(rate, got["sent"], min(c["received"] for c in got["counts"]), got["seconds"])

        found = search(send, LEAST_RATE, MOST_RATE, self.rates.get(key, float(scenario.rate)))
        if found.rate:
            self.rates[key] = found.rate
        return {**sums, "rate": round(found.rate, 1), "by_sender": found.by_sender, "trials": len(found.trials)}


def shortened(scenario: Scenario) -> Scenario:
    """The same load for a third of the time. A search is made whole: its rate is where the next one begins."""
    less = {k: max(1, int(v) // 3) for k, v in scenario.options.items() if k in ("ms", "count", "bytes")}
    return scenario if scenario.rate else replace(scenario, options={**scenario.options, **less})


