"""Processes that are to /proc what a QEMU with one card is."""
from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

PATIENCE = 180.0
"""Seconds until a guest has booted, without KVM and beside other guests and the lab."""
HOLD = ("import fcntl,struct,sys,time\n"
        "f=open('/dev/net/tun','r+b',buffering=0)\n"
        "fcntl.ioctl(f,0x400454ca,struct.pack('16sH22x',sys.argv[-1].encode(),0x1002))\n"
        "print('held',flush=True)\nsys.stdin.read()\n")
"""Opens a tap as QEMU does, under its name and with its options on the command line."""


class Held:
    """A process that is to /proc what a QEMU with one card is."""

    def __init__(self, tap: str, *argv: str):
        self.process = subprocess.Popen(["qemu-system-x86_64", "-c", HOLD, "-enable-kvm", *argv, tap],
                                        executable=sys.executable, env={**os.environ, "PYTHONHOME": sys.base_prefix}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout and self.process.stdout.readline() == b"held\n"

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.communicate(b"")
