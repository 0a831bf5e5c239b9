"""VFs inside the lab: many of a simulated NIC, and those of an emulated igb with a guest of their own."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from kvmnet.api import Host
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.view import View
from kvmnet.errors import KvmnetError
from kvmnet.facts.capture import capture
from kvmnet.guests.accel import Accel
from kvmnet.guests.launch import start, wait_for_agent
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.planned import Planned
from kvmnet.spec.load import loads
from lib.documents import MACHINE
from lib.lab_guest import explained
from lib.netns import sh

MANY = 64


class Desk:
    """A host with its state in a folder of its own, and what it needs for documents as text."""

    def __init__(self, place: str):
        for name in ("state", "run", "etc"):
            os.environ[f"KVMNET_{name.upper()}_DIR"] = f"{place}/{name}"
        self.host = Host(Paths.from_environment())
        self.seconds: dict[str, float] = {}

    def plan(self, text: str) -> Planned:
        return self.host.plan_document(loads(text, "test.yaml"))

    def apply(self, text: str, what: str = "") -> int:
        began = monotonic()
        planned = self.plan(text)
        self.seconds[f"plan {what}"] = monotonic() - began
        began = monotonic()
        self.host.apply(planned)
        self.seconds[f"apply {what}"] = monotonic() - began
        return len(planned.steps)

    def drift(self) -> list[str]:
        document = self.host.current()
        assert document is not None
        return sorted(str(s.key) for s in self.host.plan_document(document).steps)

    def destroy(self) -> None:
        self.host.apply(self.host.plan_destroy())

    def refusal(self, text: str) -> str:
        """What the host says to a document that it does not take."""
        try:
            self.apply(text)
        except KvmnetError as refused:
            problems = "; ".join(f"{p.line} {p.path}: {p.message}" for p in getattr(refused, "problems", ()))
            return f"{type(refused).__name__}: {refused} {problems} ({refused.hint})"
        raise AssertionError("it was taken")


@contextmanager
def desk() -> Iterator[Desk]:
    with TemporaryDirectory(prefix="kvmnet-desk-") as place:
        Path(place).chmod(0o755)
        made = Desk(place)
        try:
            yield made
        finally:
            made.destroy()


def told(dev: str) -> list[dict[str, Any]]:
    """What the kernel shows of a NIC's VFs."""
    found: list[dict[str, Any]] = json.loads(sh(f"ip -j -d link show {dev}"))[0].get("vfinfo_list", [])
    return found


def simulated(module: str) -> str:
    """A simulated NIC that takes MANY VFs; its link."""
    sh(f"modprobe psample; insmod {module}; mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug; "
       f"echo '1 1' > /sys/bus/netdevsim/new_device; echo {MANY} > /sys/kernel/debug/netdevsim/netdevsim1/max_vfs")
    return next(Path("/sys/bus/netdevsim/devices/netdevsim1/net").iterdir()).name


def document(dev: str, vfs: str = f", vfs: {MANY}", count: int = MANY, vlan: int = 100) -> str:
    """A network of VFs with a guest on each, every setting another one."""
    nics = "\n".join(
        f"  g{n}: {{nics: [{{network: fast, guard: {'mac' if n % 2 else 'off'}, rate: {{out: {100 + n}mbit, min: {n + 1}mbit}}, "
        f"trust: {'false' if n % 2 else 'true'}, link: {('up', 'down', 'always')[n % 3]}, mac: '52:54:00:00:01:{n:02x}'}}]}}"
        for n in range(count))
    return (f"version: 1\nuplinks:\n  nic: {{device: {dev}{vfs}}}\nnetworks:\n  fast: {{mode: sriov, uplink: nic, vlan: {vlan}, qos: 3, "
            f"protocol: 802.1ad}}\nvms:\n{nics}\n")


def shown(n: int, vlan: int = 100) -> dict[str, Any]:
    """VF *n* of ``document`` as the kernel shows it."""
    return {"vf": n, "address": f"52:54:00:00:01:{n:02x}", "vlan": vlan, "qos": 3, "protocol": "802.1ad", "max": 100 + n, "min": n + 1,
            "spoofchk": bool(n % 2), "trust": not n % 2, "state": ("auto", "disable", "enable")[n % 3]}


def compared(dev: str) -> list[dict[str, Any]]:
    """The VFs in the shape of ``shown``."""
    return [{"vf": v["vf"], "address": v["address"], "vlan": v["vlan_list"][0].get("vlan", 0), "qos": v["vlan_list"][0].get("qos", 0),
             "protocol": str(v["vlan_list"][0].get("protocol", "")).lower(), "max": v["rate"]["max_tx"], "min": v["rate"]["min_tx"],
             "spoofchk": v["spoofchk"], "trust": v["trust"], "state": v["link_state"]} for v in told(dev)]



def sick(made: Desk) -> list[tuple[str, str]]:
    """What the doctor finds: of VFs nothing."""
    return [(f.code, f.where) for f in examine(View(capture(made.host.paths))) if f.code not in MACHINE]


def keep_books(module: str) -> dict[str, float]:
    """64 VFs told and read back, repaired, fewer of them, others' VFs lent and given back. Seconds of each."""
    dev = simulated(module)
    before = told(dev)
    with desk() as made:
        well = sick(made)
        made.apply(document(dev), "64")
        assert compared(dev) == [shown(n) for n in range(MANY)]
        assert made.drift() == [] and sick(made) == well
        sh(f"ip link set {dev} vf 3 mac 02:00:00:00:00:99; ip link set {dev} vf 4 trust off; ip link set {dev} vf 5 vlan 7; "
           f"ip link set {dev} vf 7 spoofchk off")
        assert made.drift() == [f"vf {dev} {n}" for n in (3, 4, 5, 7)]
        made.apply(document(dev), "repair")
        assert compared(dev) == [shown(n) for n in range(MANY)]
        made.apply(document(dev, vfs=", vfs: 32", count=20, vlan=200), "32")
        assert compared(dev)[:20] == [shown(n, 200) for n in range(20)] and len(told(dev)) == 32
        assert [(v["trust"], v["vlan_list"], v["rate"]["max_tx"]) for v in told(dev)[20:]] == [(False, [{}], 0)] * 12
        made.destroy()
        assert told(dev) == before == []
        sh(f"echo 8 > /sys/bus/netdevsim/devices/netdevsim1/sriov_numvfs; ip link set {dev} vf 1 mac 02:00:00:00:00:77")
        others = told(dev)
        made.apply(document(dev, vfs="", count=4), "lent")
        assert compared(dev)[:4] == [shown(n) for n in range(4)] and told(dev)[4:] == others[4:]
        assert "no VF of uplink nic is left: 8 can be used, and 9 NICs want one" in made.refusal(document(dev, vfs="", count=9))
        made.destroy()
        assert told(dev) == others
        assert "Cannot allocate memory; rolled back" in made.refusal(document(dev, vfs=f", vfs: {MANY + 1}", count=2))
        assert told(dev) == others
        sh("echo 0 > /sys/bus/netdevsim/devices/netdevsim1/sriov_numvfs")
        made.apply(document(dev, vfs=", vfs: 4", count=2), "then gone")
        sh("echo 1 > /sys/bus/netdevsim/del_device; rmmod netdevsim")
        assert f"test.yaml:3:17: uplinks.nic.device: this host has no device {dev}" in made.refusal(document(dev, vfs=", vfs: 4", count=2))
    return made.seconds


# -- the NIC of the machine that the lab is ---------------------------------------------------------

PF, PEER, GUEST = "eth0", "10.20.0.1", "10.20.0.2"
PATIENCE = 240.0
"""Seconds for a guest under two emulations."""


LAN = "  lan: {mode: isolated, subnet: 10.30.0.0/24, dhcp: {enabled: false}, dns: {enabled: false}}\n"


def real_nic(network: str = "{mode: sriov, uplink: nic, vlan: 100}", nic: str = "guard: mac", more: str = "", vfs: int = 2) -> str:
    return (f"version: 1\nuplinks:\n  nic: {{device: {PF}, vfs: {vfs}}}\nnetworks:\n  fast: {network}\n"
            f"{LAN if more else ''}vms:\n  db:\n    run: {{memory: 256M, "
            f"image: tiny}}\n    nics:\n      - {{network: fast, mac: '52:54:00:00:01:01', {nic}}}\n{more}")


SECOND = "      - {network: fast, mac: '52:54:00:00:01:02', guard: mac, failover: lan}\n"
JOINED = "ls -d /sys/class/net/*/lower_* | wc -l; ls -l /sys/class/net/*/device/driver | grep -c igbvf"
"""The guest's cards under a net_failover device, and its VFs."""


def on_vlan(vid: int) -> None:
    """The far end: the PF itself, on a VLAN."""
    sh(f"ip link del far 2>/dev/null; ip link add link {PF} name far type vlan id {vid}; ip addr add {PEER}/24 dev far; ip link set far up")


class Passed:
    """What was seen of a guest that has a VF."""

    def __init__(self) -> None:
        self.seen: dict[str, object] = {}
        self.began = monotonic()

    def note(self, what: str, value: object) -> None:
        self.seen[what] = value
        self.seen[f"{what} (s)"] = round(monotonic() - self.began, 1)


def pass_through() -> dict[str, object]:
    """VFs of an igb: refused, made, given to a guest under KVM, used, attacked, plugged in, taken back."""
    sh(f"modprobe igb; modprobe kvm_amd; chmod 0666 /dev/kvm; ip link set {PF} up")
    wait_until(lambda: Path(f"/sys/class/net/{PF}/carrier").read_text().strip() == "1", 20)
    found = Passed()
    with desk() as made:
        found.note("too many", made.refusal(real_nic(vfs=8)))
        found.note("features", [made.host.judged.features[name] for name in ("iommu", "vfio")])
        made.apply(real_nic(), "two VFs")
        before = told(PF)
        found.note("drift", made.drift())
        found.note("min_rate", made.refusal(real_nic(nic="guard: mac, rate: {out: 500mbit, min: 100mbit}")))
        found.note("after refusal", told(PF) == before)
        on_vlan(100)
        read, compiled = made.host.in_force()
        start("db", read.spec.vms["db"], compiled.guest_nics["db"], made.host.paths, Accel("kvm", "tried elsewhere"), print)
        with explained("db", made.host.paths):
            use(made, found)
        made.host.stop_guests(["db"], lambda line: None, 1)
    found.note("afterwards", (len(told(PF)), Path("/sys/class/net/eth0/device/sriov_drivers_autoprobe").read_text().strip()))
    found.note("seconds", made.seconds)
    return found.seen


def use(made: Desk, found: Passed) -> None:
    """What the guest's programs see of its VF, and of what becomes of it."""
    wait_for_agent("db", made.host.paths, PATIENCE)
    found.note("started", made.host.running()["db"].accel)

    def inside(script: str) -> tuple[int, str]:
        code, out, err = made.host.execute("db", ["sh", "-c", script], PATIENCE)
        return code, out + err

    found.note("ping", inside(f"n=$(nic 52:54:00:00:01:01) && ip addr add {GUEST}/24 dev $n && ip link set $n up && "
                               f"ls -l /sys/class/net/$n/device/driver && ping -c 3 -W 5 {PEER}"))
    change = "n=$(nic 52:54:00:00:01:01) && ip link set $n address 52:54:00:00:09:99"
    found.note("another MAC", inside(change))
    found.note("drift with a guest", made.drift())
    made.apply(real_nic("{mode: sriov, uplink: nic, vlan: 200}"), "another VLAN")
    found.note("another VLAN", inside(f"ping -c 2 -W 2 {PEER}"))
    made.apply(real_nic(more=SECOND), "back, and a second VF")
    found.note("back", inside(f"ping -c 3 -W 5 {PEER}"))
    found.note("plugged in", inside(f"for i in 1 2 3 4 5 6 7 8 9; do [ \"$(echo $({JOINED}))\" = '2 2' ] && break; sleep 1; done; {JOINED}"))
    found.note("drift with two", made.drift())
    made.apply(real_nic(nic="guard: off, trust: true"), "trusted, and one unplugged")
    found.note("unplugged", inside(JOINED))
    found.note("trusted", inside(change))
