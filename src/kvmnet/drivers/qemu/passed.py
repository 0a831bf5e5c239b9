"""VFs for QEMU: who may open them, and the memory that they pin.

QEMU has no privileges: the device file of the VF's IOMMU group becomes its user's for as long as it has
the VF, and its limit of locked memory is raised, as all of a guest's memory is pinned for devices that write into
it (vfio_pin_pages_remote() in drivers/vfio/vfio_iommu_type1.c).
"""
from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.sriov import sysfs
from kvmnet.drivers.sriov.resources import VFIO, split_name
from kvmnet.engine.driver import StepFailed
from kvmnet.errors import HostCannot
from kvmnet.records import replace

GROUPS = Path("/dev/vfio")
SPARE = 2**30
"""Bytes beyond the guest's memory that may be locked: mapped registers of its devices."""


def found(nic: GuestNic) -> GuestNic:
    """*nic* with the present PCI address of its VF. Raises StepFailed when the VF is not ready for a guest."""
    if not nic.vf:
        return nic
    folder = sysfs.vf_device(*split_name(nic.vf))
    if folder is None:
        raise StepFailed(nic.key, f"there is no VF {nic.vf}", "kvmnet apply makes it")
    if sysfs.driver_of(folder) != VFIO:
        raise StepFailed(nic.key, f"VF {nic.vf} ({folder.name}) is not bound to {VFIO}", "kvmnet apply binds it")
    return replace(nic, host=folder.name)


def give(nic: GuestNic, uid: int) -> None:
    """Let the user of a guest open its VF. Raises StepFailed."""
    if not nic.vf:
        return
    device = group_file(nic)
    try:
        os.chown(device, uid, -1)
    except OSError as error:
        raise StepFailed(nic.key, f"cannot give {device} to QEMU: {error.strerror}", "see dmesg for what vfio says") from error


def take_back(nic: GuestNic) -> None:
    """Only root opens it again."""
    with suppress(OSError, StepFailed):
        if nic.vf:
            os.chown(group_file(nic), 0, -1)


def group_file(nic: GuestNic) -> Path:
    folder = sysfs.vf_device(*split_name(nic.vf or ""))
    return GROUPS / (sysfs.group_of(folder) if folder else "none")


def limit(nics: Iterable[GuestNic], memory: int) -> int:
    """Bytes that QEMU may lock; 0 for no more than usual."""
    return memory + SPARE if any(nic.vf for nic in nics) else 0


@contextmanager
def lockable(size: int) -> Iterator[None]:
    """Children started meanwhile may lock *size* bytes of memory; 0 for as much as usual. Raises HostCannot."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if not size:
        yield
        return
    enough = hard == resource.RLIM_INFINITY or hard >= size
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, hard if enough else size))
    except (OSError, ValueError) as error:
        raise HostCannot(f"QEMU cannot be allowed to lock {size >> 20} MB of memory: {error}",
                         "run as root; in a container raise its memlock limit") from error
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))


def raise_limit(pid: int, size: int) -> None:
    """The same for a QEMU that runs."""
    with suppress(OSError):  # without it QEMU says that memory cannot be locked
        soft, _ = resource.prlimit(pid, resource.RLIMIT_MEMLOCK)
        if soft != resource.RLIM_INFINITY and soft < size:
            resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (size, size))
