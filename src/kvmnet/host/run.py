"""The only door to other programs: run one, with a deadline, and say clearly what went wrong."""
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from kvmnet.errors import HostCannot
from kvmnet.host.lock import inherited

PACKAGES = {
    "ip": "iproute2", "bridge": "iproute2", "tc": "iproute2", "nft": "nftables",
    "dnsmasq": "dnsmasq-base", "dhcp_release": "dnsmasq-utils", "dhcp_release6": "dnsmasq-utils",
    "qemu-system-x86_64": "qemu-system-x86", "ethtool": "ethtool", "tcpdump": "tcpdump",
    "busybox": "busybox-static", "conntrack": "conntrack", "unshare": "util-linux",
}
"""Tool -> Debian package."""

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/sbin:/usr/sbin:/sbin"))


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
    path = find(argv[0])
    if path is None:
        raise HostCannot(missing(argv[0]) or argv[0])
    try:
        done = subprocess.run([path, *argv[1:]], input=stdin, capture_output=True, text=True,
                              timeout=timeout, env={**os.environ, "LC_ALL": "C.UTF-8"}, check=False,
                              pass_fds=inherited())
    except subprocess.TimeoutExpired as late:
        raise ToolFailed(argv, -1, f"no answer within {timeout:g} s") from late
    if done.returncode:
        raise ToolFailed(argv, done.returncode, done.stderr or done.stdout)
    return done.stdout
