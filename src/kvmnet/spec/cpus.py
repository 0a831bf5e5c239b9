"""Sets of processors as documents and the kernel write them: ``0-3,8``. Pure."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST = 8191
"""The largest number of a processor (NR_CPUS of a distribution's kernel is at most 8192)."""
NONE = "none"
_PART = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def cpus(value: object) -> str:
    """``0-3,8`` in its canonical form, rising and joined where numbers follow each other; ``none`` for no processor. Raises ValueError."""
    text = str(value).replace(" ", "")
    if not text:
        raise ValueError("write processors as 0-3,8, or none")
    return NONE if text == NONE else joined(numbers(text))


def nodes(value: object) -> str:
    """NUMA nodes, written alike; there is no ``none``. Raises ValueError."""
    try:
        found = cpus(value)
    except ValueError:
        found = NONE
    if found == NONE:
        raise ValueError("write NUMA nodes as 0 or 0-1")
    return found


def numbers(text: str) -> set[int]:
    """The processors that ``0-3,8`` names; none of ``none`` and an empty text. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(",") if text not in ("", NONE) else ():
        match = _PART.fullmatch(part)
        if not match:
            raise ValueError("write processors as 0-3,8, or none")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= MOST:
            raise ValueError(f"{part}: write numbers from 0 to {MOST}, the smaller one first")
        found.update(range(first, last + 1))
    return found


def joined(some: Iterable[int]) -> str:
    """Numbers as ``0-3,8``; ``none`` when there are none."""
    spans: list[list[int]] = []
    for n in sorted(set(some)):
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or NONE


def from_mask(text: str) -> str:
    """The same of the kernel's hexadecimal words, ``ff`` or ``1,00000003``."""
    bits = int(text.replace(",", "") or "0", 16)
    return joined(n for n in range(bits.bit_length()) if bits >> n & 1)


def to_mask(text: str) -> str:
    """The inverse: words of 32 bits, as the kernel reads them (lib/bitmap.c, bitmap_parse())."""
    bits = sum(1 << n for n in numbers(text))
    digits = f"{bits:x}"
    words = [digits[max(0, end - 8):end] for end in range(len(digits), 0, -8)]
    return ",".join(reversed(words))


def in_turn(each: Sequence[str]) -> tuple[str, ...]:
    """What is said of each queue, as short as it can be said: the first ones, which come again and again."""
    for length in range(1, len(each)):
        if all(one == each[n % length] for n, one in enumerate(each)):
            return tuple(each[:length])
    return tuple(each)


def lists(value: object) -> tuple[str, ...]:
    """One set for all queues, or a list of them for the queues in turn. Raises ValueError."""
    found = tuple(map(cpus, value)) if isinstance(value, list | tuple) else (cpus(value),)
    if not found:
        raise ValueError("write processors as 0-3,8, or none")
    return in_turn(found)
