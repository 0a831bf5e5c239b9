"""Frames to and from devices: the guest's end of a tap, and what a device of the host carries.

What is written to a tap's descriptor is what a guest on it would have sent: the kernel takes it in on
the tap (drivers/net/tun.c), so that bridge, guard and all rules judge it. A packet socket on the tap
would do the opposite, it sends *to* the guest.
"""
from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from kvmnet.errors import HostCannot
from kvmnet.host import macvtap
from kvmnet.host.run import ToolFailed

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_MULTI_QUEUE, IFF_VNET_HDR = 0x0002, 0x1000, 0x0100, 0x4000
ETH_P_ALL = 0x0003
SIOCGIFMTU, SIOCGIFHWADDR, SIOCETHTOOL = 0x8921, 0x8927, 0x8946
ETHTOOL_GDRVINFO, ETHTOOL_GLINK = 0x03, 0x0A
LARGEST = 70_000
"""Bytes; more than any frame (one of an offloading guest has 64 KiB)."""


class Tap:
    """The guest's end of a tap, held open. One that was made here disappears with its descriptor."""

    def __init__(self, name: str, fd: int):
        self.name, self.fd = name, fd

    @classmethod
    def make(cls, name: str) -> Self:
        """A new tap in this network namespace. Raises HostCannot; ToolFailed when the name is taken."""
        if exists(name):
            raise ToolFailed(("tap", name), -1, "a device of this name exists already")
        return cls(name, opened(name, IFF_TAP | IFF_NO_PI))

    @classmethod
    def make_headed(cls, name: str) -> Self:
        """As ``make``, but each frame has a header in front that tells of checksums (struct virtio_net_hdr, 10 bytes)."""
        if exists(name):
            raise ToolFailed(("tap", name), -1, "a device of this name exists already")
        return cls(name, opened(name, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))

    @classmethod
    def hold(cls, name: str) -> Self:
        """An existing tap that nobody has open. Raises HostCannot; ToolFailed when it is gone or in use."""
        if not exists(name):
            raise ToolFailed(("tap", name), -1, "there is no such tap")
        try:
            return cls(name, opened(name, IFF_TAP | IFF_NO_PI))
        except InvalidFlags:
            return cls(name, opened(name, IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE))

    @classmethod
    def hold_macvtap(cls, name: str) -> Self:
        """An existing macvtap. Raises ToolFailed."""
        try:
            return cls(name, macvtap.open_queue(name, IFF_TAP | IFF_NO_PI))
        except OSError as error:
            raise ToolFailed(("macvtap", name), error.errno or -1, str(error.strerror)) from error

    def send(self, frame: bytes) -> None:
        """Send as the guest. A frame that the kernel refuses (the port is down) is lost, as on a wire."""
        try:
            os.write(self.fd, frame)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN, errno.EINVAL, errno.ENOBUFS, errno.EBADFD):
                raise

    def receive(self) -> bytes | None:
        """The next frame for the guest; None when there is none. Raises Gone."""
        try:
            return os.read(self.fd, LARGEST)
        except OSError as error:
            if error.errno == errno.EBADFD:
                raise Gone(self.name) from error
            if error.errno in (errno.EAGAIN, errno.EIO):
                return None
            raise

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Gone(Exception):
    """The tap was deleted."""


class InvalidFlags(ToolFailed):
    """The tap was made with other flags."""


def exists(device: str) -> bool:
    """Whether this network namespace has a device of that name."""
    try:
        socket.if_nametoindex(device)
    except OSError:
        return False
    return True


def has_carrier(device: str) -> bool:
    """Whether a device of this network namespace has a carrier; of a tap: whether anybody has it open.

    Asked by ethtool: the interface flags follow up to a second later (net/core/link_watch.c).
    """
    value = array("I", [ETHTOOL_GLINK, 0])
    question = struct.pack("16sP232x", device.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            fcntl.ioctl(asker, SIOCETHTOOL, question)
        except OSError:
            return False
    return bool(value[1])


def opened(name: str, flags: int) -> int:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostCannot(f"cannot open /dev/net/tun: {error.strerror}",
                         "run it as root; modprobe tun") from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except OSError as error:
        os.close(fd)
        what = InvalidFlags if error.errno == errno.EINVAL else ToolFailed
        reason = "another program has it open" if error.errno == errno.EBUSY else str(error.strerror)
        raise what(("tap", name), error.errno or -1, reason) from error
    return fd


class Capture:
    """Frames that a device of this network namespace receives and sends, as tcpdump without
    promiscuous mode sees them. VLAN tags that the kernel has taken off are not put back."""

    def __init__(self, device: str, without: int = 0):
        """``without``: bits of the packet mark; a frame with any of them is not heard. Raises HostCannot."""
        self.device = device
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            if without:
                unheard(self.socket, without)
            self.socket.bind((device, ETH_P_ALL))
        except OSError as error:
            raise HostCannot(f"cannot watch {device}: {error.strerror}", "run it as root") from error
        self.fd = self.socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame out by the device, as the host. Lost when the device is down."""
        with suppress(OSError):
            self.socket.send(frame)

    def sends_ahead(self) -> None:
        """Let frames that wait in a queue keep no further ones back."""
        self.socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, ROOM)

    def hear(self) -> tuple[bytes, bool] | None:
        """The next frame, and whether the device sent it."""
        try:
            frame, source = self.socket.recvfrom(LARGEST)
            return frame, source[2] == PACKET_OUTGOING
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENETDOWN, errno.ENXIO):
                return None
            raise

    def receive(self) -> bytes | None:
        """The next frame; None when there is none."""
        try:
            return self.socket.recv(LARGEST)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENETDOWN, errno.ENXIO):
                return None
            raise

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Arriving:
    """Packets of a protocol that come to the host itself, behind its own rules. Raises HostCannot."""

    def __init__(self, number: int, address: str):
        """``number``: of the protocol; *address*: one of the host's, for the IP version."""
        try:
            self.socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, number)
        except OSError as error:
            raise HostCannot(f"cannot listen to packets of protocol {number}: {error.strerror}", "run it as root") from error

    def receive(self) -> tuple[bytes, str] | None:
        """The next packet, of IPv6 without its header, and who sent it; None when there is none."""
        try:
            data, source = self.socket.recvfrom(LARGEST)
        except BlockingIOError:
            return None
        return data, str(source[0]).partition("%")[0]

    def close(self) -> None:
        self.socket.close()


SO_ATTACH_FILTER, AD_MARK = 26, 0xFFFFF000 + 20
"""asm/socket.h, linux/filter.h (SKF_AD_OFF + SKF_AD_MARK)."""


def unheard(listening: socket.socket, bits: int) -> None:
    """Let a packet socket hear no frame whose mark has any of *bits*: a program of classic BPF that loads the mark, tests it, and
    returns how many bytes to keep."""
    program = b"".join(struct.pack("=HBBI", *step) for step in (
        (0x20, 0, 0, AD_MARK), (0x45, 0, 1, bits), (0x06, 0, 0, 0), (0x06, 0, 0, LARGEST)))
    kept = array("B", program)
    listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, kept.buffer_info()[0]))


SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMPNS, PACKET_OUTGOING = 32, 33, 35, 4
"""asm/socket.h, linux/if_packet.h."""
ROOM = 32 << 20


class Stamped:
    """When a device sent frames that carry a mark, by the kernel's clock: behind its queue. Raises HostCannot."""

    def __init__(self, device: str, mark: bytes):
        self.mark = mark
        self.sent: list[tuple[float, int]] = []
        """(seconds, bytes)."""
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
            for option, value in ((SO_RCVBUFFORCE, ROOM), (SO_TIMESTAMPNS, 1)):
                self.socket.setsockopt(socket.SOL_SOCKET, option, value)
            self.socket.bind((device, ETH_P_ALL))
        except OSError as error:
            raise HostCannot(f"cannot watch {device}: {error.strerror}", "run it as root") from error

    def drain(self) -> None:
        """Take what there is."""
        while True:
            try:
                frame, ancillary, _, source = self.socket.recvmsg(LARGEST, 64)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.ENETDOWN, errno.ENXIO):
                    return
                raise
            if source[2] == PACKET_OUTGOING and self.mark in frame:
                seconds, nanoseconds = struct.unpack("qq", ancillary[0][2])
                self.sent.append((seconds + nanoseconds / 1e9, len(frame)))

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def steady(sent: Sequence[tuple[float, int]], seconds: float) -> float:
    """Bytes per second over the last *seconds* of what was sent: (seconds, bytes), in order."""
    if len(sent) < 2:
        return 0.0
    last = sent[-1][0]
    late = [(moment, size) for moment, size in sent if moment >= last - seconds]
    span = last - late[0][0]
    return sum(size for _, size in late[1:]) / span if span else 0.0


def device_mtu(device: str) -> int:
    """MTU of a device in bytes; 0 when there is none (SIOCGIFMTU, netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            answer = fcntl.ioctl(asked.fileno(), SIOCGIFMTU, struct.pack("256s", device.encode()))
        except OSError:
            return 0
    return int(struct.unpack("16xi", answer[:20])[0])


def device_mac(device: str) -> str:
    """MAC of a device of this network namespace; '' when there is none. (sysfs may show another one's.)"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            answer = fcntl.ioctl(asker, SIOCGIFHWADDR, struct.pack("256s", device.encode()))
        except OSError:
            return ""
    return answer[18:24].hex(":")


def driver_of(device: str) -> str:
    """Name of the kernel's driver of a device; '' when it does not tell (ethtool.h, struct ethtool_drvinfo)."""
    value = array("B", struct.pack("=I", ETHTOOL_GDRVINFO) + bytes(192))
    question = struct.pack("16sP232x", device.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            fcntl.ioctl(asker, SIOCETHTOOL, question)
        except OSError:
            return ""
    return value.tobytes()[4:36].rstrip(b"\0").decode(errors="replace")
