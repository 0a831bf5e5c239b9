"""How files of tests are shared between the two processes of a run: each is taken once, and those for the lab longest first."""
from __future__ import annotations

from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lib.lab_pytest import Holder
from lib.side import LONG, LabFiles, Queue, begun_early

LAB = Path(__file__).parents[1] / "lab"


def unit(name: str, *tests: str) -> list[pytest.Item]:
    return [cast(pytest.Item, SimpleNamespace(path=LAB / f"{name}.py", nodeid=f"tests/lab/{name}.py::{test}")) for test in tests]


def names(items: Any) -> list[str]:
    return [item.nodeid.partition("::")[2] for item in items]


def test_what_one_lab_has_taken_the_other_does_not_get() -> None:
    queue = Queue([unit("x", "x1", "x2"), unit("y", "y1"), unit("z", "z1")])
    first, second = (LabFiles(queue, Holder()) for _ in range(2))
    assert first.take() == "tests/lab/x.py"
    coming = iter(second)
    assert names([next(coming)]) == ["y1"]
    assert names(first) == ["x1", "x2", "z1"], "what it took before, and what is left"
    assert names(coming) == [] and second.take() == ""
    assert {*first.holder.files} == {"tests/lab/x.py", "tests/lab/z.py"} and second.holder.files == {"tests/lab/y.py": ["tests/lab/y.py::y1"]}
    assert names(chain(Queue([unit("v", "v1"), unit("w", "w1")]), LabFiles(queue, Holder()))) == ["v1", "w1"]


def test_long_files_come_first_and_exist() -> None:
    units = [unit("test_features", "f"), *(unit(name, name) for name in reversed(LONG))]
    assert [u[0].path.stem for u in sorted(units, key=begun_early)] == [*LONG, "test_features"]
    assert [name for name in LONG if not (LAB / f"{name}.py").exists()] == []
