"""Kind ``guest-threads``: which CPUs the threads of a running guest may use.

Guests without it are not looked at, so what an operator did by hand (taskset) stays. What it claims is complete: threads of which the document says
nothing may use every CPU that kvmnet may.
"""
from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kvmnet.drivers.qemu.folder import GuestFolder, folder, replace, running_folders
from kvmnet.drivers.qemu.resources import GuestThreads
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Delete, Step
from kvmnet.engine.resource import Wanted
from kvmnet.host.paths import Paths
from kvmnet.spec.cpus import in_turn, joined, numbers

SETTINGS = ("vcpus", "vhost", "qemu")
PROC = Path("/proc")


class ThreadsDriver:
    kinds = frozenset({GuestThreads.kind})

    def __init__(self, paths: Paths):
        self.paths = paths

    def unavailable(self) -> str | None:
        return None

    def observe(self, intent: Wanted) -> Seen:
        """Of running guests whose threads were placed before."""
        seen = Seen()
        for home in running_folders(self.paths):
            if (known := recorded(home)) and (found := placed(home, known)):
                seen.state[found.key] = found
                seen.ours.add(found.key)
        return seen

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            home = folder(self.paths, step.key.name)
            try:
                if isinstance(step, Delete):
                    everywhere(home)
                else:
                    assert isinstance(step.after, GuestThreads)
                    place(home, step.after)
            except OSError as error:
                raise StepFailed(step.key, f"guest {home.name}: its threads cannot be placed: {error.strerror}",
                                 "are these CPUs online, and in the cpuset of the guest's cgroup? see lscpu") from error
            progress(1)

    def commands(self, steps: Sequence[Step]) -> list[Command]:
        return [command for step in steps for command in self.spelled(step)]

    def spelled(self, step: Step) -> Iterator[Command]:
        home = folder(self.paths, step.key.name)
        groups = threads(home)
        for setting in SETTINGS:
            sets = (joined(os.sched_getaffinity(0)),) if isinstance(step, Delete) else getattr(step.after, setting)
            for n, thread in enumerate(groups[setting]):
                yield Command(("taskset", "-pc", sets[n % len(sets)], str(thread)), keys=(step.key,))


def place(home: GuestFolder, wanted: GuestThreads) -> None:
    """Raises OSError."""
    found = threads(home)
    for setting in SETTINGS:
        sets = getattr(wanted, setting)
        for n, thread in enumerate(found[setting]):
            os.sched_setaffinity(thread, numbers(sets[n % len(sets)]))
    replace(home.threads_file, json.dumps({setting: getattr(wanted, setting) for setting in SETTINGS}))


def everywhere(home: GuestFolder) -> None:
    """Every thread may use what kvmnet may; what was placed is forgotten."""
    for some in threads(home).values():
        for thread in some:
            os.sched_setaffinity(thread, os.sched_getaffinity(0))
    home.threads_file.unlink(missing_ok=True)


def placed(home: GuestFolder, known: Mapping[str, tuple[str, ...]]) -> GuestThreads | None:
    """Where they may run now; where there is no such thread, what was said of it. None when the guest has just ended."""
    values = dict(known)
    try:
        for setting, some in threads(home).items():
            if some:
                values[setting] = in_turn([joined(os.sched_getaffinity(thread)) for thread in some])
    except OSError:
        return None
    return GuestThreads(name=home.name, **values)


def recorded(home: GuestFolder) -> dict[str, tuple[str, ...]]:
    """What was placed last; empty for nothing."""
    try:
        found = json.loads(home.threads_file.read_text())
        return {setting: tuple(map(str, found[setting])) for setting in SETTINGS}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def threads(home: GuestFolder) -> dict[str, list[int]]:
    """Threads of a guest: those of its virtual CPUs in their order, vhost's, and QEMU's main loop. Named by QEMU (-name debug-threads=on) and by the
    kernel; vhost's are QEMU's own since Linux 6.4, kernel threads before."""
    process = home.process()
    found: dict[str, list[int]] = {setting: [] for setting in SETTINGS}
    if process is None or not process.alive():
        return found
    named: dict[str, list[tuple[int, int]]] = {}
    for task in (PROC / str(process.pid) / "task").iterdir():
        name = comm(task)
        if name.startswith("CPU "):
            named.setdefault("vcpus", []).append((int(name[4:].partition("/")[0]), int(task.name)))
        elif name.startswith("vhost-"):
            named.setdefault("vhost", []).append((0, int(task.name)))
    if "vhost" not in named:
        named["vhost"] = [(0, int(entry.name)) for entry in PROC.glob("[0-9]*") if comm(entry) == f"vhost-{process.pid}"]
    return {**found, **{setting: [thread for _, thread in sorted(some)] for setting, some in named.items()}, "qemu": [process.pid]}


def comm(task: Path) -> str:
    with suppress(OSError):
        return (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""
