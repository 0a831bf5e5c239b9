"""Ratios of pairs, their intervals and verdicts; and that two equals are called equal."""
from __future__ import annotations

import random
from itertools import pairwise, product
from math import comb, exp, log

import pytest

from kvmnet.bench.compare import outside, unpaired
from kvmnet.bench.statistics import (
    LEAST_PAIRS,
    Ratio,
    Verdict,
    fairness,
    imbalance,
    noise_of,
    ranks,
    ratio,
    tail,
)


def test_the_ranks_are_those_of_all_signs() -> None:
    for pairs in range(1, 9):
        by_hand = [0] * (pairs * (pairs + 1) // 2 + 1)
        for signs in product((0, 1), repeat=pairs):
            by_hand[sum(rank for rank, sign in enumerate(signs, 1) if sign)] += 1
        assert list(ranks(pairs)) == by_hand


def test_the_cut_is_that_of_the_printed_tables() -> None:
    """Critical values of the signed-rank test, two-sided 5%: 0 for n = 6, 2 for 7, 3 for 8, 5 for 9, 8 for 10."""
    assert [tail(n, 0.025) for n in (5, 6, 7, 8, 9, 10)] == [0, 0, 2, 3, 5, 8]


def test_the_cut_of_two_series_is_that_of_the_printed_tables() -> None:
    """Critical values of U, two-sided 5%: 1 for 4 and 5, 2 for 5 and 5, 5 for 6 and 6, 13 for 8 and 8."""
    assert [outside(4, 5), outside(5, 5), outside(6, 6), outside(8, 8)] == [1, 2, 5, 13]
    assert outside(2, 2) == 0


def test_the_ratio_of_pairs_ignores_what_both_suffer() -> None:
    load = [1.0, 0.2, 3.0, 0.5, 1.7, 0.9, 2.2]
    found = ratio([100 * x for x in load], [142 * x for x in load])
    assert found is not None and found.value == pytest.approx(1.42) and found.low == pytest.approx(1.42)
    assert found.verdict() is Verdict.MORE
    back = ratio([142 * x for x in load], [100 * x for x in load])
    assert back is not None and back.verdict() is Verdict.LESS


def test_too_few_pairs_give_no_verdict() -> None:
    found = ratio([1.0] * (LEAST_PAIRS - 1), [9.0] * (LEAST_PAIRS - 1))
    assert found is not None and found.verdict() is Verdict.UNKNOWN


def test_nothing_is_said_of_zero() -> None:
    assert ratio([1.0, 2.0], [0.0, 1.0]) is None and ratio([], []) is None and ratio([1.0], [1.0, 2.0]) is None
    assert unpaired([1.0], [0.0]) is None


def test_a_difference_within_the_noise_of_equals_is_none() -> None:
    found = Ratio(1.10, 1.06, 1.14, 8)
    assert found.verdict() is Verdict.MORE
    assert found.verdict(0.07) is Verdict.SAME
    assert Ratio(1.012, 1.01, 1.015, 8).verdict() is Verdict.SAME, "nobody acts on 1%"
    assert noise_of(Ratio(0.8, 0.7, 0.9, 6)) == pytest.approx(0.25) == noise_of(Ratio(1.25, 1.0, 1.5, 6))
    assert noise_of(None) == 0


@pytest.mark.parametrize("rounds", [6, 8, 12])
@pytest.mark.parametrize("noise", ["normal", "heavy", "drift"])
def test_equals_are_called_equal_19_times_in_20(rounds: int, noise: str) -> None:
    """A against A, with noise as machines have it: of the load on the machine, of outliers, of a trend."""
    dice, runs, wrong = random.Random(f"{rounds} {noise}"), 400, 0
    for _ in range(runs):
        first, second = [], []
        for number in range(rounds):
            pair = []
            for turn in range(2):
                value = log(100) + dice.gauss(0, 0.08)
                if noise == "heavy" and dice.random() < 0.2:
                    value -= dice.expovariate(2)
                if noise == "drift":
                    value += 0.05 * (number * 2 + turn)
                pair.append(exp(value))
            first.append(pair[number % 2])    # A B, B A, A B, ...
            second.append(pair[1 - number % 2])
        found = ratio(first, second)
        assert found is not None
        wrong += found.verdict() is not Verdict.SAME
    assert wrong <= runs / 20


def test_without_taking_turns_a_trend_looks_like_a_difference() -> None:
    """The control of the test above: the same trend, always A before B."""
    dice, wrong = random.Random(7), 0
    for _ in range(200):
        first, second = [], []
        for number in range(12):
            first.append(exp(0.05 * number * 2 + dice.gauss(0, 0.02)))
            second.append(exp(0.05 * (number * 2 + 1) + dice.gauss(0, 0.02)))
        found = ratio(first, second)
        wrong += found is not None and found.verdict() is not Verdict.SAME
    assert wrong > 150


@pytest.mark.parametrize("rounds", [6, 9])
def test_the_interval_holds_the_true_ratio(rounds: int) -> None:
    dice, held = random.Random(rounds), 0
    for _ in range(400):
        base = [exp(dice.gauss(0, 0.5)) for _ in range(rounds)]
        found = ratio(base, [b * 1.4 * exp(dice.gauss(0, 0.15)) for b in base])
        assert found is not None
        held += found.low <= 1.4 <= found.high
    assert held >= 400 * 0.93, "95% are promised; chance takes two more of 400 runs"


def test_a_real_difference_is_found() -> None:
    dice, found = random.Random(3), 0
    for _ in range(100):
        base = [exp(dice.gauss(0, 0.5)) for _ in range(6)]
        made = ratio(base, [b * 1.4 * exp(dice.gauss(0, 0.08)) for b in base])
        found += made is not None and made.verdict(0.03) is Verdict.MORE
    assert found >= 95


def test_two_series_apart_in_time() -> None:
    found = unpaired([100.0, 101, 102, 103, 99, 98], [140.0, 141, 142, 139, 143, 138])
    assert found is not None and found.low < 1.4 < found.high and found.verdict() is Verdict.MORE
    same = unpaired([100.0, 101, 102, 103, 99, 98], [101.0, 100, 102.5, 97, 99.5, 103.5])
    assert same is not None and same.verdict() is Verdict.SAME


def test_the_counts_of_two_series_are_all_orders() -> None:
    from kvmnet.bench.compare import plus
    assert plus([1, 2], 2, [5]) == [5, 0, 1, 2]
    assert comb(12, 6) == 924    # orders of 6 and 6: the test of the tables above rests on their sum


def test_fairness_is_one_for_even_shares() -> None:
    assert fairness([5, 5, 5, 5]) == 1 and fairness([8, 0, 0, 0]) == 0.25 and fairness([]) == 0 == fairness([0, 0])
    shares = [[x, 1.0] for x in (1.0, 2.0, 4.0, 8.0)]
    assert all(fairness(a) > fairness(b) for a, b in pairwise(shares))
    assert imbalance([3, 1]) == 50 and imbalance([2, 2]) == 0 == imbalance([])
