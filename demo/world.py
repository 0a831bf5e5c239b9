"""A host to try things on: a network namespace with one NIC, and a router outside it.

    python -m demo.world     a root shell on such a host; everything goes when the shell ends
"""
from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kvmnet.host.clock import wait_until

KVMNET = Path(sys.executable).with_name("kvmnet")
IMAGES = "/var/cache/kvmnet/images"

LINES = """
ip netns add {wan}
ip netns add {host}
ip -n {host} link set lo up
ip -n {wan} link set lo up
ip -n {host} link add eth0 type veth peer name wan0 netns {wan}
ip -n {wan} addr add 203.0.113.1/24 dev wan0
ip -n {wan} addr add 2001:db8:113::1/64 dev wan0 nodad
ip -n {wan} link set wan0 up
ip -n {host} addr add 203.0.113.2/24 dev eth0
ip -n {host} addr add 2001:db8:113::2/64 dev eth0 nodad
ip -n {host} link set eth0 up
ip -n {host} route add default via 203.0.113.1
ip -n {host} -6 route add default via 2001:db8:113::1
"""
QUIET_BRIDGES = "for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ -e $f ] && echo 0 >$f; done; true"


class Busy(Exception):
    """Another one of the same name stands."""


@dataclass(frozen=True)
class World:
    """The host, by the name of its namespace, with its state in a folder of its own."""

    host: str
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="kvmnet-")))

    @property
    def wan(self) -> str:
        return f"{self.host}-wan"

    def environment(self) -> dict[str, str]:
        """What a kvmnet of this host runs with."""
        return {**os.environ, "KVMNET_STATE_DIR": str(self.folder / "state"),
                "KVMNET_RUN_DIR": str(self.folder / "run"), "KVMNET_ETC_DIR": str(self.folder / "etc"),
                "KVMNET_IMAGE_DIR": os.environ.get("KVMNET_IMAGE_DIR") or IMAGES,
                "PATH": f"{KVMNET.parent}:{os.environ.get('PATH', '')}"}

    def inside(self, words: Sequence[object]) -> list[str]:
        return ["ip", "netns", "exec", self.host, *map(str, words)]

    def make(self) -> None:
        self.remove_namespaces()
        for line in LINES.format(host=self.host, wan=self.wan).strip().splitlines():
            subprocess.run(line.split(), check=True)
        subprocess.run(self.inside(["sh", "-c", QUIET_BRIDGES]), check=True)
        wait_until(self.settled, 20, 0.05)

    def settled(self) -> bool:
        """The NIC has its carrier and its link-local address."""
        shown = subprocess.run(["ip", "-n", self.host, "-6", "addr", "show", "dev", "eth0", "scope", "link"],
                               capture_output=True, text=True, check=True).stdout
        return "inet6 fe80:" in shown and "tentative" not in shown

    def remove(self) -> None:
        """Whatever happened: guests stopped, everything of ours gone, the namespaces too."""
        if Path(f"/run/netns/{self.host}").exists():
            subprocess.run(self.inside([KVMNET, "destroy", "--yes"]), env=self.environment(),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        self.remove_namespaces()
        shutil.rmtree(self.folder, ignore_errors=True)

    def remove_namespaces(self) -> None:
        for name in (self.host, self.wan):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


@contextmanager
def standing(name: str) -> Iterator[World]:
    """A world for as long as the block runs. Raises Busy when one of that name stands already."""
    with open(f"/run/{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Busy(f"another one runs on this machine, in the namespace {name}: end it first") from None
        world = World(name)
        world.folder.chmod(0o755)    # QEMU and dnsmasq, which run as other users, must get through
        try:
            world.make()
            yield world
        finally:
            world.remove()


GREETING = """\
You are root on a practice host: a network namespace with one NIC, eth0, and a router outside.
kvmnet keeps its state apart, this machine's network is not touched, and all of it goes with `exit`.
Try: kvmnet init && kvmnet plan
"""


def shell() -> int:
    """A root shell on a practice host, in an empty folder; returns 0."""
    if os.geteuid():
        print("a practice host is a network namespace: run this as root, or with sudo", file=sys.stderr)
        return 1
    try:
        with standing("kvmnet-practice") as world:
            work = world.folder / "work"
            work.mkdir()
            rc = world.folder / "bashrc"
            rc.write_text("PS1='practice# '\nalias ls='ls --color=auto'\n")
            print(GREETING)
            subprocess.run(world.inside(["bash", "--rcfile", rc]), cwd=work, env=world.environment(), check=False)
            print("removing the practice host ...", file=sys.stderr)
    except Busy as busy:
        print(busy, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(shell())
