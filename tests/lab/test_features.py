"""The feature table on a kernel that has everything: what the lab must have is there, and probing leaves nothing."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.facts.features import DEVICES, PROBES, features
from kvmnet.host.paths import Paths
from lib.netns import sh

pytestmark = pytest.mark.lab

NEWER = {"ipv6-force-forwarding", "iommu"}
"""What Debian's kernel does not have yet (Linux 6.17), and what this lab's machine has not (that of test_sriov.py has)."""


def test_debians_kernel_has_every_feature(paths: Paths) -> None:
    sh("modprobe -r bonding")
    before = sh("ip -br link; ip -d link show type bond; ip netns; nft list ruleset")
    found = features(paths.run / "features.json")
    assert {name: why for name, why in found.items() if why and name not in NEWER} == {}
    assert found.keys() == PROBES.keys() | DEVICES.keys()
    assert sh("ip -br link; ip -d link show type bond; ip netns; nft list ruleset") == before
    assert not Path("/sys/class/net/bonding_masters").exists()      # probing did not load the module


def test_a_bond_is_what_its_probe_promises(netns: None) -> None:
    sh("modprobe bonding max_bonds=0; ip link add o0 type bond mode 802.3ad lacp_rate fast; ip link add v0 type veth "
       "peer name v1; ip link set v0 master o0; ip link set o0 up; ip link add link o0 name o0.10 type vlan id 10")
    assert "802.3ad" in sh("ip -d link show o0") and "id 10" in sh("ip -d link show o0.10")
