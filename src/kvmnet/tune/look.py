"""What this host is, as far as it weighs on its network, and what its kernel settings are."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from kvmnet.guests.accel import probe
from kvmnet.host.paths import Paths
from kvmnet.spec.knobs import KNOBS, REFUSED

PROC_SYS = Path("/proc/sys")
CPU = Path("/sys/devices/system/cpu")


def values() -> dict[str, str | None]:
    """Every setting that is known -> its value, None where the kernel has none."""
    return {name: read(PROC_SYS / name.replace(".", "/")) for name in (*KNOBS, *REFUSED)}


def frozen() -> frozenset[str]:
    """Settings that are there and cannot be written: of the machine, seen from a network namespace."""
    found = set()
    for name, knob in KNOBS.items():
        with suppress(OSError):
            if not (PROC_SYS / knob.path).stat().st_mode & 0o200:
                found.add(name)
    return frozenset(found)


def read(path: Path) -> str | None:
    try:
        return " ".join(path.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return None


def vhost() -> bool:
    """Whether the host can carry virtio's packets in the kernel."""
    return Path("/dev/vhost-net").exists()


def machine(paths: Paths) -> Iterator[tuple[str, str, str]]:
    """(what, value, what it means here). What the kernel does not show is left out."""
    yield "processors", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}", "guests, their vhost threads and the host share them"
    nodes = list(Path("/sys/devices/system/node").glob("node[0-9]*"))
    if len(nodes) > 1:
        yield "NUMA nodes", str(len(nodes)), "a guest, its memory and its NIC are best on one node: numactl, or libvirt's numatune"
    if governor := read(CPU / "cpu0/cpufreq/scaling_governor"):
        yield "governor", governor, "performance for latency" if governor != "performance" else "as latency wants it"
    if idle := read(CPU / "cpuidle/current_driver"):
        yield "idle states", idle, "deep ones add tens of microseconds to a wake-up: /dev/cpu_dma_latency"
    accel = probe(paths)
    yield "accelerator", accel.name, accel.reason if accel.name != "kvm" else "guests run on the processor"
    yield "vhost-net", "there" if vhost() else "none", "carries virtio's packets in the kernel: modprobe vhost_net"
    if pages := read(PROC_SYS / "vm/nr_hugepages"):
        yield "huge pages", pages, "memory of guests in them: fewer TLB misses; none is made by kvmnet"
    groups = list(Path("/sys/kernel/iommu_groups").glob("*"))
    yield "IOMMU groups", str(len(groups)), "needed for VFs in guests (mode sriov)" if not groups else "VFs can be handed to guests"
    if (count := read(PROC_SYS / "net/netfilter/nf_conntrack_count")) and (most := read(PROC_SYS / "net/netfilter/nf_conntrack_max")):
        yield "connections", f"{count} of {most}", "beyond it new ones are dropped: profile density or router"
