"""Files of a capture: for their owner alone, never over one that exists, rotated by size.

A file is never seen half: each begins with everything that a reader needs, grows by whole blocks in one write, and the
next one exists before the oldest is removed.
"""
from __future__ import annotations

import os
from pathlib import Path

from kvmnet.errors import ConflictError, HostCannot


class Files:
    """At most ``keep`` files of at most ``size`` bytes each. With one, it is full when it is full."""

    def __init__(self, path: Path, size: int, keep: int, header: bytes):
        """Raises ConflictError when the first file exists, HostCannot when it cannot be made."""
        self.path, self.size, self.keep, self.header = path, size, keep, header
        self.number = 0
        self.names: list[Path] = []
        self.written = 0
        """Bytes of the file that is written."""
        self.total = 0
        """Bytes of all files, those that were removed too."""
        self.fd = self.opened()

    def opened(self) -> int:
        self.number += 1
        file = self.path if self.keep == 1 else self.path.with_name(f"{self.path.stem}-{self.number:05d}{self.path.suffix}")
        try:
            fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileExistsError:
            raise ConflictError(f"{file} exists already", "name another file, or remove it") from None
        except OSError as error:
            raise HostCannot(f"{file} cannot be written: {error.strerror}", "name another file") from error
        self.names.append(file)
        self.written = 0
        self.write_to(fd, self.header)
        return fd

    def write_to(self, fd: int, data: bytes) -> None:
        """All of *data* or, when the disk is full, nothing of it: the file keeps whole blocks. Raises OSError."""
        start = self.written
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(fd, view):]
        except OSError:
            os.ftruncate(fd, start)
            os.lseek(fd, start, os.SEEK_SET)    # what is written later is not to follow a hole
            raise
        self.written += len(data)
        self.total += len(data)

    def room(self, more: int) -> bool:
        """Whether *more* bytes fit into the file that is written."""
        return self.written + more <= self.size

    def write(self, data: bytes) -> None:
        self.write_to(self.fd, data)

    def rotate(self, last: bytes) -> None:
        """The next file in the place of this one, which ends with *last*."""
        self.write_to(self.fd, last)
        before, self.fd = self.fd, self.opened()
        os.close(before)
        while len(self.names) > self.keep:
            self.names.pop(0).unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self.fd)
