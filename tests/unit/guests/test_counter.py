"""The time stamp counter's speed, as an emulated kernel is told it."""
from __future__ import annotations

import platform

import pytest

from kvmnet.host import counter


def test_two_measurements_agree() -> None:
    if platform.machine() != "x86_64":
        assert counter.word() == ""
        return
    first = counter.kilohertz()
    counter.kilohertz.cache_clear()
    second = counter.kilohertz()
    assert 100_000 < first < 10_000_000 and abs(first - second) < first / 1000
    assert counter.word() == f"tsc_early_khz={second}"


@pytest.mark.parametrize("trouble", ["another processor", "no such page"])
def test_where_it_cannot_be_had_nothing_is_said(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    def refused(*words: object, **named: object) -> None:
        raise PermissionError

    if trouble == "another processor":
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
    else:
        monkeypatch.setattr("mmap.mmap", refused)
    counter.kilohertz.cache_clear()
    try:
        assert counter.word() == ""
    finally:
        counter.kilohertz.cache_clear()
