"""Open vSwitch, by an ovsdb-server and an ovs-vswitchd of its own in a namespace.

Its kernel datapath where the kernel has it, otherwise the one in user space, with segments of TCP kept whole
(``userspace-tso-enable``): without that, guests would have to switch their offloads off.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvmnet.bench.peers.space import Space
from kvmnet.errors import HostCannot
from kvmnet.host.run import ToolFailed, find, run
from kvmnet.records import dataclass

TOOLS = ("ovsdb-tool", "ovsdb-server", "ovs-vsctl", "ovs-ofctl")
DAEMONS = ("/usr/sbin/ovs-vswitchd", "/usr/lib/openvswitch-switch/ovs-vswitchd")
SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
INSTALL = "apt-get install openvswitch-switch"
BRIDGE = "br0"


def lacking() -> str:
    """Why Open vSwitch cannot be compared here, '' when it can."""
    absent = [t for t in TOOLS if find(t) is None] + ([] if daemon() else ["ovs-vswitchd"])
    return f"{', '.join(absent)} not installed: {INSTALL}" if absent else ""


def daemon() -> str:
    return next((p for p in DAEMONS if Path(p).exists()), "")


def datapath() -> str:
    """``system`` where the kernel has Open vSwitch's, else ``netdev``."""
    return "system" if Path("/sys/module/openvswitch").exists() else "netdev"


def version() -> str:
    return f"{run(['ovs-vsctl', '--version']).split()[3]}, datapath {datapath()}"


@dataclass(frozen=True, slots=True)
class OpenVswitch:
    space: Space

    def start(self) -> None:
        """Until it answers. Raises HostCannot."""
        base, data = self.space.folder, f"{self.space.folder}/conf.db"
        try:
            self.run(["ovsdb-tool", "create", data, SCHEMA])
            self.run(["ovsdb-server", data, "--detach", "--pidfile", f"--remote=punix:{base}/db.sock", "--no-chdir"])
            self.vsctl("--no-wait", "init")
            self.vsctl("--no-wait", "set", "Open_vSwitch", ".", "other_config:userspace-tso-enable=true")
            self.run([daemon(), f"unix:{base}/db.sock", "--detach", "--pidfile", "--no-chdir"])
        except ToolFailed as failed:
            raise HostCannot(f"Open vSwitch does not start: {failed.detail}") from failed

    def run(self, argv: Sequence[str], stdin: str = "") -> str:
        return self.space.run(self.argv(argv), stdin)

    def argv(self, argv: Sequence[str]) -> list[str]:
        """*argv* with this Open vSwitch's directories."""
        return ["env", *(f"OVS_{name}DIR={self.space.folder}" for name in ("RUN", "DB", "LOG", "SYSCONF")), *argv]

    def vsctl(self, *words: str) -> str:
        return self.run(["ovs-vsctl", "--timeout=60", *words])


def add_bridge() -> list[str]:
    return ["add-br", BRIDGE, "--", "set", "bridge", BRIDGE, f"datapath_type={datapath()}"]


def add_ports(taps: Sequence[str]) -> list[str]:
    """One transaction."""
    return [word for tap in taps for word in ("--", "add-port", BRIDGE, tap)][1:]
