"""VFs in the hands of QEMU: how they are told, found again, and what QEMU may for them."""
from __future__ import annotations

import resource
from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.qemu import observe, passed
from kvmnet.drivers.qemu.devices import Place, device, keyval
from kvmnet.drivers.qemu.driver import messages
from kvmnet.drivers.qemu.observe import hidden, read_vf
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete

VF = GuestNic(name="db/nic0", vm="db", tap="", vf="ens1 3", host="0000:81:10.3", model="vf", mac="", link=True, host_mtu=0, queues=1,
              rx_ring=0, tx_ring=0, packed=False, rss=False, offloads=(), vhost=False, standby=False, pair="", bootindex=-1, pci="")
STANDBY = GuestNic(name="db/nic0-standby", vm="db", tap="kvt-db-x", vf="", host="", model="virtio", mac="52:54:00:00:00:01", standby=True,
                   pair="")


def test_a_vf_is_told_by_its_address() -> None:
    assert keyval(device(VF, Place("kvmnet-port-0")), "driver") == "vfio-pci,id=kvmnet-nic0,host=0000:81:10.3,bus=kvmnet-port-0,romfile="
    paired = replace(VF, pair="db/nic0-standby", bootindex=1)
    assert keyval(device(paired, Place("p")), "driver") == (
        "vfio-pci,id=kvmnet-nic0,host=0000:81:10.3,failover_pair_id=kvmnet-nic0-standby,bus=p,bootindex=1")
    assert "failover=on" in keyval(device(STANDBY, Place("p")), "driver")


def test_plugging_needs_no_backend() -> None:
    assert [name for name, _ in messages(Create(VF))] == ["device_add"]
    assert [name for name, _ in messages(Delete(VF))] == ["device_del"]


def test_a_vf_is_found_again_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe, "number_of", lambda address: ("ens1", 3) if address == "0000:81:10.3" else None)
    got = {"host": "0000:81:10.3", "addr": 0, "parent_bus": "/machine/p/kvmnet-port-0", "failover_pair_id": "kvmnet-nic0-standby"}
    assert read_vf("db", "kvmnet-nic0", got, {}) == replace(VF, pair="db/nic0-standby")
    gone = {**got, "host": "0000:81:10.4", "failover_pair_id": ""}
    assert read_vf("db", "kvmnet-nic0", gone, {}).vf == "", "of a NIC that is not there any more"
    assert read_vf("db", "kvmnet-nic0", gone, {"db/nic0": replace(VF, host="0000:81:10.4")}).vf == "ens1 3"


def test_a_vf_that_qemu_keeps_back_is_there() -> None:
    paired = replace(VF, pair="db/nic0-standby")
    record = {n.name: n for n in (STANDBY, paired)}
    assert list(hidden([STANDBY], record)) == [paired]
    assert list(hidden([STANDBY, paired], record)) == list(hidden([], record)) == list(hidden([STANDBY], {VF.name: VF})) == []


def test_memory_may_be_locked_for_a_vf_only() -> None:
    assert passed.limit([STANDBY], 2**30) == 0 and passed.limit([STANDBY, VF], 2**30) == 2**31
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with passed.lockable(2**16):
        assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == (2**16, before[1])
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == before


def test_a_vf_that_is_not_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(passed.sysfs, "vf_device", lambda dev, number: None)
    with pytest.raises(StepFailed, match="there is no VF ens1 3"):
        passed.found(VF)
    monkeypatch.setattr(passed.sysfs, "vf_device", lambda dev, number: tmp_path)
    with pytest.raises(StepFailed, match="not bound to vfio-pci"):
        passed.found(VF)
    assert passed.found(STANDBY) is STANDBY
