"""Which process holds which tap. Reads /proc only.

The kernel tells the device of an open /dev/net/tun in the descriptor's fdinfo, as ``iff:``
(tun_chr_show_fdinfo() in drivers/net/tun.c).
"""
from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from kvmnet.host.process import namespace_id
from kvmnet.records import dataclass

PROC = Path("/proc")
IFF = re.compile(r"^iff:\s*(\S+)", re.M)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process with taps open: descriptor -> tap."""

    pid: int
    command: tuple[str, ...]
    taps: dict[int, str]


def holders() -> list[Holder]:
    """Every process of this network namespace that holds taps. Those that we may not look at are left out."""
    here, found = namespace_id(), []
    for entry in sorted((e for e in PROC.iterdir() if e.name.isdigit()), key=lambda e: int(e.name)):
        with contextlib.suppress(OSError):
            taps = dict(open_taps(entry))
            if taps and (entry / "ns/net").stat().st_ino == here:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
                found.append(Holder(int(entry.name), tuple(words), taps))
    return found


def open_taps(process: Path) -> Iterator[tuple[int, str]]:
    for fd in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            if str(fd.readlink()).startswith("/dev/net/tun"):
                told = IFF.search((process / "fdinfo" / fd.name).read_text(encoding="utf-8", errors="replace"))
                if told:
                    yield int(fd.name), told[1]
