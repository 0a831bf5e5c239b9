"""Writer of cpio archives in the "newc" format, which the kernel unpacks as its initial RAM disk. Pure.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. All entries belong to
root and have time 0, so that equal contents give equal bytes.
"""
from __future__ import annotations

import stat

from kvmnet.records import dataclass, field

MAGIC = b"070701"
TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class Archive:
    """An archive under construction. Parent directories are added by themselves."""

    parts: list[bytes] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def directory(self, name: str, mode: int = 0o755) -> None:
        name = name.strip("/")
        if not name or name in self.names:
            return
        self.add(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """Add a regular file. A name that is there already is left as it is."""
        self.add(name, stat.S_IFREG | mode, content)

    def symlink(self, name: str, target: str) -> None:
        self.add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a character device, e.g. the console that the kernel opens for init."""
        self.add(name, stat.S_IFCHR | mode, b"", major, minor)

    def add(self, name: str, mode: int, content: bytes, major: int = 0, minor: int = 0) -> None:
        name = name.strip("/")
        if name in self.names:
            return
        if "/" in name:
            self.directory(name.rsplit("/", 1)[0])
        self.names.add(name)
        self.parts.append(entry(name, len(self.names), mode, content, major, minor))

    def to_bytes(self) -> bytes:
        return b"".join((*self.parts, entry(TRAILER, 0, 0, b"", 0, 0)))


def entry(name: str, inode: int, mode: int, content: bytes, major: int, minor: int) -> bytes:
    """One header (13 fields of 8 hex digits), the name and the content, each padded to 4 bytes."""
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, major, minor, len(encoded), 0)
    head = MAGIC + b"".join(b"%08X" % n for n in numbers) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
