"""Opening taps that exist already, in this network namespace.

Kernel: drivers/net/tun.c. The header flag follows the last opener; the multi-queue flag must be
the one that the tap was made with. QEMU does the rest on the descriptors, without privilege.
"""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from kvmnet.drivers.qemu.devices import MODELS
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.driver import StepFailed

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
VHOST = "/dev/vhost-net"


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
    try:
        for _ in range(queues):
            opened.append(open_queue(nic, tap, flags, queues))
    except BaseException:
        close(opened)
        raise
    return opened


def open_queue(nic: GuestNic, tap: str, flags: int, queues: int) -> int:
    """A descriptor of *tap*. A single queue of a multi-queue tap is fine, the reverse is not."""
    choices = [flags | IFF_MULTI_QUEUE] if queues > 1 else [flags, flags | IFF_MULTI_QUEUE]
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    reason = OSError()
    for choice in choices:
        try:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", tap.encode(), choice))
            return fd
        except OSError as error:
            reason = error
            if error.errno != errno.EINVAL:
                break
    os.close(fd)
    match reason.errno:
        case errno.EBUSY:
            raise StepFailed(nic.key, f"tap {tap} is opened by another program",
                             "end the program that uses it (look for it in /proc/*/fdinfo)")
        case errno.EINVAL if queues > 1:
            raise StepFailed(nic.key, f"tap {tap} was not made for several queues, or is no tap",
                             f"ip link del {tap}; kvmnet apply makes it again")
        case _:
            raise StepFailed(nic.key, f"cannot open tap {tap}: {reason.strerror}")


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


def close(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)
