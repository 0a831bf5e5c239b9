"""Faults that only a whole kernel can have, made for real and found by the doctor: bonds, and tables of the host's first namespace."""
from __future__ import annotations

import os
import re
from contextlib import ExitStack

import pytest
import yaml

from kvmnet.doctor.mend import mending
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.view import View
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.repair import make, undo
from kvmnet.spec.load import loads
from lib.documents import DOCUMENTS, held, quiet
from lib.known import lend_features
from lib.lab_vfs import desk
from lib.netns import named_netns, new_netns, sh

pytestmark = pytest.mark.lab

PLAIN, MERGING = "52:54:00:e1:00:0e", "52:54:00:e1:00:33"
"""NICs of the lab: an e1000e, and a vmxnet3, which can merge what it receives (LRO)."""
LRO = "merged-frames-forwarded"
BONDS = {"bond-partner", "bond-member-down", "bond-members-apart", "bond-unwatched", "bond-spreads-blindly", "uplink-without-carrier"}


@pytest.fixture(autouse=True)
def known(paths: Paths) -> None:
    """What the kernel can do is not asked for again."""
    lend_features(paths)


def codes(paths: Paths, wanted: set[str]) -> set[str]:
    return {f.code for f in examine(View(capture(paths)))} & wanted


def bond(mode: str, more: str = "miimon 100") -> None:
    sh("ip link del bond0", check=False)
    sh(f"ip link add bond0 type bond mode {mode} {more}; for e in e0 e1; do ip link set $e down; ip link set $e master bond0; ip link set $e up; done; ip link set bond0 master br0 up")


def test_bonds(paths: Paths) -> None:
    with new_netns(), named_netns(f"kvt-sw-{os.getpid()}") as switch:
        sh("".join(f"ip link add e{i} type veth peer name f{i} netns {switch}; ip -n {switch} link set f{i} up; " for i in (0, 1)) + "ip link add br0 address 02:00:00:00:00:b0 type bridge; ip link set br0 up")
        bond("active-backup")
        wait_until(lambda: codes(paths, BONDS) == set(), 60)
        sh(f"ip -n {switch} link set f1 down")
        wait_until(lambda: codes(paths, BONDS) == {"bond-member-down"}, 60)
        sh(f"ip -n {switch} link set f1 up")
        bond("balance-rr")
        wait_until(lambda: codes(paths, BONDS) == {"bond-spreads-blindly"}, 60)
        bond("802.3ad")     # to a switch that speaks no LACP
        wait_until(lambda: "bond-partner" in codes(paths, BONDS), 60)
        bond("active-backup", "")
        view = View(capture(paths))
        plan = mending(view, [f for f in examine(view) if f.code == "bond-unwatched"])
        make(paths, plan.changes, lambda: sorted(codes(paths, {"bond-unwatched"})))
        assert "miimon 100 " in sh("ip -d link show bond0")
        undo(paths)
        assert codes(paths, BONDS) == {"bond-unwatched"}


def test_tables_of_the_first_namespace(paths: Paths) -> None:
    tables = {"neighbour-table"}
    before = sh("sysctl -n net.ipv4.neigh.default.gc_thresh3").strip()
    sh("ip link add n0 type veth peer name n1; ip link set n0 up; ip link set n1 up")
    try:
        assert codes(paths, tables) == set()
        sh("for n in $(seq 20); do ip neigh add 10.99.0.$n lladdr 02:00:00:00:00:01 dev n0; done; sysctl -qw net.ipv4.neigh.default.gc_thresh3=20")
        view = View(capture(paths))
        plan = mending(view, [f for f in examine(view) if f.code in tables])
        assert plan.changes and not plan.left
        make(paths, plan.changes, lambda: sorted(codes(paths, tables)))
        assert codes(paths, tables) == set() and sh("sysctl -n net.ipv4.neigh.default.gc_thresh3").strip() == "8192"
    finally:
        sh(f"sysctl -qw net.ipv4.neigh.default.gc_thresh3={before}; ip link del n0", check=False)


def nic(driver: str, mac: str, name: str) -> None:
    """A NIC of the lab, by a name of ours."""
    sh(f"modprobe {driver}")
    found = wait_until(lambda: re.search(rf"^\d+: (\S+): .*\n\s+link/ether {mac}", sh("ip link"), re.M), 20)
    assert found
    sh(f"ip link set {found[1]} down; ip link set {found[1]} name {name}")


def test_a_card_that_merges_what_it_forwards(paths: Paths) -> None:
    """The kernel switches that off when it begins to forward; somebody switches it on again. At a port of a bridge it lets nobody."""
    nic("vmxnet3", MERGING, "lro0")
    try:
        sh("ip link set lro0 up; sysctl -qw net.ipv4.conf.lro0.forwarding=1")
        assert codes(paths, {LRO}) == set()
        sh("ethtool -K lro0 lro on")
        found, = (f for f in examine(View(capture(paths))) if f.code == LRO)
        sh(found.fix[0])
        assert found.where == "lro0" and codes(paths, {LRO}) == set()
    finally:
        sh("modprobe -r vmxnet3", check=False)


def settings_and_places() -> str:
    """The example of tuning, with the places that the example of steering gives its uplink."""
    tuning, steering = (yaml.safe_load(DOCUMENTS[name].read_text()) for name in ("tuning", "steering"))
    return str(yaml.safe_dump(tuning | {"uplinks": steering["uplinks"]}))


def test_settings_of_the_host_and_places_of_its_packets_are_no_fault() -> None:
    """The doctor says nothing of them. In the first namespace, which alone has the settings, on a NIC with interrupts of its own, behind which QEMU answers."""
    nic("e1000e", PLAIN, "eth0")
    sh("ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2")
    try:
        with desk() as made, ExitStack() as stack:
            lend_features(made.host.paths)
            text = settings_and_places()
            assert made.apply(text) and sh("sysctl -n net.ipv4.neigh.default.gc_thresh3").strip() == "16384"
            held(stack)
            quiet(made.host.paths, loads(text).spec.networks)
    finally:
        sh("ip link set eth0 down; ip addr flush dev eth0; ip link set eth0 name nic0", check=False)
