"""What all parts of the document have in common. Pure.

A part is a frozen set of options, described by annotations as a model of pydantic's is, whose names for what is said of a model
(``model_validate``, ``model_fields`` and so on) are used here, too. It is made for short-lived processes: a class costs next to
nothing until a document has such a part, an option nothing until it is written, and what is not written takes no place.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from enum import Enum
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self, dataclass_transform

from kvmnet.spec.form import (
    Bounds,
    Check,
    Field,
    Finding,
    ValidationError,
    check_of,
    findings,
    wrong,
)

NOTHING: frozenset[str] = frozenset()
REQUIRED: Any = object()
"""In place of a default: there is none."""


class Option:
    """One option of a part."""

    def __init__(self, part: type[Part], name: str, default: Any):
        self.part, self.name = part, name
        self.word = name.rstrip("_")
        """What the document calls it: words of Python's end with _ here."""
        self.field = default if isinstance(default, Bounds) else None
        self.default_factory = self.field.default_factory if self.field else None
        self.default = default if self.field is None else REQUIRED

    @cached_property
    def annotation(self) -> Any:
        """What may be written, as a type with all that was said of it."""
        found = eval(self.part.__annotations__[self.name], vars(sys.modules[self.part.__module__]))
        return found if self.field is None else Annotated[found, self.field]

    @cached_property
    def check(self) -> Check:
        return check_of(self.annotation)

    @property
    def is_required(self) -> bool:
        return self.default is REQUIRED and self.default_factory is None

    def get_default(self) -> Any:
        return self.default_factory() if self.default_factory else self.default


class Words(dict[str, tuple[str, Check]]):
    """The document's word for an option -> its name and what reads it, worked out when it is first written."""

    def __init__(self, options: Mapping[str, Option]):
        self.options = {option.word: option for option in options.values()}

    def __missing__(self, word: str) -> tuple[str, Check]:
        option = self.options.get(word)
        if option is None:
            raise wrong("extra_forbidden")
        self[word] = found = option.name, option.check
        return found


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Part:
    """A part of the document: closed, so that a mistyped key is an error and not silence."""

    model_fields: ClassVar[Mapping[str, Option]] = {}
    """The options by their names, those of outer classes first."""
    _words: ClassVar[Words]
    _required: ClassVar[frozenset[str]] = frozenset()
    _made: ClassVar[tuple[Option, ...]] = ()
    """Options whose defaults are made anew for each part."""

    def __init_subclass__(cls) -> None:
        own = {name: Option(cls, name, vars(cls).get(name, REQUIRED)) for name in vars(cls).get("__annotations__", {}) if name[0] != "_"}
        for name in own:
            if isinstance(vars(cls).get(name), Bounds):
                delattr(cls, name)
        cls.model_fields = {**cls.model_fields, **own}
        cls._words = Words(cls.model_fields)
        cls._required = frozenset(name for name, option in cls.model_fields.items() if option.is_required)
        cls._made = tuple(option for option in cls.model_fields.values() if option.default_factory)

    def __init__(self, **values: Any):
        """A part with the options *values*, by their names. Raises ValidationError."""
        self._fill({name.rstrip("_"): value for name, value in values.items()})

    @classmethod
    def model_validate(cls, data: Any) -> Self:
        """The part that *data* (a mapping, as the document has it) describes. Raises ValidationError with all that is wrong."""
        data = cls.short(data)
        if not isinstance(data, dict):
            if isinstance(data, cls):
                return data
            raise wrong("model_type")
        made = cls.__new__(cls)
        made._fill(data)
        return made

    @classmethod
    def model_validate_json(cls, text: str) -> Self:
        return cls.model_validate(json.loads(text))

    @classmethod
    def short(cls, value: Any) -> Any:
        """What a short form stands for."""
        return value

    def complete(self) -> None:
        """What is done when all options are read."""

    def _fill(self, data: Mapping[Any, Any]) -> None:
        words, values = self._words, self.__dict__
        found: list[Finding] = []
        for word, value in data.items():
            try:
                name, check = words[word]
                values[name] = check(value)
            except (ValueError, AssertionError) as error:
                found += findings(error, word)
        if self._required:
            found += (Finding((word,), "missing", {}) for name in self._required
                      if name not in values and (word := name.rstrip("_")) not in data)
        if found:
            raise ValidationError(found)
        if self._made:
            values["_given"] = frozenset(values)
            for option in self._made:
                if option.name not in values:
                    values[option.name] = option.get_default()
        self.complete()

    @property
    def model_fields_set(self) -> frozenset[str]:
        """Names of the options that were written."""
        if not self.__dict__:
            return NOTHING
        given: frozenset[str] | None = self.__dict__.get("_given")
        return self.model_fields.keys() & self.__dict__.keys() if given is None else given    # type: ignore[return-value]

    def model_copy(self, *, update: Mapping[str, Any]) -> Self:
        """The same with other values, which are taken as they are."""
        made = type(self).__new__(type(self))
        kept = {name: value for name, value in self.__dict__.items() if name in self.model_fields or (name[0] == "_" and name != "_hash")}
        made.__dict__.update(kept, **update)
        if "_given" in kept:
            made.__dict__["_given"] = kept["_given"] | update.keys()
        return made

    def model_dump(self, *, mode: Literal["python", "json"] = "python", by_alias: bool = False, exclude: Collection[str] = (),
                   exclude_unset: bool = False, exclude_none: bool = False) -> dict[str, Any]:
        """The options as plain data. ``mode`` json: lists and text for tuples and choices; ``by_alias``: by the document's words."""
        def plain(value: Any) -> Any:
            if isinstance(value, Part):
                return value.model_dump(mode=mode, by_alias=by_alias, exclude_unset=exclude_unset, exclude_none=exclude_none)
            if isinstance(value, dict):
                return {str(key) if mode == "json" else key: plain(one) for key, one in value.items()}
            if isinstance(value, tuple):
                return [plain(one) for one in value] if mode == "json" else tuple(map(plain, value))
            return value.value if mode == "json" and isinstance(value, Enum) else value

        told = self.model_fields_set if exclude_unset else self.model_fields.keys()
        return {option.word if by_alias else name: plain(value) for name, option in self.model_fields.items()
                if name in told and name not in exclude and not ((value := getattr(self, name)) is None and exclude_none)}

    def model_dump_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), separators=(",", ":"), ensure_ascii=False)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.model_fields)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self is other or self._values() == other._values()

    def __hash__(self) -> int:
        found: int | None = self.__dict__.get("_hash")
        if found is None:
            found = self.__dict__["_hash"] = hash(self._values())
        return found

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.model_fields)})"

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__qualname__} is frozen: {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__qualname__} is frozen: {name}")
