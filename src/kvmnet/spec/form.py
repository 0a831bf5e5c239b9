"""What may be written for an option: its annotation becomes a function that takes what the YAML gave and returns the canonical
value, or raises with what is wrong. Pure.

Annotations are written and read as pydantic's (``Field``, ``PlainValidator`` and so on mean here what they mean there), but an
option costs nothing until a document has it: see docs/design/document.md.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from kvmnet.records import dataclass

Check: TypeAlias = Callable[[Any], Any]
Loc: TypeAlias = tuple[Any, ...]
KEY = "[key]"
"""Last step of the place of a finding that is about a key, not about what it stands for."""


class Finding(NamedTuple):
    """One thing that is wrong: where below the value that was read, what kind of thing, and the figures that belong to it."""

    loc: Loc
    type: str
    context: Mapping[str, Any]


class ValidationError(ValueError):
    """A value is wrong in its form: everything that is wrong with it."""

    def __init__(self, findings: Collection[Finding]):
        super().__init__(", ".join(f"{'.'.join(map(str, f.loc))}: {f.context.get('error', f.type)}" for f in findings))
        self.findings = tuple(findings)


def wrong(kind: str, **context: Any) -> ValidationError:
    return ValidationError([Finding((), kind, context)])


def findings(error: Exception, *steps: Any) -> list[Finding]:
    """What *error* says of the value at *steps*."""
    if isinstance(error, ValidationError):
        return [Finding((*steps, *found.loc), found.type, found.context) for found in error.findings]
    return [Finding(steps, "value_error", {"error": error})]


class Bounds(NamedTuple):
    """What an annotation does not say: a default that is made anew, the bounds of a number, the length of a list or mapping, the form
    of a text."""

    default_factory: Callable[[], Any] | None
    ge: int | None
    le: int | None
    multiple_of: int | None
    min_length: int | None
    max_length: int | None
    pattern: str | None


def Field(*, default_factory: Callable[[], Any] | None = None, ge: int | None = None, le: int | None = None,
          multiple_of: int | None = None, min_length: int | None = None, max_length: int | None = None, pattern: str | None = None) -> Any:
    """Bounds, in an annotation or in place of a default."""
    return Bounds(default_factory, ge, le, multiple_of, min_length, max_length, pattern)


@dataclass(frozen=True, slots=True)
class PlainValidator:
    """``func`` takes what was written and returns the value, or raises ValueError."""

    func: Check


@dataclass(frozen=True, slots=True)
class BeforeValidator:
    """``func`` takes what was written; what it returns is read on."""

    func: Check


class WithJsonSchema:
    """How the schema describes what a validator takes."""

    __slots__ = ("json_schema",)

    def __init__(self, json_schema: dict[str, Any]):
        self.json_schema = json_schema


def unwrapped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """An annotation without its metadata, and these."""
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0], annotation.__metadata__
    return annotation, ()


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def check_of(annotation: Any) -> Check:
    """The function that reads what is written for *annotation*."""
    kind, metadata = unwrapped(annotation)
    plain = next((item.func for item in metadata if type(item) is PlainValidator), None)
    bounds = [item for item in metadata if type(item) is Bounds]
    made = bounded(plain or plain_check(kind, max((item.min_length or 0 for item in bounds), default=0)), kind, bounds)
    before = next((item.func for item in metadata if type(item) is BeforeValidator), None)
    return made if before is None else lambda value: made(before(value))


def plain_check(kind: Any, least: int) -> Check:
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if is_union(kind):
        return union(get_args(kind))
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return choice({word: word for word in args}, "literal_error")
    if origin is tuple:
        return items(check_of(args[0]), least)
    if origin is dict:
        return entries(check_of(args[0]), check_of(args[1]))
    if issubclass(kind, Enum):
        return choice({word.value: word for word in kind} | {word: word for word in kind}, "enum")
    read: Check = kind.model_validate
    return read


_WHOLE = re.compile(r"\s*([+-]?)0*([0-9]+(?:_[0-9]+)*)(?:\.0*)?\s*")
_TRUE, _FALSE = frozenset({"1", "t", "true", "y", "yes", "on"}), frozenset({"0", "f", "false", "n", "no", "off"})


def whole(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, int):
        return int(value)
    if not isinstance(value, str):
        raise wrong("int_type")
    if not (found := _WHOLE.fullmatch(value)) or len(value) > 4000:
        raise wrong("int_parsing")
    return int(found[1] + found[2])


def switch(value: Any) -> bool:
    if type(value) is bool:
        return value
    if isinstance(value, str) or type(value) is int:
        word = str(value).lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        raise wrong("bool_parsing")
    raise wrong("bool_type")


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong("string_type")
    return value


def nothing(value: Any) -> None:
    if value is not None:
        raise wrong("none_required")


_SIMPLE: dict[Any, Check] = {int: whole, bool: switch, str: text, NoneType: nothing}


def choice(words: Mapping[Any, Any], kind: str) -> Check:
    """One of some words."""
    named = list(dict.fromkeys(repr(word.value if isinstance(word, Enum) else word) for word in words))
    expected = named[0] if len(named) == 1 else ", ".join(named[:-1]) + " or " + named[-1]

    def check(value: Any) -> Any:
        if isinstance(value, (str, int)) and type(value) is not bool and value in words:
            return words[value]
        raise wrong(kind, expected=expected)

    return check


def union(options: Collection[Any]) -> Check:
    """The first of *options* that takes it; none of those of the document takes what another one takes, too."""
    checks = [check_of(option) for option in options if option is not NoneType]
    empty = len(checks) < len(options)

    def check(value: Any) -> Any:
        if empty and value is None:
            return None
        found: list[Finding] = []
        for one in checks:
            try:
                return one(value)
            except (ValueError, AssertionError) as error:
                found += findings(error)
        raise ValidationError(found)

    def optional(value: Any) -> Any:
        return None if value is None else checks[0](value)

    return optional if empty and len(checks) == 1 else check


def items(item: Check, least: int) -> Check:
    """A list, whose items are read by *item*; *least* of them must be right."""
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, (list, tuple)):
            raise wrong("tuple_type")
        try:
            return tuple([item(one) for one in value])
        except (ValueError, AssertionError):
            found = failures(item, enumerate(value))
            if len(value) - len({finding.loc[0] for finding in found}) < least:
                found.append(Finding((), "too_short", {}))
            raise ValidationError(found) from None

    return check


def entries(key_check: Check, value_check: Check) -> Check:
    """A mapping."""
    def check(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise wrong("dict_type")
        try:
            return {key_check(key): value_check(one) for key, one in value.items()}
        except (ValueError, AssertionError):
            keys = [Finding((*found.loc, KEY), found.type, found.context) for found in failures(key_check, ((key, key) for key in value))]
            raise ValidationError([*keys, *failures(value_check, value.items())]) from None

    return check


def failures(check: Check, placed: Any) -> list[Finding]:
    """What *check* says of all values: (step, value)."""
    found: list[Finding] = []
    for step, value in placed:
        try:
            check(value)
        except (ValueError, AssertionError) as error:
            found += findings(error, step)
    return found


def bounded(check: Check, kind: Any, fields: Collection[Bounds]) -> Check:
    """*check*, and the bounds that *fields* set for what it returns."""
    for field in fields:
        if kind is int:
            check = number(check, field)
        elif field.pattern is not None:
            check = matching(check, field.pattern)
        elif field.min_length is not None or field.max_length is not None:
            check = sized(check, field.min_length or 0, field.max_length)
    return check


def number(check: Check, field: Bounds) -> Check:
    low, high, step = field.ge, field.le, field.multiple_of

    def bounds(value: Any) -> int:
        made: int = check(value)
        if step is not None and made % step:
            raise wrong("multiple_of", multiple_of=step)
        if high is not None and made > high:
            raise wrong("less_than_equal", le=high)
        if low is not None and made < low:
            raise wrong("greater_than_equal", ge=low)
        return made

    return bounds


def matching(check: Check, pattern: str) -> Check:
    form = re.compile(pattern)

    def match(value: Any) -> str:
        made: str = check(value)
        if not form.search(made):
            raise wrong("string_pattern_mismatch", pattern=pattern)
        return made

    return match


def sized(check: Check, low: int, high: int | None) -> Check:
    def size(value: Any) -> Any:
        made = check(value)
        if len(made) < low:
            raise wrong("too_short", min_length=low)
        if high is not None and len(made) > high:
            raise wrong("too_long", max_length=high)
        return made

    return size
