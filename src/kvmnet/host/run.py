"""The only door to other programs: run one, with a deadline, and say clearly what went wrong."""
from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from kvmnet.errors import HostCannot
from kvmnet.host.lock import inherited

PACKAGES = {
    "ip": "iproute2", "bridge": "iproute2", "tc": "iproute2", "nft": "nftables",
    "dnsmasq": "dnsmasq-base", "dhcp_release": "dnsmasq-utils", "dhcp_release6": "dnsmasq-utils",
    "qemu-system-x86_64": "qemu-system-x86", "ethtool": "ethtool", "tcpdump": "tcpdump",
    "busybox": "busybox-static", "conntrack": "conntrack", "wg": "wireguard-tools", "unshare": "util-linux",
    "cc": "gcc libc6-dev", "mount": "mount",
    "ovs-vsctl": "openvswitch-switch", "ovs-ofctl": "openvswitch-common", "ovs-appctl": "openvswitch-common", "ovsdb-client": "openvswitch-common", "ovn-appctl": "ovn-common",
}
"""Tool -> Debian package."""

SEARCH_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")))
"""Debian's `su` leaves sbin out; programs that a tool starts are found there, too."""


class ToolFailed(Exception):
    """A program ended with an error. ``detail`` is what it said."""

    def __init__(self, argv: Sequence[str], code: int, detail: str):
        self.argv, self.code, self.detail = tuple(argv), code, detail.strip()
        super().__init__(f"{' '.join(self.argv)}: exit {code}: {self.detail}")


def find(tool: str) -> str | None:
    """Full path of a program, also in sbin, or None."""
    return shutil.which(tool, path=SEARCH_PATH)


def missing(*tools: str) -> str | None:
    """Which of *tools* are not installed and what to install, or None."""
    lacking = [t for t in tools if find(t) is None]
    if not lacking:
        return None
    packages = " ".join(dict.fromkeys(PACKAGES.get(t, t) for t in lacking))
    return f"{', '.join(lacking)} not found: apt-get install {packages}"


def run(argv: Sequence[str], *, stdin: str = "", timeout: float = 60) -> str:
    """Standard output of a program. Raises ToolFailed, or HostCannot when it is not installed.

    ``timeout`` is in seconds; a program that outlives it is killed.
    """
    with anonymous(stdin) as given, anonymous() as out, anonymous() as err:
        child = start(argv, given, out, err)
        return said(argv, end_of(child, timeout), out, err, timeout)


def feed(argv: Sequence[str], lines: Iterable[str], *, timeout: float = 60) -> str:
    """As ``run``, for a program that works line by line: it begins with the first *lines* while the others are still being made.

    They are written whole, and what a pipe takes at once is taken whole or not at all (PIPE_BUF in pipe(7)): where this process is killed
    meanwhile, no half of a line is left to be carried out. None may be longer than ``LONGEST`` bytes.
    """
    with anonymous() as out, anonymous() as err:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                child = start(argv, reading, out, err)
            finally:
                os.close(reading)
            try:
                give(child, writing, lines, timeout)
            except BaseException:
                child.kill()
                child.wait()
                raise
        finally:
            os.close(writing)
        return said(argv, end_of(child, timeout), out, err, timeout)


LONGEST = select.PIPE_BUF


def give(child: subprocess.Popen[bytes], pipe: int, lines: Iterable[str], timeout: float) -> None:
    """Write *lines* until the program has ended, or has taken nothing for so many seconds."""
    os.set_blocking(pipe, False)
    handle = os.pidfd_open(child.pid)
    try:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        waiting.register(pipe, select.POLLOUT)
        for portion in portions(lines):
            while ready := dict(waiting.poll(timeout * 1000)):
                if handle in ready:
                    return
                try:
                    os.write(pipe, portion)
                    break
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    return
            else:
                return
    finally:
        os.close(handle)


def portions(lines: Iterable[str]) -> Iterator[bytes]:
    """Whole lines, as many together as a pipe takes at once."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        data = line.encode()
        if held and size + len(data) > LONGEST:
            yield b"".join(held)
            held, size = [], 0
        held.append(data)
        size += len(data)
    if held:
        yield b"".join(held)


def start(argv: Sequence[str], given: int, out: int, err: int) -> subprocess.Popen[bytes]:
    """Raises HostCannot when it is not installed."""
    path = find(argv[0])
    if path is None:
        raise HostCannot(missing(argv[0]) or argv[0])
    return subprocess.Popen([path, *argv[1:]], stdin=given, stdout=out, stderr=err,
                            env={**os.environ, "LC_ALL": "C.UTF-8", "PATH": SEARCH_PATH}, pass_fds=inherited())


def said(argv: Sequence[str], code: int | None, out: int, err: int, timeout: float) -> str:
    """What a program that has ended wrote. Raises ToolFailed."""
    if code is None:
        raise ToolFailed(argv, -1, f"no answer within {timeout:g} s")
    if code:
        raise ToolFailed(argv, code, content(err) or content(out))
    return content(out)


@contextmanager
def anonymous(text: str = "") -> Iterator[int]:
    """A file in memory with *text*. Tools write megabytes into it at once, where a pipe would take them
    piece by piece and wake us for each (800 times for 1,000 links)."""
    fd = os.memfd_create("kvmnet", os.MFD_CLOEXEC)
    try:
        if text:
            with open(fd, "wb", closefd=False) as file:
                file.write(text.encode())
            os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


def content(fd: int) -> str:
    """All that was written into a file in memory."""
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


def end_of(child: subprocess.Popen[bytes], timeout: float) -> int | None:
    """Exit code of *child*; None when it had to be killed after *timeout* seconds."""
    try:
        handle = os.pidfd_open(child.pid)
        try:
            waiting = select.poll()
            waiting.register(handle, select.POLLIN)
            late = not waiting.poll(timeout * 1000)
        finally:
            os.close(handle)
        if late:
            child.kill()
        code = child.wait()
        return None if late else code
    except BaseException:
        child.kill()
        child.wait()
        raise
