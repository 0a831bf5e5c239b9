"""The journal: what undoes the change under way, on disk before the first step is made.

It lies in the run directory while a change is being applied, waits for its confirmation, or is
rolled back. Its removal is the commit. Whoever finds one without holding the writer's lock must
leave it alone; whoever holds the lock knows that its writer is dead or has handed it to a timer.

    applying ----> (removed: committed)
       |    `----> unconfirmed ----> (removed: confirmed)
       `---------------'`----> rolling-back ----> (removed: as it was)
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Set
from enum import StrEnum
from pathlib import Path
from typing import Any

from kvmnet.engine.plan import Step, before_image
from kvmnet.engine.resource import Absent, Key, Resource, State, Wanted
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.host.files import readable_errors, remove_durably, write_durably
from kvmnet.host.process import Process
from kvmnet.records import asdict, dataclass, fields

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Codec:
    """How resources become plain data and back; given to the engine, which knows no driver."""

    to_json: Callable[[Resource | Absent], dict[str, Any]]
    from_json: Callable[[dict[str, Any]], Resource | Absent]


class Phase(StrEnum):
    APPLYING = "applying"
    UNCONFIRMED = "unconfirmed"
    ROLLING_BACK = "rolling-back"


@dataclass(frozen=True, slots=True)
class Image:
    """What undoes a change: everything it touches, as it was."""

    wanted: Wanted
    partial: frozenset[Key]
    """Settings on somebody else's objects: not brought back when the object itself is gone."""

    @classmethod
    def of(cls, seen: State, steps: Iterable[Step], ours: Set[Key]) -> Image:
        wanted = before_image(seen, steps, ours)
        return cls(wanted, frozenset(k for k, r in wanted.items()
                                     if not isinstance(r, Absent) and r is not seen.get(k)))

    def encode(self, codec: Codec) -> dict[str, Any]:
        absent: dict[str, list[str]] = {}
        present = []
        for key, resource in self.wanted.items():
            if isinstance(resource, Absent):
                absent.setdefault(key.kind, []).append(key.name)
            else:
                present.append(codec.to_json(resource))
        return {"absent": absent, "present": present, "partial": [list(k) for k in sorted(self.partial)]}

    @classmethod
    def decode(cls, data: Mapping[str, Any], codec: Codec) -> Image:
        wanted: dict[Key, Resource | Absent] = {
            Key(kind, name): Absent(Key(kind, name)) for kind, names in data["absent"].items() for name in names}
        for item in data["present"]:
            resource = codec.from_json(item)
            wanted[resource.key] = resource
        return cls(wanted, frozenset(Key(*k) for k in data.get("partial", ())))


@dataclass(frozen=True, slots=True)
class Journal:
    id: str
    phase: Phase
    started: str
    """ISO 8601, UTC; for people."""
    boot: str
    namespace: int
    """Inode of the network namespace that is being changed."""
    writer: Process
    before: dict[str, Any]
    """An encoded Image."""
    timer: Process | None = None
    deadline: float | None = None
    """When the change is undone unless confirmed: seconds since boot (CLOCK_BOOTTIME)."""
    grace: float | None = None
    """Seconds given for the confirmation."""
    revision: int | None = None

    def write(self, path: Path) -> None:
        """Durably. Raises HostCannot."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("writer", "timer"):
            data[name] = data[name] and asdict(data[name])
        write_durably(path, json.dumps({"format": FORMAT, **data}, separators=(",", ":")))

    def image(self, path: Path, codec: Codec) -> Image:
        """Raises KvmnetError when it names things that this version does not know."""
        try:
            return Image.decode(self.before, codec)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise unreadable(path, str(error)) from error


def read_journal(path: Path) -> Journal | None:
    """The journal that lies there, or None. Raises KvmnetError when it cannot be understood."""
    try:
        with readable_errors(path, "read"):
            text = path.read_text(encoding="utf-8")
    except HostCannot as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    except UnicodeDecodeError as error:
        raise unreadable(path, "it is not text") from error
    try:
        data = json.loads(text)
        if data["format"] > FORMAT:
            raise KvmnetError(
                f"{path}: journal of format {data['format']}, this kvmnet reads up to {FORMAT}",
                "run `kvmnet recover` with the newer kvmnet that wrote it")
        return parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, f"{type(error).__name__}: {error}") from error


def parse(data: Mapping[str, Any]) -> Journal:
    """Every format so far; what later fields an older one lacks has its default here."""
    timer = data.get("timer")
    return Journal(
        id=str(data["id"]), phase=Phase(data["phase"]), started=str(data["started"]), boot=str(data["boot"]),
        namespace=int(data.get("namespace") or 0), writer=Process(**data["writer"]), before=dict(data["before"]),
        timer=Process(**timer) if timer else None, deadline=optional(data, "deadline"),
        grace=optional(data, "grace"), revision=None if data.get("revision") is None else int(data["revision"]))


def optional(data: Mapping[str, Any], name: str) -> float | None:
    return None if data.get(name) is None else float(data[name])


def unreadable(path: Path, reason: str) -> KvmnetError:
    return KvmnetError(
        f"{path}: the journal of an unfinished change cannot be read: {reason}",
        f"the change cannot be undone by itself: see `kvmnet plan` for what is off, move the file away "
        f"(mv {path} {path}.broken) and apply the document again")


def remove_journal(path: Path) -> None:
    remove_durably(path)
