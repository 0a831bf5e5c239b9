"""A process for a folder that outlives the command and is started again whenever it ends, with the standard library alone.

Two processes: one that works, and one that watches it. They are told what to do by a file in the folder, and write down there who they
are (``drivers/supervised.py`` starts and finds them).
"""
from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from kvmnet.host.process import start_time

CONFIG, RECORD, STATE, LOG = "config.json", "process.json", "state.json", "log"
PR_SET_PDEATHSIG = 1
AGAIN = 0.5
"""Seconds until a process that ended is started again."""

Work = Callable[[Path, int], NoReturn]
"""What the working process does, with its folder and a descriptor to tell by one ``+`` that it is ready."""


def begin(work: Work, folder: Path, ready: int, watcher: int) -> NoReturn:
    """The process that works; it ends with the one that watches it."""
    import ctypes
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:    # it ended before we could say so
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work(folder, ready)


def watch(folder: Path, work: Work, taken: str, ending: int = signal.SIGKILL) -> int:
    """Have one process work, for ever; an exit code when it cannot begin. ``taken``: what is said when another does it already.
    ``ending``: signal that ends it when we are ended; it is waited for."""
    import fcntl
    lock = open(folder / "lock", "w")  # noqa: SIM115 - held for life
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print(taken, flush=True)
        return 3
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    config = (folder / CONFIG).read_text()
    first = True
    while True:
        heard, ready = os.pipe()
        watcher = os.getpid()
        child = os.fork()
        if not child:
            os.close(heard)
            try:
                begin(work, folder, ready, watcher)
            except BaseException as error:  # noqa: BLE001  said, and begun anew by the other process
                print(f"{time.strftime('%FT%T')} {type(error).__name__}: {error}", flush=True)
            os._exit(1)
        os.close(ready)

        def end(number: int, stack: object, child: int = child) -> None:
            os.kill(child, ending)
            os.waitpid(child, 0)
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
        well = os.read(heard, 1) == b"+"
        os.close(heard)
        if first and well:
            record(folder, config)
        _, status = os.waitpid(child, 0)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if first and not well:
            return 4
        first = False
        print(f"{time.strftime('%FT%T')} ended with {os.waitstatus_to_exitcode(status)}; begins anew", flush=True)
        select.select([], [], [], AGAIN)


def record(folder: Path, config: str) -> None:
    """Write down who we are: from here on it is our work."""
    replace(folder / RECORD, json.dumps({"pid": os.getpid(), "start": start_time(os.getpid()),
                                         "netns": Path("/proc/self/ns/net").stat().st_ino, "config": config}))


def replace(file: Path, text: str) -> None:
    """*file* anew, never seen half."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text)
    fresh.replace(file)
