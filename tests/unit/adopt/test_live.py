"""What a running host has, judged; hosts that the tests' own kernel cannot make."""
from __future__ import annotations

from kvmnet.adopt.document import write
from kvmnet.adopt.importing import run_of
from kvmnet.adopt.live import Host, layout_of
from kvmnet.adopt.model import Outcome, Source
from kvmnet.adopt.netplan import parse
from kvmnet.adopt.qemu_words import machine
from kvmnet.adopt.tap_holders import Holder
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.qemu.arguments import TINY_WORDS, Descriptors, arguments
from kvmnet.engine.driver import Seen
from kvmnet.spec.load import loads
from kvmnet.spec.models import Run


def host(*links: Link, **more: object) -> Host:
    return Host(Seen({link.key: link for link in links}), **more)  # type: ignore[arg-type]


def test_a_bond_and_a_vlan_are_uplinks_that_exist_and_wait_for_their_feature() -> None:
    layout = layout_of(host(
        Link(name="eno1", type="physical", mtu=1500), Link(name="eno2", type="physical", mtu=1500),
        Link(name="bond0", type="bond", mtu=9000), Link(name="v7", type="vlan", mtu=1500),
        details={"eno1": {"master": "bond0"}, "eno2": {"master": "bond0"},
                 "bond0": {"linkinfo": {"info_data": {"mode": "802.3ad"}}},
                 "v7": {"link": "bond0", "linkinfo": {"info_data": {"id": 7}}}}))
    written = write(layout, ["x"])
    assert {u.device: u.mtu for u in loads(written.text).spec.uplinks.values()} == {"bond0": 9000, "v7": None}
    assert {e.feature for e in written.elements if e.outcome is Outcome.LATER} == {"bonds", "vlans"}
    assert "mode 802.3ad, members eno1 eno2" in written.text and "id 7 on bond0" in written.text


def test_libvirt_network_by_name_and_its_guests_tap() -> None:
    layout = layout_of(host(
        Link(name="virbr7", type="bridge"), Link(name="vnet1", type="tap", master="virbr7", mac="fe:54:00:11:22:33"),
        libvirt={"virbr7": "default"},
        holders=[Holder(812, ("/usr/bin/qemu-system-x86_64", "-name", "guest=db,x=on", "-object",
                              "secret,file=/var/lib/libvirt/qemu/domain-1-db/k"), {9: "vnet1"})]))
    told = {e.path: e for e in layout.elements}
    assert told["link virbr7"].words == "bridge of libvirt's network default"
    assert "guest db, QEMU, pid 812, run by libvirt, on virbr7" in told["link vnet1"].words
    assert layout.guests == () and "networks:" not in write(layout, ["x"]).text


def test_cards_of_a_qemu() -> None:
    found = machine(["qemu-system-x86_64", "-name", "a", "-netdev", "tap,id=n0,ifname=t0", "-device",
                     "e1000,netdev=n0,mac=52:54:00:00:00:01", "-netdev", '{"type":"tap","fds":"5:6","id":"n1"}',
                     "-device", '{"driver":"virtio-net-pci","netdev":"n1","mac":"52:54:00:00:00:02"}'])
    assert found is not None
    assert [(c.mac[-2:], c.model, c.tap, c.descriptors) for c in found.cards] == [
        ("01", "e1000", "t0", ()), ("02", "virtio", "", (5, 6))]
    assert machine(["/usr/bin/python3", "-name", "x"]) is None


def test_files_of_netplan_are_merged_and_what_is_replaced_is_said() -> None:
    layout = parse([Source("a.yaml", "network: {ethernets: {eth0: {mtu: 9000, addresses: [192.0.2.1/24]}}}"),
                    Source("b.yaml", "network: {ethernets: {eth0: {mtu: 1400, addresses: [192.0.2.9/24]}}}")])
    assert layout.nics[0].mtu == 1400
    assert [a.cidr for a in layout.addresses] == ["192.0.2.1/24", "192.0.2.9/24"]
    assert next(e for e in layout.elements if e.value == "9000").words == "replaced by b.yaml:1"


def test_secrets_are_not_repeated() -> None:
    text = "network: {wifis: {w: {access-points: {home: {password: hush}}}}, tunnels: {wg: {key: hush}}}"
    written = write(parse([Source("a.yaml", text)]), ["x"])
    assert "hush" not in written.text and "(hidden)" in written.text


def test_how_a_guest_of_ours_was_started() -> None:
    files = Descriptors(monitor=3, agent=4, console=5, console_log=6, kernel=7, initrd=8)
    words = arguments("web1", Run(memory=512 * 2**20, cpus=3, image="tiny"), (), "tcg", files, f"{TINY_WORDS} kvmnet.name=web1")
    assert run_of(words, TINY_WORDS) == {"cpus": 3, "memory": "512M", "machine": "q35", "image": "tiny"}
    assert "image" not in run_of(arguments("x", Run(kernel="/k"), (), "tcg", files, "quiet"), TINY_WORDS)
