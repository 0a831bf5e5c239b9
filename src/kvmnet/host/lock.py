"""One writer at a time: an flock that the kernel releases when its holder dies. Readers take none."""
from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from kvmnet.errors import ConflictError
from kvmnet.host.clock import wait_until
from kvmnet.host.files import make_directory, readable_errors


@contextmanager
def exclusive(path: Path, command: str, timeout: float = 0) -> Iterator[int]:
    """Hold the writer's lock; gives its file descriptor, which a forked child must close.

    Waits ``timeout`` seconds for another writer to end, then raises ConflictError that says who it is.
    """
    make_directory(path.parent)
    with readable_errors(path, "open"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            wait_until(lambda: try_lock(fd), timeout)
        except TimeoutError:
            raise ConflictError(f"another kvmnet is changing this host: {holder(path)}",
                                "wait until it has ended, then try again") from None
        sign(fd, command)
        yield fd
    finally:
        os.close(fd)


def holder(path: Path) -> str:
    """Who wrote its name into the lock: pid, command and since when."""
    try:
        who = json.loads(path.read_text(encoding="utf-8"))
        return f"pid {who['pid']} ({who['command']}) since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"unknown process (see: fuser -v {path})"


def try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sign(fd: int, command: str) -> None:
    """Leave our name for others to read. A full disk is no reason to fail here."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    with suppress(OSError):
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "command": command, "since": since}).encode(), 0)
