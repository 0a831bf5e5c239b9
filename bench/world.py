"""The place in which a benchmark runs: a network namespace and directories of its own, and kvmnet as it
is when it is installed (compiled once, no development switches in the environment)."""
from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SWITCHES = ("iptables", "ip6tables", "arptables")
DEADLINE = 300.0
"""Seconds that one command may take."""


def unshared(argv: Sequence[str]) -> list[str]:
    """*argv*, to be run in a network namespace of its own."""
    return ["unshare", "--net", "--", *argv]


class Spent(NamedTuple):
    """What a process took, in seconds."""

    wall: float
    processor: float
    """Of it and of all that it started and waited for: what a busy machine hardly changes."""


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@dataclass
class World:
    """This network namespace, with kvmnet's directories below ``folder``."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(OSError):  # before other work on the machine, both sides alike
            os.setpriority(os.PRIO_PROCESS, 0, -20)
        self.folder.chmod(0o755)  # dnsmasq gives up root and enters
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "KVMNET_"))}
        self.env = {**kept, "KVMNET_STATE_DIR": str(self.folder / "state"), "KVMNET_RUN_DIR": str(self.folder / "run"),
                    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "src")))}
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for name in SWITCHES:  # new namespaces of some kernels have them on; plain Debian has not
            with suppress(FileNotFoundError):
                Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0")
        self.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "src/kvmnet")])

    def run(self, argv: Sequence[str], *, codes: Sequence[int] = (0,)) -> Spent:
        """What one whole process took. Raises SystemExit when it fails."""
        before, start = processor(), time.perf_counter()
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, timeout=DEADLINE, check=False)
        taken = Spent(time.perf_counter() - start, processor() - before)
        if done.returncode not in codes:
            raise SystemExit(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return taken

    def kvmnet(self, *words: str, codes: Sequence[int] = (0,)) -> Spent:
        return self.run([str(Path(sys.executable).with_name("kvmnet")), *words], codes=codes)

    def forget(self) -> None:
        """Remove what kvmnet keeps, but for what it knows of the kernel; nothing of it must be standing."""
        known = self.folder / "run/features.json"
        text = known.read_text() if known.exists() else ""
        for part in ("state", "run"):
            rmtree(self.folder / part, ignore_errors=True)
        if text:
            known.parent.mkdir()
            known.write_text(text)
