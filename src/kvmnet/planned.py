"""A plan of a document on this host: its steps, its data for other programs, its file."""
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmnet.drivers.kinds import to_json
from kvmnet.engine.driver import Seen
from kvmnet.engine.fingerprint import Fingerprint
from kvmnet.engine.history import Change
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource, Wanted, cache
from kvmnet.errors import KvmnetError
from kvmnet.facts.model import Allocations
from kvmnet.records import dataclass, fields

if TYPE_CHECKING:
    from kvmnet.compile import Compiled
    from kvmnet.engine import transaction
    from kvmnet.spec.load import Document

EMPTY = "version: 1\n"
"""The document of a host where nothing is wanted."""


@dataclass(frozen=True)
class Planned:
    """What a document would change on this host, and what that was computed from."""

    source: str
    document: Document | None
    """None for destroy."""
    compiled: Compiled | None
    allocations: Allocations
    inner: transaction.Planned
    notes: tuple[str, ...] = ()
    text: str = ""
    """The document, where it did not have to be read."""

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.inner.steps

    @property
    def seen(self) -> Seen:
        return self.inner.seen

    @property
    def wanted(self) -> Wanted:
        """What the document wants, without what is given back."""
        return self.compiled.wanted if self.compiled else {}

    @property
    def borrowed(self) -> frozenset[Key]:
        return frozenset(self.compiled.borrowed) if self.compiled else frozenset()

    @property
    def fingerprint(self) -> Fingerprint:
        return self.inner.fingerprint

    @property
    def change(self) -> Change:
        """What history keeps of it."""
        return Change(self.document.text if self.document else self.text or EMPTY, self.source, f"kvmnet {self.source}",
                      self.allocations)

    def to_json(self) -> dict[str, Any]:
        """Stable data for other programs."""
        return {"format": 1, "source": self.source, "fingerprint": self.fingerprint.digest,
                "steps": [step_json(s) for s in self.steps], "notes": list(self.notes)}

    def spelled(self) -> list[str]:
        """Every step in one canonical line: two plans that make the same change are equal."""
        return sorted(json.dumps(step_json(s), sort_keys=True, default=list) for s in self.steps)

    def save(self, path: Path) -> None:
        """A plan file: the document and what the host looked like. Raises KvmnetError."""
        assert self.document is not None
        data = {"kvmnet-plan": 1, "source": self.source, "document": self.document.text,
                "seen": dict(self.fingerprint.parts), "steps": self.spelled()}
        try:
            path.write_text(json.dumps(data), encoding="utf-8")
        except OSError as error:
            raise KvmnetError(f"cannot write {path}: {error.strerror}") from error


def read_saved(raw: bytes, path: Path) -> dict[str, Any] | None:
    """The plan that *raw*, the content of *path*, holds, or None for a document."""
    if not raw.startswith(b'{"kvmnet-plan"'):
        return None
    try:
        data: dict[str, Any] = json.loads(raw)
    except ValueError as error:
        raise KvmnetError(f"{path}: not a plan: {error}", "make it again with kvmnet plan --out") from error
    return data


def step_json(step: Step) -> dict[str, Any]:
    """One step as data, stable for other programs."""
    match step:
        case Create(after):
            return {"action": "create", "kind": step.key.kind, "name": step.key.name, "after": to_json(after)}
        case Update():
            return {"action": "update", "kind": step.key.kind, "name": step.key.name,
                    "changes": {n: {"old": a, "new": b} for n, (a, b) in step.changes.items()},
                    "guest": sorted({noticed(step, n) for n in step.changes} - {""})}
        case Delete(_, along):
            return {"action": "delete", "kind": step.key.kind, "name": step.key.name,
                    "along": [list(k) for k in along]}
    raise AssertionError(step)


@cache
def notices(cls: type[Resource]) -> dict[str, str]:
    return {f.name: f.metadata.get("guest", "") for f in fields(cls)}


def noticed(step: Update, name: str) -> str:
    return notices(type(step.after)).get(name, "")
