"""Starts, finds and stops a process that outlives the command and is watched by another (``host/watched.py``)."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from kvmnet.drivers.kinds import to_json
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.resource import Resource
from kvmnet.host.clock import wait_until
from kvmnet.host.files import make_directory
from kvmnet.host.process import start_time
from kvmnet.host.watched import CONFIG, LOG, RECORD, STATE
from kvmnet.records import dataclass

START_TIMEOUT = 30.0
"""Seconds until the process must have its work in hand."""
GONE = 30.0
"""Seconds until a process that was told to end is gone."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """The process of one folder."""

    folder: Path
    program: ClassVar[str] = ""
    """File of the program, which is run with the folder for its argument."""

    def read(self, name: str) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def config(self) -> str:
        try:
            return (self.folder / CONFIG).read_text()
        except OSError:
            return ""

    def alive(self) -> bool:
        """The process that was recorded still runs, in this network namespace."""
        record = self.read(RECORD)
        return bool(record and start_time(record.get("pid", 0)) == record.get("start")
                    and record.get("netns") == Path("/proc/thread-self/ns/net").stat().st_ino)

    def runs(self) -> bool:
        """It lives, and goes by what its file says."""
        return self.alive() and (self.read(RECORD) or {}).get("config") == self.config()

    def state(self) -> dict[str, Any] | None:
        """What it last told; None when it does not live."""
        return self.read(STATE) if self.alive() else None

    def argv(self) -> list[str]:
        return [sys.executable, "-I", "-S", self.program, str(self.folder)]

    def write(self, wanted: Resource) -> None:
        make_directory(self.folder, 0o700)
        wish = {k: v for k, v in to_json(wanted).items() if k != "running"}
        (self.folder / CONFIG).write_text(json.dumps(wish))

    def start(self, wanted: Resource) -> None:
        """Start the process, in place of one that runs; returns when it has its work in hand. Raises StepFailed."""
        self.stop()
        self.write(wanted)
        with open(self.folder / LOG, "w") as out, open(os.devnull) as nothing:
            child = subprocess.Popen(self.argv(), stdin=nothing, stdout=out, stderr=out, start_new_session=True, cwd="/")
        try:
            wait_until(lambda: child.poll() is not None or (self.read(RECORD) or {}).get("pid") == child.pid, START_TIMEOUT, 0.005)
        except TimeoutError:
            child.kill()
        if child.poll() is not None or (self.read(RECORD) or {}).get("pid") != child.pid:
            child.wait()
            raise StepFailed(wanted.key, (self.folder / LOG).read_text().strip() or f"the process ended, exit {child.returncode}",
                             f"see {self.folder / LOG}")
        child.returncode = 0    # it lives on without us: no warning when this object goes

    def stop(self) -> None:
        """End the process, if it runs. What it held stays as it is."""
        record = self.read(RECORD)
        if record and self.alive():
            pid, start = int(record["pid"]), record["start"]
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                try:
                    wait_until(lambda: start_time(pid) != start, GONE, 0.002)
                except TimeoutError:    # a disk that does not answer; the one that works dies with it
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    wait_until(lambda: start_time(pid) != start, GONE, 0.002)
            finally:
                os.close(handle)
        (self.folder / RECORD).unlink(missing_ok=True)
