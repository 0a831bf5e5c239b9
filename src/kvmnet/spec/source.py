"""The file of a document as bytes. Apart from load.py, which costs 0.1 s to import."""
from __future__ import annotations

from pathlib import Path

LARGEST = 64 * 2**20
"""Bytes that a document may have; 10,000 guests take about 2 MB."""


def content(path: Path | str) -> bytes:
    """The file's bytes, as many as a document may have and one more. Raises OSError, ValueError."""
    with open(path, "rb") as file:
        return file.read(LARGEST + 1)


def may_name(text: str, key: str) -> bool:
    """Whether the document *text* can have the key *key*: only if it is written there, or a quoted string with an escape may be it."""
    return key in text or "\\" in text
