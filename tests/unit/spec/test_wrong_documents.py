"""Every document in wrong/ is refused with exactly the problems in the file beside it: where, what, what
to do. ``python tests/unit/spec/test_wrong_documents.py`` writes those files anew, for review."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.errors import SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec import checks
from kvmnet.spec.load import load

HERE = Path(__file__).parent / "wrong"
DOCUMENTS = sorted(HERE.glob("*.yaml"))


def verdict(path: Path) -> str:
    """The problems of a document as text, one per line, their hints below them."""
    try:
        checks.require(load(path), Facts())
    except SpecError as wrong:
        lines = []
        for p in wrong.problems:
            lines.append(f"{p.line}:{p.column}: {p.path + ': ' if p.path else ''}{p.message}")
            lines += [f"    {p.hint}"] if p.hint else []
        return "\n".join(lines) + "\n"
    return "accepted\n"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_refused_with_these_words(path: Path) -> None:
    assert verdict(path) == path.with_suffix(".expect").read_text(encoding="utf-8")


def test_the_corpus_is_refused_as_a_whole() -> None:
    """No expectation may be that a wrong document is accepted, and none stands alone."""
    expected = sorted(HERE.glob("*.expect"))
    assert len(DOCUMENTS) >= 40
    assert [p.stem for p in expected] == [p.stem for p in DOCUMENTS]
    assert all("accepted" not in p.read_text(encoding="utf-8").splitlines() for p in expected)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.with_suffix(".expect").write_text(verdict(document), encoding="utf-8")
