"""Network namespaces for tests: this very process moves into a fresh one and back.

Subprocesses and threads started meanwhile are inside too. Every new namespace of some kernels has
bridge-nf-call-iptables=1, which plain Debian has not; tests that want it set it.
"""
from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def new_netns(call_iptables: int = 0) -> Iterator[None]:
    """Run the body in a network namespace of its own, with loopback up."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    if libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    try:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for name in ("iptables", "ip6tables", "arptables"):
            switch = Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}")
            if switch.exists():
                switch.write_text(str(call_iptables))
        yield
    finally:
        if libc.setns(home, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(home)


@contextmanager
def named_netns(name: str) -> Iterator[str]:
    """A named namespace beside the current one (for far ends: guests, upstream)."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Run the body inside a named namespace."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        yield
    finally:
        libc.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(there)


def sh(command: str, check: bool = True) -> str:
    """Output of a shell command, for the outside hand in a test."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{command}: {done.returncode}: {done.stderr}{done.stdout}")
    return done.stdout


def batch(*lines: str, netns: str = "", tool: str = "ip") -> None:
    """Several commands of ``ip`` or ``bridge`` by one process: in a kernel that is emulated each takes a tenth of a second."""
    text = "\n".join(lines)
    done = subprocess.run([tool, *(("-n", netns) if netns else ()), "-batch", "-"], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{text}: {done.returncode}: {done.stderr}"
