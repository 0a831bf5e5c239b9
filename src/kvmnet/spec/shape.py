"""The models seen as a tree: which options a path of the document may have. Pure."""
from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, get_args, get_origin

from kvmnet.spec.form import is_union, unwrapped
from kvmnet.spec.models import Spec
from kvmnet.spec.part import Option, Part


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


def options(part: type[Part]) -> dict[str, Option]:
    """The options of a part by the names that the document has for them."""
    return {option.word: option for option in part.model_fields.values()}


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
    bare, metadata = unwrapped(annotation)
    if metadata:
        return (bare,)
    return get_args(annotation) if is_union(annotation) else ()
