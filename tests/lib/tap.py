"""A guest's end of a tap, held by the test: what it writes is what a guest would send.

(A packet socket on a tap sends *to* the guest, so attacks must come through the tap's own descriptor.)
"""
from __future__ import annotations

import fcntl
import os
import struct
from types import TracebackType

from kvmnet.host import macvtap
from kvmnet.host.clock import wait_until

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000


class Tap:
    """The open tap *name*, made if there is none; closes with the ``with`` block."""

    def __init__(self, name: str):
        self.name = name
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
        self.seen: list[bytes] = []

    @classmethod
    def of_macvtap(cls, name: str) -> Tap:
        """The guest's end of a macvtap that exists."""
        made = cls.__new__(cls)
        made.name, made.seen = name, []
        made.fd = macvtap.open_queue(name, IFF_TAP | IFF_NO_PI)
        return made

    def send(self, frame: bytes) -> None:
        os.write(self.fd, frame)

    def drain(self) -> list[bytes]:
        """All frames delivered since the last ``forget``."""
        while True:
            try:
                self.seen.append(os.read(self.fd, 70000))
            except BlockingIOError:
                return self.seen

    def forget(self) -> None:
        self.drain()
        self.seen.clear()

    def got(self, nonce: bytes) -> int:
        """How many of the delivered frames carry *nonce*."""
        return sum(nonce in frame for frame in self.drain())

    def wait(self, nonce: bytes, timeout: float = 20.0) -> None:
        wait_until(lambda: self.got(nonce), timeout)

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
