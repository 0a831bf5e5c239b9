"""What the driver does without a QEMU: the record, dead guests, the messages that plans print."""
from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from kvmnet.drivers.qemu import taps
from kvmnet.drivers.qemu.devices import Place
from kvmnet.drivers.qemu.driver import GuestNicDriver, free_place, tell_mtus
from kvmnet.drivers.qemu.folder import folder, folders, running_folders
from kvmnet.drivers.qemu.observe import address, backends, mover, read_nic, signed
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.drivers.qemu.sockets import listen
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Update
from kvmnet.host.paths import Paths
from kvmnet.host.process import Process, this_process

NIC = GuestNic(name="web/nic0", vm="web", tap="kvt-web-0", model="virtio", mac="52:54:00:00:00:01", link=True,
               host_mtu=1500, queues=2, rx_ring=256, tx_ring=256, packed=False, rss=False, offloads=("csum",), vhost=False,
               bootindex=-1, pci="", vf="", host="", standby=False, pair="")


def run_folder(paths: Paths, process: Process) -> None:
    home = folder(paths, "web")
    home.path.mkdir(parents=True)
    home.save_process(process, "tcg")
    home.save_record([NIC])


def test_the_record_comes_back_as_it_was(paths: Paths) -> None:
    run_folder(paths, this_process())
    home = folder(paths, "web")
    assert home.record() == {"web/nic0": NIC} and home.accelerator() == "tcg"
    home.record_file.write_text("[{]")
    assert home.record() == {}
    home.forget()
    assert home.process() is None and folders(paths) == []


def test_a_reused_pid_is_not_the_guest(paths: Paths) -> None:
    run_folder(paths, Process(os.getpid(), 1))
    assert [f.name for f in folders(paths)] == ["web"] and running_folders(paths) == []
    assert GuestNicDriver(paths).observe({}).state == {}


def test_a_monitor_that_is_silent_shows_what_was_known(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvmnet.drivers.qemu.driver.OBSERVE_TIMEOUT", 0.05)
    run_folder(paths, this_process())
    driver = GuestNicDriver(paths)
    with listen(folder(paths, "web").monitor):
        seen = driver.observe({})
    assert seen.state == {NIC.key: NIC} and seen.ours == {NIC.key}
    assert driver.warnings == ["guest web: its monitor does not answer: a greeting did not come in time; "
                               "its NICs are shown as they were last known"]


def test_a_guest_that_does_not_run_fails_the_step(paths: Paths) -> None:
    with pytest.raises(StepFailed, match="guest web does not run") as caught:
        GuestNicDriver(paths).apply([Create(NIC)], lambda n: None)
    assert caught.value.key == NIC.key and caught.value.hint == "kvmnet vm start web"


def test_plans_print_the_messages(paths: Paths) -> None:
    driver = GuestNicDriver(paths)
    (create,) = driver.commands([Create(replace(NIC, link=False))])
    said = [json.loads(line) for line in create.stdin.splitlines()]
    assert [m["execute"] for m in said] == [
        "qmp_capabilities", "getfd", "getfd", "netdev_add", "device_add", "set_link"]
    assert said[3]["arguments"]["fds"] == "kvmnet-nic0-tap0:kvmnet-nic0-tap1"
    assert said[5]["arguments"] == {"name": "kvmnet-nic0", "up": False}
    update, delete = driver.commands([Update(NIC, replace(NIC, link=False)), Delete(NIC)])
    assert '"set_link"' in update.stdin and str(folder(paths, "web").monitor) in update.argv[-1]
    assert [json.loads(line)["execute"] for line in delete.stdin.splitlines()] == [
        "qmp_capabilities", "device_del", "netdev_del"]
    assert driver.commands([Update(NIC, replace(NIC, link=None))]) == []


LISTING = """\
kvmnet-nic1: index=0,type=nic,model=e1000,macaddr=52:54:00:00:00:02
 \\ kvmnet-nic1.tap: index=0,type=tap,fd=8
kvmnet-nic0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:00:00:01
 \\ kvmnet-nic0.tap: index=0,type=tap,fd=6
kvmnet-nic0.tap: index=1,type=tap,fd=7
hub0: index=0,type=hubport,
"""


def test_backends_are_read_from_the_listing() -> None:
    assert backends(LISTING) == {"kvmnet-nic1.tap": [8], "kvmnet-nic0.tap": [6, 7]}


def test_a_card_is_read_in_the_compiler_s_words() -> None:
    got = {"mac": "52:54:00:00:00:0A", "bootindex": 0xFFFFFFFF, "addr": 0, "parent_bus": "/machine/p/kvmnet-port-0",
           "host_mtu": 1500, "rx_queue_size": 256, "tx_queue_size": 256, "packed": False, "csum": True,
           "host_tso4": True, "mrg_rxbuf": False}
    seen = read_nic("web", "kvmnet-nic0", "virtio", got, [], 0, {"web/nic0": NIC})
    assert seen == replace(NIC, mac="52:54:00:00:00:0a", tap="", queues=1, offloads=("csum", "tso4"), backend="")
    plain = read_nic("web", "kvmnet-nic0", "pcnet", got, [], 0, {})
    assert (plain.host_mtu, plain.rx_ring, plain.packed, plain.offloads, plain.link) == (0, 0, False, (), None)


def test_addresses_count_on_the_first_bus_only() -> None:
    assert address({"parent_bus": "/machine/q35/pcie.0", "addr": 5 << 3 | 1}) == "05.1"
    assert address({"parent_bus": "/machine/peripheral/kvmnet-pci/kvmnet-pci", "addr": 8}) == ""
    assert [signed(n) for n in (-1, 0, 3, 2**32 - 1, None)] == [-1, 0, 3, -1, -1]


def test_vhost_without_its_device_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "VHOST", "/nonexistent/vhost-net")
    assert taps.open_vhost(NIC) == []
    with pytest.raises(StepFailed, match="vhost is wanted, but /nonexistent/vhost-net") as caught:
        taps.open_vhost(replace(NIC, vhost=True))
    assert caught.value.hint == "modprobe vhost_net, or vhost: auto"
    assert "No such file" in (taps.vhost_unavailable() or "")


class Answers:
    """A monitor that only knows its PCI buses."""

    def __init__(self, *ports: bool):
        self.ports = ports

    def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        assert command == "query-pci"
        return [{"bus": 0, "devices": [{"qdev_id": "kvmnet-pci", "pci_bridge": {}}, {"qdev_id": "x"}, *(
            {"qdev_id": f"kvmnet-port-{i}", "pci_bridge": {"devices": [{}] if taken else []}}
            for i, taken in enumerate(self.ports))]}]


@pytest.mark.parametrize(("monitor", "change", "place"), [
    (Answers(True, False, False), {}, Place("kvmnet-port-1")),
    (Answers(*[True] * 10, False), {}, Place("kvmnet-port-10")),
    (Answers(True), {"model": "e1000"}, Place("kvmnet-pci")),
    (Answers(), {}, Place("kvmnet-pci")),
    (Answers(), {"pci": "05.0"}, Place("pci.0", "05.0")),
])
def test_a_free_place_is_found(monitor: Answers, change: dict[str, str], place: Place) -> None:
    assert free_place(replace(NIC, **change), monitor) == place      # type: ignore[arg-type]


def test_a_card_comes_back_to_its_port_if_that_is_free() -> None:
    assert free_place(NIC, Answers(False, False, False), "kvmnet-port-2") == Place("kvmnet-port-2")  # type: ignore[arg-type]
    assert free_place(NIC, Answers(False, False, True), "kvmnet-port-2") == Place("kvmnet-port-0")  # type: ignore[arg-type]


def test_an_mtu_is_told_to_the_agent(paths: Paths) -> None:
    """And to nobody else: a guest without an agent, or one that hangs, fails nothing."""
    low = replace(NIC, mtu=1300)
    (told,) = GuestNicDriver(paths).commands([Update(replace(NIC, mtu=1500), low)])
    assert str(folder(paths, "web").agent) in told.argv[-1]
    script = json.loads(told.stdin)["arguments"]["arg"][1]
    assert "52:54:00:00:00:01" in script and "mtu 1300" in script
    tell_mtus([Update(replace(NIC, mtu=1500), low)], paths)


@pytest.mark.parametrize(("monitor", "change", "reason"), [
    (Answers(True, True), {}, "no free PCIe port left"),
    (Answers(False), {"pci": "05.0"}, "can only be there from the start"),
])
def test_where_there_is_no_place_the_step_fails(monitor: Answers, change: dict[str, str], reason: str) -> None:
    with pytest.raises(StepFailed, match=reason):
        free_place(replace(NIC, **change), monitor)      # type: ignore[arg-type]


@pytest.mark.parametrize(("status", "carrier", "who"), [
    ({"vhost-started": True, "started": True, "vm-running": True}, True, "vhost"),
    ({"vhost-started": False, "started": True, "vm-running": True}, True, "qemu"),
    ({"vhost-started": False, "started": True, "vm-running": True}, False, ""),
    ({"vhost-started": False, "started": True, "vm-running": False}, True, ""),
    ({"vhost-started": False, "started": False, "vm-running": True}, True, ""),
    ({}, True, ""),
])
def test_who_moves_packets_is_read_back(status: dict[str, bool], carrier: bool, who: str) -> None:
    assert mover(status, carrier) == who


def test_a_card_without_a_driver_is_what_it_was_started_as() -> None:
    on = replace(NIC, vhost=True)
    for status, vhost in (({}, True), ({"vhost-started": True}, True), ({"started": True, "vm-running": True}, False)):
        seen = read_nic("web", "kvmnet-nic0", "virtio", {"virtio": status}, [], 0, {NIC.name: on})
        assert seen.vhost is vhost
    assert read_nic("web", "kvmnet-nic0", "virtio", {}, [], 0, {}).vhost is False
