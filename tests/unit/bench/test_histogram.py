"""Times in buckets: nothing is lost, nothing is off by more than a step."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.bench.histogram import BUCKETS, Histogram, bounds, bucket

TIMES = st.integers(0, 2**42)


@given(TIMES)
def test_a_value_lies_in_its_bucket(value: int) -> None:
    low, high = bounds(bucket(value))
    assert low <= value <= high or bucket(value) == BUCKETS - 1
    assert high - low <= max(0, low / 127)


def test_buckets_touch() -> None:
    assert all(bounds(n)[1] + 1 == bounds(n + 1)[0] for n in range(BUCKETS - 1))
    assert all(bucket(bounds(n)[0]) == n == bucket(bounds(n)[1]) for n in range(BUCKETS))


@given(st.lists(st.integers(1, 2**40), min_size=1, max_size=300), st.floats(0.1, 100))
def test_a_percentile_is_the_value_of_that_rank(values: list[int], percent: float) -> None:
    found = Histogram.of(values).percentile(percent)
    wanted = sorted(values)[max(1, -int(-len(values) * percent / 100 // 1)) - 1]
    near = sorted(values)[max(1, round(len(values) * percent / 100 + 0.499999999)) - 1]
    assert min(abs(found - wanted), abs(found - near)) <= max(wanted, near) / 127 + 1


@given(st.lists(TIMES, max_size=100), st.lists(TIMES, max_size=100))
def test_two_together_are_one_of_all(one: list[int], other: list[int]) -> None:
    both = Histogram.of(one) + Histogram.of(other)
    assert both.pairs() == Histogram.of(one + other).pairs() == Histogram.from_pairs(both.pairs()).pairs()
    assert both.total == len(one) + len(other)
    shares = list(both.cumulative())
    assert shares == sorted(shares) and (not shares or shares[-1][1] == 1)


def test_what_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        Histogram().percentile(50)
    with pytest.raises(ValueError, match="no bucket"):
        Histogram.from_pairs([[BUCKETS, 1]])
    with pytest.raises(ValueError, match="no bucket"):
        Histogram.from_pairs([[3, 0]])
