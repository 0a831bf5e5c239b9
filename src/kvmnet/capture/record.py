"""The loop of a capture: from the rings to files or lines, until time, size or the user ends it."""
from __future__ import annotations

import errno
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from time import monotonic, time_ns
from typing import Protocol

from kvmnet.capture import pcapng
from kvmnet.capture.files import Files
from kvmnet.host.ring import RETIRE, Frame, Rings, settle
from kvmnet.records import dataclass, field

HOLD = 2 * RETIRE / 1000
"""Seconds after which every device has handed over what it saw."""


class End(StrEnum):
    TIME = "the time is over"
    SIZE = "the file is full"
    COUNT = "enough frames"
    ASKED = "stopped"
    GONE = "every device went away"
    DISK = "the disk is full"


@dataclass(frozen=True, slots=True)
class Bounds:
    seconds: float | None
    """None: until it is stopped."""
    frames: int | None


@dataclass(slots=True)
class Seen:
    """What was captured at one device."""

    frames: int = 0
    octets: int = 0
    """Bytes on the device, also those beyond what was kept."""
    lost: int = 0
    """Frames that the filter took and that found no room."""
    gone: bool = False


@dataclass(slots=True)
class Outcome:
    ended: End
    seconds: float
    seen: dict[str, Seen]
    files: Sequence[Path] = ()
    octets: int = 0
    """Bytes written."""


class Sink(Protocol):
    def take(self, frames: Sequence[tuple[int, Frame]]) -> int:
        """Keep frames, each with the number of its device; how many were taken before it was full."""

    def end(self) -> None: ...


@dataclass(slots=True)
class Writing:
    """A sink of files."""

    files: Files
    rings: Rings
    started: int = field(default_factory=time_ns)

    def take(self, frames: Sequence[tuple[int, Frame]]) -> int:
        pending: list[bytes] = []
        size, reserve = 0, pcapng.RESERVE * len(self.rings.rings)
        for position, (number, frame) in enumerate(frames):
            made = pcapng.packet(number, frame.time, frame.length, frame.data, outgoing=frame.outgoing)
            if not self.files.room(size + len(made) + reserve):
                self.files.write(b"".join(pending))
                pending, size = [], 0
                if self.files.keep == 1:
                    return position
                self.files.rotate(self.statistics())
            pending.append(made)
            size += len(made)
        self.files.write(b"".join(pending))
        return len(frames)

    def statistics(self) -> bytes:
        now = time_ns()
        for ring in self.rings.watching:
            ring.count()
        return b"".join(pcapng.statistics(i, self.started, now, ring.received, ring.lost)
                        for i, ring in enumerate(self.rings.rings.values()))

    def end(self) -> None:
        with suppress(OSError):    # the disk may be full; the packets are there
            self.files.write(self.statistics())
        self.files.close()


@dataclass(slots=True)
class Printing:
    """A sink of lines."""

    line: Callable[[int, Frame], None]

    def take(self, frames: Sequence[tuple[int, Frame]]) -> int:
        for number, frame in frames:
            self.line(number, frame)
        return len(frames)

    def end(self) -> None:
        pass


@contextmanager
def stopping(rings: Rings) -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the capture, and not the process. The list has the signals that came."""
    came: list[int] = []

    def heard(number: int, _: object) -> None:
        came.append(number)
        rings.stop()
    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def record(rings: Rings, sink: Sink, bounds: Bounds, came: Sequence[int]) -> Outcome:
    """Capture until *bounds*, the sink, a signal or the end of every device. What the kernel handed over before is kept.

    ``came``: see ``stopping``.
    """
    seen = {device: Seen() for device in rings.rings}
    begun = monotonic()
    ended = loop(rings, sink, bounds, seen, came, begun)
    sink.end()
    for device, ring in rings.rings.items():
        ring.count()
        seen[device].lost, seen[device].gone = ring.lost, ring.gone
    return Outcome(ended, monotonic() - begun, seen)


def loop(rings: Rings, sink: Sink, bounds: Bounds, seen: dict[str, Seen], came: Sequence[int], begun: float) -> End:
    devices = list(rings.rings)
    left = bounds.frames
    held: list[tuple[int, Frame]] = []
    while True:
        rest = None if bounds.seconds is None else begun + bounds.seconds - monotonic()
        if not came and (rest is None or rest > 0):
            rings.wait(min(rest or HOLD, HOLD) if held else rest)
        over = End.ASKED if came else End.TIME if bounds.seconds is not None and monotonic() >= begun + bounds.seconds else None
        over = over or (None if rings.watching else End.GONE)
        if over:
            settle()
        held += ((number, frame) for number, ring in enumerate(rings.rings.values()) for frame in ring.drain())
        frames, held = in_order(held, over)
        if left is not None and len(frames) >= left:
            over, frames = End.COUNT, frames[:left]
        try:
            taken = sink.take(frames)
        except OSError as full:
            if full.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            return End.DISK
        for number, frame in frames[:taken]:
            one = seen[devices[number]]
            one.frames += 1
            one.octets += frame.length
        left = None if left is None else left - taken
        if taken < len(frames):
            return End.SIZE
        if over:
            return over


def in_order(held: list[tuple[int, Frame]], over: End | None) -> tuple[list[tuple[int, Frame]], list[tuple[int, Frame]]]:
    """Frames of all devices by their time, and those that wait because another device may still hand over older ones."""
    held.sort(key=lambda item: item[1].time)
    if over:
        return held, []
    ripe = bisect_right(held, time_ns() - int(HOLD * 1e9), key=lambda item: item[1].time)
    return held[:ripe], held[ripe:]
