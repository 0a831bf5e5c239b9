"""Private and shared keys in files: read for comparing, made once, never told to anybody.

What the kernel has now and no file has any more (somebody wrote another key into the file) is kept in the run directory
when it is replaced, so that a change can be taken back. It ends with the tunnel, or with the boot.
"""
from __future__ import annotations

import os
import stat
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path

from kvmnet.host.files import make_directory, write_durably


def own_file(state: Path, dev: str) -> Path:
    """Where the key lies that kvmnet made for a tunnel. It outlives destroy: the other hosts know this one by it."""
    return state / "wireguard" / f"{dev}.key"


def make(path: Path) -> None:
    """A new private key, when there is none. Raises HostCannot."""
    if path.exists():
        return
    make_directory(path.parent, 0o700)
    write_durably(path, f"{clamped(os.urandom(32))}\n", 0o600)


def clamped(raw: bytes) -> str:
    """A private key as the kernel keeps it (RFC 7748, 5)."""
    return b64encode(bytes((raw[0] & 248, *raw[1:31], raw[31] & 127 | 64))).decode()


def private_key(path: Path) -> str:
    """The private key in a file as the kernel keeps it; '' when there is none."""
    raw = content(path)
    return clamped(raw) if len(raw) == 32 else ""


def shared_key(path: Path) -> str:
    """The preshared key in a file; '' when there is none."""
    raw = content(path)
    return b64encode(raw).decode() if len(raw) == 32 else ""


def content(path: Path) -> bytes:
    with suppress(OSError, ValueError):
        return b64decode(path.read_text(encoding="ascii").strip(), validate=True)
    return b""


def trouble(path: Path) -> str:
    """What is wrong with a file that holds a secret, '' for nothing."""
    try:
        about = path.stat()
    except OSError as error:
        return (error.strerror or str(error)).lower()
    if not stat.S_ISREG(about.st_mode):
        return "is no file"
    if about.st_mode & 0o077:
        return f"others can read it (mode {stat.S_IMODE(about.st_mode):03o}): chmod 600 {path}"
    return "" if len(content(path)) == 32 else "holds no key: 32 bytes in base64"
