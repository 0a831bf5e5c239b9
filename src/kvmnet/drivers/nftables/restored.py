"""The file from which the keeper makes our tables anew, after a change of some elements. Pure.

It has a line for the elements of each set. To write all of them takes longer than the change of one NIC, so a file that is ours
is changed where the elements are.
"""
from __future__ import annotations

import re

from kvmnet.drivers.nftables.elements import Told
from kvmnet.drivers.nftables.members import key_of

LINE = re.compile(r"^add element (\S+ \S+ \S+) \{ ", re.M)


def changed(file: str, told: Told) -> str:
    """*file* with what *told* says of single elements."""
    sets: dict[str, Told] = {}
    for (name, key), text in told.items():
        sets.setdefault(name, {})[name, key] = text
    places = {match[1]: match.span() for match in LINE.finditer(file) if match[1] in sets}
    parts, at = [], 0
    for name in sorted(places, key=lambda name: places[name]):
        start, inner = places[name]
        end = file.index("\n", inner)
        parts += [file[at:start], line(name, file[inner:end].removesuffix(" }"), sets[name])]
        at = end + 1
    return "".join((*parts, file[at:], *(line(name, "", sets[name]) for name in sets if name not in places)))


def line(name: str, elements: str, told: Told) -> str:
    """The line of a set, whose *elements* stood there; none of a set that is empty."""
    if any(key in elements for _, key in told):
        elements = ", ".join(text for text in elements.split(", ") if (name, key_of(text)) not in told)
    texts = ", ".join((*filter(None, [elements]), *(text for text in told.values() if text is not None)))
    return f"add element {name} {{ {texts} }}\n" if texts else ""
