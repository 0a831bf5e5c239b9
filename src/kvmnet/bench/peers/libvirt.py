"""libvirt's networks and its nwfilter, by a libvirtd of its own in a namespace.

It sees no directory of the machine's libvirt: its own lie over them, in the mount namespace that ``ip netns exec`` gives it. Only
the drivers for networks and filters are loaded; the others want a system around them.
"""
from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from xml.sax.saxutils import quoteattr

from kvmnet.bench.peers.space import Space
from kvmnet.errors import HostCannot
from kvmnet.host.clock import wait_until
from kvmnet.host.run import ToolFailed, find, run
from kvmnet.records import dataclass

TOOLS = ("libvirtd", "virsh", "dnsmasq", "iptables", "ebtables", "nsenter")
INSTALL = "apt-get install libvirt-daemon-system libvirt-clients"
DRIVERS = ("network", "nwfilter")
PLACES = ("/usr/lib/*/libvirt/connection-driver", "/usr/lib64/libvirt/connection-driver", "/usr/lib/libvirt/connection-driver")
FILTERS = ("/etc/libvirt/nwfilter", "/usr/share/libvirt/nwfilter")
BRIDGE = "virbr0"
FORWARD = {"nat": "<forward mode='nat'/>", "routed": "<forward mode='route'/>", "isolated": ""}
START = """set -e
mkdir -p /run/libvirt {kept}/nwfilter
cp {filters}/*.xml {kept}/nwfilter/
for place in /run/libvirt /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do mount -t tmpfs none $place; done
mkdir -p /etc/libvirt/nwfilter /run/libvirt/drivers
cp {kept}/nwfilter/* /etc/libvirt/nwfilter/
echo 'auth_unix_rw="none"' > /etc/libvirt/libvirtd.conf
for driver in {drivers}; do ln -s $driver /run/libvirt/drivers/; done
LIBVIRT_DRIVER_DIR=/run/libvirt/drivers exec libvirtd --daemon --pid-file {kept}/pid
"""


def lacking() -> str:
    """Why libvirt cannot be compared here, '' when it can."""
    if absent := [t for t in TOOLS if find(t) is None]:
        return f"{', '.join(absent)} not installed: {INSTALL}"
    if len(modules()) < len(DRIVERS):
        return f"libvirt's drivers {', '.join(DRIVERS)} are not in {PLACES[0]}: {INSTALL}"
    return "" if filters() else f"no filters in {FILTERS[0]}: apt-get install libvirt-daemon-config-nwfilter"


def modules() -> list[Path]:
    """The drivers' files."""
    for pattern in PLACES:
        if found := [f for name in DRIVERS for f in Path("/").glob(f"{pattern[1:]}/libvirt_driver_{name}.so")]:
            return found
    return []


def filters() -> str:
    return next((p for p in FILTERS if list(Path(p).glob("clean-traffic.xml"))), "")


def version() -> str:
    return run(["virsh", "--version"]).strip()


@dataclass(frozen=True, slots=True)
class Libvirt:
    space: Space

    def start(self) -> None:
        """Until it answers. Raises HostCannot."""
        script = START.format(kept=self.space.folder, filters=filters(), drivers=" ".join(map(str, modules())))
        try:
            self.space.run(["sh", "-c", script])
            with suppress(TimeoutError):
                wait_until(self.answers, 30)
            self.virsh("net-list")
        except ToolFailed as failed:
            raise HostCannot(f"libvirtd does not start: {failed.detail}") from failed

    def answers(self) -> bool:
        try:
            self.virsh("net-list")
        except ToolFailed:
            return False
        return True

    def virsh(self, script: str) -> str:
        return run(self.argv("network", script), timeout=300)

    def argv(self, driver: str, script: str) -> list[str]:
        """A call of virsh with several commands, separated by semicolons."""
        pid = (self.space.folder / "pid").read_text().strip()
        return ["nsenter", "--target", pid, "--mount", "--net", "virsh", "-q", "-c", f"{driver}:///system", script]

    def network(self, name: str, bridge: str, prefix: str, mode: str, mtu: int) -> str:
        """Path of a network's XML, in the form of libvirt's default one: *prefix* has the first three numbers."""
        file = self.space.folder / f"{name}.xml"
        file.write_text(network_xml(name, bridge, prefix, mode, mtu))
        return str(file)

    def binding(self, number: int, tap: str, mac: str, address: str) -> str:
        """Path of the XML that binds *tap* to ``clean-traffic``."""
        file = self.space.folder / f"binding{number}.xml"
        file.write_text(binding_xml(number, tap, mac, address))
        return str(file)

    def bind(self, files: Sequence[str]) -> None:
        run(self.argv("nwfilter", "; ".join(f"nwfilter-binding-create {f}" for f in files)), timeout=300)


def network_xml(name: str, bridge: str, prefix: str, mode: str, mtu: int) -> str:
    return (f"<network><name>{name}</name>{FORWARD[mode]}<bridge name={quoteattr(bridge)} stp='on' delay='0'/><mtu size='{mtu}'/>"
            f"<ip address='{prefix}.1' netmask='255.255.255.0'><dhcp><range start='{prefix}.2' end='{prefix}.99'/></dhcp></ip></network>\n")


def binding_xml(number: int, tap: str, mac: str, address: str) -> str:
    return (f"<filterbinding><owner><name>g{number}</name><uuid>00000000-0000-0000-0000-{number:012}</uuid></owner>"
            f"<portdev name={quoteattr(tap)}/><mac address={quoteattr(mac)}/>"
            f"<filterref filter='clean-traffic'><parameter name='IP' value={quoteattr(address)}/></filterref></filterbinding>\n")
