"""What kvmnet made and bound in this boot: PFs that it split, VFs that it bound to vfio-pci."""
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmnet.host.files import write_durably
from kvmnet.host.process import boot_id
from kvmnet.records import dataclass, field


@dataclass(slots=True)
class Notes:
    made: dict[str, int] = field(default_factory=dict)
    """Name of the device in sysfs -> VFs."""
    bound: set[str] = field(default_factory=set)
    """PCI addresses."""
    quiet: set[str] = field(default_factory=set)
    """Names of PFs whose VFs no driver of the host takes any more; before, they did."""


def read(path: Path) -> Notes:
    """Nothing when there is no file, or when it is of an earlier boot: VFs are gone after a restart."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["boot"] != boot_id():
            return Notes()
        return Notes({str(k): int(v) for k, v in data["made"].items()}, set(map(str, data["bound"])), set(map(str, data["quiet"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Notes()


@contextmanager
def noting(path: Path) -> Iterator[Notes]:
    """The notes, to be changed; written before what they say is done. Raises HostCannot."""
    notes = read(path)
    yield notes
    write_durably(path, json.dumps({"boot": boot_id(), "made": notes.made, "bound": sorted(notes.bound),
                                    "quiet": sorted(notes.quiet)}))
