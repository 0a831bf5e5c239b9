"""Floods of frames and who counts them: what passed, and when.

The clock starts before the flood and a reader can only be late: what is measured is at most what passed in that time.
"""
from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from kvmnet.host.clock import wait_until
from lib.netns import inside

SO_RCVBUFFORCE, SO_TIMESTAMPNS = 33, 35
OUTGOING = 4
BUFFER = 64 << 20
TOGETHER = 8
"""Frames that are sent without a look at the clock."""


@dataclass
class Heard:
    """Frames with a nonce that came in by a device."""

    began: float
    frames: list[bytes] = field(default_factory=list)
    stamps: list[float] = field(default_factory=list)
    """When each came, by the kernel's clock."""

    @property
    def last(self) -> float:
        return self.stamps[-1] if self.stamps else self.began

    def before(self, moment: float) -> int:
        """Bytes that came until *moment*."""
        return sum(len(frame) for frame, stamp in zip(self.frames, self.stamps, strict=True) if stamp <= moment)

    @property
    def octets(self) -> int:
        return sum(map(len, self.frames))

    @property
    def seconds(self) -> float:
        return self.last - self.began

    def allowed(self, rate: int, burst: int) -> int:
        """Bytes that *rate* (kbit/s) and *burst* (bytes) let pass in the time that it took, and one frame."""
        return round(rate * 125 * self.seconds) + burst + max(map(len, self.frames), default=0)


class Ear:
    """Hears what comes in by *device*, as long as it is open."""

    def __init__(self, device: str, nonce: bytes):
        self.nonce = nonce
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.bind((device, 3))
        self.heard = Heard(time.time())

    def drain(self) -> int:
        """Read what there is; how many frames have been heard in all."""
        while True:
            try:
                frame, ancillary, _, source = self.socket.recvmsg(70000, 128)
            except BlockingIOError:
                return len(self.heard.frames)
            if source[2] == OUTGOING or self.nonce not in frame:
                continue
            (stamp,) = (struct.unpack("qq", data) for level, _, data in ancillary if level == socket.SOL_SOCKET)
            self.heard.stamps.append(stamp[0] + stamp[1] / 1e9)
            self.heard.frames.append(frame)

    def rest(self, least: int = 0) -> Heard:
        """All of it, once nothing has come for a while. *least*: frames that are waited for."""
        known = [-1]

        def quiet() -> bool:
            known.append(self.drain())
            return known[-1] == known[-2] and known[-1] >= least
        with suppress(TimeoutError):    # what has not come is missed by who asks
            wait_until(quiet, 20, 0.3)
        return self.heard


@contextmanager
def ear(netns: str, device: str, nonce: bytes) -> Iterator[Ear]:
    """An ear in a named namespace."""
    with inside(netns):
        opened = Ear(device, nonce)
    try:
        yield opened
    finally:
        opened.socket.close()


def flood(send: Callable[[bytes], object], frame: bytes, rate: int, seconds: float) -> int:
    """Send *frame* again and again at *rate* (kbit/s) for *seconds*; the bytes that were sent. What the device does not
    take at once is not sent."""
    began, sent, taken, total = time.monotonic(), 0, 0, round(rate * 125 * seconds)
    while sent < total:
        wait_until(lambda: sent <= (time.monotonic() - began) * rate * 125, 20, 0.002)  # noqa: B023 (asked at once)
        for _ in range(TOGETHER):
            with suppress(BlockingIOError):
                send(frame)
                taken += len(frame)
        sent += TOGETHER * len(frame)
    return taken
