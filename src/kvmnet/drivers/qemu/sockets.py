"""Unix sockets of a guest: made before QEMU starts and handed to it, so that they are root's alone.

A socket's path may have 107 bytes only; going through an open folder makes any folder do.
"""
from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def short(path: Path) -> Iterator[str]:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def connect(path: Path, timeout: float = 2.0) -> socket.socket:
    """Raises OSError: nothing there, nobody listens, or the queue is full for ``timeout`` seconds."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    stream.settimeout(timeout)
    try:
        with short(path) as name:
            stream.connect(name)
    except BaseException:
        stream.close()
        raise
    return stream


def listen(path: Path) -> socket.socket:
    """A listening socket that only its owner may connect to. A stale one is replaced."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with short(path) as name:
            server.bind(name)
        path.chmod(0o600)
        server.listen(4)
    except BaseException:
        server.close()
        raise
    return server
