"""Open vSwitch and OVN for tests: daemons of their own in the current network namespace, with a datapath in user space."""
from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from kvmnet.host.clock import wait_until
from lib.netns import sh
from lib.unpacked import on_path

PACKAGES = ("openvswitch-common", "openvswitch-switch", "ovn-common", "ovn-central", "ovn-host", "libxdp1", "libbpf1", "libnuma1", "libunbound8", "libcap-ng0")
"""The programs, and the libraries that Debian's minimal system has not."""
SECONDS = 30


@dataclass
class Switch:
    """An ovsdb-server and an ovs-vswitchd, and OVN's daemons where they are asked for."""

    root: Path
    folder: Path
    running: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {**{f"{of}_{name}DIR": str(self.folder) for of in ("OVS", "OVN") for name in ("RUN", "DB", "LOG", "SYSCONF")},
                "OVN_NB_DB": f"unix:{self.folder}/ovnnb_db.sock", "OVN_SB_DB": f"unix:{self.folder}/ovnsb_db.sock"}

    def start(self, *argv: str) -> None:
        """A daemon, which is ready when this returns (--detach)."""
        name = Path(argv[-1]).stem if argv[0] == "ovsdb-server" else argv[0]
        said = f"{self.folder}/{name}.err"
        sh(" ".join((*argv[:-1], "--detach", "--no-chdir", f"--pidfile={self.folder}/{name}.pid", f"--log-file={self.folder}/{name}.log", argv[-1], f"2>{said} || {{ cat {said} >&2; false; }}")))
        self.running.append(name)

    def pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def stop(self, name: str) -> None:
        """Ends a daemon at once, as the kernel does when memory is short, and waits for its end; a monitor ends with it."""
        self.running.remove(name)

        def gone() -> bool:
            pid = self.pid(name)
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
            return not lives(pid)

        wait_until(gone, SECONDS)

    def vswitchd(self) -> None:
        self.start("ovs-vswitchd", f"unix:{self.folder}/db.sock")

    def database(self, name: str, schema: str, socket: str) -> None:
        sh(f"ovsdb-tool create {self.folder}/{name}.db {self.root}/usr/share/{schema}")
        self.start("ovsdb-server", f"--remote=punix:{self.folder}/{socket}", f"--unixctl={self.folder}/{name}.ctl", f"{self.folder}/{name}.db")

    def ovn(self, chassis: str, *settings: str) -> None:
        """The central part and a chassis, in one place."""
        for name in ("nb", "sb"):
            self.database(f"ovn{name}_db", f"ovn/ovn-{name}.ovsschema", f"ovn{name}_db.sock")
        ids = (f"system-id={chassis}", f"ovn-remote=unix:{self.folder}/ovnsb_db.sock", "ovn-encap-type=geneve", "ovn-encap-ip=127.0.0.1", "ovn-bridge-datapath-type=netdev", *settings)
        vsctl(f"set open . {' '.join(f'external_ids:{i}' for i in ids)}")
        self.start("ovn-northd", f"--ovnnb-db=unix:{self.folder}/ovnnb_db.sock", f"--ovnsb-db=unix:{self.folder}/ovnsb_db.sock")
        self.controller()

    def controller(self) -> None:
        """With a monitor, as Debian starts it: 23.03 crashes now and then when it comes to a fresh database (seen, 3 of 100 starts under load), and is started again. It would take away nothing
        until it has run for a while, which is no matter of these tests; its commands come a moment after it has detached."""
        self.start("ovn-controller", "--monitor", f"unix:{self.folder}/db.sock")
        at_once = ["ovn-appctl", f"--timeout={SECONDS}", "-t", "ovn-controller", "debug/ignore-startup-delay"]
        wait_until(lambda: subprocess.run(at_once, capture_output=True, check=False).returncode == 0, SECONDS)


def vsctl(words: str) -> str:
    return sh(f"ovs-vsctl --timeout={SECONDS} {words}")


def nbctl(words: str, *, wait: str = "hv") -> str:
    """Returns when it has come to the chassis."""
    return sh(f"ovn-nbctl --timeout={SECONDS} --wait={wait} {words}")


@contextmanager
def open_vswitch(root: Path, folder: Path) -> Iterator[Switch]:
    """In the current network namespace; the programs are on the path of this process meanwhile. ``root``: what ``unpacked`` gave, where the machine's network is still there."""
    switch = Switch(root, folder)
    with on_path(root, "usr/lib/openvswitch-switch", **switch.environment):
        try:
            switch.database("conf", "openvswitch/vswitch.ovsschema", "db.sock")
            vsctl("--no-wait init")
            switch.vswitchd()
            yield switch
        finally:
            for name in list(switch.running):
                switch.stop(name)


def lives(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
