"""What is compared, and that every document that is made of it is one that kvmnet takes."""
from __future__ import annotations

from itertools import product

import pytest

from kvmnet.bench.matrix import AXES, PORT, Configuration, Seat, configuration, document, matrix, nic_of
from kvmnet.errors import KvmnetError
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads


def test_what_is_varied_is_multiplied() -> None:
    found = matrix(["mtu=9000"], ["model=virtio,e1000", "guard=full,off"], [], twin=True)
    assert [c.name for c in found] == [
        "mtu=9000 model=virtio guard=full", "mtu=9000 model=virtio guard=full (again)", "mtu=9000 model=virtio guard=off",
        "mtu=9000 model=e1000 guard=full", "mtu=9000 model=e1000 guard=off"]
    assert found[1].twin and found[1].settings == found[0].settings


def test_points_come_first_and_nothing_twice() -> None:
    found = matrix([], ["model=virtio,e1000"], ["", "model=e1000"], twin=False)
    assert [c.name for c in found] == ["defaults", "model=e1000", "model=virtio"]
    assert [c.name for c in matrix([], [], [], twin=False)] == ["defaults"]


@pytest.mark.parametrize(("words", "said"), [
    (["pin=1-0"], "pin cannot be"), (["color=blue"], "nothing called 'color'"), (["model"], "model cannot be ''"), (["model=ne2k"], "model cannot be 'ne2k'"),
    (["offloads=tso9"], "offloads cannot be 'tso9'"), (["mtu=10"], "mtu cannot be '10'"), (["mtu=9000000"], "mtu cannot"), (["queues=two"], "queues cannot"),
    (["mtu=" + ",".join(str(n) for n in range(1000, 1020))], "20 configurations are too many"),
])
def test_what_cannot_be_varied_is_said(words: list[str], said: str) -> None:
    with pytest.raises(KvmnetError, match=said):
        matrix([], words, [], twin=False)


POINTS = ("", "model=e1000", "model=rtl8139", "mode=bridge", "mode=macvtap", "mode=routed", "mode=isolated", "guard=off", "guard=mac",
          "mtu=9000", "queues=2 cpus=2 rss=on", "vhost=off", "offloads=none", "packed=on", "rx_ring=1024", "memory=512 by=bare offloads=tso4+tso6",
          "uplink=rstp mode=bridge pin=0-1/1", "uplink=active-backup", "uplink=active-backup mode=bridge", "uplink=active-backup mode=macvtap",
          "groups=on offloads=mrg_rxbuf", "mode=vxlan mtu=1400")


@pytest.mark.parametrize("guests", [1, 2])
def test_the_document_of_everything_is_one(guests: int) -> None:
    seats = [Seat(n, c) for n, c in enumerate(map(configuration, POINTS))]
    assert {name for s in seats for name in s.configuration.settings} == set(AXES)
    made = loads(document(seats, guests, "/k", "/i", "console=ttyS0"), "bench.yaml")
    require(made, Facts())
    assert len(made.spec.vms) == len(seats) * guests and len(made.spec.networks) == len(seats)
    nics = {name: vm.nics[0] for name, vm in made.spec.vms.items()}
    assert nics["c1g1"].model == "e1000" and nics["c7g1"].guard == "off" and nics["c10g1"].queues == 2
    assert nics["c12g1"].offloads.csum is False and nics["c0g1"].offloads.csum is None and nics["c13g1"].packed
    assert (nics["c15g1"].offloads.tso4, nics["c15g1"].offloads.csum) == (False, None)
    assert made.spec.networks["c15"].mode == "isolated" and "u15" not in made.spec.uplinks and "u0" in made.spec.uplinks
    assert made.spec.uplinks["u16"].redundant.keys() == {"up16b"} and made.spec.networks["c16"].stp == "rstp"
    assert [made.spec.uplinks[f"u{n}"].bond for n in (0, 17, 18, 19)] == [None, *["active-backup"] * 3]
    assert made.spec.networks["c21"].vxlan.peers == ("198.18.21.1",) and made.spec.uplinks["u21"].mtu == 1450  # type: ignore[union-attr]
    assert made.spec.uplinks["u17"].addresses and not made.spec.uplinks["u18"].addresses
    assert made.spec.vms["c16g1"].run.pin.vcpus == ("0-1", "1")  # type: ignore[union-attr]
    assert nics["c20g1"].groups == ("bench",) and nics["c20g1"].offloads.mrg_rxbuf is False and nics["c12g1"].offloads.mrg_rxbuf is None
    assert [rule.tcp or rule.udp for rule in made.spec.groups["bench"].ingress or ()][:2] == [(str(PORT),), (str(PORT),)] and not nics["c0g1"].groups
    assert made.spec.networks["c9"].mtu == 9000 and made.spec.vms["c10g1"].run.cpus == 2  # type: ignore[union-attr]


DOCUMENT = """
version: 1
uplinks: {u: {device: eth0}}
networks:
  a: {mode: bridge, uplink: u, mtu: 9000}
  v: {mode: vxlan, uplink: u, vxlan: {vni: 7, peers: [192.0.2.9]}, subnet: 10.0.0.0/24}
vms:
  one: {run: {image: tiny, cpus: 2}, nics: [{network: a, guard: 'off', queues: 2, vhost: 'off', packed: true, rx_ring: 512}]}
  two: {nics: [{network: a, mtu: 1400, name: x, model: e1000e}, {network: v}]}
"""


def test_a_nic_of_a_document_is_a_point() -> None:
    spec = loads(DOCUMENT).spec
    one = nic_of(spec, "one")
    assert one == "mode=bridge guard=off mtu=9000 queues=2 vhost=off packed=on rx_ring=512 cpus=2"
    auto = loads(DOCUMENT.replace("queues: 2", "queues: auto")).spec
    assert "queues=2" in nic_of(auto, "one")
    assert configuration(one).settings["rx_ring"] == "512"
    assert nic_of(spec, "two/x") == "model=e1000e mode=bridge mtu=1400"
    with pytest.raises(KvmnetError, match="no NIC one/nic7"):
        nic_of(spec, "one/nic7")
    assert nic_of(spec, "two/nic1") == "mode=vxlan"


def test_no_two_parts_share_an_address() -> None:
    modes = ("nat", "bridge")
    seats = [Seat(n, Configuration({"mode": m})) for n, m in enumerate(modes * 8)]
    used = [a for s in seats for a in (*(s.address(w) for w in (1, 2)), s.host, s.outside)]
    assert len(set(used)) == len(used)
    macs = [s.mac(w) for s, w in product(seats, (1, 2))]
    assert len(set(macs)) == len(macs)
