"""The machine that figures hold for."""
from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from kvmnet.bench.model import Machine
from kvmnet.host.packets import driver_of


def machine(devices: Iterable[str]) -> Machine:
    """This machine, with the drivers of *devices*."""
    return Machine(f"{os.uname().sysname} {os.uname().release}", processor(), len(os.sched_getaffinity(0)),
                   {name: driver_of(name) for name in devices})


def processor() -> str:
    """The processor's name, '' where the kernel does not tell."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Processor"):
                return value.strip()
    return ""
