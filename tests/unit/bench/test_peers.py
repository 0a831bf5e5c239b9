"""Who is compared by bench peers, what each is told, and what is said of the result."""
from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from kvmnet.bench.matrix import AXES, configuration, matrix
from kvmnet.bench.model import Machine
from kvmnet.bench.peers import compared, libvirt, ovs, tasks
from kvmnet.bench.peers.compared import LIKE, POINTS, WHO, extended, points
from kvmnet.bench.peers.seats import LACKING, MAKERS
from kvmnet.bench.peers.space import Space
from kvmnet.bench.record import Record, Taken, Wish, loads
from kvmnet.bench.results import report
from kvmnet.bench.scenarios import Place
from kvmnet.bench.sitting import check
from kvmnet.errors import HostCannot
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads as document

SIZES = {"networks": 3, "nics": 4}


def record(speeds: dict[str, float], absent: dict[str, str] | None = None, noise: float = 0.002) -> Record:
    """Six rounds of TCP; configuration -> how fast, 1 where none is given."""
    wish = Wish(tuple(matrix(["memory=192"], [], points(absent or {}), twin=True)), ("tcp-up",), (Place.HOST,), 6, SIZES)
    made = Record(wish, Machine("Linux", "", 2, {}), {}, "now", absent=absent or {})
    made.configured = {"networks": {"kvmnet": [1.0, 1.1] * 3, "libvirt": [3.0, 3.3] * 3}, "ports": {"kvmnet": [0.5] * 6, "bare": [0.1] * 6}}
    for number in range(6):
        for n, c in enumerate(wish.configurations):
            words = " ".join(f"{k}={v}" for k, v in c.settings.items() if k != "memory")
            factor = speeds.get(words, 1.0) * (1 + noise * (number % 3) * (n % 2))
            made.taken.append(Taken(number, "tcp-up", Place.HOST, n, {
                "seconds": 1.0, "bytes": [round(1e8 * factor)], "busy_here": 0.1, "busy_host": 0.1 * factor}))
    return made


def test_a_target_is_missed_where_kvmnet_is_slower_than_its_like() -> None:
    even = extended(record({}), report(record({})))
    assert even.exit_code == 0 and even.scenario == "peers"
    slow = record({"guard=full": 0.5})
    found = extended(slow, report(slow))
    missed = [r for r in found.rows if not r.good]
    assert [(r.subject, r.what) for r in missed] == [(LIKE[1][2], "tcp-up, guest-host: throughput")] and found.exit_code == 1
    assert missed[0].figures.values == (pytest.approx(0.5, rel=0.01),) and "worse: target missed" in missed[0].remark
    fast = record({"guard=off": 2.0, "by=libvirt": 1.0})
    better = [r for r in extended(fast, report(fast)).rows if r.subject == LIKE[0][2]]
    assert better[0].good and "better" in better[0].remark


def test_what_is_slower_by_less_than_two_equals_differ_is_not_missed() -> None:
    loud = record({"by=libvirt": 1.1}, noise=0.3)
    assert extended(loud, report(loud)).exit_code == 0
    calm = record({"by=libvirt": 1.1})
    assert extended(calm, report(calm)).exit_code == 1, "the same without the noise"


def test_times_are_told_against_kvmnet() -> None:
    made = record({})
    rows = {(r.subject, r.what): r for r in extended(made, report(made)).rows}
    assert rows["libvirt", "to configure 3 networks with NAT and DHCP"].remark.startswith("3.00 times as long as kvmnet")
    assert rows["the bare tools", "to configure 4 open NICs on a network"].remark.startswith("0.20 times as long as kvmnet")
    assert rows["kvmnet", "to configure 4 open NICs on a network"].remark == ""


def test_who_is_not_there_is_said_and_left_out() -> None:
    absent = {"libvirt": "libvirtd not installed"}
    assert points(absent) == ["guard=off", "guard=full", "by=bare", "by=ovs"] and points({}) == list(POINTS)
    made = record({}, absent)
    found = extended(made, report(made))
    assert "libvirt: libvirtd not installed; not compared" in found.notes
    assert not [r for r in found.rows if r.subject in {words for _, _, words in LIKE}]


def test_a_seat_by_somebody_who_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Wish((configuration("by=ovs memory=192"),), ("tcp-up",), (Place.HOST,), 6)
    monkeypatch.setattr(ovs, "find", lambda tool: None)
    with pytest.raises(HostCannot, match=r"ovs-vsctl.* not installed"):
        check(wish)
    monkeypatch.setattr(ovs, "find", lambda tool: tool)
    monkeypatch.setattr(ovs, "daemon", lambda: "/d")
    check(wish)


def test_the_record_keeps_sizes_and_absentees() -> None:
    import json
    made = record({}, {"ovs": "not installed"})
    again = loads("\n".join((json.dumps(made.header()), json.dumps({"configured": made.configured}), "")), "x")
    assert (again.wish, again.absent, again.configured) == (made.wish, made.absent, made.configured)
    plain = Wish((configuration(""),), ("tcp-up",), (Place.HOST,), 6)
    assert "sizes" not in plain.to_json() and Wish.from_json(plain.to_json()) == plain


def test_everybody_of_the_axis_has_a_maker_and_a_reason() -> None:
    assert set(MAKERS) == set(LACKING) == {p.removeprefix("by=") for p in POINTS if p.startswith("by=")}
    for by in ("kvmnet", *MAKERS):
        assert AXES["by"](by) is None
    assert set(WHO) - {"kvmnet"} <= set(LACKING)


def test_documents_are_such_and_files_are_xml(tmp_path: Path) -> None:
    tasks.kvmnet(Space("x", tmp_path), 3, 4)
    for name, count in (("networks", 3), ("empty", 1), ("open", 1), ("guarded", 1)):
        made = document((tmp_path / f"{name}.yaml").read_text(), name)
        require(made, Facts())
        assert len(made.spec.networks) == count and len(made.spec.vms) == (4 if name in ("open", "guarded") else 0)
    found = ElementTree.fromstring(libvirt.network_xml("default", "virbr0", "198.18.3", "nat", 9000))
    assert found.find("forward").get("mode") == "nat" and found.find("mtu").get("size") == "9000"  # type: ignore[union-attr]
    assert ElementTree.fromstring(libvirt.network_xml("default", "virbr0", "198.18.3", "isolated", 1500)).find("forward") is None
    bound = ElementTree.fromstring(libvirt.binding_xml(7, "t7", "52:54:00:00:00:07", "10.0.0.7"))
    assert bound.find("filterref").get("filter") == "clean-traffic" and bound.find(".//parameter").get("value") == "10.0.0.7"  # type: ignore[union-attr]


def test_every_way_names_what_proves_it(tmp_path: Path) -> None:
    (tmp_path / "pid").write_text("1\n")
    space = Space("x", tmp_path)
    every = {"kvmnet": tasks.kvmnet(space, **SIZES), "bare": tasks.with_bare_tools(space, **SIZES),
             "libvirt": tasks.with_libvirt(libvirt.Libvirt(space), **SIZES), "ovs": tasks.with_open_vswitch(ovs.OpenVswitch(space), 4)}
    assert set(every) == set(compared.WHO)
    for found in every.values():
        for task, way in found.items():
            assert way.timed and way.undo and len(way.named) == SIZES["networks" if task == "networks" else "nics"]
    assert "ports" not in every["libvirt"] and "networks" not in every["ovs"]
