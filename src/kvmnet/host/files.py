"""Files that are whole or not there: durable writes, and errors that say what to do."""
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kvmnet.errors import HostCannot

REASONS = {
    errno.ENOSPC: ("no space left on the disk", "make room there"),
    errno.EDQUOT: ("the disk quota is used up", "make room there or raise the quota"),
    errno.EFBIG: ("the file would be larger than is allowed", "raise the file size limit (ulimit -f)"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or set KVMNET_STATE_DIR and KVMNET_RUN_DIR"),
    errno.EACCES: ("permission denied", "run it as root"),
    errno.EPERM: ("permission denied", "run it as root"),
    errno.EIO: ("input/output error: the disk is failing", "look at dmesg"),
    errno.ENOTDIR: ("a part of the path is not a directory", "move it away"),
    errno.EEXIST: ("a file is in its place", "move it away"),
}
"""errno -> what is wrong, and what to do about it."""


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Make *path* and its parents. Raises HostCannot."""
    with readable_errors(path, "make"):
        path.mkdir(mode=mode, parents=True, exist_ok=True)


def write_durably(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace *path* by *text*; after a crash it is either the old or the new. Raises HostCannot."""
    make_directory(path.parent)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with readable_errors(path, "write"):
            fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
            with open(fd, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_directory(path.parent)
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def remove_durably(path: Path) -> None:
    """Remove *path* if it is there, for good. Raises HostCannot."""
    with readable_errors(path, "remove"):
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            sync_directory(path.parent)


def rename_durably(path: Path, to: Path) -> None:
    """Rename within a directory; it needs no space. Raises HostCannot."""
    with readable_errors(to, "write"):
        path.replace(to)
        sync_directory(to.parent)


def sync_directory(path: Path) -> None:
    """Make what was renamed or removed in *path* survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def readable_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError of the body into HostCannot that names the path and the remedy."""
    try:
        yield
    except OSError as error:
        reason, hint = REASONS.get(error.errno or 0, (error.strerror or str(error), ""))
        raise HostCannot(f"cannot {doing} {path}: {reason}", hint) from error
