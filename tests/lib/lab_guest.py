"""A real guest inside the lab: KVM on the virtualisation that TCG emulates, and the kernel's own virtio backend."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from kvmnet.capture import pcapng
from kvmnet.drivers.qemu.folder import folder
from kvmnet.drivers.qemu.process import KVM
from kvmnet.drivers.qemu.qmp import Monitor, QmpError
from kvmnet.errors import KvmnetError
from kvmnet.guests.accel import probe
from kvmnet.guests.launch import wait_for_agent
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.status import status as look
from lib.netns import sh
from lib.world import OUTSIDE, world

DOCUMENT = """
version: 1
tuning: {vm.nr_hugepages: 130}
uplinks:
  wan: {device: eth0}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24}
  cell: {mode: isolated, subnet: 10.10.0.0/24, dhcp: {enabled: false}, dns: {enabled: false}}
vms:
  web:
    run: {memory: 256M, image: tiny, hugepages: true}
    nics: [{network: lan, vhost: "on"}, {network: cell, vhost: "off"}]
mirrors:
  eye: {from: [web/nic0], direction: sent, to: {file: %s/eye.pcapng}}
"""
CONSOLE = 40
"""Lines of a console that are shown."""
PATIENCE = 180.0
"""Seconds for each step of a guest under two emulations."""


@dataclass(frozen=True)
class Met:
    """What a guest was seen to do."""

    accel: str
    reason: str
    threads: int
    """Kernel threads of the in-kernel backend that work for its QEMU."""
    host_pings: bool
    outside: str
    """What its own ping to the outside printed."""
    early: list[str]
    """Drift while the guest boots, before it has a driver."""
    drift: tuple[str, ...]
    read_back: dict[str, str]
    """NIC -> who moves its packets, as ``kvmnet status`` shows it."""
    left: int
    """Backend threads that are still there when it has ended."""
    copied: tuple[int, int]
    """Packets that the guest has sent by its first NIC since it was there, by its own count, and those of them in the files of a mirror."""
    huge: str
    """Memory of its QEMU in huge pages, as the kernel says it."""
    seconds: dict[str, float]


def frames_of(mac: str, folder: Path) -> int:
    """Frames from *mac* in all files of a record."""
    source = bytes.fromhex(mac.replace(":", ""))
    return sum(data[6:12] == source for file in folder.glob("*.pcapng") for _, _, data in pcapng.packets(pcapng.whole(file.read_bytes())))


def meet() -> Met:
    """Start a guest with vhost on its first NIC and not on its second, ping both ways, and stop it."""
    sh(f"modprobe kvm_amd && chmod 0666 {KVM}")
    seconds = {}
    with TemporaryDirectory() as kept, world() as made:
        began = monotonic()
        accel = probe(made.paths, deadline=PATIENCE)
        seconds["accel probe"], began = monotonic() - began, monotonic()
        made.apply(DOCUMENT % kept)
        seconds["apply"], began = monotonic() - began, monotonic()
        made.host.start_guests(["web"], lambda line: None)
        status = made.host.running()["web"]
        early = made.drift()
        wait_for_agent("web", made.paths, PATIENCE)
        seconds["guest"], began = monotonic() - began, monotonic()
        threads, memory = backends(status.pid), read(Path(f"/proc/{status.pid}/status"))
        nic = made.host.in_force()[1].segments["lan"].nics[0]
        address = nic.ip
        host_pings = wait_until(lambda: made.here.pings(address, timeout=2), PATIENCE, 0.2)
        outside = made.host.execute("web", ["ping", "-c", "3", OUTSIDE], PATIENCE)[1]
        seconds["pings"], began = monotonic() - began, monotonic()
        copied = (0, -1)

        def all_copied() -> bool:
            nonlocal copied
            sent = made.host.execute("web", ["cat", "/sys/class/net/eth0/statistics/tx_packets"], PATIENCE)[1]
            copied = (int(sent), frames_of(nic.mac, Path(kept)))
            return copied[0] == copied[1]
        with suppress(TimeoutError):    # what is missing is seen by who asks
            wait_until(all_copied, PATIENCE / 3, 0.2)
        seconds["mirror"] = monotonic() - began
        shown = look(made.host)
        assert shown is not None
        made.host.stop_guests(["web"], lambda line: None, 1)
        return Met(accel.name, accel.reason, threads, host_pings, outside, early, shown.drift,
                   {n.nic: n.backend for n in shown.nics}, backends(status.pid), copied,
                   next((line for line in memory.splitlines() if line.startswith("HugetlbPages:")), ""), seconds)


@contextmanager
def explained(name: str, paths: Paths) -> Iterator[None]:
    """What fails meanwhile says what its guest's console said last, and where its processor and the lab's kernel are."""
    try:
        yield
    except (KvmnetError, AssertionError, TimeoutError) as error:
        home = folder(paths, name)
        lines = [f"-- the console of {name}", *read(home.console_log).splitlines()[-CONSOLE:]]
        with suppress(QmpError), Monitor.open(home.monitor, PATIENCE) as monitor:
            lines += ["-- its processor, twice", str(monitor.execute("query-status"))]
            for command in ("info registers", "info lapic", "info registers"):
                lines.append(monitor.execute("human-monitor-command", {"command-line": command})[:1500])
        lines += ["-- the kernel of the lab", *sh("dmesg").splitlines()[-CONSOLE:]]
        raise AssertionError("\n".join([str(error), *lines])) from error


def backends(pid: int) -> int:
    """How many vhost-PID threads there are: processes of their own until Linux 6.4, then threads of QEMU."""
    names = [*Path("/proc").glob("[0-9]*/comm"), *Path(f"/proc/{pid}/task").glob("*/comm")]
    return sum(text.strip() == f"vhost-{pid}" for text in map(read, names))


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
