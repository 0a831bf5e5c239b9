"""The run folder of one guest: its sockets, logs, process and the record of its NICs."""
from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.host.paths import Paths
from kvmnet.host.process import Process
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class GuestFolder:
    name: str
    path: Path

    @property
    def monitor(self) -> Path:
        return self.path / "monitor.sock"

    @property
    def agent(self) -> Path:
        return self.path / "agent.sock"

    @property
    def console(self) -> Path:
        return self.path / "console.sock"

    @property
    def console_log(self) -> Path:
        """Everything that the guest wrote to its serial console since it was started."""
        return self.path / "console.log"

    @property
    def errors(self) -> Path:
        """What QEMU itself said."""
        return self.path / "qemu.log"

    @property
    def command(self) -> Path:
        return self.path / "command"

    @property
    def process_file(self) -> Path:
        return self.path / "process.json"

    @property
    def record_file(self) -> Path:
        return self.path / "nics.json"

    @property
    def threads_file(self) -> Path:
        """CPUs that its threads were given."""
        return self.path / "threads.json"

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    def started_with(self) -> dict[str, Any]:
        """``run`` of the document that it was started from; empty when that is not known."""
        try:
            found = json.loads(self.run_file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def process(self) -> Process | None:
        """The process that was started last, alive or not; None when there is none or it was stopped."""
        try:
            data = json.loads(self.process_file.read_text())
            return Process(int(data["pid"]), int(data["start"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def accelerator(self) -> str:
        try:
            return str(json.loads(self.process_file.read_text()).get("accel", ""))
        except (OSError, ValueError):
            return ""

    def save_process(self, process: Process, accel: str) -> None:
        replace(self.process_file, json.dumps({"pid": process.pid, "start": process.start, "accel": accel}))

    def record(self) -> dict[str, GuestNic]:
        """NICs as they were last known, by device name. The carrier cannot be read from QEMU."""
        try:
            rows = json.loads(self.record_file.read_text())
            found = [from_json(row) for row in rows]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {r.name: r for r in found if isinstance(r, GuestNic)}

    def save_record(self, nics: Iterable[GuestNic]) -> None:
        replace(self.record_file, json.dumps([to_json(n) for n in nics]))

    def last_words(self) -> str:
        """The last lines that QEMU said."""
        try:
            lines = self.errors.read_text(errors="replace").strip().splitlines()
        except OSError:
            return ""
        return "; ".join(lines[-3:])

    def forget(self) -> None:
        """Remove what belongs to a process that has ended; the logs stay."""
        for path in (self.monitor, self.agent, self.console, self.process_file, self.record_file, self.run_file, self.threads_file):
            path.unlink(missing_ok=True)


def replace(path: Path, text: str) -> None:
    """Whole or not at all; a run folder needs no fsync."""
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(text)
    fresh.replace(path)


def folder(paths: Paths, name: str) -> GuestFolder:
    return GuestFolder(name, paths.vm(name))


def folders(paths: Paths) -> list[GuestFolder]:
    """Of every guest that was started by kvmnet and not stopped since, also those that died."""
    found: list[GuestFolder] = []
    with suppress(OSError):
        found = [GuestFolder(p.name, p) for p in sorted((paths.run / "vm").iterdir())
                 if (p / "process.json").exists()]
    return found


def running_folders(paths: Paths) -> list[GuestFolder]:
    return [f for f in folders(paths) if (process := f.process()) is not None and process.alive()]
