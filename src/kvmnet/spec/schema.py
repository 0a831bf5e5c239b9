"""JSON Schema of the document, for editors. Pure."""
from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from kvmnet.spec.docs import doc
from kvmnet.spec.form import Bounds, WithJsonSchema, is_union, unwrapped
from kvmnet.spec.models import Spec
from kvmnet.spec.part import Option, Part

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_NAMES: dict[Any, str] = {int: "integer", bool: "boolean", str: "string", NoneType: "null"}
_FIGURES = {"integer": {"minimum": "ge", "maximum": "le", "multipleOf": "multiple_of"}, "string": {"pattern": "pattern"},
            "array": {"minItems": "min_length", "maxItems": "max_length"},
            "object": {"minProperties": "min_length", "maxProperties": "max_length"}}
"""Type in the schema -> keyword -> what Bounds say of it."""

Schema = dict[str, Any]


def schema() -> Schema:
    """JSON Schema (2020-12): every option with its description, default and form. It is as strict as can be
    said there; cross checks (names, overlaps, modes) only ``kvmnet plan`` makes."""
    shared: dict[str, Schema] = {}
    made = _part(Spec, shared)
    made |= {"$defs": dict(sorted(shared.items())), "$schema": DIALECT, "title": "kvmnet document",
             "description": "Networks, uplinks and guests of one KVM host."}
    return made


def _part(part: type[Part], shared: dict[str, Schema]) -> Schema:
    from inspect import cleandoc
    options = part.model_fields.values()
    made: Schema = {"additionalProperties": False, "description": cleandoc(part.__doc__ or ""),
                    "properties": {option.word: _option(option, shared) for option in options},
                    "required": [option.word for option in options if option.is_required], "title": part.__name__, "type": "object"}
    return {key: value for key, value in made.items() if value or key == "additionalProperties"}


def _option(option: Option, shared: dict[str, Schema]) -> Schema:
    made = _form(option.annotation, shared)
    if not option.is_required and option.default_factory is None:
        made["default"] = _plain(option.default)
    return made | {"description": doc(option.part, option.name)}


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.model_dump(mode="json", by_alias=True)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, Enum) else value


def _form(annotation: Any, shared: dict[str, Schema]) -> Schema:
    """What may be written for *annotation*; parts and choices with a name of their own go to *shared*."""
    kind, metadata = unwrapped(annotation)
    told = next((item.json_schema for item in metadata if isinstance(item, WithJsonSchema)), None)
    made = _bare(kind, shared) if told is None else dict(told)
    figures = _FIGURES.get(made.get("type", ""), {}) if isinstance(made.get("type", ""), str) else {}
    for field in metadata:
        if isinstance(field, Bounds):
            made |= {word: value for word, name in figures.items() if (value := getattr(field, name)) is not None}
    return made


def _bare(kind: Any, shared: dict[str, Schema]) -> Schema:
    origin, args = get_origin(kind), get_args(kind)
    if is_union(kind):
        return {"anyOf": list(_flat(_form(arg, shared) for arg in args))}
    if origin is Literal:
        words = {"const": args[0]} if len(args) == 1 else {"enum": list(args)}
        return {**words, "type": _NAMES[type(args[0])]}
    if origin is tuple:
        return {"items": _form(args[0], shared), "type": "array"}
    if origin is dict:
        keys, values = _form(args[0], shared), _form(args[1], shared)
        inside = {"patternProperties": {keys["pattern"]: values}} if "pattern" in keys else {"additionalProperties": values}
        length = {"propertyNames": {"maxLength": keys["maxLength"]}} if "maxLength" in keys else {}
        return {**inside, **length, "type": "object"}
    if kind in _NAMES:
        return {"type": _NAMES[kind]}
    if kind.__name__ not in shared:
        shared[kind.__name__] = {}  # a part that has itself inside would end here
        shared[kind.__name__] = (_part(kind, shared) if issubclass(kind, Part)
                                 else {"enum": [word.value for word in kind], "title": kind.__name__, "type": "string"})
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _flat(forms: Iterable[Schema]) -> Iterable[Schema]:
    for form in forms:
        yield from form["anyOf"] if form.keys() == {"anyOf"} else (form,)
