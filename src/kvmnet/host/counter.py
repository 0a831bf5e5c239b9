"""How fast this processor's time stamp counter counts, for kernels that QEMU emulates.

Their counter is this machine's (helper_rdtsc() and cpu_get_ticks() of QEMU), and what it counts in a second they find by a timer
of QEMU's. On a machine that has no processor for QEMU just then the result was wrong by a factor of eight, and their clocks with it.
"""
from __future__ import annotations

import ctypes
import mmap
import platform
from functools import cache
from time import monotonic_ns

READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl rdx, 32; or rax, rdx; ret"""
TIMES = 50
"""Readings of which the quickest is taken: nobody came between it and the clock."""
SPAN = 50_000_000
"""Nanoseconds between two readings that are compared: the result is right to a few millionths."""


def word() -> str:
    """The word of the kernel command line that tells an emulated kernel, '' where it cannot be had (Linux 5.9 and later know it)."""
    found = kilohertz()
    return f"tsc_early_khz={found}" if found else ""


@cache
def kilohertz() -> int:
    """Thousands of counts in a second; 0 on another kind of processor, or where no page may be written and executed."""
    if platform.machine() != "x86_64":
        return 0
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return 0
    page.write(READ)
    place = ctypes.c_char.from_buffer(page)
    counter = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(place))

    def reading() -> tuple[int, int, int]:
        before = monotonic_ns()
        count = counter()
        after = monotonic_ns()
        return after - before, count, (before + after) // 2

    _, count, began = min(reading() for _ in range(TIMES))
    while monotonic_ns() < began + SPAN:
        pass
    _, later, ended = min(reading() for _ in range(TIMES))
    del place
    page.close()
    return round((later - count) * 1_000_000 / (ended - began))
