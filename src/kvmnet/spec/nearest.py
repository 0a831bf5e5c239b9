"""What a word was probably meant to be. Pure."""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


@lru_cache(maxsize=1024)
def nearest(word: str, known: tuple[str, ...]) -> str:
    """The one of *known* that *word* was probably meant to be, or ''."""
    from difflib import get_close_matches  # only a wrong document needs it

    lower = word.lower().replace("-", "_")
    close = get_close_matches(lower, known, 1, 0.6) or get_close_matches(word, known, 1, 0.6)
    return close[0] if close else ""


def meant(word: str, known: Sequence[str], what: str) -> str:
    """A hint for a *word* that is not among *known*: the nearest, else all of them."""
    near = nearest(word, tuple(known))
    if near:
        return f"did you mean {near}?"
    if not known:
        return f"there are no {what}"
    listed = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"{what}: {listed}"
