"""A far end on a network: a named namespace with one NIC, and DHCPv4 through busybox udhcpc."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from kvmnet.host.clock import wait_until
from lib.netns import named_netns, sh

SCRIPT = """#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
env > "$KVMNET_TEST_OUT"
"""


@dataclass(frozen=True)
class Client:
    """A guest's place: ``eth0`` with its MAC, inside a namespace, its other end a bridge port."""

    netns: str
    mac: str

    def lease4(self, *, options: str = "", seconds: int = 20, hostname: str = "") -> dict[str, str]:
        """What DHCPv4 gives, by udhcpc's names; empty when nobody answers for so long."""
        with tempfile.TemporaryDirectory() as place:
            script, out = Path(place, "script"), Path(place, "out")
            script.write_text(SCRIPT)
            script.chmod(0o755)
            name = f"-x hostname:{hostname}" if hostname else ""
            sh(f"KVMNET_TEST_OUT={out} ip netns exec {self.netns} busybox udhcpc -i eth0 -f -q -n -t {seconds} -T 1 "
               f"-A 0 -s {script} -O mtu -O staticroutes -O ntpsrv -O search -O domain {name} {options} 2>&1", check=False)
            if not out.exists():
                return {}
            return dict(line.split("=", 1) for line in out.read_text().splitlines() if "=" in line)

    def use(self, cidr: str) -> None:
        """Give eth0 an address."""
        sh(f"ip -n {self.netns} addr replace {cidr} dev eth0 {'nodad' if ':' in cidr else ''}")


@contextmanager
def client(bridge: str, mac: str) -> Iterator[Client]:
    """A client on *bridge*; its link-local IPv6 address is ready."""
    tag = uuid4().hex[:6]
    port = f"p{tag}"
    with named_netns(f"kvt-{os.getpid()}-{tag}") as name:
        sh(f"ip link add {port} type veth peer name eth0 address {mac} netns {name}")
        sh(f"ip netns exec {name} sh -c 'echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad;"
           " echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_ra'")
        sh(f"ip link set {port} master {bridge} up; ip -n {name} link set eth0 up")
        wait_until(lambda: " fe80:" in sh(f"ip -n {name} -6 addr show dev eth0 scope link -tentative"), 20, 0.01)
        yield Client(name, mac)
