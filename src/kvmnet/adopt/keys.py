"""A YAML file as data, and as the list of its keys with their lines. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmnet.adopt.model import Place, Source
from kvmnet.errors import SpecError
from kvmnet.spec import tree


class YamlFile:
    """One file. Raises SpecError with the line when it is not YAML."""

    def __init__(self, source: Source):
        self.path = source.path
        try:
            self.data: dict[str, Any] = tree.read(source.text)[0] if has_content(source.text) else {}
        except tree.Unreadable as error:
            raise SpecError(source.path, [error.problem]) from None
        self.places = tree.locate(source.text)

    def place(self, path: str) -> Place:
        return Place(self.path, self.places.key(path)[0])

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Every key whose value is no further mapping: (path, value). A list of plain values is one leaf."""
        yield from leaves(self.data, "")


def has_content(text: str) -> bool:
    return any(line.strip() and not line.lstrip().startswith(("#", "---", "...")) for line in text.splitlines())


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from leaves(inner, tree.join(path, key))
    elif isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        for index, inner in enumerate(value):
            yield from leaves(inner, tree.join(path, index))
    elif path:
        yield path, value


def mapping(value: Any) -> dict[str, Any]:
    """*value* if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """*value* if it is a list; what is no list is a list of one; nothing is an empty one."""
    if isinstance(value, list):
        return value
    return [] if value is None or isinstance(value, dict) else [value]


def texts(value: Any) -> tuple[str, ...]:
    """The plain values of a list, as text."""
    return tuple(str(v) for v in items(value) if isinstance(v, (str, int)) and not isinstance(v, bool))
