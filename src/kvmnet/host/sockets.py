"""Sockets of other processes, which only root may touch."""
from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PIDFD_GETFD = 438
"""Number of the system call on every architecture (Linux 5.6)."""


def bind_raw(pid: int, protocol: int, device: str) -> int:
    """Bind every raw IPv6 socket of *protocol* that a process has to *device*; how many. Raises OSError."""
    return sum(bind_one(borrowed, protocol, device) for borrowed in sockets(pid))


def sockets(pid: int) -> Iterator[socket.socket]:
    """The sockets of a process, one after another, each closed here when the next is taken."""
    handle = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                name = str(entry.readlink())
            except OSError:    # closed meanwhile
                continue
            if not name.startswith("socket:"):
                continue
            with taken(handle, int(entry.name)) as borrowed:
                yield borrowed
    finally:
        os.close(handle)


@contextmanager
def taken(handle: int, number: int) -> Iterator[socket.socket]:
    """A duplicate of a descriptor of another process (pidfd_getfd(2)), as a socket."""
    import ctypes  # servers of few networks need it

    fd = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, handle, number, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "cannot take a socket of another process")
    with socket.socket(fileno=fd) as borrowed:
        yield borrowed


def bind_one(borrowed: socket.socket, protocol: int, device: str) -> bool:
    wanted = (borrowed.family, borrowed.type, borrowed.proto) == (socket.AF_INET6, socket.SOCK_RAW, protocol)
    if wanted:
        borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    return wanted
