"""YAML text to plain data, and where each part of it stands. Pure.

The document is read event by event instead of with PyYAML's constructors: it is faster (no tree of nodes
between), nothing but mappings, lists, text, whole numbers, true, false and null can come out, and what
YAML 1.1 makes a trap of stays what was written: ``on``, ``off``, ``yes`` and ``no`` are text, and so are
``52:54:00:12:34:56`` (a sexagesimal number), ``0644`` (octal) and dates. Keys are always text.

``read`` keeps no positions. Only when something is wrong is the text read again, with ``locate``.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from kvmnet.errors import Problem
from kvmnet.spec.patterns import compiled_later

with compiled_later("yaml"):
    import yaml
    from yaml.events import (
        AliasEvent,
        DocumentStartEvent,
        Event,
        MappingEndEvent,
        MappingStartEvent,
        ScalarEvent,
        SequenceEndEvent,
        SequenceStartEvent,
    )
from kvmnet.records import dataclass, field

DEEPEST = 32
"""Levels of nesting that a document may have; the models need 8."""
MOST_ALIASED = 1_000_000
"""Values that may come out of aliases: beyond it the document is a bomb (the "billion laughs")."""

Tree: TypeAlias = dict[str, Any]
Place: TypeAlias = tuple[int, int]

_CONSTANTS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None,
                              "true": True, "True": True, "TRUE": True,
                              "false": False, "False": False, "FALSE": False}
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_STR = "tag:yaml.org,2002:str"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NO_KEY: Any = object()


class Unreadable(Exception):
    """The text is no document; the problem says where and why."""

    def __init__(self, problem: Problem):
        super().__init__(problem.message)
        self.problem = problem


@dataclass(slots=True)
class Places:
    """Line and column, both 1-based, of the keys and the values of a document by their path."""

    keys: dict[str, Place] = field(default_factory=dict)
    values: dict[str, Place] = field(default_factory=dict)
    repeated: list[Problem] = field(default_factory=list)

    def key(self, path: str) -> Place:
        """Where the key of *path* stands; for a path that is not there, what is nearest above it."""
        return self._nearest(self.keys, path)

    def value(self, path: str) -> Place:
        """Where the value of *path* stands; for a path that is not there, the key of what is above it."""
        return self.values.get(path) or self._nearest(self.keys, path)

    def _nearest(self, places: dict[str, Place], path: str) -> Place:
        while path:
            if path in places:
                return places[path]
            path = path[:max(path.rfind("."), path.rfind("["), 0)]
        return (1, 1)


def join(path: str, step: str | int) -> str:
    """Dotted path of *step* below *path*: ``vms.web1.nics[0].model``."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    return f"{path}.{step}" if path else step


@dataclass(slots=True)
class _Open:
    """A mapping or list whose end has not come yet."""

    value: Any
    anchor: str | None
    made: int
    path: str
    key: Any = _NO_KEY
    merged: list[Any] = field(default_factory=list)


class _Reader:
    def __init__(self, places: Places | None):
        self.places = places
        self.open: list[_Open] = []
        self.root: Any = _NO_KEY
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.made = self.aliased = 0
        self.repeats = False
        self.documents = 0

    def feed(self, event: Any) -> None:
        kind = type(event)
        if kind is ScalarEvent:
            self.scalar(event)
        elif kind is MappingStartEvent:
            self.start(event, {})
        elif kind is SequenceStartEvent:
            self.start(event, [])
        elif kind is MappingEndEvent or kind is SequenceEndEvent:
            self.end()
        elif kind is AliasEvent:
            self.alias(event)
        elif kind is DocumentStartEvent:
            self.documents += 1
            if self.documents > 1:
                raise refusal(event, "a second document begins here (---); one file is one document")

    def scalar(self, event: ScalarEvent) -> None:
        text: str = event.value
        self.made += 1
        if self.open and self.open[-1].key is _NO_KEY and type(self.open[-1].value) is dict:
            self.key(event, text)
            return
        if event.tag is not None:
            self.tag(event, _STR)
            value: Any = text
        elif not event.implicit[0]:
            value = text
        elif text in _CONSTANTS:
            value = _CONSTANTS[text]
        else:
            value = int(text) if _NUMBER.fullmatch(text) else text
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1)
        self.put(event, value)

    def key(self, event: ScalarEvent, text: str) -> None:
        top = self.open[-1]
        if event.tag is not None:
            self.tag(event, _STR)
        if event.anchor is not None:
            self.anchors[event.anchor] = (text, 1)
        if text in top.value and text != "<<":
            self.repeats = True
            if self.places is not None:
                self.repeated(event, join(top.path, text), text)
        top.key = text
        if self.places is not None:
            self.places.keys.setdefault(join(top.path, text), place(event))

    def repeated(self, event: Event, path: str, text: str) -> None:
        assert self.places is not None
        first = self.places.keys.get(path)
        line, column = place(event)
        where = f" (first on line {first[0]})" if first else ""
        self.places.repeated.append(Problem(
            line, column, path, f"{_short(text)} is written twice{where}", "keep one, or give it another name"))

    def put(self, event: Event, value: Any) -> str:
        """Put *value* where it belongs and return its path (only known with places)."""
        if not self.open:
            self.root = value
            return ""
        top = self.open[-1]
        path = ""
        if type(top.value) is dict:
            if top.key is _NO_KEY:
                raise refusal(event, "a key must be text, not a mapping or list",
                              'a value that begins with { or [ or * needs quotes: "{...}"')
            if self.places is not None:
                path = join(top.path, top.key)
            if top.key == "<<":
                top.merged.extend(value if type(value) is list else [value])
            else:
                top.value.setdefault(top.key, value)  # of a repeated key the first, as with places
            top.key = _NO_KEY
        else:
            if self.places is not None:
                path = join(top.path, len(top.value))
                self.places.keys.setdefault(path, place(event))
            top.value.append(value)
        if self.places is not None:
            self.places.values.setdefault(path, place(event))
        return path

    def start(self, event: MappingStartEvent | SequenceStartEvent, value: Any) -> None:
        if len(self.open) >= DEEPEST:
            raise refusal(event, f"nested more than {DEEPEST} levels deep")
        if event.tag is not None:
            self.tag(event, "tag:yaml.org,2002:" + ("map" if type(value) is dict else "seq"))
        path = self.put(event, value)
        self.made += 1
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 0)
        self.open.append(_Open(value, event.anchor, self.made + self.aliased, path))

    def end(self) -> None:
        done = self.open.pop()
        for other in done.merged:
            if type(other) is dict:
                for key, value in other.items():
                    done.value.setdefault(key, value)
            else:
                done.value["<<"] = other
        if done.anchor is not None:
            self.anchors[done.anchor] = (done.value, self.made + self.aliased - done.made + 1)

    def alias(self, event: AliasEvent) -> None:
        if event.anchor not in self.anchors:
            raise refusal(event, f"*{_short(event.anchor)} names nothing above it",
                          f"mark what it stands for with &{_short(event.anchor)}, or put the text in quotes")
        value, size = self.anchors[event.anchor]
        if not size:
            raise refusal(event, f"*{_short(event.anchor)} contains itself")
        self.aliased += size
        if self.aliased > MOST_ALIASED:
            raise refusal(event, f"the aliases of this document stand for more than {MOST_ALIASED:,} values")
        self.put(event, value)

    def tag(self, event: Any, plain: str) -> None:
        if event.tag not in (plain, "!"):
            raise refusal(event, f"the tag {_short(event.tag)} is not used here", "remove it")


def place(event: Event) -> Place:
    """1-based line and column where *event* begins."""
    mark = event.start_mark
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def refusal(event: Event, message: str, hint: str = "") -> Unreadable:
    """What is wrong at *event*, so that nothing after it can be read."""
    line, column = place(event)
    return Unreadable(Problem(line, column, "", message, hint))


def read(text: str) -> tuple[Tree, bool]:
    """The data of *text*, and whether a key of it is written twice. Raises Unreadable."""
    reader = _run(text, None)
    return _top(reader), reader.repeats


def locate(text: str) -> Places:
    """Where everything in *text* stands; empty for a text that cannot be read."""
    places = Places()
    try:
        _run(text, places)
    except Unreadable:
        return Places()
    return places


def _run(text: str, places: Places | None) -> _Reader:
    reader = _Reader(places)
    feed = reader.feed
    try:
        for event in _events(text):
            feed(event)
    except yaml.reader.ReaderError as error:
        raise Unreadable(_unprintable(text, error)) from None
    except yaml.MarkedYAMLError as error:
        raise Unreadable(_syntax(text, error)) from None
    except UnicodeError:
        raise Unreadable(Problem(1, 1, "", "the text holds characters that are not Unicode")) from None
    return reader


def _events(text: str) -> Iterator[Event]:
    return yaml.parse(text, Loader=_Loader)


def _top(reader: _Reader) -> Tree:
    top = reader.root
    if top is _NO_KEY or top is None:
        raise Unreadable(Problem(1, 1, "", "the document is empty", "kvmnet init writes one to start from"))
    if type(top) is not dict:
        what = "a list" if type(top) is list else "a single value"
        raise Unreadable(Problem(1, 1, "", f"the document is {what}; it must be a mapping",
                                 "begin with: version: 1"))
    return top


# What YAML itself refuses, in the operator's words

_SYNTAX = (
    ("mapping values are not allowed", "a colon and a space inside a value look like a new key",
     "put the value in quotes, or check the indentation"),
    ("could not find expected ':'", "a key without its colon", "write key: value"),
    ("did not find expected key", "a key was expected here", "check the indentation and the quotes above"),
    ("did not find expected '-' indicator", "the list ends here without a further - item",
     "indent what belongs to the item above, or begin with - "),
    ("expected <block end>", "this does not fit what is above it", "check the indentation"),
    ("did not find expected ',' or ']'", "a list that began with [ is not closed", "add ] or a comma"),
    ("did not find expected ',' or '}'", "a mapping that began with { is not closed", "add } or a comma"),
    ("expected ',' or ']'", "a list that began with [ is not closed", "add ] or a comma"),
    ("expected ',' or '}'", "a mapping that began with { is not closed", "add } or a comma"),
    ("found unexpected end of stream", "a quoted text is not closed", "add the closing quote"),
    ("found unknown escape character", "a backslash in double quotes begins an unknown escape",
     "use single quotes, or write \\\\"),
    ("that cannot start any token", "a value cannot begin with this character", "put it in quotes"),
)

_UNCLOSED = ("',' or ']'", "',' or '}'", "unexpected end of stream")


def _syntax(text: str, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    if any(words in (error.problem or "") for words in _UNCLOSED):
        mark = error.context_mark or mark  # where it began says more than where the text ended
    line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
    if _tab_before(text, line, column):
        return Problem(line, column, "", "a tab cannot indent YAML", "use spaces")
    problem = error.problem or "not YAML"
    for words, message, hint in _SYNTAX:
        if words in problem:
            return Problem(line, column, "", message, hint)
    return Problem(line, column, "", f"not YAML: {_short(problem)}"
                   + (f" {_short(error.context)}" if error.context else ""))


def _tab_before(text: str, line: int, column: int) -> bool:
    lines = text.split("\n")
    here = lines[line - 1] if line <= len(lines) else ""
    blank = here[:len(here) - len(here.lstrip())]
    return "\t" in blank or here[column - 1:column] == "\t"


def _unprintable(text: str, error: yaml.reader.ReaderError) -> Problem:
    found = next((i for i, c in enumerate(text) if not (c.isprintable() or c in "\t\n\r\x85\ufeff")), 0)
    line = text.count("\n", 0, found) + 1
    column = found - text.rfind("\n", 0, found)
    character = f"U+{ord(text[found]):04X}" if text else ""
    return Problem(line, column, "", f"the control character {character} cannot stand in YAML", "remove it")


def _short(text: object) -> str:
    shown = "".join(c if c.isprintable() else "?" for c in str(text))
    return shown if len(shown) <= 60 else shown[:57] + "..."
