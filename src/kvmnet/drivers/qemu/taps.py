"""Opening taps and macvtaps that exist already, in this network namespace.

Kernel: drivers/net/tun.c. The header flag follows the last opener; the multi-queue flag must be
the one that the tap was made with. A macvtap (drivers/net/tap.c) has a device file of its own, takes any number
of openers, and each sets its own flags. QEMU does the rest on the descriptors, without privilege.
"""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from time import monotonic

from kvmnet.drivers.qemu.devices import MODELS
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.driver import StepFailed
from kvmnet.host import macvtap
from kvmnet.host.clock import wait_until

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
VHOST = "/dev/vhost-net"
BUSY_PATIENCE = 1.0
"""Seconds to wait for a busy tap: a QEMU that was killed lets go of its taps after its process is gone."""


def open_taps(nic: GuestNic) -> list[int]:
    """One descriptor per queue pair. Raises StepFailed when the tap is missing, taken or too small."""
    tap, queues = nic.tap or "", nic.queues or 1
    try:
        socket.if_nametoindex(tap)
    except OSError:    # TUNSETIFF would make a new one
        raise StepFailed(nic.key, f"there is no tap {tap}", "kvmnet apply makes it") from None
    flags = IFF_TAP | IFF_NO_PI
    if MODELS[nic.model or "virtio"].vnet_header:
        flags |= IFF_VNET_HDR
    opened: list[int] = []
    is_macvtap = tap in macvtap.numbers()
    if is_macvtap:    # the kernel would let two in, and give each a part of the packets
        try:
            wait_until(lambda: tap not in macvtap.held(), BUSY_PATIENCE, 0.05)
        except TimeoutError as error:
            raise refused(nic, tap, OSError(errno.EBUSY, "busy"), queues) from error
    try:
        for _ in range(queues):
            opened.append(open_macvtap(nic, tap, flags, queues) if is_macvtap else open_queue(nic, tap, flags, queues))
    except BaseException:
        close(opened)
        raise
    return opened


def open_queue(nic: GuestNic, tap: str, flags: int, queues: int) -> int:
    """A descriptor of *tap*. A single queue of a multi-queue tap is fine, the reverse is not."""
    choices = [flags | IFF_MULTI_QUEUE] if queues > 1 else [flags, flags | IFF_MULTI_QUEUE]
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    deadline = monotonic() + BUSY_PATIENCE
    try:
        wait_until(lambda: attach(fd, tap, choices, monotonic() > deadline), BUSY_PATIENCE + 1)
    except OSError as error:
        os.close(fd)
        raise refused(nic, tap, error, queues) from error
    return fd


def open_macvtap(nic: GuestNic, tap: str, flags: int, queues: int) -> int:
    try:
        return macvtap.open_queue(tap, flags | (IFF_MULTI_QUEUE if queues > 1 else 0))
    except OSError as error:
        raise StepFailed(nic.key, f"cannot open macvtap {tap}: {error.strerror}",
                         "in a container the macvtap devices must be allowed (devices.allow)") from error


def attach(fd: int, tap: str, choices: list[int], last: bool) -> bool:
    """Make *fd* a queue of *tap*. False when the tap is busy and it is not the last try."""
    for choice in choices:
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", tap.encode(), choice))
            return True
        except OSError as error:
            if error.errno == errno.EBUSY and not last:
                return False
            if error.errno != errno.EINVAL or choice == choices[-1]:
                raise
    return False


def refused(nic: GuestNic, tap: str, error: OSError, queues: int) -> StepFailed:
    match error.errno:
        case errno.EBUSY:
            return StepFailed(nic.key, f"tap {tap} is opened by another program",
                              f"end the program that uses it: grep -l {tap} /proc/*/fdinfo/* finds it")
        case errno.EINVAL if queues > 1:
            return StepFailed(nic.key, f"tap {tap} was not made for several queues, or is no tap",
                              f"ip link del {tap}; kvmnet apply makes it again")
        case _:
            return StepFailed(nic.key, f"cannot open tap {tap}: {error.strerror}")


def open_vhost(nic: GuestNic) -> list[int]:
    """One descriptor of the in-kernel backend per queue pair; none when the NIC does not use it.

    QEMU 7.2 dies by an assertion when it is told vhost=on and cannot open the device itself.
    """
    if not nic.vhost:
        return []
    opened: list[int] = []
    try:
        for _ in range(nic.queues or 1):
            opened.append(os.open(VHOST, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        close(opened)
        raise StepFailed(nic.key, f"vhost is wanted, but {VHOST} cannot be opened: {error.strerror}",
                         "modprobe vhost_net, or vhost: auto") from error
    return opened


def vhost_unavailable() -> str | None:
    """Why the in-kernel backend cannot be used here, or None."""
    try:
        os.close(os.open(VHOST, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{VHOST}: {error.strerror} (modprobe vhost_net)"
    return None


def close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
