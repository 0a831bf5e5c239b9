"""Opening macvtaps, in this network namespace.

A macvtap has a device file of its own, ``/dev/tapN`` with N its ifindex (drivers/net/macvtap.c). Which file it
is tells sysfs alone. Two things are not to be relied on: that somebody has made the file (without udev and
devtmpfs nobody does), and that the file of that name is the right one (ifindexes of two namespaces may be
equal, and /dev is one). So the number is read from a sysfs of this very namespace, and where /dev does
not have the file, one is made for the moment of opening. Whoever opened asks the kernel for the name.
"""
from __future__ import annotations

import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

TUNSETIFF, TUNGETIFF = 0x400454CA, 0x800454D2
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
FSOPEN, FSCONFIG, FSMOUNT, PIDFD_GETFD = 430, 431, 432, 438
"""Numbers of system calls, the same on all architectures (Linux 5.2, 5.6)."""
CONFIG_CREATE = 6
"""FSCONFIG_CMD_CREATE (linux/mount.h)."""
DEV = Path("/dev")


@cache
def libc() -> ctypes.CDLL:
    import ctypes  # where there is no macvtap, nobody needs it

    return ctypes.CDLL(None, use_errno=True)


def numbers() -> dict[str, int]:
    """Device -> number of its file, of every macvtap of this network namespace."""
    found: dict[str, int] = {}
    if major_number() < 0:
        return found
    with sysfs() as root:
        for entry in Path(root, "class/macvtap").glob("tap*"):
            with suppress(OSError, ValueError):
                device = entry.readlink().parts[-3]
                major, _, minor = (entry / "dev").read_text().strip().partition(":")
                found[device] = os.makedev(int(major), int(minor))
    return found


@contextmanager
def sysfs() -> Iterator[str]:
    """A folder with the sysfs of this network namespace: that at /sys shows the one where it was mounted."""
    mount = -1
    context = libc().syscall(FSOPEN, b"sysfs", 1)
    if context >= 0:
        if libc().syscall(FSCONFIG, context, CONFIG_CREATE, None, None, 0) == 0:
            mount = libc().syscall(FSMOUNT, context, 1, 0)
        os.close(context)
    try:
        yield f"/proc/self/fd/{mount}" if mount >= 0 else "/sys"
    finally:
        if mount >= 0:
            os.close(mount)


def open_queue(device: str, flags: int) -> int:
    """A descriptor of one more queue of a macvtap. Raises OSError, of which FileNotFoundError says that there
    is no such macvtap."""
    number = numbers().get(device)
    if number is None:
        raise FileNotFoundError(2, "there is no such macvtap", device)
    fd = open_number(number)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", device.encode(), flags))
        if name_of(fd) != device:
            raise OSError(19, f"{device} was made anew meanwhile")
    except BaseException:
        os.close(fd)
        raise
    return fd


def name_of(fd: int) -> str:
    """Name of the tap or macvtap behind a descriptor. Raises OSError."""
    told: bytes = fcntl.ioctl(fd, TUNGETIFF, bytes(40))
    return told[:16].split(b"\0")[0].decode()


def open_number(number: int) -> int:
    """The character device of a number, by its file in /dev or one that is made for the moment."""
    mode = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
    for file in DEV.glob("tap[0-9]*"):
        with suppress(OSError):
            found = file.stat()
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == number:
                return os.open(file, mode)
    from tempfile import TemporaryDirectory  # loads what no other part of a command needs
    with TemporaryDirectory(prefix="kvmnet-", dir=DEV) as folder:    # /tmp and /run may be nodev
        file = Path(folder, "tap")
        os.mknod(file, stat.S_IFCHR | 0o600, number)
        return os.open(file, mode)


def held() -> set[str]:
    """Macvtaps of this network namespace that some process has open."""
    by_number = {number: device for device, number in numbers().items()}
    found: set[str] = set()
    for process in Path("/proc").iterdir() if by_number else ():
        if process.name.isdigit():
            with suppress(OSError):
                for entry in (process / "fd").iterdir():
                    with suppress(OSError):
                        about = entry.stat()
                        if stat.S_ISCHR(about.st_mode) and about.st_rdev in by_number:
                            found.add(by_number[about.st_rdev])
    return found


def device_of(pid: int, descriptor: int) -> str:
    """Name of the macvtap behind a descriptor of another process; '' when it is none."""
    try:
        if os.major(Path(f"/proc/{pid}/fd/{descriptor}").stat().st_rdev) != major_number():
            return ""
        handle = os.pidfd_open(pid)
    except OSError:
        return ""
    try:
        copy = libc().syscall(PIDFD_GETFD, handle, descriptor, 0)
        if copy < 0:
            return ""
        try:
            return name_of(copy)
        except OSError:
            return ""
        finally:
            os.close(copy)
    finally:
        os.close(handle)


def major_number() -> int:
    """Major number of macvtaps' files on this kernel; -1 without them."""
    with suppress(OSError):
        for line in Path("/proc/devices").read_text().splitlines():
            number, _, name = line.strip().partition(" ")
            if name == "macvtap":
                return int(number)
    return -1
