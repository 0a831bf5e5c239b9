"""What else is wrong with a document whose form is wrong in places: the cross checks of all that these places do not touch.
Pure; only a wrong document needs it."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from kvmnet.errors import Problem
from kvmnet.facts.model import Facts
from kvmnet.spec import explain
from kvmnet.spec.form import ValidationError
from kvmnet.spec.models import Spec
from kvmnet.spec.tree import join

Steps = tuple[str | int, ...]
Part = tuple[str, str]
"""Section and name of a part of the document: ("networks", "lan"); '' for the name of a section without names."""

ROUNDS = 4
"""How often something is left out before the rest is given up: leaving out an option can make its part wrong."""
JUDGED_BY = {"uplinks": {"uplinks", "networks"}, "vms": {"mirrors"}}
"""Section -> those whose parts decide what its own may be, beside what these name: an uplink needs a network on it to make
a tree of, a NIC that receives copies a mirror that sends them."""
NAMES = re.compile(r"[\w-]+")
PART = re.compile(r"([\w-]+)(?:\.([\w-]+))?")


def problems(data: Any, paths: Iterable[str]) -> list[Problem]:
    """Problems, without lines, of the parts that have nothing to do with one that is of wrong form or holds one of *paths*.
    None where that cannot be told: a section is wrong as a whole."""
    from kvmnet.spec.checks import check  # the checks read documents

    if not isinstance(data, dict):
        return []
    rest, touched = data | {"version": 1}, {part_at(path) for path in paths}
    for _ in range(ROUNDS):
        try:
            spec = Spec.model_validate(rest)
        except ValidationError as error:
            wrong = set(explain.wrong(error, rest))
            if any(len(steps) < 2 for steps in wrong):
                return []
            touched |= {part_at(explain.path_of(steps)) for steps in wrong}
            rest = cut(rest, wrong)
        else:
            touched = reached(touched, data)
            names = {name for _, name in touched}
            return [p for p in check(spec, Facts()) if (part := part_at(p.path))[1] and part not in touched
                    and names.isdisjoint(words(p.message))]
    return []


def cut(data: Any, places: Iterable[Steps]) -> Any:
    """A copy of *data* without these places."""
    below: dict[str | int, set[Steps]] = {}
    for first, *rest in places:
        below.setdefault(first, set()).add(tuple(rest))

    def kept(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        for key, value in items:
            if key not in below:
                yield key, value
            elif () not in below[key]:
                yield key, cut(value, below[key])

    return dict(kept(data.items())) if isinstance(data, dict) else [value for _, value in kept(enumerate(data))]


def part_at(path: str) -> Part:
    """The part of the document in which dotted *path* is."""
    found = PART.match(path)
    return (found[1], found[2] or "") if found else ("", "")


def reached(touched: set[Part], data: dict[str, Any]) -> set[Part]:
    """*touched* and the parts that name one of them, directly or by others; and all of a section that is judged by parts of
    which one is among them: which it named may be what is wrong there."""
    says: dict[str, set[Part]] = {}
    parts: set[Part] = set()
    for section, inside in data.items():
        for name, value in inside.items() if isinstance(inside, dict) else [("", inside)]:
            part = part_at(join(section, str(name)))
            parts.add(part)
            for word in words(value):
                says.setdefault(word, set()).add(part)
    found, new = set(touched), set(touched)
    while new:
        new = {part for _, name in new for part in says.get(name, ())} - found
        found |= new
    sections = {section for section, _ in found}
    return found | {part for part in parts if JUDGED_BY.get(part[0], set()) & sections}


def words(value: Any) -> Iterator[str]:
    """All that could be names in *value*."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from NAMES.findall(str(key))
            yield from words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from words(inner)
    elif isinstance(value, str):
        yield from NAMES.findall(value)
