"""Which CPUs handle a NIC's packets: files of its queues and interrupts (Linux, Documentation/networking/scaling.rst,
Documentation/core-api/irq/irq-affinity.rst).

The files under /sys/class/net are those of the network namespace in which /sys was mounted; of a NIC in another one nothing is said.
"""
from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from kvmnet.spec.cpus import from_mask, in_turn, to_mask

SYS_NET = Path("/sys/class/net")
IRQ = Path("/proc/irq")
FILES = {"rps": ("rx-", "rps_cpus"), "xps": ("tx-", "xps_cpus")}
"""Setting -> a queue's folder, and the file in it."""


def places(dev: str, setting: str) -> list[Path]:
    """The files that hold *setting* of *dev*, in the order of its queues or interrupts; none where the kernel has none."""
    home = SYS_NET / dev
    if not seen_here(dev):
        return []
    if setting == "irqs":
        return [IRQ / n / "smp_affinity_list" for n in interrupts(dev)]
    queue, name = FILES[setting]
    folders = sorted(home.glob(f"queues/{queue}*"), key=lambda f: int(f.name.removeprefix(queue)))
    return [f / name for f in folders if readable(f / name)]


def interrupts(dev: str) -> list[str]:
    """Numbers of its interrupts, or of the device's that it is a part of (virtio's stand at the PCI device above)."""
    device = (SYS_NET / dev / "device").resolve() if (SYS_NET / dev / "device").exists() else None
    for place in (device, device.parent) if device else ():
        if found := [f.name for f in (place / "msi_irqs").glob("*") if (IRQ / f.name).exists()]:
            return sorted(found, key=int)
    return []


def seen_here(dev: str) -> bool:
    """Whether /sys shows this namespace's *dev*, and not another's of the same name."""
    try:
        return int((SYS_NET / dev / "ifindex").read_text()) == socket.if_nametoindex(dev)
    except (OSError, ValueError):
        return False


def readable(path: Path) -> bool:
    """XPS of a NIC with one queue has a file that cannot be read (net/core/net-sysfs.c, xps_cpus_show())."""
    try:
        path.read_text()
    except OSError:
        return False
    return True


def observe(dev: str) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """(setting, what is set, of how many queues or interrupts); what the NIC has not is left out."""
    for setting in (*FILES, "irqs"):
        if files := places(dev, setting):
            texts = [f.read_text().strip() for f in files]
            yield setting, in_turn(texts if setting == "irqs" else [from_mask(t) for t in texts]), len(files)


def script(dev: str, wanted: Mapping[str, tuple[str, ...]]) -> str:
    """Commands of a shell that write *wanted*, '' for nothing."""
    lines = []
    for setting, sets in wanted.items():
        for n, file in enumerate(places(dev, setting)):
            value = sets[n % len(sets)]
            lines.append(f"echo {value if setting == 'irqs' else to_mask(value)} > {file}")
    return " && ".join(lines)
