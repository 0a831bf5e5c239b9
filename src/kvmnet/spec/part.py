"""What all parts of the document have in common. Pure."""
from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of the document: closed, so that a mistyped key is an error and not silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
