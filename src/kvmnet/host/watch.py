"""What passes a device, filtered in the kernel: counted there, or handed over with its direction."""
from __future__ import annotations

import ctypes
import errno
import socket
import struct
from contextlib import suppress
from types import TracebackType
from typing import Self

from kvmnet.errors import HostCannot
from kvmnet.host.filters import OUTGOING
from kvmnet.host.packets import ETH_P_ALL

SO_ATTACH_FILTER = 26
SOL_PACKET, PACKET_STATISTICS = 263, 6
INSTRUCTION = 8
LARGEST = 2048


class Watch:
    """Frames of a device that pass a filter. A bond's members show what really leaves by each."""

    def __init__(self, device: str, program: bytes):
        """``program``: of host/filters.py. Raises HostCannot."""
        self.device = device
        try:
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        except OSError as error:
            raise HostCannot(f"cannot watch {device}: {error.strerror}", "run it as root") from error
        try:
            attach(self.socket, program)
            self.socket.bind((device, ETH_P_ALL))
        except OSError as error:
            self.socket.close()
            raise HostCannot(f"cannot watch {device}: {error.strerror}", "run it as root") from error
        self.fd = self.socket.fileno()

    def send(self, frame: bytes) -> None:
        """Send a frame out by the device. Lost when the device is down."""
        with suppress(OSError):
            self.socket.send(frame)

    def receive(self) -> tuple[bool, bytes] | None:
        """The next frame, and whether it leaves; None when there is none."""
        try:
            data, where = self.socket.recvfrom(LARGEST)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENETDOWN, errno.ENXIO):
                return None
            raise
        return where[2] == OUTGOING, data

    def passed(self) -> int:
        """Frames that passed the filter since the last call, also those that nobody received (packet(7))."""
        told = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8)
        return int(struct.unpack("=II", told)[0])

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def attach(to: socket.socket, program: bytes) -> None:
    """Give a socket a filter (socket(7), SO_ATTACH_FILTER). Raises OSError."""
    code = ctypes.create_string_buffer(program)
    to.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER,
                  struct.pack("@HP", len(program) // INSTRUCTION, ctypes.addressof(code)))
