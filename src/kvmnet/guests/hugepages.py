"""Huge pages of the host for the memory of guests: whether there are enough (proc(5), /proc/meminfo)."""
from __future__ import annotations

from pathlib import Path

from kvmnet.errors import HostCannot
from kvmnet.spec.guests import Run

MEMINFO = Path("/proc/meminfo")


def require(name: str, run: Run) -> None:
    """Raise HostCannot when guest *name* wants its memory in huge pages and cannot have it."""
    if not run.hugepages:
        return
    size, free, total = seen()
    if not size:
        raise HostCannot(f"guest {name}: the kernel has no huge pages (CONFIG_HUGETLBFS)", f"remove vms.{name}.run.hugepages")
    if run.memory % size:
        raise HostCannot(f"guest {name}: {run.memory >> 20} MiB are no whole number of huge pages of {size >> 20} MiB", f"write another vms.{name}.run.memory")
    if (need := run.memory // size) > free:
        raise HostCannot(f"guest {name} needs {need} huge pages of {size >> 20} MiB, of {total} there are {free} free",
                         f"tuning: {{vm.nr_hugepages: {total - free + need}}} sets them aside; best at boot, while memory is whole")


def seen() -> tuple[int, int, int]:
    """(bytes of a huge page of the usual size, how many are free, how many there are); all 0 where the kernel has none."""
    try:
        rows = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="utf-8").splitlines() if ":" in line)
        size, free, total, promised = (int(rows[name].split()[0]) for name in ("Hugepagesize", "HugePages_Free", "HugePages_Total", "HugePages_Rsvd"))
    except (OSError, KeyError, ValueError, IndexError):
        return 0, 0, 0
    return size * 1024, max(0, free - promised), total
