"""The armed undo: a process of its own that takes an unconfirmed change back, and one whose writer died.

A change that waits for a confirmation has one, and one that touches the host's way out.

It is forked before the journal is written, so that the journal can name it, and lets go when its
pipe closes: by then the journal lies there, or its writer failed and nothing was changed. It is a
session leader without a terminal, so the end of the command, the terminal or the SSH session does
not reach it; it stays in the network namespace it was forked in. It holds no lock while it waits,
and needs neither the database nor free disk space to roll back. (Where logind kills the processes of
a closed session, KillUserProcesses=yes, it dies with it: then the next command or boot recovers.)
"""
from __future__ import annotations

import gc
import os
import signal
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kvmnet.engine.journal import Journal, Phase, read_journal
from kvmnet.errors import ConflictError, HostCannot, KvmnetError
from kvmnet.host import lock
from kvmnet.host.process import Process, start_time, uptime

if TYPE_CHECKING:
    from kvmnet.engine.transaction import Engine

LOOK_SECONDS = 0.5
"""How often the timer looks whether its journal is still there."""

PATIENCE_SECONDS = 600.0
"""How long the timer waits for a writer that is still at work."""

PID = struct.Struct("=q")


@contextmanager
def armed(engine: Engine, journal_id: str) -> Iterator[Process]:
    """Start the timer of a journal; it begins to act when the body, which writes the journal, ends.

    Raises HostCannot when no process can be started.
    """
    say_in, say_out = os.pipe2(os.O_CLOEXEC)
    go_in, go_out = os.pipe2(os.O_CLOEXEC)
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of threads; the child uses no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError as error:
        for fd in (say_in, say_out, go_in, go_out):
            os.close(fd)
        raise HostCannot(f"cannot start the process that undoes the change: {error.strerror}") from error
    if child == 0:
        leave(engine, journal_id, say_out, go_in)
    os.close(say_out)
    os.close(go_in)
    try:
        os.waitpid(child, 0)
        told = os.read(say_in, PID.size)
        pid = PID.unpack(told)[0] if len(told) == PID.size else 0
        start = start_time(pid)
        if start is None:
            raise HostCannot("cannot start the process that undoes the change", f"see {engine.paths.run / 'undo.log'}")
        yield Process(pid, start)
    finally:
        os.close(say_in)
        os.close(go_out)


def leave(engine: Engine, journal_id: str, say: int, go: int) -> NoReturn:
    """In the first child: become a process that belongs to nobody. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.write(say, PID.pack(os.getpid()))
        detach(engine, keep=go)
        os.read(go, 1)
        os.close(go)
        watch(engine, journal_id)
        os._exit(0)
    except BaseException:  # noqa: BLE001  nothing of the forked command may run on in this process
        with suppress(BaseException):
            from traceback import format_exc
            log(format_exc())
        os._exit(1)


def detach(engine: Engine, keep: int) -> None:
    """Drop what belongs to the command: terminal, lock, pipes, signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    engine.lock_fd = None
    lock.held.clear()
    engine.probe = lambda point: None
    null = os.open(os.devnull, os.O_RDWR)
    try:
        out = os.open(engine.paths.run / "undo.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        out = null
    for fd, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, target)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    gc.freeze()  # the collector would copy every shared page


def watch(engine: Engine, journal_id: str) -> None:
    """Take the change back at its deadline, which a new version of the journal may move, or as soon as its writer
    dies at work."""
    while (version := version_of(engine.paths.journal)) is not None:
        journal = mine(engine, journal_id)
        if journal is None:
            return
        deadline = journal.deadline
        writer = None if journal.phase is Phase.UNCONFIRMED else journal.writer
        del journal  # it may be megabytes; waiting needs none of it
        while not (due := is_due(deadline, writer)) and version_of(engine.paths.journal) == version:
            pause(LOOK_SECONDS if deadline is None else max(0.0, min(deadline - uptime(), LOOK_SECONDS)))
        if due and roll_back(engine, journal_id):
            return


def is_due(deadline: float | None, writer: Process | None) -> bool:
    """Whether the change is to be taken back. ``writer``: who is at work on it, if anybody."""
    return (deadline is not None and deadline <= uptime()) or (writer is not None and not writer.alive())


def version_of(path: Path) -> tuple[int, int] | None:
    """Changes whenever the file is replaced; None when it is gone."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def mine(engine: Engine, journal_id: str) -> Journal | None:
    """The journal, while it is the one that this timer was started for."""
    journal = read_journal(engine.paths.journal)
    return journal if journal is not None and journal.id == journal_id else None


def roll_back(engine: Engine, journal_id: str) -> bool:
    """Under the lock, once its holder has ended, look again and roll back what is due."""
    try:
        with engine.writing("kvmnet undo timer", timeout=PATIENCE_SECONDS):
            journal = mine(engine, journal_id)
            if journal is None:
                return True
            if journal.phase is Phase.UNCONFIRMED and (journal.deadline or 0) > uptime():
                return False
            why = "not confirmed in time" if journal.phase is Phase.UNCONFIRMED else "kvmnet stopped before it was done"
            engine.roll_back(journal, why, lambda event: None)
            log(f"revision {journal.revision}: {why}; rolled back")
    except ConflictError as error:
        log(f"{error}; still waiting")
        return False
    except KvmnetError as error:
        log(f"{error}; {error.hint}")
    return True


def pause(seconds: float) -> None:
    """Sleep; SIGTERM ends this process as it would anywhere."""
    signal.sigtimedwait([], seconds)


def log(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n".encode())
