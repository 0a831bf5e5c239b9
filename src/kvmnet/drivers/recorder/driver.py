"""Recorders of mirrors: for each a folder ``RUN/recorders/MIRROR`` and a process. The files that they write are nobody's to remove but theirs."""
from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress

from kvmnet.drivers.kinds import from_json
from kvmnet.drivers.recorder.process import Recording, recording
from kvmnet.drivers.recorder.resources import Recorder
from kvmnet.engine.driver import Command, Progress, Seen
from kvmnet.engine.plan import Delete, Step
from kvmnet.engine.resource import Wanted, merge
from kvmnet.host.paths import Paths


class RecorderDriver:
    kinds = frozenset({Recorder.kind})

    def __init__(self, paths: Paths):
        self.run = paths.run

    def unavailable(self) -> str | None:
        return None

    def recording(self, mirror: str) -> Recording:
        return recording(self.run, mirror)

    def observe(self, intent: Wanted) -> Seen:
        seen = Seen()
        for folder in sorted((self.run / "recorders").absolute().glob("*")):
            process = Recording(folder)
            with suppress(ValueError, KeyError):    # half made, and made anew
                found = from_json(json.loads(process.config()) | {"running": process.runs()})
                assert isinstance(found, Recorder)
                seen.state[found.key] = found
        seen.ours = set(seen.state)
        return seen

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            process = self.recording(step.key.name)
            if isinstance(step, Delete):
                process.stop()
                shutil.rmtree(process.folder, ignore_errors=True)
            else:
                before = getattr(step, "before", None)
                wanted = merge(before, step.after) if before is not None else step.after
                process.start(wanted)
            progress(1)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        found = []
        for step in steps:
            process = self.recording(step.key.name)
            pid = str((process.read("process.json") or {}).get("pid", "PID"))
            found.append(Command(("kill", pid) if isinstance(step, Delete) else tuple(process.argv()), keys=(step.key,)))
        return found
