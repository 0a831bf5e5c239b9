"""What a look at nftables found, kept for as long as the kernel says that nothing was changed since.

To list a thousand guards and what their groups make of them takes nft longer than all else that a command does. The kernel counts
what is changed (``host.netlink.generation``), so a look that found the very elements that were loaded is as good as a new one while
that count stands. What packets write into sets is no part of it. Any doubt means that nft is asked.
"""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.drivers.nftables.wire import Elements
from kvmnet.engine.resource import setting_names
from kvmnet.host.netlink import Generation
from kvmnet.records import dataclass

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Look:
    """Tables and guards as they were found."""

    listings: Mapping[str, str]
    """``FAMILY NAME`` -> what nft prints of it: of ours everything but the elements that are resources, of others no elements."""
    guards: Mapping[str, NicGuard]
    damaged: frozenset[str] = frozenset()
    """Tables whose sets do not hold what was loaded."""
    memory: Elements | None = None
    """Elements of the sets that the kernel fills; None: not asked."""


def keep(file: Path, generation: Generation | None, members: str, look: Look) -> None:
    """Write *look* down, which was true of *generation*. ``members``: the memberships that were loaded. It only saves time: a full disk is
    no reason to fail, and one that found damage is not kept."""
    with suppress(OSError):
        if not generation or look.damaged:
            file.unlink(missing_ok=True)
            return
        rows = [[guard.name, *(getattr(guard, name) for name in setting_names(NicGuard))] for guard in look.guards.values()]
        text = json.dumps({"listings": dict(look.listings), "guards": rows}, separators=(",", ":"))
        write_whole(file, f"{head(generation, members)}\n{text}")


def kept(file: Path, generation: Generation | None, members: str) -> Look | None:
    """What was found when nftables was as it is in *generation*, with *members* loaded; None when that is not known."""
    try:
        with open(file, encoding="utf-8") as lines:
            if not generation or lines.readline() != head(generation, members) + "\n":
                return None
            data = json.loads(lines.read())
        return Look(data["listings"], {row[0]: guard(row) for row in data["guards"]})
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None


def head(generation: Generation, members: str) -> str:
    return f"kvmnet look {FORMAT} {program()} {generation.number} {generation.rest} {short(members)}"


@cache
def program() -> str:
    """Changes with every change of the driver's files."""
    return short(repr(sorted((f.name, s.st_mtime_ns, s.st_size) for f in Path(__file__).parent.glob("*.py") if (s := f.stat()))))


def short(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def guard(row: Iterable[Any]) -> NicGuard:
    """JSON has no tuples."""
    values = (tuple(v) if type(v) is list else v for v in row)
    settings: dict[str, Any] = dict(zip(("name", *setting_names(NicGuard)), values, strict=True))
    return NicGuard(**settings)


def write_whole(file: Path, text: str) -> None:
    """Replace a file so that a reader sees the old text or the new one, never a part."""
    fresh = file.with_suffix(f".{os.urandom(4).hex()}.new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(file)
