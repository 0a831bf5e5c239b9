"""The models seen as a tree: which options a path of the document may have. Pure."""
from __future__ import annotations

import types
from collections.abc import Sequence
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from kvmnet.spec.models import Spec
from kvmnet.spec.part import Part


def part_at(steps: Sequence[str | int]) -> type[Part] | None:
    """The model that stands at *steps* (keys and list positions) of the document, if there is one."""
    here: Any = Spec
    for step in steps:
        part = part_of(here)
        if part is not None:
            field = options(part).get(str(step))
            if field is None:
                return None
            here = field.annotation
        else:
            here = items_of(here)
    return part_of(here)


@cache
def options(part: type[Part]) -> dict[str, FieldInfo]:
    """The options of a part by the names that the document has for them."""
    return {field.alias or name: field for name, field in part.model_fields.items()}


@cache
def part_of(annotation: Any) -> type[Part] | None:
    """The model that *annotation* is, perhaps optionally."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return annotation
    return next((found for option in _options(annotation) if (found := part_of(option))), None)


@cache
def items_of(annotation: Any) -> Any:
    """What the values of a mapping or the items of a list are; None for anything else."""
    origin = get_origin(annotation)
    if origin is dict:
        return get_args(annotation)[1]
    if origin is tuple:
        return get_args(annotation)[0]
    return next((found for option in _options(annotation) if (found := items_of(option)) is not None), None)


def _options(annotation: Any) -> tuple[Any, ...]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return (get_args(annotation)[0],)
    if origin is Union or origin is types.UnionType:
        return get_args(annotation)
    return ()
