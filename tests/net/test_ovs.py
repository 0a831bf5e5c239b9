"""Faults of Open vSwitch and OVN that somebody configured, injected on a host where all works: each breaks it, is found first, and the printed fix mends it."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmnet.check.switch_trace import followed
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.scene import read
from kvmnet.doctor.trip import State
from kvmnet.doctor.view import View
from kvmnet.doctor.why import Probe, Report, why
from kvmnet.facts import switches
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import named_netns, new_netns, sh
from lib.ovs import PACKAGES, Switch, nbctl, open_vswitch, vsctl
from lib.unpacked import unpacked

pytestmark = pytest.mark.net

FIRST, SECOND, FLOATING, FAR = "10.66.0.11", "10.66.0.12", "10.77.0.50", "10.77.0.1"
THIRD, FOURTH = "10.68.0.13", "10.68.0.14"
SPACES = {name: f"kvo-{os.getpid()}-{name}" for name in ("g1", "g2", "g3", "g4", "up")}
ADDRESSES = {"g1": FIRST, "g2": SECOND, "g3": THIRD, "g4": FOURTH, "up": FAR}
LOGICAL = ("ls-add inner -- lsp-add inner lp1 -- lsp-set-addresses lp1 '02:66:00:00:00:01 10.66.0.11' -- lsp-set-port-security lp1 '02:66:00:00:00:01 10.66.0.11'"
           " -- lsp-add inner lp2 -- lsp-set-addresses lp2 '02:66:00:00:00:02 10.66.0.12'"
           " -- lr-add router -- lrp-add router to-inner 02:66:00:00:01:01 10.66.0.1/24 -- lsp-add inner inner-up -- lsp-set-type inner-up router -- lsp-set-addresses inner-up router -- lsp-set-options inner-up router-port=to-inner"
           " -- ls-add outer -- lrp-add router to-outer 02:66:00:00:01:02 10.77.0.2/24 -- lsp-add outer outer-up -- lsp-set-type outer-up router -- lsp-set-addresses outer-up router -- lsp-set-options outer-up router-port=to-outer"
           " -- lsp-add outer wire -- lsp-set-type wire localnet -- lsp-set-addresses wire unknown -- lsp-set-options wire network_name=physnet"
           " -- lrp-set-gateway-chassis to-outer c1 20 -- lr-nat-add router dnat_and_snat 10.77.0.50 10.66.0.11 -- lr-nat-add router snat 10.77.0.2 10.66.0.0/24")


@dataclass
class Place:
    switch: Switch
    paths: Paths


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """Two guests of OVN with a router, a floating IP and a network outside; two more on a bridge whose flows somebody wrote by hand."""
    root = unpacked("ovs", PACKAGES)
    with new_netns(), ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="kvo-")))
        for netns in SPACES.values():
            stack.enter_context(named_netns(netns))
        switch = stack.enter_context(open_vswitch(root, folder))
        for number, (name, netns) in enumerate(SPACES.items(), 1):
            sh(f"ip link add v{name} type veth peer name eth0 address 02:66:00:00:00:0{number} netns {netns}; ip link set v{name} up; ip -n {netns} addr add {ADDRESSES[name]}/24 dev eth0; ip -n {netns} link set eth0 up")
        sh(f"for n in {SPACES['g1']} {SPACES['g2']}; do ip -n $n route add default via 10.66.0.1; done")
        vsctl("add-br br-int -- set bridge br-int datapath_type=netdev fail_mode=secure -- add-br br-ex -- set bridge br-ex datapath_type=netdev -- add-port br-ex vup"
              " -- add-br br0 -- set bridge br0 datapath_type=netdev fail_mode=secure -- add-port br0 vg3 -- add-port br0 vg4")
        sh("ovs-ofctl --timeout=30 add-flow br0 priority=0,actions=NORMAL; ip link set br0 up; ip addr add 10.68.0.1/24 dev br0")
        switch.ovn("c1", "ovn-bridge-mappings=physnet:br-ex")
        vsctl("add-port br-int vg1 -- set interface vg1 external_ids:iface-id=lp1 -- add-port br-int vg2 -- set interface vg2 external_ids:iface-id=lp2")
        nbctl(LOGICAL)
        wait_until(lambda: all(passes(*way) for way in WAYS), 30)
        yield Place(switch, Paths(folder, folder))


def passes(name: str, target: str) -> bool:
    return subprocess.run(["ip", "netns", "exec", SPACES[name], "ping", "-n", "-c", "1", "-W", "0.3", target], capture_output=True, check=False).returncode == 0


def heard() -> None:
    """The host knows who has the addresses on br0: it forgets them in time, and when nobody answers for them."""
    wait_until(lambda: passes("g3", "10.68.0.1") and passes("g4", "10.68.0.1"), 30)


WAYS = (("g1", SECOND), ("g1", FAR), ("g1", FLOATING), ("g2", FLOATING), ("up", FLOATING), ("g3", FOURTH), ("g3", "10.68.0.1"), ("g4", "10.68.0.1"))
MACHINE = {"cpu-stolen", "cpu-quota", "interrupts-on-one-cpu", "backlog-overflow", "log-complains"}
"""About the machine that the tests run on."""


def look(place: Place) -> tuple[Finding, ...]:
    return tuple(f for f in examine(View(capture(place.paths))) if f.code not in MACHINE)


def first(place: Place, code: str, where: str) -> Finding:
    """What is found first, once that is what was injected: daemons take a moment to act on it."""
    seen: list[tuple[Finding, ...]] = []

    def there() -> bool:
        seen.append(look(place))
        return [(f.code, f.where) for f in seen[-1][:1]] == [(code, where)]

    with suppress(TimeoutError):
        wait_until(there, 30, 0.3)
    assert there(), seen[-1]
    return seen[-1][0]


def asked(place: Place, source: str, target: str, probe: Probe = Probe()) -> Report:
    scene = read(capture(place.paths))
    return followed(scene, why(scene, source, target, probe))


@dataclass(frozen=True)
class Fault:
    code: str
    where: str
    inject: str
    way: tuple[str, str]
    """What works before, and not any more."""
    also: str = ""
    """What only a person can do after the printed fix: the device that is gone comes back."""
    why: bool = True
    """Whether `why` comes to it by that way."""


FAULTS = {
    "ovs-stale-port-no-such-device": Fault("switch-port-stale", "vg4", "ip link del vg4", ("g3", FOURTH), why=False,
                                           also=f"ip link add vg4 type veth peer name eth0 address 02:66:00:00:00:04 netns {SPACES['g4']}; ip link set vg4 up; ip -n {SPACES['g4']} addr add {FOURTH}/24 dev eth0; ip -n {SPACES['g4']} link set eth0 up; ovs-vsctl --timeout=30 add-port br0 vg4"),
    "ovs-flows-lost-on-restart": Fault("switch-without-flows", "br0", "restart", ("g3", FOURTH)),
    "ovs-flows-of-ovn-deleted": Fault("switch-without-flows", "br-int", "ovs-ofctl --timeout=30 del-flows br-int", ("g1", SECOND)),
    "ovn-bridge-mapping-missing": Fault("ovn-mapping-missing", "physnet", "ovs-vsctl --timeout=30 remove open . external_ids ovn-bridge-mappings", ("g1", FAR)),
    "ovn-missing-flows-incremental-bug": Fault("ovn-port-without-flows", "vg1", "ovs-ofctl --timeout=30 del-flows br-int cookie=0x$(ovn-sbctl --timeout=30 --bare --columns=_uuid find port_binding logical_port=lp1 | cut -c1-8)/-1", ("g1", SECOND)),
    "ovn-fip-hairpin-geneve": Fault("ovn-nat-without-gateway", "router", "ovn-nbctl --timeout=30 --wait=hv lrp-del-gateway-chassis to-outer c1", ("g1", FLOATING), why=False),
}


def test_a_healthy_host_has_nothing(place: Place) -> None:
    def well() -> bool:
        told = capture(place.paths)
        return (not [f for f in examine(View(told)) if f.code not in MACHINE] and {s["name"]: s["state"] for s in told["switches"]} == {"br-int": "", "br-ex": "", "br0": ""}
                and told["ovn"]["controller"] == "connected" and [p["name"] for p in told["ovn"]["ports"] if p["type"] == "" and p["enters"] and p["leaves"]] == ["lp1", "lp2"] and len(told["ovn"]["routers"]) == 1)

    wait_until(well, 30, 0.3)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_first_and_mended_by_its_fix(place: Place, name: str) -> None:
    fault = FAULTS[name]
    wait_until(lambda: passes(*fault.way), 30)
    if fault.inject == "restart":
        place.switch.stop("ovs-vswitchd")
        place.switch.vswitchd()
        sh("ip link set br0 up; ip addr replace 10.68.0.1/24 dev br0")
        wait_until(lambda: passes("g1", SECOND), 30)     # what OVN writes it writes again
    else:
        sh(fault.inject)
    wait_until(lambda: not passes(*fault.way), 30)
    found = first(place, fault.code, fault.where)
    assert found.evidence and found.why and found.fix and not passes(*fault.way)
    if fault.why:
        report = asked(place, f"v{fault.way[0]}@{ADDRESSES[fault.way[0]]}", fault.way[1])
        assert report.state is State.BLOCKED and report.findings[0].code == fault.code, report.findings
    for command in found.fix:
        sh(command)
    sh(fault.also)
    wait_until(lambda: passes(*fault.way), 30)
    wait_until(lambda: look(place) == (), 30, 0.3)


@pytest.mark.parametrize(("source", "target", "port"), [(FIRST, SECOND, "vg2"), ("lp1", FAR, "vup"), (THIRD, FOURTH, "vg4"), ("vg3", "host", "br0")])
def test_what_passes_the_switch_says_so(place: Place, source: str, target: str, port: str) -> None:
    wait_until(lambda: all(passes(*way) for way in WAYS), 30)
    report = asked(place, source, target)
    told = [hop.words for hop in (*report.there, *report.back) if "Open vSwitch hands it to" in hop.words]
    assert report.state is State.OK and not report.findings and any(f"hands it to {port}:" in words for words in told), (report.findings, told)


@pytest.mark.parametrize("tags", ["set port vg4 tag=20", "set port vg3 tag=10 -- set port vg4 tag=20"])
def test_vlans_that_differ_lead_astray(place: Place, tags: str) -> None:
    wait_until(lambda: all(passes(*way) for way in WAYS), 30)
    vsctl(tags)
    try:
        wait_until(lambda: not passes("g3", FOURTH), 30)
        found = asked(place, f"vg3@{THIRD}", f"vg4@{FOURTH}").findings[0]
        assert found.code == "switch-astray" and "different VLANs" in found.why, found
        sh(found.fix[0])
        wait_until(lambda: passes("g3", FOURTH), 30)
    finally:
        vsctl("clear port vg3 tag -- clear port vg4 tag")


def test_what_comes_from_outside_is_not_said_to_arrive(place: Place) -> None:
    report = asked(place, FAR, "lp1")
    assert report.state is State.UNKNOWN and [f.code for f in report.findings] == ["not-followed"]


def dropped(place: Place, source: str, target: str, probe: Probe = Probe()) -> Finding:
    found = asked(place, source, target, probe).findings[0]
    assert (found.code, found.severity, found.certainty) == ("switch-drop", Severity.BLOCKS, Certainty.PROVED), found
    return found


@pytest.mark.parametrize(("inject", "mend", "stage"), [
    ("acl-add inner to-lport 900 'outport==\"lp2\" && icmp4' drop", "acl-del inner", "ls_out_acl"),
    ("acl-add inner to-lport 1000 'outport==\"lp2\" && tcp' allow-related -- acl-add inner to-lport 900 'outport==\"lp2\"' drop", "acl-del inner", "ls_out_acl"),
    ("lsp-set-enabled lp2 disabled", "lsp-set-enabled lp2 enabled", "ls_in_l2_lkup"),
], ids=["an-acl", "an-acl-with-state", "a-port-switched-off"])
def test_what_ovn_drops_is_told_by_the_stage(place: Place, inject: str, mend: str, stage: str) -> None:
    wait_until(lambda: passes("g1", SECOND), 30)
    nbctl(inject)
    try:
        wait_until(lambda: not passes("g1", SECOND), 30)
        found = dropped(place, "lp1", "lp2")
        assert stage in found.what and found.evidence[-1].startswith(f"ovn-sbctl --uuid lflow-list: {stage}, priority"), found
        if "acl" in stage:
            assert "drop" in sh(found.fix[0])
        else:
            sh(found.fix[0])
            wait_until(lambda: passes("g1", SECOND), 30)
        if "allow-related" in inject:
            assert asked(place, "lp1", "lp2", Probe("tcp", 80)).state is State.OK
    finally:
        nbctl(mend)
    wait_until(lambda: passes("g1", SECOND), 30)


def test_what_a_flow_drops_the_switch_names(place: Place, tmp_path: Path) -> None:
    """Port security, a router without a route, and a flow that somebody wrote."""
    assert "ls_in_apply_port_sec" in dropped(place, "vg1@10.66.0.99", SECOND).what
    assert "lr_in_ip_routing" in dropped(place, "lp1", "192.0.2.9").what and not passes("g1", "192.0.2.9")
    sh("ovs-ofctl --timeout=30 add-flow br0 'priority=50,tcp,tp_dst=23,actions=drop'")
    heard()
    try:
        done = subprocess.run([sys.executable, "-m", "kvmnet.cli.main", "why", THIRD, FOURTH, "--tcp", "23", "--json"], capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "KVMNET_STATE_DIR": str(tmp_path), "KVMNET_RUN_DIR": str(tmp_path)})
        assert done.stdout, done.stderr
        found = json.loads(done.stdout)["findings"][0]
        assert done.returncode == 1 and found["code"] == "switch-drop" and "br0: 0. tcp,tp_dst=23, priority 50" in found["evidence"][-2], (found, done.stderr)
        assert asked(place, THIRD, FOURTH, Probe("tcp", 24)).state is State.OK
    finally:
        sh("ovs-ofctl --timeout=30 --strict del-flows br0 'priority=50,tcp,tp_dst=23'")


def test_a_port_that_ovn_does_not_know(place: Place) -> None:
    vsctl("set interface vg2 external_ids:iface-id=lp3")
    try:
        found = first(place, "ovn-port-unknown", "vg2")
        assert found.evidence
        wait_until(lambda: not passes("g1", SECOND), 30)
    finally:
        vsctl("set interface vg2 external_ids:iface-id=lp2")
    wait_until(lambda: passes("g1", SECOND), 30)


def test_daemons_that_are_dead_or_silent_are_told_and_not_waited_for(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches, "SECONDS", 1.0)
    place.switch.stop("ovn-controller")
    found = first(place, "ovn-controller-away", "br-int")
    assert "does not run" in found.what
    place.switch.controller()
    os.kill(place.switch.pid("ovs-vswitchd"), signal.SIGSTOP)
    try:
        assert "does not answer" in first(place, "switch-silent", "br-ex").what
    finally:
        os.kill(place.switch.pid("ovs-vswitchd"), signal.SIGCONT)
    place.switch.stop("ovs-vswitchd")
    assert "does not run" in first(place, "switch-silent", "br-ex").what
    place.switch.vswitchd()
    sh("ovs-ofctl --timeout=30 add-flow br0 priority=0,actions=NORMAL; ip link set br0 up; ip addr replace 10.68.0.1/24 dev br0")
    wait_until(lambda: all(passes(*way) for way in WAYS), 30)
    wait_until(lambda: look(place) == (), 30, 0.3)
