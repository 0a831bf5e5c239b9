"""JSON Schema of the document, for editors. Pure."""
from __future__ import annotations

from typing import Any

from kvmnet.spec.models import Spec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12): every option with its description, default and form. It is as strict as can be
    said there; cross checks (names, overlaps, modes) only ``kvmnet plan`` makes."""
    made = Spec.model_json_schema()
    made["$schema"] = DIALECT
    made["title"] = "kvmnet document"
    made["description"] = "Networks, uplinks and guests of one KVM host."
    for part in (made, *made["$defs"].values()):
        for field in part.get("properties", {}).values():
            _tidy(field)
    return made


def _tidy(field: dict[str, Any]) -> None:
    """The generated titles only repeat the keys; lines of a docstring are one text."""
    field.pop("title", None)
    if "description" in field:
        field["description"] = " ".join(field["description"].split())
