"""Starts, watches and stops the guard's keeper (``keeper.py``), which outlives the command."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from kvmnet.drivers.nftables import keeper as program
from kvmnet.drivers.nftables.resources import GuardKeeper
from kvmnet.engine.driver import Command, StepFailed
from kvmnet.engine.plan import Delete, Step
from kvmnet.host.clock import wait_until
from kvmnet.policy.keeper import HELD
from kvmnet.records import dataclass

START_TIMEOUT = 60.0
"""Seconds until the tables must be held: the keeper itself waits twice, and says what for."""
GONE = 30.0
"""Seconds until a keeper that was told to end is gone: on a busy machine it may be loading a table."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The keeper's process, known by its pid file."""

    folder: Path

    def seen(self, listings: Mapping[str, str]) -> GuardKeeper | None:
        """The keeper as it is: version '' when it is dead or its tables are not all there."""
        record = self.record()
        if record is None:
            return None
        whole = self.alive(record) and all(name in listings for name in HELD)
        return GuardKeeper(name="guard", version=str(record.get("version", "")) if whole else "")

    def record(self) -> dict[str, object] | None:
        try:
            found = json.loads((self.folder / "keeper.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def alive(self, record: Mapping[str, object]) -> bool:
        """The same process still runs, in this network namespace."""
        pid = record.get("pid")
        return (isinstance(pid, int) and program.start_time(pid) == record.get("start")
                and record.get("netns") == Path("/proc/thread-self/ns/net").stat().st_ino)

    def command(self, step: Step) -> Command:
        if isinstance(step, Delete):
            return Command(("kill", str((self.record() or {}).get("pid", "PID"))), "", (step.key,))
        version = getattr(step.after, "version", "") or ""
        return Command(tuple(self.argv(version)), "", (step.key,))

    def argv(self, version: str) -> list[str]:
        return [sys.executable, "-I", "-S", str(program.__file__), str(self.folder), version]

    def start(self, keeper: GuardKeeper) -> None:
        """Start the keeper, in place of one that runs; returns when its tables are held.

        Raises StepFailed with what the keeper said.
        """
        self.stop()
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "held.nft").write_text("\n".join(
            f"table {name} {{ flags owner; {body} }}" for name, body in HELD.items()) + "\n")
        log = self.folder / "keeper.log"
        with open(log, "w") as out, open(os.devnull) as nothing:
            child = subprocess.Popen(self.argv(keeper.version or ""), stdin=nothing, stdout=out, stderr=out,
                                     start_new_session=True, cwd="/")
        try:
            wait_until(lambda: child.poll() is not None or self.holds(child.pid), START_TIMEOUT)
        except TimeoutError:
            child.kill()
        if child.poll() is not None or not self.holds(child.pid):
            child.wait()
            raise StepFailed(keeper.key, log.read_text().strip() or f"the keeper ended, exit {child.returncode}",
                             f"see {log}")
        child.returncode = 0  # it lives on without us: no warning when this object goes

    def holds(self, pid: int) -> bool:
        return (self.record() or {}).get("pid") == pid

    def stop(self) -> None:
        """End the keeper; its tables go with it. Nothing to do when it does not run."""
        record = self.record()
        if record and self.alive(record):
            pid = record["pid"]
            assert isinstance(pid, int)
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                wait_until(lambda: program.start_time(pid) != record["start"], GONE, 0.002)
            finally:
                os.close(handle)
        (self.folder / "keeper.json").unlink(missing_ok=True)
