"""Two hosts on one wire with an attacker between: for networks that several hosts share.

The first host is the namespace that the test process stands in (lib.world); the second has a namespace, state
directories and a command line of its own. Their underlay is a switch whose own port is the attacker.
"""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

from kvmnet.host.clock import wait_until
from lib.netns import inside, named_netns, sh
from lib.tap import Tap
from lib.world import World, steady, world

FIRST, SECOND, ATTACKER = "10.9.0.1", "10.9.0.2", "10.9.0.66"
FIRST6, SECOND6, ATTACKER6 = "fd09::1", "fd09::2", "fd09::66"
DIRECTORIES = ("STATE", "RUN", "ETC")


@dataclass
class Far:
    """The second host."""

    netns: str
    place: Path

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **{f"KVMNET_{d}_DIR": str(self.place / d.lower()) for d in DIRECTORIES}}
        return subprocess.run(["ip", "netns", "exec", self.netns, sys.executable, "-m", "kvmnet.cli.main", *words],
                              capture_output=True, text=True, env=environment, check=False, timeout=60)

    def apply(self, text: str) -> None:
        (self.place / "far.yaml").write_text(text)
        done = self.cli("apply", str(self.place / "far.yaml"), "--yes")
        assert done.returncode == 0, done.stderr + done.stdout

    def tap(self, name: str) -> Tap:
        with inside(self.netns):
            return Tap(name)


@dataclass
class Hosts:
    near: World
    far: Far
    switch: str
    """Namespace of the switch; its own device sw0 is the attacker."""


@contextmanager
def two_hosts(mtu: int = 1500) -> Iterator[Hosts]:
    """Both hosts on the device ``u0``, which has the addresses above."""
    unique = f"kvt-{os.getpid()}-{uuid4().hex[:4]}"
    with world() as near, named_netns(f"{unique}b") as far, named_netns(f"{unique}s") as switch, \
            TemporaryDirectory(prefix="kvmnet-far-") as place:
        Path(place).chmod(0o755)
        sh(f"ip netns exec {switch} sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 "
           f"2>/dev/null; ip -n {switch} link add sw0 mtu {mtu} type bridge mcast_snooping 0", check=False)
        for number, where in ((0, ""), (1, far)):
            sh(f"ip link add u0 mtu {mtu} {f'netns {where} ' if where else ''}type veth peer name p{number} mtu {mtu} netns {switch};"
               f"ip -n {switch} link set p{number} master sw0 up")
        sh(f"ip -n {switch} link set sw0 up")
        for where, four, six, dev in (("", FIRST, FIRST6, "u0"), (f"-n {far}", SECOND, SECOND6, "u0"),
                                      (f"-n {switch}", ATTACKER, ATTACKER6, "sw0")):
            sh(f"ip netns exec {where[3:]} sysctl -qw net.ipv6.conf.{dev}.accept_dad=0" if where else f"sysctl -qw net.ipv6.conf.{dev}.accept_dad=0")
            sh(f"ip {where} addr add {four}/24 dev {dev}; ip {where} addr add {six}/64 dev {dev} nodad; ip {where} link set {dev} up")
        steady()
        wait_until(lambda: "NO-CARRIER" not in sh("ip link show u0") and "fe80" in sh("ip addr show u0"), 20)
        other = Far(far, Path(place))
        try:
            yield Hosts(near, other, switch)
        finally:
            other.cli("destroy", "--yes")
