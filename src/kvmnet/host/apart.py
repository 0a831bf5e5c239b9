"""A process that lives in namespaces of its own and takes everything in them along when it ends.

Network, mounts and process numbers are its own, and it is the first process there: when it ends, however that comes about,
the kernel ends every process that was started in it (pid_namespaces(7)), guests and servers too, and with them goes the
network. So what is built there for a while needs no clearing up, and a SIGKILL leaves nothing.
"""
from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kvmnet.errors import HostCannot
from kvmnet.host.files import make_directory
from kvmnet.host.run import ToolFailed, run

CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
PR_SET_PDEATHSIG = 1
MOUNTS = (("mount", "--make-rprivate", "/"), ("mount", "-t", "proc", "proc", "/proc"), ("mount", "-t", "sysfs", "sysfs", "/sys"),
          ("mkdir", "-p", "/run/netns"), ("mount", "-t", "tmpfs", "tmpfs", "/run/netns"), ("ip", "link", "set", "lo", "up"))
QUIET = ("iptables", "ip6tables", "arptables")

libc = ctypes.CDLL(None, use_errno=True)


def step_aside(folder: Path) -> None:
    """From here on this is a child process in namespaces of its own, for which *folder* is an empty one in memory.

    The process that was, waits for the child, hands signals on to it, and ends with its exit code. To be called before threads
    are started. Raises HostCannot.
    """
    make_directory(folder)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWPID):
            raise HostCannot(f"no namespaces of its own: {os.strerror(ctypes.get_errno())}", "run it as root, or with sudo")
        child = os.fork()
        if child:
            libc.setns(home, CLONE_NEWPID)
    finally:
        os.close(home)
    if child:
        wait_for(child)
    furnish(folder)


def wait_for(child: int) -> NoReturn:
    """Does not return: ends with the child's exit code."""
    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGINT)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) % 256)


def furnish(folder: Path) -> None:
    """The child's own network, mounts and folder; its end when its parent ends."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)    # Ctrl-C goes to the parent, which hands it on once
    if libc.unshare(CLONE_NEWNET | CLONE_NEWNS):
        raise HostCannot(f"no namespaces of its own: {os.strerror(ctypes.get_errno())}", "run it as root, or with sudo")
    try:
        for argv in (*MOUNTS, ("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))):
            run(argv)
    except ToolFailed as failed:
        raise HostCannot(f"no namespaces of its own: {failed.detail}", "run it as root, on a system that allows mounts") from failed
    for name in QUIET:    # a new namespace may come with these on: its bridges would be slower than the host's
        with suppress(OSError):
            Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0")
