"""What mirrors have copied, for ``kvmnet status``."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kvmnet.drivers.mirror.driver import MirrorDriver
from kvmnet.drivers.mirror.resources import Copy
from kvmnet.drivers.recorder.process import recording
from kvmnet.engine.driver import Seen
from kvmnet.records import dataclass
from kvmnet.spec.mirrors import Mirror

if TYPE_CHECKING:
    from kvmnet.compile import Compiled
    from kvmnet.spec.models import Spec


@dataclass(frozen=True, slots=True)
class MirrorStatus:
    name: str
    sources: tuple[str, ...]
    receiver: str
    """In the document's words."""
    device: str
    """Device that the copies leave by."""
    frames: int
    """Copies handed over since the mirror was made or last changed."""
    bytes: int
    lost: int
    """Further frames that the receiver had no room for, or no carrier."""
    state: str
    """ok, down (the receiver takes nothing), incomplete (a source or the receiver is missing)."""
    file: str = ""
    """File that is written now; '' where copies go elsewhere. Then the numbers are those of all that was kept, and lost is what the disk
    or the process was too slow for, or what came while that did not run."""
    trouble: str = ""
    """Why the disk takes nothing now."""


def mirror_statuses(run: Path, spec: Spec, compiled: Compiled, seen: Seen, link_state: Callable[[str], str]) -> tuple[MirrorStatus, ...]:
    driver = MirrorDriver()
    counts = driver.counts() if driver.unavailable() is None else {}
    wanted = [r for r in compiled.wanted.values() if isinstance(r, Copy)]
    found = []
    for name, wired in compiled.mirrors.items():
        copies = [c for c in wanted if c.mirror == name]
        done = [counts[c.name] for c in copies if c.name in counts]
        lost = sum(c.refused for c in done)
        whole = all(getattr(seen.state.get(c.key), "receiver", "") == wired.to for c in copies)
        state = "incomplete" if not whole else "ok" if link_state(wired.to) == "up" else "down"
        mirror = spec.mirrors[name]
        if mirror.to.file:
            found.append(recorded(run, name, mirror, wired.to, state, lost))
        else:
            found.append(MirrorStatus(name, mirror.from_, mirror.to.words, wired.to, sum(c.frames for c in done) - lost,
                                      sum(c.octets for c in done), lost, state))
    return tuple(found)


def recorded(run: Path, name: str, mirror: Mirror, device: str, state: str, refused: int) -> MirrorStatus:
    """A mirror whose copies are kept in files: what its process tells, a second ago at most. ``refused``: copies beyond its limit."""
    process = recording(run, name)
    told = process.read("state.json") or {}
    if state == "ok":
        state = "incomplete" if not process.alive() else "down" if told.get("trouble") else "ok"
    return MirrorStatus(name, mirror.from_, mirror.to.words, device, told.get("frames", 0), told.get("bytes", 0),
                        refused + told.get("lost", 0) + told.get("missed", 0), state, told.get("file", ""), told.get("trouble", ""))
