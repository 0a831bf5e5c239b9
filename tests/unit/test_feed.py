"""Programs that are fed line by line: what they get, when, and what is left when either end dies."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.drivers.linux import batch
from kvmnet.drivers.linux.batch import run_batch
from kvmnet.drivers.linux.words import Line
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.resource import Key
from kvmnet.host.clock import wait_until
from kvmnet.host.run import LONGEST, ToolFailed, feed, portions

MANY = [f"{number} {'x' * (number % 300)}\n" for number in range(3000)]


def test_everything_arrives_in_whole_lines() -> None:
    assert feed(["cat"], MANY) == "".join(MANY)
    assert feed(["cat"], []) == ""
    found = [*portions(MANY)]
    assert b"".join(found) == "".join(MANY).encode() and len(found) > 50
    assert all(len(data) <= LONGEST and data.endswith(b"\n") for data in found)


def test_the_first_lines_are_carried_out_while_others_are_made(tmp_path: Path) -> None:
    begun = tmp_path / "begun"

    def lines() -> Iterator[str]:
        yield from MANY
        wait_until(begun.exists, 30)
        yield "last\n"
    assert feed(["sh", "-c", f"read line; touch {begun}; cat"], lines()).endswith(f"{MANY[-1]}last\n")


def test_a_program_that_ends_is_given_no_more() -> None:
    source = iter(f"{number}\n" for number in range(10 ** 9))
    with pytest.raises(ToolFailed) as failed:
        feed(["sh", "-c", "read line; echo no >&2; exit 3"], source)
    assert (failed.value.code, failed.value.detail) == (3, "no") and int(next(source)) < 10 ** 6


def test_a_program_that_takes_nothing_is_killed() -> None:
    with pytest.raises(ToolFailed, match=r"no answer within 0\.2 s"):
        feed(["sleep", "600"], MANY, timeout=0.2)


def test_a_line_that_cannot_be_made_ends_the_program(tmp_path: Path) -> None:
    told = tmp_path / "pid"

    def lines() -> Iterator[str]:
        yield from MANY
        wait_until(lambda: told.exists() and told.read_text().endswith("\n"), 30)
        raise ValueError("cannot")
    with pytest.raises(ValueError, match="cannot"):
        feed(["sh", "-c", f"echo $$ > {told}; exec cat"], lines())
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


def test_a_killed_writer_leaves_no_half_of_a_line(tmp_path: Path) -> None:
    taken, ended = tmp_path / "taken", tmp_path / "ended"
    writer = os.fork()
    if not writer:
        number = 0

        def lines() -> Iterator[str]:
            nonlocal number
            while True:
                number += 1
                yield f"{number} {'x' * (number % 300)} end\n"
        try:
            feed(["sh", "-c", f"cat > {taken}; touch {ended}"], lines())
        finally:
            os._exit(1)
    try:
        wait_until(lambda: taken.exists() and taken.stat().st_size > 300_000, 60)
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)
    wait_until(ended.exists, 60)
    lines = taken.read_text().splitlines(keepends=True)
    assert len(lines) > 1000 and lines[-1] == f"{len(lines)} {'x' * (len(lines) % 300)} end\n"


def line(word: str, *, gone: bool = False) -> Line:
    return Line((word,), Key("link", word), gone)


class Tool:
    """Stands for the tool: knows words that it refuses, and which it has taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *refused: str):
        self.refused, self.taken, self.runs = refused, list[str](), 0
        monkeypatch.setattr(batch.host, "feed", lambda argv, lines, timeout: self.take(argv, lines))
        monkeypatch.setattr(batch.host, "run", lambda argv, stdin, timeout: self.take(argv, stdin.splitlines()))

    def take(self, argv: tuple[str, ...], lines: Iterator[str]) -> str:
        self.runs += 1
        for number, text in enumerate(lines, 1):
            if (word := text.strip()) in self.refused:
                raise ToolFailed(argv, 1, f"RTNETLINK answers: No such device\nCommand failed -:{number}")
            self.taken.append(word)
        return ""


def test_what_is_gone_already_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Tool(monkeypatch, "a", "d", "e", "z")
    run_batch(line(word, gone=True) for word in "abcdefz")
    assert tool.taken == ["b", "c", "f"] and tool.runs == 4
    run_batch(iter(()))
    assert tool.runs == 4


def test_what_is_refused_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Tool(monkeypatch, "a", "d")
    with pytest.raises(StepFailed) as failed:
        run_batch([line("a", gone=True), line("b"), line("c"), line("d"), line("e")])
    assert failed.value.key == Key("link", "d") and tool.taken == ["b", "c"]


@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_line_that_no_pipe_takes_at_once_comes_in_its_turn(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    words = [*"abcd"]
    words.insert(at, "x" * LONGEST)
    tool = Tool(monkeypatch)
    run_batch(map(line, words))
    assert tool.taken == words and tool.runs == 2
