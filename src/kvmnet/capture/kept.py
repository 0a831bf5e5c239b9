"""Files of a record without end: the last of them, each of a bounded size, through ends of the process that writes them."""
from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar

from kvmnet.capture.files import Files


class Kept(Files):
    """At most ``keep`` files NAME-00001.pcapng and so on; one more for the moment of a change. Those that an earlier process made are among
    them, and known by the comment that they begin with: others' are left alone, and numbers go on behind all."""

    MARK: ClassVar[str] = "recorded by kvmnet, mirror"
    BEGINNING: ClassVar[int] = 4096

    def __init__(self, path: Path, size: int, keep: int, header: bytes):
        """Raises HostCannot when the first file cannot be made."""
        self.path, self.size, self.keep, self.header = path, size, keep, header
        numbered = re.compile(re.escape(path.stem) + r"-(\d{5,})" + re.escape(path.suffix))
        there = sorted((int(found[1]), file) for file in path.parent.glob("*") if (found := numbered.fullmatch(file.name)))
        self.number = max((number for number, _ in there), default=0)
        self.names = [file for _, file in there if self.is_ours(file)]
        self.written = self.total = 0
        while len(self.names) >= keep:
            self.names.pop(0).unlink(missing_ok=True)
        self.fd = self.opened()

    def is_ours(self, file: Path) -> bool:
        try:
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            return self.MARK.encode() in os.read(fd, self.BEGINNING)
        except OSError:
            return False
        finally:
            os.close(fd)

    def rotate(self, last: bytes) -> None:
        """As ``Files.rotate``; when there is no room for another file this one stays, and is full."""
        number, names, written = self.number, list(self.names), self.written
        try:
            super().rotate(last)
        except OSError:
            for made in self.names[len(names):]:
                made.unlink(missing_ok=True)
            self.number, self.names, self.written = number, names, max(self.size, written)
            raise
