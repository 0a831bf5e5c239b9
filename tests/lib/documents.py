"""Every example and every golden document, applied for real, applied again, and taken away."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.view import View
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from kvmnet.spec.load import load
from lib.known import lend_features
from lib.netns import sh
from lib.world import World, snapshot, steady, unchanged, world

ROOT = Path(__file__).parents[2]
DOCUMENTS = {p.stem: p for p in (*sorted((ROOT / "examples").glob("*.yaml")), *sorted((ROOT / "tests/golden").glob("*.yaml")))}
IN_LAB = frozenset({"bond-vlan", "classes", "macvtap", "vlans"})
"""Documents that need what only a whole kernel has: bonds, VLANs."""
ELSEWHERE = frozenset({"sriov", "steering", "tuning", "vrf", "wireguard"})
"""Documents that need something at the other end: a NIC with VFs (tests/lab/test_sriov.py), a router for each tenant
(tests/lab/test_vrf.py), another host behind a tunnel (tests/lab/test_wireguard.py), five CPUs and a NIC with interrupts of its own
(parts in tests/net/test_ethtool.py and tests/guest/test_life.py), the first network namespace, which alone has the settings."""


MACHINE = frozenset({"backlog-overflow", "cpu-stolen", "interrupts-on-one-cpu", "frames-come-back", "log-complains", "port-overflow"})
"""What other people's load on this machine may cause."""
MEANT = {"modes": [("stp-delay", "kvb-store")]}
"""What documents want all the same, and the doctor says: a spanning tree with the delays of the standard."""


def healthy(name: str, net: World) -> None:
    """The doctor finds nothing on a host that is as its document wants it."""
    lend_features(net.host.paths)
    said: list[tuple[str, str]] = []

    def silent() -> bool:
        said[:] = [(f.code, f.where) for f in examine(View(capture(net.host.paths))) if f.code not in MACHINE]
        return said == MEANT.get(name, [])
    with suppress(TimeoutError):
        wait_until(silent, 30, 0.3)
    assert said == MEANT.get(name, []), said


def live_through(name: str, look: Callable[[str, World], None] = lambda name, net: None) -> None:
    """A host with all the NICs and bridges that the documents name. ``look``: at the host as the document wants it."""
    with world() as net:
        for nic in ("eth1", "eth2"):
            sh(f"ip link add {nic} type veth peer name {nic}-far mtu 9000; ip link set {nic} mtu 9000 up; ip link set {nic}-far up")
        sh("ip link add vmbr0 type bridge forward_delay 0; ip link set vmbr0 up; ip link add v0 type veth peer name v1; "
           "ip link set v0 master vmbr0 up; ip link set v1 up; ip addr add 10.20.0.9/16 dev eth1")
        sh("ip -6 addr add 2001:db8:20::9/64 dev eth1 nodad; ip route add 10.30.0.0/16 via 10.20.0.1 dev eth1")
        steady()
        before = snapshot()
        text = load(DOCUMENTS[name]).text.replace("owner: libvirt-qemu", "owner: nobody")
        assert net.apply(text).steps
        assert net.apply(text).steps == ()
        assert net.plan(text).to_json()["steps"] == []
        look(name, net)
        net.destroy()
        steady()
        unchanged(before)
