"""Every example and every golden document, applied for real, applied again, and taken away."""
from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from kvmnet.doctor.finding import Severity
from kvmnet.doctor.routed import first_port
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.scene import Scene, read
from kvmnet.doctor.why import Probe, why
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Tap
from kvmnet.host.paths import Paths
from kvmnet.spec.load import load
from kvmnet.spec.networks import Mode, Network
from lib.known import lend_features
from lib.netns import named_netns, sh
from lib.world import ROUTER, ROUTER6, World, snapshot, steady, unchanged, world

ROOT = Path(__file__).parents[2]
DOCUMENTS = {p.stem: p for p in (*sorted((ROOT / "examples").glob("*.yaml")), *sorted((ROOT / "tests/golden").glob("*.yaml")))}
IN_LAB = frozenset({"bond-vlan", "classes", "macvtap", "vlans"})
"""Documents that need what only a whole kernel has: bonds, VLANs."""
ELSEWHERE = frozenset({"sriov", "steering", "tuning", "vrf", "wireguard"})
"""Documents that need something at the other end: a NIC with VFs (tests/lab/test_sriov.py), a router for each tenant
(tests/lab/test_vrf.py), another host behind a tunnel (tests/lab/test_wireguard.py), five CPUs and a NIC with interrupts of its own, the first network namespace, which alone
has the settings (tests/lab/test_doctor.py; parts in tests/net/test_ethtool.py and tests/guest/test_life.py)."""


MACHINE = frozenset({"backlog-overflow", "cpu-stolen", "interrupts-on-one-cpu", "frames-come-back", "log-complains", "port-overflow"})
"""What other people's load on this machine may cause."""
MEANT = {"modes": [("stp-delay", "kvb-store")], "vlans": [("stp-delay", "kvb-~trunk")]}
"""What documents want all the same, and the doctor says: a spanning tree with the delays of the standard."""


def healthy(name: str, net: World) -> None:
    """The doctor finds nothing on a host that is as its document wants it, and `why` nothing that stands in the way of its guests."""
    with ExitStack() as stack:
        held(stack)
        quiet(net.host.paths, load(DOCUMENTS[name]).spec.networks, MEANT.get(name, []))


def quiet(paths: Paths, networks: Mapping[str, Network], meant: Sequence[tuple[str, str]] = (), without: Collection[str] = ()) -> Scene:
    """The host on which nothing is found but what is *meant*, once it has come to rest. ``without``: networks whose guests are not there."""
    lend_features(paths)
    seen: list[Scene] = []
    said: list[tuple[str, ...]] = []

    def silent() -> bool:
        seen[:] = [read(capture(paths))]
        said[:] = [(f.code, f.where) for f in examine(seen[0]) if f.code not in MACHINE]
        said.extend(row for row in refused(seen[0], networks) if row[0] not in without)
        return said == list(meant)
    with suppress(TimeoutError):
        wait_until(silent, 60, 0.3)
    assert said == list(meant), said
    return seen[0]


def held(stack: ExitStack) -> None:
    """Each tap and macvtap of the document open, as its guest has it."""
    for link in json.loads(sh("ip -j -d link show")):
        kind = link.get("linkinfo", {}).get("info_kind")
        if link["ifname"].startswith("kvt-") and kind in ("tun", "macvtap"):
            stack.enter_context(Tap.hold_macvtap(link["ifname"]) if kind == "macvtap" else Tap.hold(link["ifname"]))


def refused(scene: Scene, modes: Mapping[str, Network]) -> Iterator[tuple[str, ...]]:
    """What `why` finds between guests of a network, and from each network to its gateway and outside, but for what the document refuses."""
    networks: dict[str, list[Any]] = {}
    for nic in scene.nics:
        networks.setdefault(nic["network"], []).append(nic)
    for name, nics in networks.items():
        for version, field in ((4, "ip"), (6, "ip6")):
            known = [n for n in nics if n.get(field)]
            for a, b in ways(scene, modes[name].mode, known, version):
                for finding in why(scene, a, b, Probe(version=version)).findings:
                    wanted = " kvmnet" in finding.where or (finding.code == "port-isolated" and not finding.fix) or (finding.code == "port-state" and scene.data(scene.bridge_of(finding.where)).get("stp_state") == 1)
                    if finding.severity in (Severity.BLOCKS, Severity.DEGRADES) and not wanted:
                        yield (name, a, b, finding.code, finding.where)


def ways(scene: Scene, mode: Mode, nics: Sequence[Any], version: int) -> Iterator[tuple[str, str]]:
    """Who is asked about: guests by their names, their gateway, the router or the outside where anything leads there."""
    if not nics:
        return
    first = f"{nics[0]['vm']}/{nics[0]['nic']}"
    bridge = scene.bridge_of(nics[0]["tap"])
    if gateway := scene.addresses_of(scene.face(bridge, nics[0]["tap"]), version):
        yield first, gateway[0].partition("/")[0]
    if mode in (Mode.NAT, Mode.ROUTED, Mode.MACVTAP) or (mode is Mode.BRIDGE and first_port(scene, bridge)):
        yield first, "outside" if mode is Mode.NAT and version == 4 else ROUTER6 if version == 6 else ROUTER
    if len(nics) > 1:
        yield first, f"{nics[1]['vm']}/{nics[1]['nic']}"


def live_through(name: str) -> None:
    """A host with all the NICs and bridges that the documents name."""
    with world() as net, named_netns(far := f"kvt-far-{os.getpid()}"):
        for nic in ("eth1", "eth2"):
            sh(f"ip link add {nic} type veth peer name {nic}-far mtu 9000; ip link set {nic} mtu 9000 up; ip link set {nic}-far up")
        sh("ip link add vmbr0 type bridge forward_delay 0; ip link set vmbr0 up; ip link add v0 type veth peer name v1; "
           "ip link set v0 master vmbr0 up; ip link set v1 up; ip addr add 10.20.0.9/16 dev eth1")
        sh("ip -6 addr add 2001:db8:20::9/64 dev eth1 nodad; ip route add 10.30.0.0/16 via 10.20.0.1 dev eth1")
        if name == "bond-vlan":     # a switch that speaks LACP
            sh(f"for e in eth1-far eth2-far; do ip link set $e netns {far}; done; ip -n {far} link add far0 type bond mode 802.3ad miimon 100 lacp_rate fast;"
               f"for e in eth1-far eth2-far; do ip -n {far} link set $e master far0; done; ip -n {far} link set far0 mtu 9000 up")
        steady()
        before = snapshot()
        text = load(DOCUMENTS[name]).text.replace("owner: libvirt-qemu", "owner: nobody")
        assert net.apply(text).steps
        assert net.apply(text).steps == ()
        assert net.plan(text).to_json()["steps"] == []
        healthy(name, net)
        net.destroy()
        steady()
        unchanged(before)
