"""Files of every format, and what import makes of them, kept beside them as NAME.expect.

To write the expectations anew after a change that is meant: KVMNET_GOLDEN=write, then read the difference.
"""
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kvmnet.adopt.document import write
from kvmnet.adopt.model import Source
from kvmnet.adopt.sources import FORMATS, followed, read
from kvmnet.spec.load import loads

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(p for form in FORMATS for p in (GOLDEN / form).iterdir() if p.suffix != ".expect")


def sources(case: Path) -> list[Source]:
    files = sorted(case.iterdir()) if case.is_dir() else [case]
    return [Source(f.name, f.read_text()) for f in files]


@pytest.mark.parametrize("case", CASES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_golden(case: Path) -> None:
    layout = FORMATS[case.parent.name].parse(sources(case))
    written = write(layout, [f"Written by kvmnet import from {case.parent.name}."])
    loads(written.text)
    shown = written.text + "\n--- elements\n" + "".join(
        f"{e.outcome.value}: {e}\n" for e in written.elements)
    expect = case.with_name(f"{case.name}.expect")
    if os.environ.get("KVMNET_GOLDEN") == "write":
        expect.write_text(shown)
    assert shown == expect.read_text()


def test_there_are_enough_cases() -> None:
    counts = {form: sum(c.parent.name == form for c in CASES) for form in FORMATS}
    assert counts["netplan"] >= 6 and counts["ifupdown"] >= 6 and counts["networkd"] >= 3 and counts["nmstate"] >= 3


def test_a_pattern_that_can_name_no_file_names_none(tmp_path: Path) -> None:
    file = tmp_path / "interfaces"
    file.write_bytes(b"source \x00/etc/network/*\nsource more\n")
    (tmp_path / "more").write_text("auto lo\n")
    assert [Path(s.path).name for s in followed([read(file)])] == ["interfaces", "more"]
