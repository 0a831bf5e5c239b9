"""The file from which the keeper makes our tables anew, and the same file after a change of some elements. Pure.

It has a line for the elements of each set. To write all of them takes longer than the change of one NIC, so what we know to be
our own file is changed where the elements are. Its first line says what it holds for: the memberships that were loaded with it, the
program that wrote it, and its own text. Any doubt means that it is written anew.
"""
from __future__ import annotations

import re
from collections.abc import Iterable

from kvmnet.drivers.nftables.elements import Told
from kvmnet.drivers.nftables.look import program, short
from kvmnet.drivers.nftables.members import key_of

LINE = re.compile(r"^add element (\S+ \S+ \S+) \{ ", re.M)


def file_of(lines: Iterable[str], noted: str) -> str:
    """The file of *lines*. ``noted``: the memberships as they are written beside it."""
    return headed("\n".join((*lines, "")), noted)


def headed(body: str, noted: str) -> str:
    return f"{head(body, noted)}\n{body}"


def head(body: str, noted: str) -> str:
    return f"# {program()} {short(noted)} {short(body)}"


def changed(file: str, before: str, told: Told, after: str) -> str | None:
    """*file* with what *told* says of single elements; None when it is not what we wrote. ``before``, ``after``: the memberships."""
    first, _, body = file.partition("\n")
    if first != head(body, before):
        return None
    sets: dict[str, Told] = {}
    for (name, key), text in told.items():
        sets.setdefault(name, {})[name, key] = text
    places = {match[1]: match.span() for match in LINE.finditer(body) if match[1] in sets}
    parts, at = [], 0
    for name in sorted(places, key=lambda name: places[name]):
        start, inner = places[name]
        end = body.index("\n", inner)
        parts += [body[at:start], line(name, body[inner:end].removesuffix(" }"), sets[name])]
        at = end + 1
    parts += [body[at:], *(line(name, "", sets[name]) for name in sets if name not in places)]
    return headed("".join(parts), after)


def line(name: str, elements: str, told: Told) -> str:
    """The line of a set, whose *elements* stood there; none of a set that is empty."""
    if any(key in elements for _, key in told):
        elements = ", ".join(text for text in elements.split(", ") if (name, key_of(text)) not in told)
    texts = ", ".join((*filter(None, [elements]), *(text for text in told.values() if text is not None)))
    return f"add element {name} {{ {texts} }}\n" if texts else ""
