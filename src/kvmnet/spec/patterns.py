"""Regular expressions that are compiled when they are first asked something. Pure."""
from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Later:
    """What ``re.compile`` returns, before it is compiled."""

    def __init__(self, pattern: str, flags: int = 0):
        self.said = pattern, flags

    def __getattr__(self, name: str) -> Any:
        made = re.compile(*self.said)
        for method in ("match", "fullmatch", "search", "sub", "split", "findall", "finditer"):
            setattr(self, method, getattr(made, method))
        return getattr(made, name)


@contextmanager
def compiled_later(package: str) -> Iterator[None]:
    """While *package* is imported, its expressions are not compiled. PyYAML's are for its own scanner and for types that are not
    taken from it; to compile them takes longer than all that is used of it."""
    now = re.compile

    def compile(pattern: Any, flags: Any = 0) -> Any:
        asks = str(sys._getframe(1).f_globals.get("__name__"))
        return Later(pattern, flags) if asks.partition(".")[0] == package else now(pattern, flags)

    re.compile = compile
    try:
        yield
    finally:
        re.compile = now
