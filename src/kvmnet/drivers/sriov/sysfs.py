"""PFs, VFs and their drivers in sysfs. Everything that reads or writes there.

Documentation/ABI/testing/sysfs-bus-pci: sriov_*, virtfnN, physfn, driver_override. A bus other than PCI that
has sriov_numvfs (netdevsim) has VFs that are no devices: they can be told settings, and bound to nothing.
"""
from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.drivers.sriov.resources import VFIO
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.resource import Key
from kvmnet.host import run as host
from kvmnet.host.clock import wait_until

SYS = Path("/sys")
BUSES = ("bus/pci/devices", "bus/netdevsim/devices")
SIOCETHTOOL, ETHTOOL_GDRVINFO, DRVINFO_SIZE, BUS_INFO = 0x8946, 3, 196, slice(100, 132)
NUMVFS, TOTAL, AUTOPROBE = "sriov_numvfs", "sriov_totalvfs", "sriov_drivers_autoprobe"
IFF_UP = 1
BIND_TIMEOUT = 5.0
"""Seconds for a driver to take a device."""
READY_TIMEOUT = 10.0
"""Seconds for a PF to come back: making VFs resets some of them (igb: 2 s)."""
HINTS = {
    "Device or resource busy": "somebody uses a VF: see ip link, and lsof /dev/vfio/*",
    "Numerical result out of range": "the device has not as many",
    "Cannot allocate memory": "no bus numbers or memory are left for so many VFs: see dmesg; pci=realloc on the kernel "
                              "command line may help",
    "Permission denied": "run as root; in a container /sys may be read-only",
    "Read-only file system": "run on the host itself: /sys is read-only here",
}


def pf_devices(sys: Path = SYS) -> dict[str, Path]:
    """Link -> device folder, of every NIC of this network namespace that can be split. Reads the buses and not the
    links, of which a host may have ten thousand. /sys may be that of another namespace: the kernel is asked."""
    return {link: folder.resolve() for bus in BUSES for folder in sorted(sys.glob(f"{bus}/*")) if (folder / NUMVFS).exists()
            for link in names_in(folder / "net")[:1] if bus_name(link) == folder.name}


def names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def device_of(dev: str, sys: Path = SYS) -> Path:
    """Folder of the device behind a link of this network namespace; one that is not there when it has none."""
    name = bus_name(dev) or f"none of {dev}"
    return next((f.resolve() for bus in BUSES if (f := sys / bus / name).exists()), sys / name)


def bus_name(dev: str) -> str:
    """Name of a link's device on its bus, '' for none. ethtool(8) -i, bus-info (struct ethtool_drvinfo)."""
    import ctypes  # few hosts have VFs

    answer = ctypes.create_string_buffer(struct.pack("I", ETHTOOL_GDRVINFO), DRVINFO_SIZE)
    with socket.socket() as any_socket, suppress(OSError):
        fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", dev.encode(), ctypes.addressof(answer)))
        return answer.raw[BUS_INFO].rstrip(b"\0").decode(errors="replace")
    return ""


def is_pci(folder: Path) -> bool:
    return (folder / "subsystem").resolve().name == "pci"


def vf_device(dev: str, number: int, sys: Path = SYS) -> Path | None:
    """Folder of a VF's own device; None where VFs are no devices."""
    link = device_of(dev, sys) / f"virtfn{number}"
    return link.resolve() if link.exists() else None


def number_of(address: str, sys: Path = SYS) -> tuple[str, int] | None:
    """PF's link and number of the VF at a PCI address; None when it is no VF, or its PF is not here."""
    folder = (sys / "bus/pci/devices" / address).resolve()
    parent = (folder / "physfn").resolve()
    for link in names_in(parent / "net")[:1]:
        for entry in parent.glob("virtfn*"):
            if entry.resolve() == folder:
                return link, int(entry.name.removeprefix("virtfn"))
    return None


def read_number(path: Path, otherwise: int = 0) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return otherwise


def driver_of(folder: Path) -> str:
    link = folder / "driver"
    return link.resolve().name if link.exists() else ""


def group_of(folder: Path) -> str:
    """Number of the IOMMU group; '' without an IOMMU."""
    link = folder / "iommu_group"
    return link.resolve().name if link.exists() else ""


def strangers(folder: Path) -> tuple[str, ...]:
    """Devices of the same IOMMU group that are not on vfio-pci: a guest that has the one reaches the others.
    Bridges do no harm (vfio_dev_driver_allowed() in drivers/vfio/vfio.c)."""
    found = []
    for entry in sorted((folder / "iommu_group/devices").glob("*")):
        other = entry.resolve()
        driver = driver_of(other)
        bridge = (other / "class").exists() and (other / "class").read_text().startswith("0x06")
        if other != folder and driver not in ("", VFIO, "pci-stub", "pcieport") and not bridge:
            found.append(f"{other.name} ({driver})")
    return tuple(found)


def holder_of(folder: Path, ours: bool) -> str:
    """Who uses a VF, as far as can be seen; '' for nobody. ``ours``: kvmnet bound it to vfio-pci."""
    driver = driver_of(folder)
    if driver in ("", VFIO):
        return f"bound to {driver}, not by kvmnet" if driver and not ours else ""
    if not (links := names_in(folder / "net")):
        return f"bound to {driver}, with no NIC in this network namespace"
    for link in links:
        where = folder / "net" / link
        if (where / "master").exists():
            return f"its NIC {link} belongs to {(where / 'master').resolve().name}"
        with suppress(OSError, ValueError):
            if int((where / "flags").read_text(), 16) & IFF_UP:
                return f"its NIC {link} is up"
    return ""


# -- writing ---------------------------------------------------------------------------------------

@contextmanager
def failing(key: Key, doing: str) -> Iterator[None]:
    """The kernel's refusal as a failed step."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise StepFailed(key, f"{doing}: {reason}", HINTS.get(reason, "see dmesg for what the driver says")) from error


def write(key: Key, path: Path, text: str) -> None:
    """Raises StepFailed."""
    with failing(key, f"echo {text.strip()} > {path}"):
        path.write_text(f"{text}\n")


def set_count(key: Key, dev: str, count: int) -> None:
    """Make VFs, or with 0 take all of them away. Raises StepFailed."""
    folder = device_of(dev)
    if not (folder / NUMVFS).exists():
        raise StepFailed(key, f"{dev} cannot be split into VFs, or is gone", "is the NIC there? compare with: ip link")
    lights = folder / "net" / dev / "carrier"
    had_carrier = read_number(lights) == 1
    write(key, folder / NUMVFS, str(count))
    if had_carrier:
        with suppress(TimeoutError):  # one that lost it is no failure of ours
            wait_until(lambda: read_number(lights) == 1, READY_TIMEOUT)


def probes(folder: Path) -> bool:
    """Whether drivers of the host take VFs of the NIC by themselves."""
    return read_number(folder / AUTOPROBE) == 1


def set_probing(key: Key, folder: Path, *, on: bool) -> None:
    """Raises StepFailed. A driver_override, as for vfio-pci, counts all the same (pci_device_can_probe())."""
    if (folder / AUTOPROBE).exists():
        write(key, folder / AUTOPROBE, "1" if on else "0")


def bind(key: Key, folder: Path, driver: str) -> None:
    """Bind a VF to *driver*, or to none. Raises StepFailed."""
    if driver == VFIO:
        if others := strangers(folder):
            raise StepFailed(key, f"{folder.name} shares its IOMMU group {group_of(folder)} with {', '.join(others)}",
                             "a guest would reach them too: bind them to vfio-pci or unbind them, or put the card into another slot")
        if not group_of(folder):
            raise StepFailed(key, f"{folder.name} is behind no IOMMU", "intel_iommu=on or amd_iommu=on on the kernel command line")
    if driver_of(folder) not in ("", driver):
        write(key, folder / "driver/unbind", folder.name)
    write(key, folder / "driver_override", driver if driver == VFIO else "")
    if not driver:
        return
    if not (SYS / "bus/pci/drivers" / driver).exists():
        with suppress(host.ToolFailed):  # without it the next lines say what is missing
            host.run(("modprobe", driver))
    if driver_of(folder) != driver:
        write(key, SYS / "bus/pci/drivers_probe", folder.name)
    if driver_of(folder) != driver:
        raise StepFailed(key, f"{folder.name} is bound to {driver_of(folder) or 'no driver'}, not to {driver}",
                         f"is there a driver {driver}? modprobe {driver}; see dmesg")
