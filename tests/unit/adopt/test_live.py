"""What a running host has, judged; hosts that the tests' own kernel cannot make."""
from __future__ import annotations

from pathlib import Path

from kvmnet.adopt.document import write
from kvmnet.adopt.importing import run_of
from kvmnet.adopt.libvirt_files import domains, networks
from kvmnet.adopt.live import Host, layout_of
from kvmnet.adopt.model import Outcome, Source
from kvmnet.adopt.netplan import parse
from kvmnet.adopt.qemu_words import machine
from kvmnet.adopt.tap_holders import Holder
from kvmnet.drivers.linux.resources import BridgeVlan, Link
from kvmnet.drivers.qemu.arguments import TINY_WORDS, Descriptors, arguments
from kvmnet.engine.driver import Seen
from kvmnet.engine.resource import Resource
from kvmnet.spec.guests import Run
from kvmnet.spec.load import loads


def host(*links: Resource, **more: object) -> Host:
    return Host(Seen({link.key: link for link in links}), **more)  # type: ignore[arg-type]


BOND = Link(name="bond0", type="bond", mtu=9000, mac="02:00:00:00:00:01", alias="", bond_mode="802.3ad", bond_miimon=50,
            bond_updelay=0, bond_downdelay=0, bond_hash="layer2", bond_lacp_rate="fast", bond_ad_select="stable",
            bond_min_links=1, bond_peer_notify=1, members=("eno1", "eno2"))


def member(name: str) -> Link:
    return Link(name=name, type="physical", mtu=9000, mac=BOND.mac, own_mac=f"02:00:00:00:00:0{name[-1]}", master="bond0", bonded=True)


def test_a_bond_and_its_vlans_are_described_with_what_the_document_cannot_say_of_them() -> None:
    layout = layout_of(host(
        member("eno1"), member("eno2"), BOND, Link(name="v7", type="vlan", mtu=1500, mac=BOND.mac, parent="bond0", vlan_id=7,
                                                  vlan_protocol="802.1ad"),
        Link(name="v7.9", type="vlan", mtu=1500, mac=BOND.mac, parent="v7", vlan_id=9, vlan_protocol="802.1Q"),
        Link(name="br0", type="bridge", mtu=1500), Link(name="br0.4", type="vlan", mtu=1500, parent="br0", vlan_id=4,
                                                       vlan_protocol="802.1Q"),
        details={"bond0": {"linkinfo": {"info_data": {"mode": "802.3ad", "fail_over_mac": "active", "use_carrier": 1,
                                                      "all_slaves_active": 0, "resend_igmp": 1}}}}))
    written = write(layout, ["x"])
    uplinks = loads(written.text).spec.uplinks
    wan = uplinks["bond0"]
    assert wan.members == ("eno1", "eno2") and wan.bond == "802.3ad" and wan.mtu == 9000 and wan.mac is None
    assert wan.options.model_dump(exclude_unset=True) == {"miimon": 50, "hash": "layer2", "lacp_rate": "fast", "min_links": 1}
    assert (uplinks["v7"].on, uplinks["v7"].vlan, uplinks["v7"].protocol, uplinks["v7"].mtu) == ("bond0", 7, "802.1ad", 1500)
    assert (uplinks["v7-9"].on, uplinks["v7-9"].device, uplinks["v7-9"].mtu) == ("v7", "v7.9", None)
    assert uplinks["br0-4"].model_dump(exclude_unset=True) == {"device": "br0.4"}, "a VLAN of a bridge is used as it is"
    lost = {e.path: e for e in written.elements if e.outcome is Outcome.UNSUPPORTED}
    assert lost.keys() == {"link bond0 fail_over_mac", "link br0.4"} and lost["link bond0 fail_over_mac"].value == "active"
    assert "a VLAN of br0, which is no uplink of the document" in lost["link br0.4"].words


def test_vlans_of_ports_are_told_as_ranges() -> None:
    vlans = [BridgeVlan(name=f"eno1 {v}", dev="eno1", bridge="vmbr0", pvid=v == 1, untagged=v == 1) for v in range(1, 4095)]
    layout = layout_of(host(Link(name="vmbr0", type="bridge", vlan_filtering=True), *vlans))
    told = [e for e in layout.elements if e.path == "vlans of eno1"]
    assert [e.value for e in told] == ["1 (untagged) 2-4094"] and told[0].outcome is Outcome.KEPT
    assert len(layout.elements) == 2


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


DOMAIN = """<domain type='kvm'><name>{name}</name><uuid>u-{name}</uuid><devices><interface type='bridge'>
<mac address='52:54:00:AA:00:01'/><source bridge='br0'/><target dev='{tap}'/><model type='virtio'/></interface></devices></domain>"""


def test_taps_of_domains_whose_qemu_is_not_seen(tmp_path: Path) -> None:
    for place, text in (("etc/libvirt/qemu/a.xml", DOMAIN.format(name="old", tap="vnet0")),
                        ("run/libvirt/qemu/a.xml", f"<domstatus>{DOMAIN.format(name='web', tap='vnet0')}</domstatus>"),
                        ("run/libvirt/qemu/broken.xml", "<domain"), ("run/libvirt/qemu/bomb.xml", "<!DOCTYPE x [<!ENTITY a 'b'>]><domain/>"),
                        ("run/libvirt/network/default.xml", "<networkstatus><network><bridge name='virbr0'/></network></networkstatus>"),
                        ("var/lib/libvirt/dnsmasq/lab.conf", "strict-order\ninterface=virbr5\n")):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(text)
    assert dict(networks(tmp_path)) == {"virbr0": "default", "virbr5": "lab"}
    layout = layout_of(host(Link(name="br0", type="bridge"), Link(name="vnet0", type="tap", master="br0"),
                            domains=domains(tmp_path)))
    assert 'web: {nics: [{network: br0, model: virtio, mac: "52:54:00:aa:00:01"}]}' in write(layout, ["x"]).text
    assert any("tap of guest web, libvirt's domain, uuid u-web, on br0" in e.words for e in layout.elements)


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
