"""The house keeps its order: imports point inward, pure rooms open no door to the outside."""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "kvmnet"

PURE = (
    *SRC.glob("spec/**/*.py"), *SRC.glob("modes/*.py"), *SRC.glob("policy/*.py"), *SRC.glob("bpf/*.py"), *SRC.glob("drivers/*/resources.py"),
    *(SRC / "engine" / f"{n}.py" for n in ("resource", "plan", "driver", "fingerprint", "result")),
    *(SRC / "adopt" / f"{n}.py" for n in ("model", "verdicts", "keys", "netplan", "ifupdown", "networkd", "nmstate",
                                          "document", "export", "live", "restore", "restore_groups", "qemu_words")),
    *SRC.glob("doctor/**/*.py"), SRC / "facts" / "secrets.py", SRC / "reach" / "targets.py", SRC / "drivers" / "kinds.py", SRC / "facts" / "model.py", SRC / "compile.py",
    *(SRC / "capture" / f"{n}.py" for n in ("choose", "line", "pcapng")),
)
DOORS = ("subprocess", "socket", "sqlite3", "threading", "asyncio", "shutil", "tempfile", "time", "fcntl",
         "kvmnet.host", "kvmnet.api", "kvmnet.cli", "kvmnet.facts.collect", "kvmnet.engine.transaction")
EDGES = ("kvmnet.cli", "kvmnet.api")
INSIDE = ("spec", "modes", "policy", "engine", "drivers", "host", "facts", "check", "guests", "reach", "doctor", "bpf", "capture")


def imports(file: Path) -> Iterator[str]:
    """Modules that *file* imports when it is run; what only the type checker sees does not count."""
    tree = ast.parse(file.read_text())
    hidden = {id(n) for node in ast.walk(tree) if isinstance(node, ast.If)
              and getattr(node.test, "id", "") == "TYPE_CHECKING" for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def within(module: str, rooms: tuple[str, ...]) -> bool:
    return any(module == room or module.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize("file", PURE, ids=lambda f: str(f.relative_to(SRC)))
def test_pure_rooms_open_no_door(file: Path) -> None:
    opened = [m for m in imports(file) if within(m, DOORS) or (m.startswith("kvmnet.drivers.") and m.endswith(".driver"))]
    assert not opened


@pytest.mark.parametrize("file", sorted((SRC / "engine").glob("*.py")), ids=lambda f: f.name)
def test_the_engine_knows_no_driver(file: Path) -> None:
    assert not [m for m in imports(file) if within(m, ("kvmnet.drivers", "kvmnet.spec", "kvmnet.modes", *EDGES))]


@pytest.mark.parametrize("room", INSIDE)
def test_imports_point_inward(room: str) -> None:
    outward = {(str(f.relative_to(SRC)), m) for f in (SRC / room).rglob("*.py") for m in imports(f) if within(m, EDGES)}
    assert not outward


def test_a_wrong_import_would_be_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("import subprocess\nfrom kvmnet.cli import main\n")
    assert [m for m in imports(wrong) if within(m, DOORS)] == ["subprocess", "kvmnet.cli"]


def test_nothing_is_named_by_its_shape() -> None:
    """No drawer for odds and ends: a file is one subject."""
    banned = {"utils", "util", "common", "helper", "helpers", "manager", "handler", "base", "misc"}
    assert not [f for f in SRC.rglob("*.py") if f.stem in banned]


def test_every_driver_is_in_the_table(tmp_path: Path) -> None:
    from kvmnet.drivers.kinds import KINDS
    from kvmnet.drivers.table import drivers
    from kvmnet.host.paths import Paths
    claimed = [k for d in drivers(Paths(tmp_path, tmp_path)) for k in d.kinds]
    assert sorted(claimed) == sorted(KINDS)


def test_no_file_bears_the_marks_of_a_merge() -> None:
    marks = re.compile(r"^(?:<<<<<<<|>>>>>>>) ", re.M)
    root = SRC.parents[1]
    files = [f for pattern in ("*.md", "docs/**/*.md", "examples/*", "src/**/*.py", "tests/**/*.py", "bench/*.py", "dev") for f in root.glob(pattern) if f.is_file()]
    assert len(files) > 500 and [str(f) for f in files if marks.search(f.read_text(errors="replace"))] == []
    assert marks.search("a\n<<<<<<< HEAD\n")
