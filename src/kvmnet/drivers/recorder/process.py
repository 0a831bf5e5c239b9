"""The process that keeps a mirror's copies (``daemon.py``), and what it writes from now on."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from kvmnet.capture import pcapng
from kvmnet.drivers.supervised import Supervised
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class Recording(Supervised):
    """The process of one mirror, by its folder."""

    program: ClassVar[str] = str(Path(__file__).with_name("daemon.py"))


def recording(run: Path, mirror: str) -> Recording:
    """``run``: the directory of what lives until the next boot."""
    return Recording((run / "recorders").absolute() / mirror)


@dataclass(slots=True)
class Tail:
    """What is written into files of one recorder from some place on."""

    file: Path
    at: int
    """Bytes of ``file`` that are known."""

    @classmethod
    def of(cls, recording: Recording) -> Tail | None:
        """From where the recorder is now, or was a moment ago; None when it does not live."""
        state = recording.state()
        return cls(Path(state["file"]), state["at"]) if state and state["file"] else None

    def frames(self) -> Iterator[tuple[int, int, bytes]]:
        """(nanoseconds since 1970, length, bytes that were kept) of every frame since the last call."""
        while True:
            data = self.read()
            yield from pcapng.packets(data)
            following = self.file.with_name(NUMBERED.sub(lambda m: f"-{int(m[1]) + 1:05d}.", self.file.name))
            if data or not following.exists():
                return
            self.file, self.at = following, 0

    def read(self) -> bytes:
        """Whole blocks that are new."""
        try:
            with self.file.open("rb") as opened:
                opened.seek(self.at)
                data = opened.read()
        except FileNotFoundError:
            return b""
        found = pcapng.whole(data)
        self.at += len(found)
        return found


NUMBERED = re.compile(r"-(\d{5,})\.(?=[^.]*$)")
