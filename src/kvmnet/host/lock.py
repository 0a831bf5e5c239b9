"""One writer at a time: an flock that the kernel releases when its holder dies. Readers take none.

A second lock goes along to every program that the writer starts: when the writer is killed, what it
started may still be at work (nft reads a large table for 0.2 s before it changes anything), and the
next writer must not look at the host before that has ended.
"""
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

STRAYS_SECONDS = 10.0
"""How long programs of a killed writer are waited for; nothing that a writer waits for takes longer."""

MOMENT_SECONDS = 2.0
"""How long another writer is waited for in any case: the timer of a change whose writer died looks under the lock whether anything is
left for it to do, just when somebody who has recovered the host goes on."""

held: list[int] = []
"""The second lock, while we are the writer."""


def inherited() -> tuple[int, ...]:
    """File descriptors that programs started now must inherit."""
    return tuple(held)


@contextmanager
def exclusive(path: Path, command: str, timeout: float = 0) -> Iterator[int]:
    """Hold the writer's lock; gives its file descriptor, which a forked child must close.

    Waits ``timeout`` seconds, and a moment at least, for another writer to end, then raises ConflictError that says who it is.
    """
    make_directory(path.parent)
    fd = open_lock(path)
    try:
        try:
            wait_until(lambda: try_lock(fd), max(timeout, MOMENT_SECONDS))
        except TimeoutError:
            raise ConflictError(f"another kvmnet is changing this host: {holder(path)}",
                                "wait until it has ended, then try again") from None
        sign(fd, command)
        with passed_on(path.with_suffix(".tools")):
            yield fd
    finally:
        os.close(fd)


@contextmanager
def passed_on(path: Path) -> Iterator[None]:
    """Wait for the programs of a killed writer to end, then hold the lock that ours inherit."""
    before = held[:]
    tools = open_lock(path)
    try:
        try:
            wait_until(lambda: try_lock(tools), STRAYS_SECONDS)
        except TimeoutError:  # a daemon that kept it: it is not a part of the change any more
            os.close(tools)
            path.unlink()
            tools = open_lock(path)
            try_lock(tools)
        held[:] = [tools]
        yield
    finally:
        held[:] = before
        os.close(tools)


def open_lock(path: Path) -> int:
    with readable_errors(path, "open"):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


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
