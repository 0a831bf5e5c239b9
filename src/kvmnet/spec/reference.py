"""The option reference, from the models. ``python -m kvmnet.spec.reference`` writes docs/reference.md."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from kvmnet.spec import shape, values
from kvmnet.spec.docs import doc
from kvmnet.spec.form import BeforeValidator, Bounds, PlainValidator, is_union, unwrapped
from kvmnet.spec.models import Spec
from kvmnet.spec.part import Option, Part
from kvmnet.spec.types import WORDS

PAGE = Path("docs/reference.md")
_HEAD = """\
# Option reference

<!-- Written by `python -m kvmnet.spec.reference` from src/kvmnet/spec; do not edit. -->

A document is one YAML mapping. Keys in capitals stand for names of your own. Only `true` and `false` are
booleans and only plain decimal digits are numbers: `on`, `off`, `no`, `0644` and `52:54:00:00:00:01` are
text, as they were written. Unknown keys are errors.
"""
_PLURAL = {"uplinks": "UPLINK", "networks": "NETWORK", "vms": "VM", "hosts": "NAME", "options": "OPTION", "features": "FEATURE",
           "groups": "GROUP", "address_sets": "SET", "tenants": "TENANT", "peers": "PEER", "classes": "CLASS",
           "tuning": "SETTING", "mirrors": "MIRROR", "vrfs": "VRF", "redundant": "NIC",
           "costs": "INSTANCE", "instances": "INSTANCE"}
_PLURALS = {"options, see below": "parts, see below", "address": "addresses", "name": "names",
            "list of addresses": "lists of addresses", "MAC address": "MAC addresses",
            "address or prefix": "addresses and prefixes"}
_PLAIN = {str: "text", int: "number", bool: "true or false", type(None): ""}


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_HEAD, *(line for path, part in parts() for line in _section(path, part))])


def parts() -> Iterator[tuple[str, type[Part]]]:
    """Every part of the document with its path, outer parts first."""
    yield from _below("", Spec)


def _below(path: str, part: type[Part]) -> Iterator[tuple[str, type[Part]]]:
    yield path, part
    for option in part.model_fields.values():
        name = option.word
        here = f"{path}.{name}" if path else name
        kind: Any = unwrapped(option.annotation)[0]
        inner = shape.part_of(kind)
        if inner is None and (items := shape.items_of(kind)) is not None:
            inner = shape.part_of(items)
            here += f".{_PLURAL[name]}" if get_origin(kind) is dict else "[]"
        if inner is not None:
            yield from _below(here, inner)


def _section(path: str, part: type[Part]) -> Iterator[str]:
    yield f"## {f'`{path}`' if path else 'The document'}\n"
    yield _one_line(part.__doc__) + "\n"
    yield "| option | value | default | meaning |"
    yield "|---|---|---|---|"
    for name, option in part.model_fields.items():
        cells = (f"`{option.word}`", _words(option.annotation), _default(option), doc(part, name))
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(option: Option) -> str:
    if option.is_required:
        return "**required**"
    value = option.get_default()
    if value is None or isinstance(value, (Part, dict, tuple)) or value == "":
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, Enum):
        value = value.value
    return f"`{_as_written(value, option)}`"


def _as_written(value: Any, option: Option) -> str:
    validator = _validator(unwrapped(option.annotation)[1])
    if validator is values.duration and value % 3600 == 0:
        return f"{value // 3600}h"
    if validator is values.size:
        return f"{value // 2**20}M"
    return str(value)


def _validator(metadata: Any) -> Any:
    return next((item.func for item in metadata if isinstance(item, (PlainValidator, BeforeValidator))), None)


def _words(annotation: Any) -> str:
    """What may be written for *annotation*."""
    annotation, metadata = unwrapped(annotation)
    validator = _validator(metadata)
    if validator is not None:
        return WORDS[validator]
    bounds = _bounds(metadata)
    origin, args = get_origin(annotation), get_args(annotation)
    if is_union(annotation):
        return " or ".join(word for arg in args if (word := _words(arg)))
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return "list of " + _plural(_words(args[0]))
    if origin is dict:
        return "mapping of " + _plural(_words(args[1]))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " or ".join(f"`{item.value}`" for item in annotation)
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return "options, see below"
    return _PLAIN[annotation] + bounds


def _plural(words: str) -> str:
    return _PLURALS.get(words, words)


def _bounds(metadata: Any) -> str:
    fields = [item for item in metadata if isinstance(item, Bounds)]
    low = next((item.ge for item in fields if item.ge is not None), None)
    high = next((item.le for item in fields if item.le is not None), None)
    if low is not None and high is not None:
        return f" {low} to {high}"
    return f" from {low}" if low is not None else ""


if __name__ == "__main__":
    page = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    page.write_text(reference(), encoding="utf-8")
