"""Gaps from probes: what counts as lost, when it began, and when it was over."""
from __future__ import annotations

import pytest

from kvmnet.bench.failover.timeline import LATE, Outage, Timeline


def probed(answers: str, interval: float = 0.01, delay: float = 0.001) -> Timeline:
    """A probe each interval: ``.`` answered, ``x`` lost, ``l`` answered too late."""
    made = Timeline()
    heard: list[tuple[float, int]] = []
    for i, what in enumerate(answers):
        now = i * interval
        for when, number in [h for h in heard if h[0] <= now]:
            made.hear(number, when)
            heard.remove((when, number))
        number = made.ask(now)
        if what != "x":
            heard.append((now + (delay if what == "." else LATE + 0.5), number))
    for when, number in heard:
        made.hear(number, when)
    return made


@pytest.mark.parametrize(("answers", "lost", "gap"), [
    ("." * 100, 0, 0.0),
    ("." * 20 + "x" * 13 + "." * 67, 13, 130.0),
    ("." * 20 + "x" * 3 + "." * 5 + "x" * 2 + "." * 70, 5, 100.0),    # till the last one that is lost
    ("." * 20 + "l" * 4 + "." * 76, 4, 40.0),
    ("." * 20 + "x" * 1 + "." * 79, 1, 10.0),
])
def test_a_gap_is_from_the_first_lost_to_the_first_answered(answers: str, lost: int, gap: float) -> None:
    found = probed(answers).outage(0.15, 1.0)
    assert (found.lost, round(found.gap_ms, 6)) == (lost, gap) and found.over
    assert found.exact == pytest.approx(0.01 if lost else 0)


def test_what_was_lost_before_is_not_counted() -> None:
    assert probed("." * 5 + "xxx" + "." * 92).outage(0.2, 1.0) == Outage(0, None, None)


def test_what_is_not_answered_yet_is_not_lost() -> None:
    assert probed("." * 97 + "xxx").outage(0.5, 1.0).lost == 0


def test_an_outage_without_an_end_is_not_over() -> None:
    found = probed("." * 20 + "x" * 80).outage(0.15, 1.0)
    assert found.lost == 80 and found.seconds is None and not found.over
    assert not probed("x" * 80).outage(0.0, 0.8).over


def test_a_probe_that_was_sent_late_makes_a_gap_less_exact() -> None:
    made = Timeline()
    for now, answered in ((0.0, True), (0.01, True), (0.21, False), (0.22, False), (0.23, True)):
        number = made.ask(now)
        if answered:
            made.hear(number, now + 0.001)
    assert made.outage(0.0, 0.23) == Outage(2, 0.21, pytest.approx(0.02), pytest.approx(0.2))


def test_calm_begins_anew_after_a_loss_and_ends_with_silence() -> None:
    made = probed("." * 50 + "x" + "." * 50)
    assert made.calm(1.0) == pytest.approx(0.49)
    assert made.calm(1.0, since=0.8) == pytest.approx(0.2)
    assert made.calm(1.5) == 0.0
    assert Timeline().calm(1.0) == 0.0


def test_answers_without_a_number_count_for_the_probe_before() -> None:
    made = Timeline()
    for now in (0.0, 0.01, 0.02):
        made.ask(now)
        made.hear(-1, now + 0.005)
    assert [a is not None for a in made.answered] == [True, True, True]
    made.ask(0.03)
    made.ask(0.04)
    made.hear(-1, 0.041)
    assert made.answered[3] == 0.041 and made.answered[4] is None
