"""Our ``dataclass`` beside that of the standard library: the same classes, made by the one and by the other, behave alike."""
from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from kvmnet import records

CLASSES = '''
from __future__ import annotations
from functools import cached_property
from typing import ClassVar
@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A thing."""
    kind: ClassVar[str] = "thing"
    name: str
    size: int | None = field(default=None, metadata={"doc": "its size"})
    words: tuple[str, ...] = ()
@dataclass(frozen=True, slots=True)
class Box(Thing):
    kind: ClassVar[str] = "box"
    lid: bool = True
    size: int | None = 3
    def __repr__(self) -> str:
        return f"<{self.name}>"
@dataclass(frozen=True, slots=True)
class Pair:
    left: int
    right: list[int] = field(default_factory=list, compare=False)
    seen: dict[int, int] = field(init=False, repr=False, compare=False, default_factory=dict)
@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Same:
    one: int
    @property
    def twice(self) -> int:
        return 2 * self.one
    def __eq__(self, other: object) -> bool:
        return True
    def __hash__(self) -> int:
        return 7
@dataclass(slots=True)
class Open:
    value: int = 0
    def __post_init__(self) -> None:
        self.value += 1
@dataclass(frozen=True, slots=True)
class Empty:
    pass
@dataclass(frozen=True, slots=True, order=True)
class Ordered:
    rank: int
@dataclass(frozen=True)
class Loose:
    one: int
    many: tuple[int, ...] = field(default=(), compare=False)
    found: list[int] = field(default_factory=list)
    @cached_property
    def more(self) -> int:
        return self.one + 1
@dataclass
class Looser(Open):
    items: list[int] = field(default_factory=list)
    word: str = "w"
    last: int = field(init=False, default=5)
    def __eq__(self, other: object) -> bool:
        return True
'''
MAKERS = {"ours": records.dataclass, "theirs": dataclasses.dataclass}


def classes(maker: str) -> Any:
    module = sys.modules["classes_of_a_test"] = ModuleType("classes_of_a_test")  # dataclasses looks there for what ClassVar is
    vars(module).update(dataclass=MAKERS[maker], field=dataclasses.field)
    exec(CLASSES, vars(module))
    return module


def behaviour(of: Any, replace: Any) -> list[Any]:
    """What classes do, as plain data."""
    def said(action: Any) -> Any:
        try:
            return repr(action())
        except (TypeError, AttributeError, ValueError) as error:
            return type(error).__name__, str(error)

    box, pair = of.Box(name="b", words=("x",)), of.Pair(1, [2])
    matched = None
    match pair:
        case of.Pair(left, right):
            matched = left, right
    return [said(action) for action in (
        lambda: box, lambda: of.Thing(name="t", size=2), lambda: pair, lambda: of.Open(4), lambda: of.Empty(), lambda: of.Open() == of.Open(0),
        lambda: box == of.Box(name="b", words=("x",)), lambda: box == of.Thing(name="b"), lambda: of.Pair(1) == of.Pair(1, [3]),
        lambda: hash(of.Pair(1)) == hash(of.Pair(1, [3])), lambda: len({box, of.Box(name="b", words=("x",))}), lambda: hash(of.Open()),
        lambda: hash(of.Same(1)), lambda: of.Same(1) == of.Same(2), lambda: of.Same(2).twice, lambda: of.Ordered(1) < of.Ordered(2),
        lambda: of.Box(), lambda: of.Box("b"), lambda: of.Box(name="b", no=1), lambda: of.Pair(1, [], 3), lambda: of.Pair(1).seen,
        lambda: setattr(box, "lid", False), lambda: delattr(box, "lid"), lambda: setattr(of.Open(), "other", 1), lambda: of.Open(left=2),
        lambda: replace(box, size=9).size, lambda: replace(pair, left=2), lambda: replace(box, no=1), lambda: replace(of.Empty()), lambda: replace(of.Open(4)).value,
        lambda: replace(pair, seen={}), lambda: replace(of.Ordered(1), rank=2), lambda: dataclasses.asdict(pair), lambda: matched,
        lambda: dataclasses.asdict(of.Thing(name="t")), lambda: copy.deepcopy(pair), lambda: copy.copy(box),
        lambda: of.Loose(1), lambda: of.Loose(1).more, lambda: vars(of.Loose(1, (2,))), lambda: of.Loose(1, (2,)) == of.Loose(1, found=[]),
        lambda: hash(of.Loose(1, found=())) == hash(of.Loose(1, (3,), ())), lambda: setattr(of.Loose(1), "one", 2), lambda: of.Loose(),
        lambda: (of.Loose.many, hasattr(of.Loose, "found"), of.Loose.__match_args__), lambda: replace(of.Loose(1), one=4),
        lambda: of.Looser(3, [1]), lambda: vars(of.Looser(3)), lambda: of.Looser() == 3, lambda: hash(of.Looser()),
        lambda: (of.Looser.word, of.Looser.last, hasattr(of.Looser, "items")), lambda: replace(of.Looser(), value=8), lambda: copy.deepcopy(of.Loose(1, (2,))),
        lambda: setattr(of.Looser(), "new", 1), lambda: dataclasses.asdict(of.Looser()), lambda: of.Looser(last=3),
        lambda: (of.Box.__match_args__, of.Pair.__match_args__, of.Box.__slots__, of.Box.__doc__ is None, of.Thing.__doc__, of.Box.kind),
        lambda: [(f.name, f.type, f.init, f.compare, f.kw_only, dict(f.metadata)) for kind in (of.Box, of.Pair) for f in dataclasses.fields(kind)])]


def test_they_behave_as_those_of_the_standard_library() -> None:
    ours, theirs = behaviour(classes("ours"), records.replace), behaviour(classes("theirs"), dataclasses.replace)
    documented = len(ours) - 2
    for number, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
        if number != documented:
            assert mine == its
    assert ours[documented] == theirs[documented].replace("False, 'A thing.'", "True, 'A thing.'"), "a text for help() is not made of the options"


def test_one_kind_is_the_base_of_the_other() -> None:
    for base, maker in (("ours", dataclasses.dataclass), ("theirs", records.dataclass)):
        made: Any = maker(frozen=True, slots=True, kw_only=True)(type("More", (classes(base).Thing,), {"__annotations__": {"more": "int"}, "more": 1}))
        assert made(name="m") == made(name="m", more=1) != made(name="m", more=2) and made(name="m").words == ()
        with pytest.raises(dataclasses.FrozenInstanceError):
            made(name="m").more = 3
        with pytest.raises(TypeError):
            maker(slots=True)(type("Thawed", (made,), {}))


@records.dataclass(frozen=True, slots=True)
class Kept:
    value: tuple[int, ...]


def test_they_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Kept((1, 2)))) == Kept((1, 2))


def test_what_could_be_changed_is_no_default() -> None:
    with pytest.raises(ValueError, match="mutable default"):
        records.dataclass(slots=True)(type("Wrong", (), {"__annotations__": {"items": "list[int]"}, "items": []}))


def test_nothing_is_compiled_for_a_command_that_makes_no_object() -> None:
    code = "from kvmnet.drivers.linux.resources import Link as L; a = L.__init__; L(name='a'); print(a is L.__init__, L.__init__.__qualname__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "False Link.__init__\n"
