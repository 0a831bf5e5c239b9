"""Parts of the document: what is taken, what is refused and how that is told, and that an option costs nothing until it is written."""
from __future__ import annotations

import subprocess
import sys
from typing import Annotated, Any, Literal

import pytest

from kvmnet.spec.form import BeforeValidator, Field, PlainValidator, ValidationError
from kvmnet.spec.networks import Mode
from kvmnet.spec.part import Part


def doubled(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError("no number")
    return 2 * value


class Inner(Part):
    number: Annotated[int, Field(ge=1, le=8, multiple_of=2)] = 2


class Outer(Part):
    in_: Literal["a", "b"]
    mode: Mode = Mode.NAT
    flag: bool = False
    inner: Inner = Inner()
    inners: Annotated[tuple[Inner, ...], Field(min_length=1)] | None = None
    twice: Annotated[int, PlainValidator(doubled)] | Literal["none"] | None = None
    words: Annotated[tuple[str, ...], BeforeValidator(lambda value: value.split() if isinstance(value, str) else value)] = ()
    by_number: dict[int, bool] = Field(default_factory=dict, max_length=2)
    text: Annotated[str, Field(pattern="^x")] = "x"


def read(**more: Any) -> Outer:
    return Outer.model_validate({"in": "a", **more})


@pytest.mark.parametrize(("option", "written", "value"), [
    ("mode", "bridge", Mode.BRIDGE), ("mode", Mode.VXLAN, Mode.VXLAN),
    ("flag", "yes", True), ("flag", "Off", False), ("flag", 1, True),
    ("inner", {"number": "08"}, Inner(number=8)), ("inner", Inner(number=4), Inner(number=4)),
    ("inners", [{}, {"number": 4}], (Inner(), Inner(number=4))), ("inners", None, None),
    ("twice", 4, 8), ("twice", "none", "none"), ("twice", None, None),
    ("words", "a b", ("a", "b")), ("by_number", {"7": "true"}, {7: True}), ("text", "xy", "xy")])
def test_what_is_taken(option: str, written: Any, value: Any) -> None:
    made = read(**{option: written})
    assert getattr(made, option) == value and type(getattr(made, option)) is type(value)
    assert made.model_fields_set == {"in_", option}


@pytest.mark.parametrize(("option", "written", "found"), [
    ("mode", "nut", [("mode", "enum")]), ("flag", "maybe", [("flag", "bool_parsing")]), ("flag", None, [("flag", "bool_type")]),
    ("inner", [], [("inner", "model_type")]), ("inner", {"number": 3}, [("inner.number", "multiple_of")]),
    ("inner", {"number": 0}, [("inner.number", "greater_than_equal")]), ("inner", {"number": 10}, [("inner.number", "less_than_equal")]),
    ("inner", {"number": "1x"}, [("inner.number", "int_parsing")]), ("inner", {"nummer": 2}, [("inner.nummer", "extra_forbidden")]),
    ("inners", [], [("inners", "too_short")]), ("inners", "x", [("inners", "tuple_type")]),
    ("inners", [{"number": 1}, {}, 3], [("inners.0.number", "multiple_of"), ("inners.2", "model_type")]),
    ("inners", [{"number": 1}], [("inners.0.number", "multiple_of"), ("inners", "too_short")]),
    ("twice", "x", [("twice", "value_error"), ("twice", "literal_error")]),
    ("by_number", {"x": 1, "3": "x"}, [("by_number.x.[key]", "int_parsing"), ("by_number.3", "bool_parsing")]),
    ("by_number", {1: 1, 2: 1, 3: 1}, [("by_number", "too_long")]), ("by_number", [1], [("by_number", "dict_type")]),
    ("text", 7, [("text", "string_type")]), ("text", "y", [("text", "string_pattern_mismatch")]),
    ("in", True, [("in", "literal_error")]), ("in_", "a", [("in_", "extra_forbidden")])])
def test_what_is_refused(option: str, written: Any, found: list[tuple[str, str]]) -> None:
    with pytest.raises(ValidationError) as error:
        read(**{option: written})
    assert [(".".join(map(str, f.loc)), f.type) for f in error.value.findings] == found


def test_everything_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate({"flag": "x", "inner": {"a": 1, "b": 2}})
    assert {(f.loc, f.type) for f in error.value.findings} == {
        (("flag",), "bool_parsing"), (("inner", "a"), "extra_forbidden"), (("inner", "b"), "extra_forbidden"), (("in",), "missing")}


def test_a_part_is_a_value() -> None:
    made = Outer(in_="a", inner=Inner(number=4))
    assert made == read(inner={"number": 4}) != read() and Inner() == Inner(number=2) and hash(Inner()) == hash(Inner(number=2))
    copy = made.model_copy(update={"flag": True})
    assert copy.flag and not made.flag and copy.model_fields_set == {"in_", "inner", "flag"} and copy.by_number == {}
    assert read().by_number is not read().by_number, "what could be changed is not shared"
    with pytest.raises(AttributeError):
        made.flag = True  # type: ignore[misc]
    assert made.model_dump(mode="json", by_alias=True, exclude_unset=True) == {"in": "a", "inner": {"number": 4}}
    assert Outer.model_validate(made.model_dump(mode="json", by_alias=True)) == made


LOAD = """
from kvmnet.spec.load import loads
from kvmnet.spec.guests import Nic
loads("version: 1\\nnetworks: {lan: {mode: isolated}}\\nvms: {a: {nics: [{network: lan}]}}")
print(sorted(n for n, o in Nic.model_fields.items() if "annotation" in vars(o)))
"""


def test_an_option_costs_nothing_until_it_is_written() -> None:
    assert subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True).stdout.strip() == "['network']"
