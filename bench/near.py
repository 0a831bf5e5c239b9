"""What both sides of a benchmark load, brought into the lab's memory.

The lab's root lies on the machine that the lab runs on: every file that is opened is a question to that (9p), which no host has to ask whose
programs lie on a disk of its own, and a program of many files asks most. Above the root lies a layer in memory; what is touched is copied there,
to the same place.
"""
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

TOOLS = ("ip", "bridge", "nft", "sysctl", "sh", sys.executable)


def bring(more: Sequence[str]) -> None:
    """All modules that this process has loaded, those that *more* names, and the tools."""
    for module in more:
        import_module(module)
    for file in {Path(name).resolve() for name in (*modules(), *tools())}:
        times = file.stat()
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def modules() -> Iterator[str]:
    for module in list(sys.modules.values()):
        names = (getattr(module, "__cached__", None), getattr(module, "__file__", None))
        if file := next((name for name in names if name and Path(name).exists()), None):
            yield file


def tools() -> Iterable[str]:
    """The tools with the libraries that they load."""
    found = [path for tool in TOOLS if (path := shutil.which(tool))]
    listed = subprocess.run(["ldd", *found], capture_output=True, text=True, check=False).stdout    # some may be no programs of their own
    return [*found, *(word for word in listed.split() if word.startswith("/") and Path(word).exists())]
