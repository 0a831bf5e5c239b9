"""The process that keeps the copies of a mirror in files: ``python -I -S daemon.py FOLDER``, with the standard library alone.

It reads a ring of the kernel's (``host/ring.py``), which waits for nobody: while the disk is slow, full or gone, and while the process
is started again, frames are lost, counted, and nothing else. What it did is in ``state.json``, and goes on from there.
"""
from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from kvmnet.capture import pcapng
from kvmnet.capture.kept import Kept
from kvmnet.errors import KvmnetError
from kvmnet.host.ring import Frame, Rings, settle
from kvmnet.host.watched import CONFIG, STATE, replace, watch

LOOK = 1.0
"""Seconds between two entries in the state, and until a disk that took nothing is tried again."""
RETURN_SNAP = 0x06
TOGETHER = 1 << 20
"""Bytes that are written at once."""


class Recorder:
    def __init__(self, folder: Path):
        self.folder = folder
        wish = json.loads((folder / CONFIG).read_text())
        self.device, self.snap = wish["device"], wish["snap"]
        self.ended = False
        self.rings = Rings({self.device: struct.pack("=HBBI", RETURN_SNAP, 0, 0, self.snap)})
        self.ring = self.rings.rings[self.device]
        about = os.uname()
        comment = f"{Kept.MARK} {wish['name']}"
        self.header = pcapng.header([pcapng.Interface(self.device, f"copies of mirror {wish['name']}")], "kvmnet",
                              f"{about.sysname} {about.release}", self.snap, comment)
        self.wish = wish
        self.files: Kept | None = None
        self.started = time.time_ns()
        self.before = self.read()
        self.frames, self.octets, self.lost, self.missed = (self.before.get(n, 0) for n in ("frames", "bytes", "lost", "missed"))
        self.counted = 0
        """Frames that the ring has lost, as far as they are in ``lost``."""
        self.trouble = ""
        self.written, self.look_at = "", 0.0
        self.ready()
        if self.before:    # what came by the device while nobody wrote
            passed = passed_by(self.device)
            self.missed += max(0, passed - self.before["passed"]) if passed >= self.before["passed"] else passed

    def read(self) -> dict[str, int]:
        try:
            found = json.loads((self.folder / STATE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def run(self, ready: int) -> NoReturn:
        """``ready``: told when the ring is open."""
        signal.signal(signal.SIGTERM, self.end)
        self.tell()
        os.write(ready, b"+")
        os.close(ready)
        while not self.ended:
            self.rings.wait(LOOK)
            if not self.rings.watching:
                self.tell()
                print(f"{self.device} went away", flush=True)
                os._exit(1)
            self.keep(list(self.ring.drain()))
            if time.monotonic() >= self.look_at:
                self.tell()
        settle()
        self.keep(list(self.ring.drain()))
        self.close()
        os._exit(0)

    def end(self, number: int, stack: object) -> None:
        self.ended = True
        self.rings.stop()

    def ready(self) -> Kept | None:
        """The files; None while there is no folder for them, or no right to write there. A host is not to be without its network for that."""
        if self.files is None:
            try:
                self.files = Kept(Path(self.wish["path"]), self.wish["size"], self.wish["files"], self.header)
                self.trouble = ""
            except (OSError, KvmnetError) as refused:
                self.trouble = str(refused)
        return self.files

    def keep(self, frames: Sequence[Frame]) -> None:
        """Write frames, or lose them when the disk takes none."""
        files = self.ready()
        if files is None:
            self.lost += len(frames)
            return
        pending: list[bytes] = []
        size = waiting = octets = 0
        for frame in frames:
            made = pcapng.packet(0, frame.time, frame.length, frame.data)
            if size and (size + len(made) > TOGETHER or not files.room(size + len(made) + pcapng.RESERVE)):
                self.write(files, b"".join(pending), waiting, octets)
                pending, size, waiting, octets = [], 0, 0, 0
            pending.append(made)
            size, waiting, octets = size + len(made), waiting + 1, octets + frame.length
        if pending:
            self.write(files, b"".join(pending), waiting, octets)

    def write(self, files: Kept, data: bytes, frames: int, octets: int) -> None:
        try:
            if not files.room(len(data) + pcapng.RESERVE):
                files.rotate(self.statistics())
            files.write(data)
        except (OSError, KvmnetError) as refused:
            self.trouble = str(refused)
            self.lost += frames
            return
        self.trouble = ""
        self.frames += frames
        self.octets += octets

    def statistics(self) -> bytes:
        self.count()
        return pcapng.statistics(0, self.started, time.time_ns(), self.ring.received, self.ring.lost)

    def count(self) -> None:
        self.ring.count()
        self.lost += self.ring.lost - self.counted
        self.counted = self.ring.lost

    def tell(self) -> None:
        """What was done, in a file."""
        self.look_at = time.monotonic() + LOOK
        self.count()
        text = json.dumps({"frames": self.frames, "bytes": self.octets, "lost": self.lost, "missed": self.missed, "passed": passed_by(self.device),
                           "file": str(self.files.names[-1]) if self.files else "", "at": self.files.written if self.files else 0,
                           "trouble": self.trouble})
        if text != self.written:
            self.written = text
            replace(self.folder / STATE, text)

    def close(self) -> None:
        self.tell()
        if self.files is None:
            return
        with suppress(OSError):    # the disk may be full; the packets are there
            self.files.write(self.statistics())
        self.files.close()


def passed_by(device: str) -> int:
    """Frames that were handed to the device: an ifb drops what was not led there from another device, and counts it (ifb_xmit() in
    drivers/net/ifb.c)."""
    for line in Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == device:
            return int(numbers.split()[3])
    return 0


def work(folder: Path, ready: int) -> NoReturn:
    Recorder(folder).run(ready)


if __name__ == "__main__":
    sys.exit(watch(Path(sys.argv[1]), work, "another process writes for this mirror", signal.SIGTERM))
