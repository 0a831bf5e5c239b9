"""A network namespace in which one of those that are compared works, apart from the others."""
from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kvmnet.host.files import make_directory
from kvmnet.host.run import ToolFailed, run
from kvmnet.records import dataclass

QUIET = ("iptables", "ip6tables", "arptables")
PATIENCE = 300.0
"""Seconds that one command may take: libvirt binds a filter in seconds."""


@dataclass(frozen=True, slots=True)
class Space:
    netns: str
    folder: Path
    """For files and sockets; nobody else's."""

    def make(self) -> None:
        """The namespace, with a loopback that works."""
        make_directory(self.folder)
        run(["ip", "netns", "add", self.netns])
        self.ip(["link set lo up"])
        for name in QUIET:
            try:
                self.run(["sysctl", "-qw", f"net.bridge.bridge-nf-call-{name}=0"])
            except ToolFailed:    # br_netfilter is not loaded: nothing to switch off
                break

    def forward(self) -> None:
        """Let it forward, as a router does."""
        self.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])

    def run(self, argv: Iterable[str], stdin: str = "") -> str:
        return run(["ip", "netns", "exec", self.netns, *argv], stdin=stdin, timeout=PATIENCE)

    def ip(self, lines: Iterable[str]) -> None:
        """One batch."""
        run(["ip", "-n", self.netns, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))
