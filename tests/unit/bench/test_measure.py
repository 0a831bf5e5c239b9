"""The order of turns, what is kept, and what a stop leaves: on a ground that answers without a host."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvmnet.bench.ground import Ground
from kvmnet.bench.matrix import Seat, matrix
from kvmnet.bench.measure import Bench
from kvmnet.bench.model import Machine
from kvmnet.bench.record import Pen, Record, Wish, read
from kvmnet.bench.scenarios import Place


class Answers(Ground):
    """Carries 30,000 packets per second, and every load in no time; QEMU takes 0.5 s for each, 0.1 s of it for its start."""

    def __init__(self, seats: Sequence[Seat], stop_after: int = 10**6):
        self.seats, self.guests = seats, 2
        self.asked: list[tuple[int, list[str]]] = []
        self.spent, self.stop_after = 0.0, stop_after

    def negotiated(self, seat: Seat) -> dict[str, object]:
        return {"driver": "virtio_net"}

    def processor_time(self, seat: Seat) -> float:
        return self.spent

    def loaded(self, seat: Seat, words: Sequence[str], seconds: float) -> str:
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((seat.number, list(words)))
        told = dict(w.split("=", 1) for w in words[1:])
        self.spent += 0.1 if told.get("count") == "1" else 0.5
        found: dict[str, Any] = {"seconds": 1.0, "busy_here": 0.2}
        if words[0] == "udp":
            sent = int(told["rate"])
            found |= {"sent": sent, "counts": [{"received": min(sent, 30000 - 1000 * i)} for i in range(told["ask"].count(",") + 1)]}
        elif words[0] == "tcp":
            found |= {"bytes": [1000], "busy_there": 0.1}
        return json.dumps(found)


def bench(folder: Path, scenarios: tuple[str, ...], place: Place = Place.HOST, stop_after: int = 10**6) -> tuple[Bench, Answers]:
    wish = Wish(tuple(matrix([], [], ["", "model=e1000"], twin=True)), scenarios, (place,), 3)
    record, pen = Record(wish, Machine("Linux", "", 2, {}), {}, "now"), Pen(folder / "r.jsonl")
    pen.begin(record)
    ground = Answers([Seat(n, c) for n, c in enumerate(wish.configurations)], stop_after)
    return Bench(record, pen, ground, lambda what, done, total: None), ground


def turns(ground: Answers) -> list[int]:
    return [seat for seat, words in ground.asked if words[0] == "tcp" and "ms=700" in words]


def test_turns_go_forwards_and_backwards(tmp_path: Path) -> None:
    made, ground = bench(tmp_path, ("tcp-up",))
    made.run()
    assert turns(ground) == [0, 1, 2, 2, 1, 0, 0, 1, 2]
    found = read(tmp_path / "r.jsonl")
    assert found.missing() == [] and found.ended and found.negotiated["defaults"] == {"driver": "virtio_net"}
    assert [t.answer["busy_host"] for t in found.taken] == [0.4] * 9, "what the start costs is no part of the load"


def test_the_rate_without_loss_is_searched_and_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    made, ground = bench(tmp_path, ("udp-64",))
    made.run()
    found = read(tmp_path / "r.jsonl").answers("udp-64", Place.HOST, 0)
    assert all(27000 <= a["rate"] <= 30000 for a in found) and not any(a["by_sender"] for a in found)
    warm = [w for n, w in ground.asked if n == 0 and w[0] == "udp"]
    assert "rate=8000" in warm[0] and sum("rate=8000" in w for w in warm) == 1


def test_a_group_is_as_fast_as_its_slowest_receiver(tmp_path: Path) -> None:
    made, ground = bench(tmp_path, ("multicast",), Place.GUEST)
    made.run()
    assert all(26000 <= a["rate"] <= 29000 for a in made.record.answers("multicast", Place.GUEST, 0))
    assert {w for _, words in ground.asked for w in words if w.startswith("to=239")} == {"to=239.255.51.99"}


class Settling(Answers):
    """After each loss two short loads lose something still."""

    owing = 2

    def loaded(self, seat: Seat, words: Sequence[str], seconds: float) -> str:
        super().loaded(seat, words, seconds)
        lost = 0
        if words[0] == "steady":
            lost, self.owing = (1, self.owing - 1) if self.owing and "ms=300" in words else (0, self.owing)
        return json.dumps({"seconds": 4.0, "busy_here": 0.1, "lost": lost, "gap": 0.02, "after": 0.3, "over": True})

    @contextmanager
    def losing(self, seat: Seat) -> Iterator[None]:
        assert self.owing == 0, "nothing is lost any more when a way is"
        yield
        self.owing = 2


def test_a_way_is_lost_when_nothing_else_is(tmp_path: Path) -> None:
    made, before = bench(tmp_path, ("failover",), Place.OUTSIDE)
    made.ground = ground = Settling(before.seats)
    made.run()
    steady = [next(w for w in words if w.startswith("ms=")) for _, words in ground.asked if words[0] == "steady"]
    assert steady == (["ms=300"] * 3 + ["ms=4000"]) * 9


@pytest.mark.parametrize("after", [15, 18, 19, 22])
def test_a_stop_keeps_whole_turns_and_a_second_sitting_ends_it(tmp_path: Path, after: int) -> None:
    made, ground = bench(tmp_path, ("tcp-up", "tcp-down"), stop_after=after)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    found = read(tmp_path / "r.jsonl")
    assert len(found.taken) % 3 == 0 and not found.ended and found.missing()
    again = Answers(ground.seats)
    Bench(found, Pen(tmp_path / "r.jsonl"), again, lambda what, done, total: None).run()
    whole = read(tmp_path / "r.jsonl")
    assert whole.missing() == [] and whole.ended and len(whole.taken) == 18
