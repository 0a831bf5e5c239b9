"""Who we are: a process that a reused pid cannot impersonate, this boot, this network namespace."""
from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    start: int
    """Start time in clock ticks since boot (field 22 of /proc/PID/stat, proc(5))."""

    def alive(self) -> bool:
        return self.pid > 0 and start_time(self.pid) == self.start

    def terminate(self) -> None:
        """Send SIGTERM, to this very process or to none."""
        with suppress(ProcessLookupError, OSError):
            fd = os.pidfd_open(self.pid)
            try:
                if self.alive():
                    signal.pidfd_send_signal(fd, signal.SIGTERM)
            finally:
                os.close(fd)


def this_process() -> Process:
    return Process(os.getpid(), start_time(os.getpid()) or 0)


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None when it has ended (also as a zombie)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = stat.rpartition(")")[2].split()
    return None if words[0] in "ZX" else int(words[19])


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def namespace_id() -> int:
    """Inode of the network namespace that this thread is in."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def uptime() -> float:
    """Seconds since boot, suspended time included: no change of the wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
