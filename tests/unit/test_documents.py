"""The pages do not rot: what is generated is fresh, what they point to is there, their documents load."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmnet.cli import manual
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import require
from kvmnet.spec.guests import Nic
from kvmnet.spec.load import loads

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
STALE = "run ./dev docs"
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)?(?:::(?P<test>test_\w+))?`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.S | re.M)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_man_page_is_fresh() -> None:
    assert (ROOT / manual.MAN).read_text() == manual.man_page(), STALE


def test_the_page_of_the_doctor_is_fresh() -> None:
    assert (ROOT / manual.DOCTOR).read_text() == manual.doctor_page(), STALE


def test_the_table_of_nics_is_fresh_and_whole() -> None:
    page = (ROOT / manual.NICS).read_text()
    assert page == manual.with_table(page), STALE
    assert manual.DEVICE_OPTIONS.keys() | manual.HOST_OPTIONS.keys() == set(Nic.model_fields)
    assert not manual.DEVICE_OPTIONS.keys() & manual.HOST_OPTIONS.keys()


def test_the_gravest_effect_counts() -> None:
    assert manual.effect("link") == "live"
    assert manual.effect("queues").startswith("replug")


def test_the_guide_knows_every_exit_code() -> None:
    page = (ROOT / "docs/guide/programs.md").read_text()
    assert [f"| {code} | {text} |" for code, text in manual.EXIT_CODES] == re.findall(r"^\| \d+ \|.*$", page, re.M)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_the_tests_that_are_named_exist(page: Path) -> None:
    """`tests/x.py::test_y`; further `::test_z` are of the same file."""
    file = ""
    for found in NAMED.finditer(page.read_text()):
        file = found["file"] or file
        if found["file"]:
            assert (ROOT / file).exists(), file
        if found["test"]:
            assert f"def {found['test']}(" in (ROOT / file).read_text(), f"{file}::{found['test']}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_documents_in_pages_load(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text()):
        if language == "yaml":
            require(loads(text), Facts())


def test_both_readmes_show_the_same_things() -> None:
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README.zh-CN.md"))
    for language in ("yaml", "sh"):
        shown = [[re.sub(r"\s*#.*", "", line) for line in text.splitlines()]
                 for page in (english, chinese) for kind, text in BLOCK.findall(page) if kind == language]
        assert shown[:len(shown) // 2] == shown[len(shown) // 2:], language
    assert english.count("\n## ") == chinese.count("\n## ")
    assert set(NAMED.findall(english)) == set(NAMED.findall(chinese))
