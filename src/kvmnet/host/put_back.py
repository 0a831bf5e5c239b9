"""A disturbance that ends by itself: a process of its own puts things back when this one does not.

It is forked before the disturbance is made and waits on a pipe. When the pipe closes without a word (the one that
disturbs was killed), or when the time is over (that was stopped, or hangs), it runs the commands. It is a session leader without a
terminal, holds no lock and reads nothing from the disk but the tools.
"""
from __future__ import annotations

import gc
import os
import select
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

from kvmnet.errors import HostCannot
from kvmnet.host import lock
from kvmnet.host.clock import wait_until
from kvmnet.host.run import ToolFailed, run
from kvmnet.records import dataclass

PATIENCE = 10.0
"""Seconds for which commands that fail are tried again."""
BEGUN, DONE = b"!", b"."


@dataclass(frozen=True, slots=True)
class Command:
    argv: tuple[str, ...]
    stdin: str = ""

    def __call__(self) -> None:
        run(self.argv, stdin=self.stdin)


class Fuse:
    """The process that waits, as this one talks to it."""

    def __init__(self, undo: Sequence[Command], pipe: int):
        self.undo, self.pipe = undo, pipe

    @contextmanager
    def disturbed(self, make: Sequence[Command]) -> Iterator[None]:
        """*make* is in force for the body, *undo* afterwards, whatever becomes of this process. Once only.

        Raises ToolFailed when a command fails, after undoing.
        """
        self.say(BEGUN)
        try:
            for command in make:
                command()
            yield
        finally:
            for command in self.undo:
                command()
            self.say(DONE)

    def say(self, word: bytes) -> None:
        with suppress(OSError):
            os.write(self.pipe, word)


@contextmanager
def lit(undo: Sequence[Command], seconds: float) -> Iterator[Fuse]:
    """A process that runs *undo* when a disturbance is not over *seconds* after it began, or when this process ends
    before. Started now, so that threads may be started afterwards.

    Raises HostCannot when no process can be started.
    """
    go_in, go_out = os.pipe2(os.O_CLOEXEC)
    try:
        with warnings.catch_warnings():  # Python 3.12 warns of threads; the child uses no lock of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError as error:
        os.close(go_in)
        os.close(go_out)
        raise HostCannot(f"cannot start the process that puts things back: {error.strerror}") from error
    if child == 0:
        leave(undo, seconds, go_in)
    os.close(go_in)
    os.waitpid(child, 0)
    try:
        yield Fuse(undo, go_out)
    finally:
        os.close(go_out)


def leave(undo: Sequence[Command], seconds: float, go: int) -> NoReturn:
    """In the first child: become a process that belongs to nobody. Never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        detach(go)
        watch(undo, seconds, go)
        os._exit(0)
    except BaseException:  # noqa: BLE001  nothing of the forked command may run on in this process
        os._exit(1)


def detach(keep: int) -> None:
    """Drop what belongs to the command: terminal, lock, pipes, signals."""
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    lock.held.clear()
    null = os.open(os.devnull, os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    os.closerange(3, keep)
    os.closerange(keep + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    gc.freeze()  # the collector would copy every shared page


def watch(undo: Sequence[Command], seconds: float, go: int) -> None:
    """Wait until it begins, then for the word that all is well; else put things back."""
    if os.read(go, 1) != BEGUN:
        return
    waiting = select.poll()
    waiting.register(go, select.POLLIN)
    if waiting.poll(seconds * 1000) and os.read(go, 1) == DONE:
        return
    with suppress(TimeoutError):
        wait_until(lambda: all(worked(command) for command in undo), PATIENCE, 1)


def worked(command: Command) -> bool:
    try:
        command()
    except (ToolFailed, HostCannot):
        return False
    return True
