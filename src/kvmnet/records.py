"""``dataclass`` for short-lived processes: what it is asked for is what ``dataclasses`` makes, but nothing is compiled before it is used.

``dataclasses`` writes source text for each method of each class and compiles it when the class is made: a third of the time in which a
command of kvmnet was loaded, for 140 classes of which most commands use twenty. Here ``__init__`` is compiled when the first object is
made; the other methods are the same functions for all classes. ``fields``, ``replace``, ``asdict`` and ``match`` see no difference, and a
class of the one kind may be the base of the other. What is rarely asked for (``order``) is left to ``dataclasses``.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, asdict, field, fields
from operator import attrgetter
from reprlib import recursive_repr
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass, replace
else:
    def replace(made, /, **changes):
        said = SAID.get(type(made)) or said_of(type(made))
        if not said:
            return dataclasses.replace(made, **changes)
        names, values = said
        return type(made)(**{**dict(zip(names, values(made), strict=True)), **changes})

    def dataclass(cls=None, /, *, frozen=False, slots=False, kw_only=False, eq=True, repr=True, order=False):
        if order:
            return dataclasses.dataclass(cls, frozen=frozen, slots=slots, kw_only=kw_only, eq=eq, repr=repr, order=order)
        made = lambda cls: record(cls, frozen, slots, kw_only, eq, repr)  # noqa: E731
        return made if cls is None else made(cls)

__all__ = ["asdict", "dataclass", "field", "fields", "replace"]


@dataclasses.dataclass(frozen=True)
class Frozen:
    """What ``dataclasses`` notes of a frozen class."""

    some: int


@dataclasses.dataclass
class Changed:
    """What it notes of another one."""

    some: int


FIELD = Frozen.__dataclass_fields__["some"]._field_type  # type: ignore[attr-defined]
"""Its mark of a field that is one."""


def record(cls: type, frozen: bool, slots: bool, kw_only: bool, eq: bool, repr: bool) -> type:
    """*cls* again, with the methods of a dataclass, and with slots if it shall have them."""
    own = vars(cls)
    found: dict[str, Field[Any]] = {}
    for base in cls.__mro__[-1:0:-1]:
        if "__dataclass_fields__" in vars(base):
            found |= vars(base)["__dataclass_fields__"]
            if vars(base)["__dataclass_params__"].frozen is not frozen:
                raise TypeError(f"{cls.__name__} and {base.__name__}: both are frozen, or none is")
    names = dict(own)
    for name, kind in own.get("__annotations__", {}).items():
        if not str(kind).startswith(("ClassVar", "typing.ClassVar")):
            found[name] = told = declared(name, kind, names.pop(name, MISSING))
            if told.kw_only is MISSING:
                told.kw_only = kw_only
    methods: dict[str, Any] = {"__dataclass_fields__": found, "__dataclass_params__": vars(Frozen if frozen else Changed)["__dataclass_params__"],
                               "__match_args__": tuple(f.name for f in found.values() if f.init and not f.kw_only)}
    if frozen:
        methods |= SHUT | (STATE if slots else {})
    if repr and "__repr__" not in own:
        methods["__repr__"] = told_as
    if eq:
        if "__eq__" not in own:
            methods["__eq__"] = equal
        if own.get("__hash__") is None:  # Python sets it to None where a class says what is equal
            methods["__hash__"] = hashed if frozen else None
    made = slotted(cls, found, {**names, **methods}) if slots else cls
    if not slots:
        for name, value in methods.items():
            setattr(cls, name, value)
        for name, told in found.items():    # as they are read of the class itself
            if isinstance(own.get(name), Field):
                if told.default is MISSING:
                    delattr(cls, name)
                else:
                    setattr(cls, name, told.default)
    if "__init__" not in own:
        compile_later(made)
    return made


def slotted(cls: type, found: dict[str, Field[Any]], names: dict[str, Any]) -> type:
    """A class like *cls* with a slot for each field that no base has one for."""
    inherited = {name for base in cls.__mro__[1:-1] for name in vars(base).get("__slots__", ())}
    names["__slots__"] = tuple(name for name in found if name not in inherited)
    for name in ("__dict__", "__weakref__"):
        names.pop(name, None)
    made = type(cls)(cls.__name__, cls.__bases__, names)
    made.__qualname__ = cls.__qualname__
    return made


def declared(name: str, kind: str, default: Any) -> Field[Any]:
    """The field *name*, as dataclasses notes it."""
    made: Field[Any] = default if isinstance(default, Field) else field(default=default)
    if made.default is not MISSING and type(made.default).__hash__ is None:
        raise ValueError(f"mutable default for field {name}: use default_factory")
    made.name, made.type, made._field_type = name, kind, FIELD  # type: ignore[attr-defined]
    return made


def compile_later(cls: type) -> None:
    """Give *cls* an ``__init__`` that is compiled, and takes this one's place, when the first object is made."""
    def __init__(self: Any, /, *args: Any, **named: Any) -> None:
        made = compiled(cls)
        cls.__init__ = made  # type: ignore[misc]
        made(self, *args, **named)

    cls.__init__ = __init__  # type: ignore[misc]


UNSAID: Any = object()


def compiled(cls: Any) -> Callable[..., None]:
    names: dict[str, Any] = {"_unsaid": UNSAID}
    places: list[str] = []
    by_name: list[str] = []
    lines: list[str] = []
    if "__slots__" not in vars(cls):
        lines.append(" _own = self.__dict__\n")
    for name, told in cls.__dataclass_fields__.items():
        value = name
        if told.default_factory is not MISSING:
            names[f"_make_{name}"] = told.default_factory
            value = f"_make_{name}() if {name} is _unsaid else {name}" if told.init else f"_make_{name}()"
            default = "=_unsaid"
        elif told.default is not MISSING:
            names[f"_default_{name}"] = told.default
            default = f"=_default_{name}"
            value = name if told.init else f"_default_{name}"
        elif not told.init:
            continue
        else:
            default = ""
        if told.init:
            (by_name if told.kw_only else places).append(name + default)
        if isinstance(slot := getattr(cls, name, None), MemberDescriptorType):
            names[f"_set_{name}"] = slot.__set__    # a frozen class has no other way
            lines.append(f" _set_{name}(self, {value})\n")
        elif told.init or told.default is MISSING:    # else the class has it
            lines.append(f" _own[{name!r}] = {value}\n")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()\n")
    said = ", ".join(["self", *places, *(["*", *by_name] if by_name else [])])
    exec(f"def __init__({said}):\n{''.join(lines) or ' pass'}", names)
    made: Callable[..., None] = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


SAID: dict[type, tuple[tuple[str, ...], Callable[[Any], Any]]] = {}
"""Class -> what its ``__init__`` takes, and a function that gives all of it at once."""


def said_of(cls: Any) -> Any:
    """The same of *cls*; empty for one that ``dataclasses`` shall see to."""
    told = list(cls.__dataclass_fields__.values())
    if len(told) < 2 or not all(f.init for f in told) or "__dataclass_fields__" not in vars(cls):
        return ()
    names = tuple(f.name for f in told)
    SAID[cls] = found = names, attrgetter(*names)
    return found


VALUES: dict[type, Callable[[Any], Any]] = {}


def values_of(cls: Any) -> Callable[[Any], Any]:
    """A function that gives the values that make objects of *cls* equal."""
    names = [name for name, told in cls.__dataclass_fields__.items() if told.compare]
    found: Callable[[Any], Any] = attrgetter(*names) if names else lambda value: ()
    VALUES[cls] = found
    return found


def equal(self: Any, other: object) -> Any:
    cls = self.__class__
    if other.__class__ is not cls:
        return NotImplemented
    values: Callable[[Any], object] = VALUES.get(cls) or values_of(cls)
    return values(self) == values(other)


def hashed(self: Any) -> int:
    cls = self.__class__
    return hash((VALUES.get(cls) or values_of(cls))(self))


@recursive_repr()
def told_as(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name, told in self.__dataclass_fields__.items() if told.repr)
    return f"{self.__class__.__qualname__}({shown})"


def refuse_to_set(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def refuse_to_delete(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def state(self: Any) -> list[Any]:
    return [getattr(self, name) for name in self.__dataclass_fields__]


def restore(self: Any, values: list[Any]) -> None:
    for name, value in zip(self.__dataclass_fields__, values, strict=True):
        object.__setattr__(self, name, value)


SHUT = {"__setattr__": refuse_to_set, "__delattr__": refuse_to_delete}
STATE = {"__getstate__": state, "__setstate__": restore}
