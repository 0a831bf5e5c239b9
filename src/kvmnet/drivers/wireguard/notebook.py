"""What tunnels were told in this boot and the kernel does not tell: names of files, and where peers were said to be."""
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.host.files import make_directory, remove_durably, write_durably
from kvmnet.host.process import boot_id
from kvmnet.records import asdict, dataclass, field


@dataclass(slots=True)
class Told:
    endpoint: str = ""
    secret_file: str = ""


@dataclass(slots=True)
class Note:
    key_file: str = ""
    carrier: str = ""
    peers: dict[str, Told] = field(default_factory=dict)
    """Public key -> what was told of the peer."""


def read(folder: Path) -> dict[str, Note]:
    """Link -> what was told. Nothing of an earlier boot: tunnels are gone after a restart."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            data = json.loads(file.read_text(encoding="utf-8"))
            if data["boot"] == boot_id():
                found[file.stem] = Note(str(data["key_file"]), str(data["carrier"]),
                                        {str(k): Told(str(t["endpoint"]), str(t["secret_file"])) for k, t in data["peers"].items()})
    return found


@contextmanager
def noting(folder: Path, dev: str) -> Iterator[Note]:
    """The note of a tunnel, to be changed; written before what it says is done. Raises HostCannot."""
    note = read(folder).get(dev, Note())
    yield note
    make_directory(folder, 0o700)
    write_durably(folder / f"{dev}.json", json.dumps({"boot": boot_id(), **asdict(note)}))


def forget(folder: Path, dev: str) -> None:
    remove_durably(folder / f"{dev}.json")
