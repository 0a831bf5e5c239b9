"""VFs: 64 of a simulated NIC told and read back, and those of an emulated igb in a guest's hands.

The simulated NIC (netdevsim) remembers what it is told and carries nothing. The emulated one (igb, QEMU 8 and later)
carries, keeps VLANs apart and has a driver that holds a VF to its MAC; that QEMU's igb does not drop frames by their
source (DTXSWC, spoofchk) is known, and so is not tested here.
"""
from __future__ import annotations

import re

import pytest

from kvmnet.guests.image import build as build_guest
from kvmnet.host.paths import Paths
from lib import lab_vfs
from lib.lab import Lab
from lib.lab_image import build, image_folder
from lib.lab_parts import netdevsim

pytestmark = pytest.mark.lab


def test_many_vfs_are_told_checked_and_given_back(lab: Lab) -> None:
    module = netdevsim(image_folder(), build(image_folder(), print).release, print)
    print(lab.call(lab_vfs.keep_books, str(module), timeout=900))


def test_a_guest_has_a_vf(split_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMNET_IMAGE_DIR", str(image_folder()))
    build_guest(Paths(image_folder(), image_folder()), print)      # there is no network inside to fetch it
    seen = split_lab.call(lab_vfs.pass_through, timeout=900)
    for what, value in seen.items():
        print(f"{what}: {value}")
    assert "uplinks.nic.vfs: eth0 has at most 7 VFs, not 8" in seen["too many"] and "test.yaml:3:" in seen["too many"]
    assert re.search(r"ApplyFailed: .*(Invalid argument|not supported) \(ip link set dev eth0 vf 0 max_tx_rate 500 min_tx_rate 100\); "
                     r"rolled back.*remove rate", seen["min_rate"])
    assert seen["features"] == ["", ""]
    assert seen["after refusal"] is True
    assert seen["drift"] == seen["drift with a guest"] == seen["drift with two"] == []
    code, said = seen["ping"]
    assert code == 0 and "igbvf" in said and " 0% packet loss" in said
    assert seen["another MAC"][0] != 0, "the PF holds the guest to its MAC"
    assert seen["another VLAN"][0] != 0 and seen["back"][0] == 0, "the same ping passes on the right VLAN"
    assert seen["plugged in"] == (0, "2\n2\n"), "the second VF and the virtio card beside it are one device of the guest"
    assert seen["unplugged"][1].split()[:2] == ["0", "1"]
    assert seen["trusted"] == (0, ""), "the same change of the MAC passes when it may"
    assert seen["afterwards"] == (0, "1"), "no VF is left, and the NIC probes drivers again"
