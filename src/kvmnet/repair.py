"""Fixes of the doctor, made as one: written down with what takes them back, watched, and taken back on request.

A batch is a file in the run directory, written before the first command. A process of its own (see ``host/put_back.py``)
takes the batch back when its writer dies at work, and when it waits for a confirmation and none comes. Batches that stay are kept
until the next restart of the host, which loses their settings anyway, so that the last one can be taken back later, too.
"""
from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from kvmnet.doctor.mend import Change
from kvmnet.errors import ApplyFailed, ConflictError, HostCannot, KvmnetError, RollbackFailed
from kvmnet.host.clock import wait_until
from kvmnet.host.files import remove_durably, write_durably
from kvmnet.host.lock import exclusive
from kvmnet.host.paths import Paths
from kvmnet.host.process import Process, boot_id, namespace_id, this_process, uptime
from kvmnet.host.put_back import detach
from kvmnet.host.run import ToolFailed, run
from kvmnet.records import asdict, dataclass, replace

FOLDER = "doctor"
LOOK = 0.3
"""Seconds between two looks of the process that waits."""
PATIENCE = 600.0
"""Longest that another writer is waited for, in seconds."""
LONGEST = 90_000.0
"""Seconds; longer than any confirmation is waited for."""


class Phase(StrEnum):
    MAKING = "making"
    WAITING = "waiting"
    """Made, and goes back unless it is confirmed."""
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class Batch:
    number: int
    phase: Phase
    changes: tuple[Change, ...]
    writer: Process
    deadline: float = 0
    """Seconds since boot; 0 for none."""
    namespace: int = 0
    boot: str = ""

    def to_text(self) -> str:
        return json.dumps(asdict(self), indent=1)


def place(paths: Paths, number: int) -> Path:
    return paths.run / FOLDER / f"{number:06}.json"


def batches(paths: Paths) -> list[Batch]:
    """Those of this boot and network namespace, the oldest first. What is damaged is not one."""
    found = []
    for file in sorted((paths.run / FOLDER).glob("*.json")):
        batch = read(file)
        if batch and batch.boot == boot_id() and batch.namespace == namespace_id():
            found.append(batch)
    return found


def read(file: Path) -> Batch | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(file.read_text(encoding="utf-8"))
        changes = tuple(Change(c["code"], c["where"], tuple(c["do"]), tuple(c["undo"])) for c in told["changes"])
        return Batch(int(told["number"]), Phase(told["phase"]), changes, Process(**told["writer"]), float(told["deadline"]), int(told["namespace"]), told["boot"])
    return None


# -- what users call -------------------------------------------------------------------------------

def make(paths: Paths, changes: Sequence[Change], still_there: Callable[[], Sequence[str]], confirm: float | None = None) -> Batch:
    """Run *changes*; all stay, or none. ``still_there`` names what the second look still finds: then none. ``confirm``: seconds after
    which they go back unless ``keep`` is called.

    Raises ConflictError, HostCannot, ApplyFailed (everything is as before), RollbackFailed.
    """
    with exclusive(paths.lock, "kvmnet doctor --fix"):
        for batch in batches(paths):
            if batch.phase is Phase.WAITING:
                raise ConflictError("fixes wait for a confirmation", "kvmnet confirm keeps them, kvmnet doctor --undo takes them back")
            if batch.phase is Phase.MAKING:     # its writer has died: we have the lock
                take_back(paths, batch)
        last = max((int(file.stem) for file in (paths.run / FOLDER).glob("*.json") if file.stem.isdigit()), default=0)
        batch = Batch(last + 1, Phase.MAKING, tuple(changes), this_process(), 0, namespace_id(), boot_id())
        with watched(paths, batch.number):
            save(paths, batch)
        done: list[Change] = []
        try:
            for change in changes:
                run(change.do)
                done.append(change)
            if left := still_there():
                raise KvmnetError(f"the second look still finds {', '.join(left)}")
        except BaseException as error:
            take_back(paths, replace(batch, changes=tuple(done)))
            if isinstance(error, ToolFailed | HostCannot | KvmnetError):
                raise ApplyFailed(f"{error}; everything was taken back") from error
            raise
        batch = replace(batch, phase=Phase.WAITING, deadline=uptime() + confirm) if confirm else replace(batch, phase=Phase.KEPT)
        save(paths, batch)
        return batch


def undo(paths: Paths) -> Batch | None:
    """Take the last batch back; None when there is none. Raises ConflictError, RollbackFailed."""
    with exclusive(paths.lock, "kvmnet doctor --undo", timeout=10):
        found = batches(paths)
        if not found:
            return None
        take_back(paths, found[-1])
        return found[-1]


def keep(paths: Paths) -> bool:
    """Keep the batch that waits for a confirmation; False when none does."""
    if not any(b.phase is Phase.WAITING for b in batches(paths)):
        return False
    with exclusive(paths.lock, "kvmnet confirm", timeout=10):
        waiting = [b for b in batches(paths) if b.phase is Phase.WAITING]
        for batch in waiting:
            save(paths, replace(batch, phase=Phase.KEPT, deadline=0))
        return bool(waiting)


# -- one batch -------------------------------------------------------------------------------------

def save(paths: Paths, batch: Batch) -> None:
    write_durably(place(paths, batch.number), batch.to_text())


def take_back(paths: Paths, batch: Batch) -> None:
    """Undo every change, the last one first; those of devices that are gone need none. Raises RollbackFailed, with the file still there."""
    failed = [f"{' '.join(change.undo)}: {reason}" for change in reversed(batch.changes) if (reason := undone(change.undo))]
    if failed:
        raise RollbackFailed("; ".join(failed), f"run them by hand, then remove {place(paths, batch.number)}")
    remove_durably(place(paths, batch.number))


GONE = ("Cannot find device", "No such device", "does not exist", "No such file or directory", "cannot stat")


def undone(argv: Sequence[str]) -> str:
    """'' when the command worked or its device is gone, else what went wrong."""
    try:
        run(argv)
    except ToolFailed as failed:
        return "" if any(word in failed.detail for word in GONE) else failed.detail
    except HostCannot as cannot:
        return str(cannot)
    return ""


# -- the process that waits ------------------------------------------------------------------------

@contextmanager
def watched(paths: Paths, number: int) -> Iterator[None]:
    """Start the process that takes batch *number* back; it begins to look when the body, which writes the file, ends.
    Raises HostCannot."""
    go_in, go_out = os.pipe2(os.O_CLOEXEC)
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of threads; the child uses no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            leave(paths, number, go_in)
        os.waitpid(child, 0)
        yield
    except OSError as error:
        raise HostCannot(f"cannot start the process that takes fixes back: {error.strerror}") from error
    finally:
        os.close(go_in)
        os.close(go_out)


def leave(paths: Paths, number: int, go: int) -> NoReturn:
    """In the first child: become a process that belongs to nobody. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        detach(go)
        os.read(go, 1)      # ends when the command has closed its end, or has died
        wait_until(lambda: settled(paths, number), LONGEST, LOOK)
        os._exit(0)
    except BaseException:  # noqa: BLE001  nothing of the forked command may run on in this process
        os._exit(1)


def settled(paths: Paths, number: int) -> bool:
    """Whether nothing is left to be watched; takes the batch back when its time is over, or its writer has died."""
    batch = read(place(paths, number))
    if batch is None or batch.phase is Phase.KEPT:
        return True
    late = batch.phase is Phase.WAITING and uptime() >= batch.deadline
    if not late and (batch.phase is Phase.WAITING or batch.writer.alive()):
        return False
    with exclusive(paths.lock, "kvmnet doctor (undo)", timeout=PATIENCE):
        if (again := read(place(paths, number))) and again.phase is not Phase.KEPT:
            take_back(paths, again)
    return True


def words(changes: Iterable[Change]) -> list[tuple[str, str]]:
    """(command, what takes it back), for people."""
    import shlex
    return [(shlex.join(c.do), shlex.join(c.undo)) for c in changes]
