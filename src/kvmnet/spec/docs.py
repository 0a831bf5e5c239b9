"""What an option means: the text below its field in the models. Pure.

Only the schema, the reference and errors need these texts, so they are read from the source of the models then.
"""
from __future__ import annotations

import ast
import inspect
from textwrap import dedent

from kvmnet.engine.resource import cache
from kvmnet.spec.part import Part


def doc(part: type[Part], name: str) -> str:
    """The meaning of the option *name* of *part* on one line; '' where none is written."""
    return next((found for cls in part.__mro__ if issubclass(cls, Part) and (found := _docs(cls).get(name))), "")


@cache
def _docs(part: type[Part]) -> dict[str, str]:
    body = ast.parse(dedent(inspect.getsource(part))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)):
            found[field.target.id] = " ".join(text.value.value.split())
    return found
