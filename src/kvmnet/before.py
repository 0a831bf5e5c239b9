"""What a document meant when it was found to be in force, so that it need not be read again.

Compiling is pure: the same text on the same host has the same meaning. Everything that it depends on is
in one digest: the text, the facts of the host (all that was observed, too), the addresses given so far
and the program itself. When all of that is as it was, what is wanted is taken from here; whether the
host *is* so is planned as always. Any doubt means that the document is read.
"""
from __future__ import annotations

import json
import marshal
import os
from collections.abc import Iterator
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from kvmnet.drivers.kinds import KINDS
from kvmnet.engine.resource import Absent, Key, Resource, Wanted, compared, setting_names
from kvmnet.errors import HostCannot
from kvmnet.facts.model import Allocations, Facts
from kvmnet.host.files import write_durably
from kvmnet.records import replace

FORMAT = 4


class Before(NamedTuple):
    """What was kept of a document."""

    digest: str
    """Of everything that its meaning depends on."""
    text: str
    """Digest of the document alone."""
    users: tuple[str, ...]
    uplinks: tuple[str, ...]
    tuned: tuple[str, ...]
    secrets: tuple[str, ...]
    settings: tuple[str, ...]
    """What the facts are asked about for it."""
    wanted: Wanted
    borrowed: frozenset[Key]
    notes: tuple[str, ...]


def digest(text: bytes, facts: Facts, allocations: Allocations) -> str:
    """One number for everything that compiling depends on."""
    rest = replace(facts, state={}, routing=frozenset(), services=frozenset())
    parts = [short(text), program(), repr(rest), sorted(facts.routing), sorted(facts.services),
             [(*key, *(given.mac, given.ip, given.ip6, given.vf)) for key, given in allocations.items()],
             [(r.kind, r.name, *compared(type(r))[1](r)) for r in facts.state.values()]]
    return short(marshal.dumps(parts, 0))  # version 0: equal data are equal bytes


def short(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()


@cache
def program() -> str:
    """Changes with every change of this program's files."""
    return short(repr(sorted(files(str(Path(__file__).parent)))).encode())


def files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, time and size of every file of Python's below *folder*."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                told = entry.stat()
                yield entry.path, told.st_mtime_ns, told.st_size
            elif entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                yield from files(entry.path)


def keep(path: Path, before: Before) -> None:
    """Write it down. A full disk is no reason to fail: it only saves time."""
    rows = [[k.kind, k.name, *([] if isinstance(r, Absent) else [getattr(r, n) for n in setting_names(type(r))])]
            for k, r in before.wanted.items()]
    data = {**before._asdict(), "wanted": rows, "borrowed": sorted(before.borrowed)}
    try:
        write_durably(path, f"{head(before.text)}\n{json.dumps(data, separators=(',', ':'))}")
    except HostCannot:
        path.unlink(missing_ok=True)


def read(path: Path, text: bytes) -> Before | None:
    """What was kept of the document *text*; None for another one, or when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            if file.readline() != head(short(text)) + "\n":
                return None
            data = json.loads(file.read())
        return Before(data["digest"], data["text"], tuple(data["users"]), tuple(data["uplinks"]), tuple(data["tuned"]), tuple(data["secrets"]),
                      tuple(data["settings"]),
                      {r.key: r for r in map(resource, data["wanted"])},
                      frozenset(Key(*k) for k in data["borrowed"]), tuple(data["notes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def head(text: str) -> str:
    return f"kvmnet before {FORMAT} {text}"


def resource(row: list[Any]) -> Resource | Absent:
    kind, name, *values = row
    if not values:
        return Absent(Key(kind, name))
    cls = KINDS[kind]
    told = [tuple(v) if type(v) is list else v for v in values]  # JSON has no tuples
    return cls(name=name, **dict(zip(setting_names(cls), told, strict=True)))
