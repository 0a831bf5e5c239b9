"""What is wrong with a document, in words: the validator's findings become problems. Pure."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kvmnet.errors import Problem
from kvmnet.spec import shape
from kvmnet.spec.docs import doc
from kvmnet.spec.form import KEY, ValidationError
from kvmnet.spec.nearest import nearest
from kvmnet.spec.tree import Places, Tree, join
from kvmnet.spec.values import shown

Steps = tuple[str | int, ...]


class Finding(NamedTuple):
    """One finding of the validator, settled on a path of the document."""

    type: str
    value: Any
    context: Mapping[str, Any]
    rest: Steps
    """What the validator adds to the path: a missing option, what a short form stands for, ``[key]``."""


def problems(error: ValidationError, data: Tree, places: Places) -> list[Problem]:
    """Every finding of *error* with its line, those of one path as one problem."""
    found: dict[Steps, list[Finding]] = {}
    for loc, kind, context in error.findings:
        steps, value, rest = _settle(loc, data)
        if kind == "missing":
            steps, rest = (*steps, *rest), ()
        found.setdefault(steps, []).append(Finding(kind, value, context, rest))
    broken = {steps[:depth] for steps in found for depth in range(len(steps))}
    return [_problem(steps, findings, places) for steps, findings in found.items()
            if not (findings[0].type == "too_short" and steps in broken)]  # only short because its items are wrong, which is said


def wrong(error: ValidationError, data: Tree) -> Iterator[Steps]:
    """The places without which the findings of *error* would not be: where something is missing, that which lacks it."""
    for loc, _, _ in error.findings:
        yield _settle(loc, data)[0]


def _settle(loc: Iterable[str | int], data: Any) -> tuple[Steps, Any, Steps]:
    """*loc* as far as the document goes, the value there, and what is left of it."""
    loc = tuple(loc)
    for depth, step in enumerate(loc):
        match data:
            case dict() if isinstance(step, str) and step in data and loc[depth:] != (KEY,):
                data = data[step]
            case list() if isinstance(step, int) and step < len(data):
                data = data[step]
            case _:
                return loc[:depth], data, loc[depth:]
    return loc, data, ()


def _problem(steps: Steps, findings: list[Finding], places: Places) -> Problem:
    path = path_of(steps)
    real = [f for f in findings if f.type not in ("literal_error", "enum")]
    words = [w for f in findings if f.type in ("literal_error", "enum") for w in _words(f)]
    if real:
        first = real[0]
        message, hint = _MESSAGES.get(first.type, _other)(first, steps)
        if words and "none for no" not in message:
            hint = hint or "or write " + " or ".join(words)
    else:
        message, hint = _choice(findings[0].value, words)
    key_only = findings[0].type == "extra_forbidden" or findings[0].rest == (KEY,)
    line, column = places.key(path) if key_only else places.value(path)
    return Problem(line, column, path, message, hint)


def path_of(steps: Iterable[str | int]) -> str:
    """Dotted path of *steps*."""
    path = ""
    for step in steps:
        path = join(path, step)
    return path


RENAMED = {"max_rate": "write rate: {out: ...}", "min_rate": "write rate: {min: ...}"}
"""Options of early documents -> what stands in their place."""


# One function per kind of finding: -> message, hint

def _unknown(finding: Finding, steps: Steps) -> tuple[str, str]:
    key = str(steps[-1])
    part = shape.part_at(steps[:-1])
    known = tuple(shape.options(part)) if part else ()
    near = nearest(key, known)
    hint = RENAMED[key] if key in RENAMED else f"did you mean {near}?" if near else "known here: " + ", ".join(known)
    return f"{shown(key)} is not an option", hint


def _missing(finding: Finding, steps: Steps) -> tuple[str, str]:
    if steps == ("version",):
        return "version is missing", "begin with: version: 1"
    return f"{steps[-1]} is missing", _doc(steps)


def _doc(steps: Steps) -> str:
    part = shape.part_at(steps[:-1])
    return doc(part, str(steps[-1])) if part else ""


def _value(finding: Finding, steps: Steps) -> tuple[str, str]:
    return str(finding.context.get("error", "not allowed")), ""


def _mapping(finding: Finding, steps: Steps) -> tuple[str, str]:
    if finding.value is None:
        return "nothing is written here", "write its options below it, indented, or remove it"
    return f"{shown(finding.value)} stands where a mapping belongs", "write key: value pairs below it, indented"


def _list(finding: Finding, steps: Steps) -> tuple[str, str]:
    if finding.value is None:
        return "nothing is written here", "write a list, or remove it"
    return f"{shown(finding.value)} stands where a list belongs", "write [a, b], or one item per line after a -"


def _whole(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is not a whole number", ""


def _bool(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is not true or false", ""


def _low(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is too small: at least {finding.context.get('ge')}", ""


def _high(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is too large: at most {finding.context.get('le')}", ""


def _step(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is no multiple of {finding.context.get('multiple_of')}", ""


def _short(finding: Finding, steps: Steps) -> tuple[str, str]:
    return "the list is empty; it needs at least one item", _doc(steps)


def _text(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is not text", "put it in quotes"


def _other(finding: Finding, steps: Steps) -> tuple[str, str]:
    return f"{shown(finding.value)} is not allowed here ({finding.type})", ""


def _words(finding: Finding) -> list[str]:
    """The words that a choice takes, from the validator's ``'a', 'b' or 'c'``."""
    expected = str(finding.context.get("expected", ""))
    return [word.strip().strip("'") for part in expected.split(", ") for word in part.split(" or ")]


_SWITCHES = dict.fromkeys(("true", "yes", "on"), ("on", "up")) | dict.fromkeys(("false", "no", "off"), ("off", "down", "none"))
"""What may be meant by the words of YAML 1.1 for true and false, which are text here."""


def _choice(value: Any, words: list[str]) -> tuple[str, str]:
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]
    pair = _SWITCHES.get(str(value).lower(), ())
    if near := next((word for word in pair if word in words), ""):
        return f"{shown(value)} is not one of {listed}" if len(words) > 1 else f"{shown(value)} is not {listed}", f"write {near}"
    near = nearest(str(value), tuple(words)) if isinstance(value, str) else ""
    if len(words) == 1:
        return f"{shown(value)} is not {listed}", f"write {listed}"
    return f"{shown(value)} is not one of {listed}", f"did you mean {near}?" if near else ""


_MESSAGES: dict[str, Callable[[Finding, Steps], tuple[str, str]]] = {
    "extra_forbidden": _unknown, "missing": _missing, "value_error": _value,
    "model_type": _mapping, "dict_type": _mapping, "tuple_type": _list, "int_type": _whole, "int_parsing": _whole,
    "bool_type": _bool, "bool_parsing": _bool, "string_type": _text,
    "greater_than_equal": _low, "less_than_equal": _high, "multiple_of": _step, "too_short": _short,
}
