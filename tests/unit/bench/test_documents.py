"""A document of the operator's as what is measured: which NIC, what is left out, and that what is made of it is a document still."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.bench import document_seats
from kvmnet.bench.dials import Dials
from kvmnet.bench.documents import (
    FAR,
    DocumentSeat,
    Subject,
    configuration,
    has_host,
    nics_needed,
    standing,
    subject,
    text_for,
    way_out,
)
from kvmnet.bench.ground import Ground, Tools
from kvmnet.bench.matrix import PORT, matrix
from kvmnet.bench.record import Wish
from kvmnet.bench.scenarios import Place
from kvmnet.bench.sitting import check, seat_of
from kvmnet.errors import KvmnetError
from kvmnet.facts.model import Facts
from kvmnet.host.paths import Paths
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads

ROOT = Path(__file__).parents[3]
RUN = {"kernel": "/k", "initrd": "/i", "append": "x", "memory": "192M"}
DOCUMENT = """
version: 1
tuning: {net.ipv4.tcp_mtu_probing: 1}
reach: [192.0.2.9]
uplinks:
  wan: {device: eth0, ethtool: {rings: {rx: 512}}}
  pair: {members: [eth1, eth2], mtu: 9000}
  carried: {on: pair, vlan: 7}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.0.0.0/24, allow: [{protocol: tcp, port: 22}]}
  far: {mode: bridge, uplink: carried}
  side: {mode: macvtap, uplink: wan}
  bonded: {mode: nat, uplink: pair, subnet: 10.1.0.0/24}
vms:
  one: {run: {image: tiny, cpus: 2, memory: 1G}, nics: [{network: lan, rate: {out: 100mbit}}, {network: far, name: back}]}
  two: {run: {image: tiny}, nics: [{network: side}]}
"""


def test_the_nic_that_is_measured() -> None:
    spec = loads(DOCUMENT).spec
    assert subject(spec) == Subject("one", "nic0", 0, "lan") and subject(spec, "one/back") == Subject("one", "back", 1, "far")
    for wrong, said in (("nobody", "no NIC nobody"), ("one/nic7", "no NIC one/nic7")):
        with pytest.raises(KvmnetError, match=said):
            subject(spec, wrong)
    vfs = loads("version: 1\nuplinks: {u: {device: e, vfs: 2}}\nnetworks: {n: {mode: sriov, uplink: u}}\nvms: {a: {nics: [{network: n}]}}\n").spec
    with pytest.raises(KvmnetError, match="a VF is a part of a NIC"):
        subject(vfs)


def test_what_is_made_of_it() -> None:
    spec = loads(DOCUMENT).spec
    made = loads(text_for(DOCUMENT, subject(spec), RUN, RUN)).spec
    assert made.tuning == {} and made.reach == () and made.uplinks["wan"].ethtool.rings.rx is None
    assert made.vms["one"].run and made.vms["one"].run.kernel == "/k" and made.vms["two"].run is None
    assert made.vms["one"].nics == spec.vms["one"].nics and made.vms[FAR].nics[0].network == "lan"
    assert [(a.protocol, a.port) for a in made.networks["lan"].allow] == [("tcp", 22), ("tcp", PORT), ("udp", PORT)]
    assert loads(text_for(DOCUMENT, subject(spec, "one/back"), RUN, None)).spec.networks == spec.networks
    assert made.networks["far"] == spec.networks["far"], "others are left as they are"
    assert FAR not in loads(text_for(DOCUMENT, subject(spec), RUN, None)).spec.vms


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_of_every_example_a_document_is_made(path: Path) -> None:
    text = path.read_text()
    try:
        found = subject(loads(text).spec)
    except KvmnetError as said:
        assert "cannot be measured" in str(said) or "has no NIC" in str(said)
        return
    made = loads(text_for(text, found, RUN, None), path.name)
    require(made, Facts())
    if has_host(made.spec, found.network):
        require(loads(text_for(text, found, RUN, RUN), path.name), Facts())
    assert made.spec.vms[found.vm].run and len(made.spec.networks) == len(loads(text).spec.networks)


def test_nics_of_the_host_that_it_needs_and_its_way_out() -> None:
    spec = loads(DOCUMENT).spec
    assert list(nics_needed(spec)) == ["eth0", "eth1", "eth2"]
    assert [way_out(spec, name) for name in ("lan", "far", "side", "bonded")] == ["eth0", "", "", ""]


def written(folder: Path, text: str = DOCUMENT) -> Path:
    (folder / "host.yaml").write_text(text)
    return folder / "host.yaml"


def test_what_cannot_be_measured_is_said_before(tmp_path: Path) -> None:
    def refused(guest: str, *places: Place) -> str:
        with pytest.raises(KvmnetError) as said:
            check(Wish((document_seats.named(written(tmp_path), guest),), ("tcp-up",), places, 6))
        return str(said.value)

    assert "do not reach the host" in refused("two", Place.HOST)
    assert "do not reach the host" in refused("one/back", Place.HOST)
    assert "the outside is measured where" in refused("one/back", Place.OUTSIDE)
    with pytest.raises(KvmnetError, match="cannot read"):
        document_seats.named(tmp_path / "none.yaml", "")
    wish = Wish((document_seats.named(written(tmp_path), "one"),), ("tcp-up",), (Place.HOST, Place.OUTSIDE), 6)
    check(wish)
    written(tmp_path, DOCUMENT + "# changed\n")
    with pytest.raises(KvmnetError, match="not what it was"):
        check(wish)


def test_documents_come_first_and_have_seats_of_their_own() -> None:
    one, other = configuration("/a.yaml", DOCUMENT, ""), configuration("/b.yaml", DOCUMENT, "one/back")
    found = matrix([], [], [""], True, [one, other])
    assert [c.name for c in found] == ["/a.yaml one/nic0", "/a.yaml one/nic0 (again)", "/b.yaml one/back", "defaults"]
    assert [type(seat_of(n, c)) is DocumentSeat for n, c in enumerate(found)] == [True, True, True, False]
    assert [c.name for c in matrix([], [], [], False, [one])] == ["/a.yaml one/nic0"]


def test_what_stands_is_taken_from_the_status(tmp_path: Path) -> None:
    seat = DocumentSeat(0, configuration("/a.yaml", DOCUMENT, "one/nic0"))
    spec = loads(DOCUMENT).spec
    status = {"nics": [{"guest": "one", "nic": "nic0", "network": "lan", "mac": "m1", "ip": "10.0.0.2"},
                       {"guest": FAR, "nic": "nic0", "network": "lan", "mac": "m2", "ip": "10.0.0.3"}],
              "networks": [{"name": "lan", "mtu": 1500, "addresses": ["fd00::1/64", "10.0.0.1/24"]}]}
    seat.found.update(standing(status, spec, seat, 2))
    assert (seat.host, seat.length, seat.mtu, seat.address(2), seat.mac(1), seat.guest(1), seat.guest(2)) == (
        "10.0.0.1", 24, 1500, "10.0.0.3", "m1", "one", FAR)
    alone = DocumentSeat(1, configuration(str(written(tmp_path)), DOCUMENT, "one/nic0"))
    alone.found.update(standing(status, spec, alone, 1), outside="198.19.1.1")
    ground = Ground([alone], 1, Tools(None, tmp_path / "load"), Paths(tmp_path, tmp_path), tmp_path, Dials())  # type: ignore[arg-type]
    assert [ground.far_end(alone, place) for place in (Place.HOST, Place.OUTSIDE)] == ["10.0.0.1", "198.19.1.1"], "without a second guest"
    status["nics"][0]["ip"] = ""
    with pytest.raises(KvmnetError, match="no IPv4 address"):
        standing(status, spec, seat, 1)
