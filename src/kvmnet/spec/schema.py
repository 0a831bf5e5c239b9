"""JSON Schema of the document, for editors. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmnet.spec.docs import doc
from kvmnet.spec.models import Spec
from kvmnet.spec.part import Part

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12): every option with its description, default and form. It is as strict as can be
    said there; cross checks (names, overlaps, modes) only ``kvmnet plan`` makes."""
    made = Spec.model_json_schema()
    made["$schema"] = DIALECT
    made["title"] = "kvmnet document"
    made["description"] = "Networks, uplinks and guests of one KVM host."
    parts = {cls.__name__: cls for cls in _kinds(Part)}
    for name, part in {"Spec": made, **made["$defs"]}.items():
        if name in parts:
            _describe(part["properties"], parts[name])
    return made


def _kinds(part: type[Part]) -> Iterator[type[Part]]:
    for cls in part.__subclasses__():
        yield cls
        yield from _kinds(cls)


def _describe(properties: dict[str, dict[str, Any]], part: type[Part]) -> None:
    """Each option with its meaning; the generated titles only repeat the keys."""
    for name, field in part.model_fields.items():
        option = properties[field.alias or name]
        option.pop("title", None)
        option["description"] = doc(part, name)
