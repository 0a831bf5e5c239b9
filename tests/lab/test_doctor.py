"""Faults that only a whole kernel can have, made for real and found by the doctor: bonds, and tables of the host's first namespace."""
from __future__ import annotations

import os

import pytest

from kvmnet.doctor.mend import mending
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.view import View
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.repair import make, undo
from lib.known import lend_features
from lib.netns import named_netns, new_netns, sh

pytestmark = pytest.mark.lab

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
