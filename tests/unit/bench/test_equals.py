"""What verdicts are worth with the noise of a real machine: 120 pairs of two equal configurations, measured once (``equals.json``)."""
from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kvmnet.bench.equals import PROMISED
from kvmnet.bench.statistics import LEAST_PAIRS, Verdict, ratio

Pairs = list[tuple[float, float]]
RUNS = 400
READ = json.loads(Path(__file__).with_name("equals.json").read_text())["pairs"]
QUANTITIES = {"throughput": [(a, b) for a, b, _, _ in READ], "QEMU's processor time": [(a, b) for _, _, a, b in READ]}


def verdict(pairs: Pairs) -> Verdict:
    found = ratio([a for a, _ in pairs], [b for _, b in pairs])
    assert found is not None
    return found.verdict()


def runs(pairs: Pairs, rounds: int, effect: float) -> list[Verdict]:
    """Of runs whose pairs are drawn from *pairs*, either of the two equals first; the second is *effect* times what was measured."""
    dice, found = random.Random(f"{rounds} {effect}"), []
    for _ in range(RUNS):
        drawn = (dice.choice(pairs) for _ in range(rounds))
        found.append(verdict([(a, b * effect) if dice.random() < 0.5 else (b, a * effect) for a, b in drawn]))
    return found


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_twenty_runs_as_they_were_measured(quantity: str) -> None:
    """In their order, with what drifts and comes in fits on a machine."""
    pairs = QUANTITIES[quantity]
    said = [verdict(pairs[n:n + LEAST_PAIRS]) for n in range(0, len(pairs), LEAST_PAIRS)]
    assert len(said) == 20 and said.count(Verdict.SAME) >= 19


@pytest.mark.parametrize("rounds", [6, 8, 12, 24])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_equals_are_called_equal_as_promised(quantity: str, rounds: int) -> None:
    assert runs(QUANTITIES[quantity], rounds, 1.0).count(Verdict.SAME) >= PROMISED * RUNS


@pytest.mark.parametrize(("effect", "rounds", "power"), [(1.4, 6, 0.8), (1.4, 8, 0.95), (1.1, 24, 0.5), (1.1, 40, 0.75), (1.1, 60, 0.9)])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_a_real_difference_is_found_as_often_as_the_guide_says(quantity: str, effect: float, rounds: int, power: float) -> None:
    """The control of the test above: the same noise, and an effect."""
    said = runs(QUANTITIES[quantity], rounds, effect)
    assert said.count(Verdict.MORE) >= power * RUNS
    assert said.count(Verdict.LESS) == 0, "never the contrary"


def test_few_rounds_hide_a_small_difference() -> None:
    """Why the guide says how many it takes."""
    assert runs(QUANTITIES["throughput"], 6, 1.1).count(Verdict.SAME) > RUNS / 2
