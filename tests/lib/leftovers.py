"""Nothing outlives the tests: every process that they start inherits a word, and is looked for at the end."""
from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

WORD = "KVMNET_TEST_SESSION"


def processes(word: str) -> dict[int, str]:
    """Living processes, other than this one, whose environment has *word*: pid -> command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            if f"{WORD}={word}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:160]
    return found


def end(found: dict[int, str]) -> None:
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
