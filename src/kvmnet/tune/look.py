"""What this host is, as far as it weighs on its network, and what its kernel settings are."""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmnet.drivers.ethtool.resources import NicTuning
from kvmnet.drivers.ethtool.wire import active_features
from kvmnet.drivers.ethtool.wire import read as told
from kvmnet.drivers.qemu.folder import running_folders
from kvmnet.drivers.tc.driver import tc_json
from kvmnet.facts.features import features
from kvmnet.facts.guests import MOST, asked
from kvmnet.guests.accel import probe
from kvmnet.host.paths import Paths
from kvmnet.host.run import missing
from kvmnet.spec.hardware import tuned_nics
from kvmnet.spec.knobs import KNOBS, REFUSED
from kvmnet.spec.models import Spec
from kvmnet.tune.inside import rows

PROC_SYS = Path("/proc/sys")
CPU = Path("/sys/devices/system/cpu")
OFFLOADS = ("rx-gro", "tx-generic-segmentation", "tx-tcp-segmentation", "tx-scatter-gather", "rx-checksum")
"""Features by the kernel's names that carry most (net/ethtool/common.c)."""
SYS_NET = Path("/sys/class/net")
PROC = Path("/proc")
NODES = Path("/sys/devices/system/node")


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


def hardware(spec: Spec) -> dict[str, NicTuning]:
    """NICs below the uplinks of *spec* that are there -> what their drivers say."""
    devices = dict.fromkeys(nic for uplink in spec.uplinks.values() for nic in tuned_nics(uplink))
    return {r.name: r for r in told(devices, dict.fromkeys(devices, frozenset())) if isinstance(r, NicTuning)}


def nodes(spec: Spec) -> tuple[int, dict[str, int]]:
    """How many NUMA nodes there are, and on which each uplink's first NIC is, where the machine tells."""
    placed = {}
    for name, uplink in spec.uplinks.items():
        for nic in tuned_nics(uplink)[:1]:
            if (told := read(SYS_NET / nic / "device/numa_node")) and told.isdigit():    # -1: of none
                placed[name] = int(told)
    return len(list(NODES.glob("node[0-9]*"))), placed


def placement(devices: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Where the packets of *devices* are handled: (what, value, what it means here)."""
    cpus = len(os.sched_getaffinity(0))
    for dev in devices:
        queues = sorted((SYS_NET / dev / "queues").glob("rx-*"))
        if not queues:
            continue
        masks = [read(q / "rps_cpus") or "" for q in queues]
        idle = all(not mask.strip("0,") for mask in masks)
        yield f"{dev}: RPS", "off" if idle else " ".join(masks), (
            f"{len(queues)} receive queue(s) for {cpus} CPUs: with fewer queues than CPUs, steering: {{receive: ...}} of the uplink spreads flows"
            if idle and len(queues) < cpus else "enough queues; the NIC spreads flows" if idle else "flows are spread by the kernel")
        if mask := read(SYS_NET / dev / "queues/tx-0/xps_cpus"):
            yield f"{dev}: XPS", mask, "CPUs that send by the first queue; 0: chosen by a flow's hash"
        if numbers := interrupts(dev):
            placed = sorted({read(Path(f"/proc/irq/{n}/smp_affinity_list")) or "" for n in numbers})
            yield f"{dev}: interrupts", f"{len(numbers)} on CPUs {' '.join(placed)}", "irqbalance moves them; for latency pin them with steering: {interrupts: ...} of the uplink, and keep vCPUs off those CPUs"
        yield f"{dev}: txqueuelen", read(SYS_NET / dev / "tx_queue_len") or "", "used by pfifo queues only: fq_codel, fq and noqueue have limits of their own"


def disciplines() -> list[dict[str, Any]]:
    """All queueing disciplines; none where there is no tc."""
    return [] if missing("tc") else tc_json("qdisc", "show")


def lacks_fair(paths: Paths) -> str:
    """Why the kernel has no fq_codel, '' when it has."""
    return features(paths.run / "features.json")["tc-fq-codel"]


def guests(pids: Mapping[str, int]) -> Iterator[tuple[str, str, str]]:
    """Where the threads of running guests may run. *pids*: guest -> QEMU."""
    cpus = len(os.sched_getaffinity(0))
    for name, pid in pids.items():
        threads: dict[str, list[str]] = {"vCPUs": [], "vhost": []}
        for task in sorted((PROC / str(pid) / "task").glob("*")):
            comm = read(task / "comm") or ""
            kind = "vCPUs" if comm.startswith("CPU ") else "vhost" if comm.startswith("vhost-") else ""
            if kind and (placed := allowed(task)):
                threads[kind].append(placed)
        for kind, places in threads.items():
            if places:
                free = any(len(spread(p)) >= cpus for p in places)
                yield f"{name}: {kind}", f"{len(places)} on CPUs {' '.join(sorted(set(places)))}", (
                    "not pinned: the scheduler moves them; for latency give each a CPU of its own (run: {pin: ...} of the document, libvirt's cputune), on the NIC's NUMA node"
                    if free else "pinned")


def inside(paths: Paths) -> Iterator[tuple[str, str, str]]:
    """What running guests see themselves; all are asked at the same time, for some seconds at most."""
    folders = running_folders(paths)
    if folders:
        with ThreadPoolExecutor(min(MOST, len(folders))) as pool:
            for folder, told in zip(folders, pool.map(asked, folders), strict=True):
                yield from rows(folder.name, told)


def softirqs() -> Iterator[tuple[str, str, str]]:
    """How packets that came in have been spread over CPUs since boot (proc(5), /proc/softirqs)."""
    for line in read_lines(PROC / "softirqs"):
        if line.strip().startswith("NET_RX:"):
            counts = [int(word) for word in line.split()[1:] if word.isdigit()]
            if total := sum(counts):
                most = max(counts) * 100 // total
                yield "softirqs (NET_RX)", " ".join(f"{count * 100 // total}%" for count in counts), (
                    f"{most}% on one CPU: steering: {{receive: ..., interrupts: ...}} of the uplink spreads them"
                    if len(counts) > 1 and most > 100 // len(counts) * 2 else "spread over the CPUs since boot")


def offloads(devices: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Offloads of NICs that are off and could be on."""
    for dev, on in active_features(list(devices), OFFLOADS).items():
        off = [word for word in OFFLOADS if word not in on]
        yield f"{dev}: offloads off", " ".join(off) or "none", ("each packet costs the host more; where the NIC has it: ethtool: {features: {NAME: true}} of the uplink"
                                                                if off else "segments and checksums are the NIC's work")


def allowed(task: Path) -> str:
    for line in read_lines(task / "status"):
        if line.startswith("Cpus_allowed_list:"):
            return line.split(":", 1)[1].strip()
    return ""


def read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:    # it has ended meanwhile
        return []


def spread(places: str) -> set[int]:
    """``0-2,5`` as numbers."""
    found: set[int] = set()
    for part in places.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def interrupts(dev: str) -> list[str]:
    """Numbers of the interrupts that are named after *dev*, or after its device's bus name (msi_irqs)."""
    return sorted(f.name for f in (SYS_NET / dev / "device/msi_irqs").glob("*"))


def vhost() -> bool:
    """Whether the host can carry virtio's packets in the kernel."""
    return Path("/dev/vhost-net").exists()


def machine(paths: Paths) -> Iterator[tuple[str, str, str]]:
    """(what, value, what it means here). What the kernel does not show is left out."""
    yield "processors", f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}", "guests, their vhost threads and the host share them"
    if (found := len(list(NODES.glob("node[0-9]*")))) > 1:
        yield "NUMA nodes", str(found), "a guest, its memory and its NIC are best on one node: run: {nodes: ..., pin: ...} of the document, libvirt's numatune"
    if governor := read(CPU / "cpu0/cpufreq/scaling_governor"):
        yield "governor", governor, "performance for latency, in the host's own configuration: kvmnet does not set it" if governor != "performance" else "as latency wants it"
    if idle := read(CPU / "cpuidle/current_driver"):
        yield "idle states", idle, "deep ones add tens of microseconds to a wake-up: /dev/cpu_dma_latency"
    accel = probe(paths)
    yield "accelerator", accel.name, accel.reason if accel.name != "kvm" else "guests run on the processor"
    yield "vhost-net", "there" if vhost() else "none", "carries virtio's packets in the kernel: modprobe vhost_net"
    if pages := read(PROC_SYS / "vm/nr_hugepages"):
        yield "huge pages", pages, "memory of guests in them: fewer TLB misses; tuning: {vm.nr_hugepages: ...}, run: {hugepages: true}"
    groups = list(Path("/sys/kernel/iommu_groups").glob("*"))
    yield "IOMMU groups", str(len(groups)), "needed for VFs in guests (mode sriov)" if not groups else "VFs can be handed to guests"
    if (count := read(PROC_SYS / "net/netfilter/nf_conntrack_count")) and (most := read(PROC_SYS / "net/netfilter/nf_conntrack_max")):
        yield "connections", f"{count} of {most}", "beyond it new ones are dropped: profile density or router"
