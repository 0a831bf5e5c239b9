"""What the machine itself has to do with its network: processors, interrupts, cgroups, IOMMU, the kernel's log. Only reads.

Where /sys shows another network namespace than this one, its devices are left out.
"""
from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvmnet.facts.secrets import scrubbed

Json = dict[str, Any]
TOLD = re.compile(r"table full|own address as source|table overflow|netdev watchdog|transmit queue \d+ timed out|tx (?:unit )?hang|martian source|"
                  r"no 802\.3ad response|duplicate address|hw csum failure|syn flooding|orphaned sockets|unexpected gso type", re.I)
"""Lines of the kernel's log that findings are about."""
LINES = 200
NETWORK_CLASS = "0x02"
"""First byte of the PCI class of a network card."""
RECORD = 8192
"""Longest record of /dev/kmsg."""


def machine(links: Sequence[Mapping[str, Any]], guests: Sequence[Mapping[str, Any]], sys: Path = Path("/sys"), proc: Path = Path("/proc")) -> Json:
    devices = {link["ifname"]: sys / "class/net" / link["ifname"] for link in links if here(sys, link)}
    return {"stat": processors(proc), "throttled": throttled(guests, sys, proc), "interrupts": interrupts(devices, proc),
            "wireless": [name for name, folder in devices.items() if (folder / "phy80211").exists()],
            "address_set": {name: text(folder / "addr_assign_type") == "3" for name, folder in devices.items() if (folder / "bridge").exists()},
            "iommu_groups": iommu_groups(sys), "log": log(), "uptime": float((text(proc / "uptime").split() or ["0"])[0]), "netlink_drops": netlink_drops(proc)}


def here(sys: Path, link: Mapping[str, Any]) -> bool:
    """Whether /sys shows this very link."""
    return text(sys / "class/net" / link["ifname"] / "ifindex") == str(link["ifindex"]) and text(sys / "class/net" / link["ifname"] / "address") == link.get("address")


def text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return ""


def processors(proc: Path = Path("/proc")) -> dict[str, list[int]]:
    """CPU -> ticks in user, nice, system, idle, iowait, irq, softirq, steal (proc(5)); ``cpu`` is all of them."""
    return {words[0]: [int(w) for w in words[1:9]] for words in (line.split() for line in text(proc / "stat").splitlines()) if words and words[0].startswith("cpu")}


# -- cgroups ---------------------------------------------------------------------------------------

def throttled(guests: Iterable[Mapping[str, Any]], sys: Path, proc: Path) -> Json:
    """Group of a guest's processes with a quota -> {guest, periods, throttled}."""
    found: Json = {}
    for guest in guests:
        for folder in groups_of(guest["pid"], sys, proc):
            told = dict(line.split()[:2] for line in text(folder / "cpu.stat").splitlines() if len(line.split()) >= 2)
            if int(told.get("nr_periods", 0)):
                found[str(folder)] = {"guest": guest.get("name") or f"pid {guest['pid']}", "periods": int(told["nr_periods"]), "throttled": int(told.get("nr_throttled", 0))}
    return found


def groups_of(pid: int, sys: Path, proc: Path) -> Iterator[Path]:
    """Folders of the cgroups that bound a process, and those beside it, where libvirt puts each vCPU."""
    for line in text(proc / str(pid) / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        root = sys / "fs/cgroup" / ("" if not controllers else controllers if "cpu" in controllers.split(",") else "?")
        if "?" in root.name or path == "/":
            continue
        folder = root / path.lstrip("/")
        if not controllers and not folder.exists():
            folder = sys / "fs/cgroup/unified" / path.lstrip("/")
        yield from (f for f in (folder, *folder.parents) if root in f.parents)
        with suppress(OSError):
            yield from (f for f in folder.parent.iterdir() if f.name.startswith("vcpu"))


# -- interrupts ------------------------------------------------------------------------------------

def interrupts(devices: Mapping[str, Path], proc: Path = Path("/proc")) -> dict[str, dict[str, list[int]]]:
    """Device -> interrupt -> how often each CPU had it."""
    rows = {words[0].rstrip(":"): words[1:] for words in (line.split() for line in text(proc / "interrupts").splitlines()[1:]) if words}
    found = {}
    for name, folder in devices.items():
        for place in (folder / "device/msi_irqs", folder / "device/../msi_irqs"):
            with suppress(OSError):
                numbers = [irq.name for irq in place.resolve().iterdir()]
                found[name] = {n: [int(w) for w in rows[n] if w.isdigit()] for n in numbers if n in rows}
                break
    return {name: table for name, table in found.items() if table}


# -- PCI -------------------------------------------------------------------------------------------

def iommu_groups(sys: Path) -> dict[str, list[Json]]:
    """Groups with a network card -> all of their devices, {pci, class, driver}; bridges of PCI do not count."""
    found = {}
    with suppress(OSError):
        for group in (sys / "kernel/iommu_groups").iterdir():
            members = [{"pci": d.name, "class": text(d / "class"), "driver": (d / "driver").resolve().name if (d / "driver").exists() else ""}
                       for d in sorted((group / "devices").iterdir())]
            if any(m["class"].startswith(NETWORK_CLASS) for m in members):
                found[group.name] = members
    return found


# -- the kernel's log ------------------------------------------------------------------------------

def log(path: Path = Path("/dev/kmsg")) -> list[Json]:
    """Lines of the kernel's log that speak of trouble of the network, of every namespace: {text, times, last}; ``last`` in
    seconds since boot. What may not be read is empty."""
    found: dict[str, Json] = {}
    for seconds, line in records(path):
        if TOLD.search(line):
            entry = found.setdefault(line, {"text": scrubbed(line), "times": 0, "last": 0.0})
            entry["times"] += 1
            entry["last"] = seconds
    return list(found.values())[-LINES:]


def records(path: Path) -> Iterator[tuple[float, str]]:
    """(seconds since boot, text) of each record (Documentation/ABI/testing/dev-kmsg)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while True:
            try:
                raw = os.read(fd, RECORD)
            except OSError as error:
                if error.errno == errno.EPIPE:  # this one was overwritten meanwhile
                    continue
                return
            if not raw:
                return
            head, _, rest = raw.decode(errors="replace").partition(";")
            words = head.split(",")
            if len(words) > 2 and words[2].isdigit():
                yield int(words[2]) / 1e6, rest.split("\n")[0]
    finally:
        os.close(fd)


def netlink_drops(proc: Path) -> int:
    """Messages that listeners of netlink of this namespace have lost: their buffers were full."""
    rows = [line.split() for line in text(proc / "thread-self/net/netlink").splitlines()]
    if not rows or "Drops" not in rows[0]:
        return 0
    column = rows[0].index("Drops")
    return sum(int(row[column]) for row in rows[1:] if len(row) > column)
