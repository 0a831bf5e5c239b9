"""The highest rate without loss, found on lines whose limit is known."""
from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.bench.search import MOST_TRIALS, RESOLUTION, Trial, search


def line(limit: float, sender: float = 1e9, seconds: float = 1.0, noise: random.Random | None = None):  # type: ignore[no-untyped-def]
    """A line that carries *limit* packets per second, asked by a sender that can send *sender*."""
    def send(rate: float) -> Trial:
        sent = round(min(rate, sender) * seconds)
        lost = noise is not None and noise.random() < 0.15
        return Trial(rate, sent, min(sent, round(limit * seconds)) - (1 if lost and sent else 0), seconds)
    return send


@given(st.floats(1e3, 1e6), st.floats(500, 2e6))
def test_the_limit_is_found_from_any_start(limit: float, first: float) -> None:
    found = search(line(limit), 100, 1e7, first)
    assert limit * (1 - RESOLUTION) - 2 <= found.rate <= limit + 1 and not found.by_sender
    assert len(found.trials) <= MOST_TRIALS


def test_a_sender_that_is_slower_than_the_line_is_said() -> None:
    found = search(line(1e6, sender=5e4), 100, 1e7, 8000)
    assert found.by_sender and found.rate == pytest.approx(5e4)


def test_a_line_that_always_loses_has_no_rate() -> None:
    found = search(lambda rate: Trial(rate, 1000, 999, 1.0), 100, 1e7, 8000)
    assert found.rate == 0 and not found.by_sender
    assert search(lambda rate: Trial(rate, 1000, 999, 1.0), 100, 1e7, 8000, tolerance=0.001).rate > 0


def test_one_packet_lost_by_chance_does_not_end_the_search() -> None:
    """Whatever happens once is tried again: most searches on a line that loses in 15% of trials come near its limit."""
    near = sum(search(line(40000, noise=random.Random(seed)), 100, 1e7, 8000).rate > 30000 for seed in range(100))
    assert near >= 75


def test_a_trial_knows_its_loss() -> None:
    assert Trial(1000, 1000, 990, 1.0).loss == pytest.approx(0.01) and Trial(1000, 0, 0, 1.0).loss == 1
    assert Trial(1000, 890, 890, 1.0).kept_up is False and Trial(1000, 950, 0, 1.0).kept_up is True
    assert Trial(1000, 10, 10, 0.0).rate == 0
