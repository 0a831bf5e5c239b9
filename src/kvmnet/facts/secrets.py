"""Secrets taken out of what a capture shows: words of command lines, and texts of rules. Pure."""
from __future__ import annotations

import re
from collections.abc import Iterable

HIDDEN = "(hidden)"
NAMES = r"(?:pass(?:word|wd|phrase)?|secret|token|api[-_]?key|private[-_]?key|psk|credentials?|auth[-_]?key)"
ASSIGNED = re.compile(rf"(?i)((?:^|[\s,;&?\"'._-]){NAMES}\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)")
OPTION = re.compile(rf"(?i)--?(?:[a-z0-9-]+-)?{NAMES}")
SECRET_OBJECT = re.compile(r"^secret\b")
DATA = re.compile(r"\b(data)=[^,]*")
IN_ADDRESS = re.compile(r"(\w+://[^/\s:@]*:)[^/\s@]+(@)")
KEY = re.compile(r"\b[A-Za-z0-9+/]{43}=(?!\w)")
"""A WireGuard key, or 32 other bytes in base64."""


def scrubbed_words(words: Iterable[str]) -> list[str]:
    """A command line without the values of what names a secret."""
    found: list[str] = []
    hide = False
    for word in words:
        if hide:
            found.append(HIDDEN)
        elif SECRET_OBJECT.match(word):
            found.append(DATA.sub(rf"\1={HIDDEN}", scrubbed(word)))
        else:
            found.append(scrubbed(word))
        hide = not hide and bool(OPTION.fullmatch(word))
    return found


def scrubbed(text: str) -> str:
    """*text* without what follows a secret's name, passwords of addresses, and keys."""
    text = ASSIGNED.sub(rf"\1{HIDDEN}", text)
    return KEY.sub(HIDDEN, IN_ADDRESS.sub(rf"\1{HIDDEN}\2", text))
