"""The command line of a whole guest. Pure.

QEMU is started without any privilege: sockets, taps and files are opened before and reach it as
descriptors. It cannot take up privileges again, start programs or use obsolete system calls
(-sandbox; ``-runas`` would need the very calls that the sandbox forbids).

Cards sit where they can be plugged and unplugged live: PCIe cards on root ports, some of them
spare; conventional cards behind one bridge. The first bus itself is for cards whose address the
document gives; q35 cannot hot-plug those.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvmnet.drivers.qemu.devices import (
    BRIDGE,
    PREFIX,
    Handles,
    Place,
    device,
    keyval,
    netdev,
    pcie_nics,
    traits_of,
)
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.errors import HostCannot
from kvmnet.records import dataclass, field

if TYPE_CHECKING:
    from kvmnet.spec.guests import Run

PROGRAM = "qemu-system-x86_64"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
SPARE_PORTS = 8
"""PCIe root ports left free for cards that are plugged in later."""
PORT_SLOTS = range(0x10, 0x1C)
"""Slots of the first bus for root ports, eight to a slot."""
BRIDGE_SLOT, AGENT_SLOT, DISK_SLOT = "1c", "1d", "1e"
FIRST_BUS = {"q35": "pcie.0", "pc": "pci.0"}
BRIDGE_DEVICE = {"q35": "pcie-pci-bridge", "pc": "pci-bridge"}
CPU = {"kvm": "host", "tcg": "max"}
TINY_WORDS = ("console=ttyS0 quiet panic=-1 rdinit=/init random.trust_cpu=on mitigations=off "
              "tsc=reliable no_timer_check")
"""Kernel command line of the tiny image; the last two spare it clock calibration under emulation."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Numbers of the descriptors that QEMU inherits."""

    monitor: int
    agent: int
    console: int
    console_log: int
    kernel: int | None = None
    initrd: int | None = None
    disk: int | None = None
    nics: Mapping[str, Handles] = field(default_factory=dict)
    """Name of the NIC (``web1/nic0``) -> its taps."""


def arguments(name: str, run: Run, nics: Sequence[GuestNic], accel: str, files: Descriptors,
              append: str = "", disk_format: str = "raw") -> list[str]:
    """Words of the command that starts guest *name*, paused.

    ``accel`` is kvm or tcg; ``append`` the kernel's command line. Raises HostCannot when the
    cards do not fit on the machine.
    """
    return [
        PROGRAM, "-name", keyval({"guest": name, "debug-threads": True}), "-S", "-no-user-config", "-nodefaults", "-display", "none",
        "-machine", f"{run.machine},usb=off,graphics=off{',memory-backend=ram' if backend(run) else ''}", "-accel", accel, "-cpu", CPU[accel],
        "-smp", str(run.cpus), "-m", f"size={run.memory}b", *backend(run), "-sandbox", SANDBOX,
        *chardev("monitor", files.monitor), "-mon", "chardev=monitor,mode=control",
        "-add-fd", f"fd={files.console_log},set=1",
        *chardev("console", files.console, ",logfile=/dev/fdset/1,logappend=on"), "-serial", "chardev:console",
        *agent_port(run, files), *boot(files, append), *disk(run, files, disk_format),
        *slots(run, nics), *cards(run, nics, files),
    ]


def backend(run: Run) -> tuple[str, ...]:
    """Where the guest's memory is from; nothing for any memory. Huge pages are taken at once: one that is missing later would kill the guest
    (SIGBUS) where memory is bound to a node."""
    if not run.hugepages and run.nodes is None:
        return ()
    kind = "memory-backend-memfd" if run.hugepages else "memory-backend-ram"
    huge = ",hugetlb=on,prealloc=on" if run.hugepages else ""
    bound = "".join(f",host-nodes={span}" for span in run.nodes.split(",")) + ",policy=bind" if run.nodes else ""
    return "-object", f"{kind},id=ram,size={run.memory}b{huge}{bound}"


def chardev(name: str, listening: int, more: str = "") -> tuple[str, str]:
    return "-chardev", f"socket,id={name},fd={listening},server=on,wait=off{more}"


def agent_port(run: Run, files: Descriptors) -> tuple[str, ...]:
    bus = FIRST_BUS[run.machine]
    return (*chardev("agent", files.agent),
            "-device", f"virtio-serial-pci,id=serial,bus={bus},addr={AGENT_SLOT}",
            "-device", "virtserialport,bus=serial.0,chardev=agent,name=org.qemu.guest_agent.0")


def boot(files: Descriptors, append: str) -> list[str]:
    """Files are opened again by QEMU through its own descriptors: the folders above may be closed to it."""
    words: list[str] = []
    if files.kernel is not None:
        words += ["-kernel", f"/proc/self/fd/{files.kernel}", "-append", append]
    if files.initrd is not None:
        words += ["-initrd", f"/proc/self/fd/{files.initrd}"]
    return words


def disk(run: Run, files: Descriptors, disk_format: str) -> tuple[str, ...]:
    if files.disk is None:
        return ()
    bus = FIRST_BUS[run.machine]
    return ("-add-fd", f"fd={files.disk},set=2",
            "-blockdev", f"driver={disk_format},node-name=disk,file.driver=file,file.filename=/dev/fdset/2",
            "-device", f"virtio-blk-pci,drive=disk,bus={bus},addr={DISK_SLOT}")


def slots(run: Run, nics: Sequence[GuestNic]) -> list[str]:
    """The bridge for conventional cards and, on q35, root ports with some to spare."""
    bus = FIRST_BUS[run.machine]
    chassis = ",chassis_nr=1" if run.machine == "pc" else ""
    words = ["-device", f"{BRIDGE_DEVICE[run.machine]},id={BRIDGE},bus={bus},addr={BRIDGE_SLOT}{chassis}"]
    for port in range(port_count(run, nics)):
        slot, function = PORT_SLOTS[port // 8], port % 8
        words += ["-device", f"pcie-root-port,id={port_id(port)},bus={bus},addr={slot:02x}.{function},"
                             f"chassis={port + 1}" + (",multifunction=on" if function == 0 else "")]
    return words


def port_count(run: Run, nics: Sequence[GuestNic]) -> int:
    if run.machine != "q35":
        return 0
    most = 8 * len(PORT_SLOTS)
    wanted = len(pcie_nics(nics))
    if wanted > most:
        raise HostCannot(f"{wanted} PCIe cards do not fit into one guest: it has {most} ports",
                         hint="give the guest fewer NICs, or some of them model e1000 (31 fit)")
    return min(wanted + SPARE_PORTS, most)


def port_id(number: int) -> str:
    return f"{PREFIX}port-{number}"


def cards(run: Run, nics: Sequence[GuestNic], files: Descriptors) -> list[str]:
    words: list[str] = []
    for nic, place in zip(nics, places(run, nics), strict=True):
        if traits_of(nic).backend:
            words += ["-netdev", keyval(netdev(nic, files.nics[nic.name]), "type")]
        words += ["-device", keyval(device(nic, place), "driver")]
    return words


def places(run: Run, nics: Sequence[GuestNic]) -> list[Place]:
    """Where each card goes, in order. Raises HostCannot for an address that is not free."""
    found: list[Place] = []
    port = 0
    for nic in nics:
        if nic.pci:
            found.append(Place(FIRST_BUS[run.machine], pinned(nic)))
        elif run.machine == "q35" and traits_of(nic).pcie:
            found.append(Place(port_id(port)))
            port += 1
        else:
            found.append(Place(BRIDGE))
    return found


def pinned(nic: GuestNic) -> str:
    """The address that the document gives, when it is not one of the machine's own."""
    address = nic.pci or ""
    slot = int(address.partition(".")[0], 16)
    if slot >= PORT_SLOTS.start or slot == 1:
        raise HostCannot(f"NIC {nic.name}: PCI slot {slot:02x} is taken by the guest's own devices",
                         hint=f"use a slot from 02 to {PORT_SLOTS.start - 1:02x}")
    return address
