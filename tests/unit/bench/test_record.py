"""The record on disk: what is missing after a stop, and what reports are made of it."""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from kvmnet.bench.compare import compared, unlike
from kvmnet.bench.equals import Equals, equals
from kvmnet.bench.matrix import Configuration, matrix
from kvmnet.bench.model import Machine
from kvmnet.bench.page import page
from kvmnet.bench.record import Pen, Record, Taken, Wish, line_of, loads, read
from kvmnet.bench.results import comparisons, report, results
from kvmnet.bench.scenarios import FAMILIES, SCENARIOS, Place, arguments, chosen
from kvmnet.bench.statistics import Verdict
from kvmnet.bench.virtio import read as negotiated
from kvmnet.cli.bench import bench
from kvmnet.errors import KvmnetError

ANSWERS: dict[str, Callable[[float], dict[str, Any]]] = {
    "tcp-up": lambda f: {"seconds": 1.0, "bytes": [round(125e6 * f)], "busy_here": 0.5, "busy_there": 0.5, "busy_host": 0.8},
    "udp-64": lambda f: {"rate": 20000 * f, "by_sender": f > 1.1, "sent": 9000, "busy_here": 0.2, "busy_host": 0.3, "trials": 4},
    "latency-udp": lambda f: {"seconds": 1.0, "lost": 0, "times": [[int(1400 / f ** 0.1), 900], [int(1600 / f ** 0.1), 100]]},
    "hold": lambda f: {"seconds": 0.2 / f, "answered": 1000},
}
FACTORS = (1.0, 1.004, 1.4)
"""How fast the first, its twin and the other are."""


def wish(rounds: int = 6, scenarios: tuple[str, ...] = tuple(ANSWERS)) -> Wish:
    return Wish(tuple(matrix([], [], ["", "model=e1000"], twin=True)), scenarios, (Place.HOST,), rounds)


def record(rounds: int = 6, factors: tuple[float, ...] = FACTORS) -> Record:
    made = Record(wish(rounds), Machine("Linux 6.1", "a <processor> & more", 2, {}), {"qemu": "7.2", "accelerator": "tcg"}, "2030-01-02T03:04:05")
    for number in range(rounds):
        made.taken += [Taken(number, name, Place.HOST, c, ANSWERS[name](f * (1 + 0.003 * (number % 3))))
                       for name in ANSWERS for c, f in enumerate(factors)]
    made.negotiated = {"defaults": {"driver": "virtio_net", "rx": 1, "mtu": 1500, "cpus": 1, "features": ["csum", "mq"]}}
    made.seconds = 60.0
    return made


def written(made: Record, folder: Path) -> Path:
    path = folder / "r.jsonl"
    pen = Pen(path)
    pen.begin(made)
    pen.write(*made.taken, {"negotiated": made.negotiated}, {"seconds": made.seconds, "ended": True})
    return path


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = record()
    again = read(written(made, tmp_path))
    assert (again.wish, again.taken, again.negotiated) == (made.wish, made.taken, made.negotiated) and again.ended
    assert report(again).to_json() == report(made).to_json()


@pytest.mark.parametrize("cut", [1, 40, 900])
def test_what_was_cut_off_is_missing_and_nothing_else(tmp_path: Path, cut: int) -> None:
    """Wherever a kill cuts the file: whole turns stay, and a round is measured again unless all took part in it."""
    path = written(record(), tmp_path)
    lines = path.read_text().splitlines()
    kept = "\n".join(lines[:1 + 20])    # a round is 12 lines: the second one is not whole
    path.write_text(kept + "\n" + lines[21][:cut].rstrip("}"))
    found = read(path)
    assert len(found.taken) == 20
    missing = found.missing()
    assert len(missing) == 6 * 4 - (4 + 2) and missing[0] == (1, "latency-udp", Place.HOST)
    Pen(path).go_on()
    Pen(path).write(Taken(1, "latency-udp", Place.HOST, 0, ANSWERS["latency-udp"](1.0)))
    assert len(read(path).taken) == 21 and not found.ended


def test_a_turn_measured_again_counts_once() -> None:
    made = record(6)
    made.taken.append(Taken(3, "tcp-up", Place.HOST, 0, ANSWERS["tcp-up"](9.0)))
    answers = made.answers("tcp-up", Place.HOST, 0)
    assert len(answers) == 6 and answers[3]["bytes"] == [round(125e6 * 9)]


def test_an_earlier_record_is_never_overwritten(tmp_path: Path) -> None:
    path = written(record(1), tmp_path)
    with pytest.raises(KvmnetError, match="is there already"):
        Pen(path).begin(record(1))


@pytest.mark.parametrize(("text", "said"), [
    ("", "is no record"), ("{}\n", "is no record"), ("[1]\n", "is no record"), ('{"kvmnet bench": 99}\n', "of format 99"),
    (json.dumps(record(1).header()) + "\nnonsense\n", "r:2: the record is damaged"),
    (json.dumps(record(1).header()) + "\n[]\n", "r:2: the record is damaged"),
])
def test_what_is_no_record_is_said(text: str, said: str) -> None:
    with pytest.raises(KvmnetError, match=said):
        loads(text, "r")


def test_verdicts_against_the_first() -> None:
    found = {(r.scenario.name, r.quantity.name): r for r in results(record())}
    throughput = found["tcp-up", "throughput"]
    twin, other = throughput.cells[1], throughput.cells[2]
    assert twin.verdict is Verdict.SAME and 0.003 < throughput.noise < 0.005
    assert other.verdict is Verdict.MORE and other.ratio and other.ratio.value == pytest.approx(1.4, rel=0.01)
    assert other.good(throughput.quantity.better) is True
    held = found["hold", "until all answer"].cells[2]
    assert held.verdict is Verdict.LESS and held.good(found["hold", "until all answer"].quantity.better) is True
    data = {(c["scenario"], c["quantity"], c["configuration"]): c for c in comparisons(record())}
    assert data["tcp-up", "throughput", "model=e1000"]["verdict"] == "more"
    assert data["tcp-up", "throughput", "defaults (again)"]["verdict"] == "no difference shown"


def test_a_loud_machine_is_said_and_shows_no_difference() -> None:
    made = record(6, (1.0, 1.5, 1.4))
    found = report(made)
    assert any("of two equals differs by 50%" in note for note in found.notes)
    cell = next(r for r in results(made) if r.quantity.name == "throughput").cells[2]
    assert cell.verdict is Verdict.SAME


def test_an_answer_that_is_not_whole_fails_the_report() -> None:
    made = record()
    assert report(made).exit_code == 0
    made.taken.append(Taken(0, "hold", Place.HOST, 1, {"seconds": 0.1, "answered": 999}))
    found = report(made)
    assert found.exit_code == 1 and any("only 999 of 1000" in note for note in found.notes)


@pytest.mark.parametrize(("load", "said"), [(0.9, False), (1.1, True)])
def test_a_machine_that_is_busy_with_other_things_is_said(tmp_path: Path, load: float, said: bool) -> None:
    path = written(record(), tmp_path)
    Pen(path).write({"load": load})
    assert any(note.startswith("busy: the load average was") for note in report(read(path)).notes) is said


def test_too_few_rounds_say_so() -> None:
    assert any("2 rounds are too few" in note for note in report(record(2)).notes)


class Balanced(HTMLParser):
    """Remembers tags that are open, and everything that a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "rect", "line", "polyline"):
            self.open.append(tag)
        self.fetched += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("rect", "line", "polyline"):
            return    # written <rect .../>
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_is_whole() -> None:
    text = page(record())
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.fetched == [] and "url(" not in text and "<script" not in text
    assert "a &lt;processor&gt; &amp; more" in text
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) >= 6
    for picture in pictures:
        for element in ElementTree.fromstring(picture).iter("rect"):
            assert float(element.get("width", 0)) >= 0 and float(element.get("x", 0)) <= 720
    assert "6,000 samples" in text and ">1.40<" in text


def test_a_page_of_one_configuration_or_nothing_is_whole() -> None:
    alone = Record(Wish((Configuration(),), ("tcp-up",), (Place.HOST,), 1), Machine("Linux", "", 1, {}), {}, "now")
    assert "All figures" in page(alone)
    alone.taken.append(Taken(0, "tcp-up", Place.HOST, 0, ANSWERS["tcp-up"](1.0)))
    assert "<svg" in page(alone)


def test_two_records_are_compared() -> None:
    before, after = record(), record(6, (1.0, 1.004, 0.7))
    changes = {(c.configuration, c.result.scenario.name, c.result.quantity.name): c for c in compared(before, after)}
    assert changes["defaults", "tcp-up", "throughput"].good is None
    worse = changes["model=e1000", "tcp-up", "throughput"]
    assert worse.good is False and worse.ratio and worse.ratio.value == pytest.approx(0.5, rel=0.02)
    assert unlike(before, after) == []
    after.versions = {"qemu": "9.0"}
    assert unlike(before, after) == ["qemu: 7.2, and then 9.0"]


def test_the_commands_on_records(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    old, new = written(record(), tmp_path), written(record(6, (1.0, 1.004, 0.7)), tmp_path / "b")
    runner = CliRunner()
    shown = runner.invoke(bench, ["report", str(old), "--html", str(tmp_path / "p.html")], standalone_mode=False)
    assert shown.return_value == 0 and "1.40 times" in shown.output and (tmp_path / "p.html").read_text().startswith("<!doctype")
    data = json.loads(runner.invoke(bench, ["report", str(old), "--json"], standalone_mode=False).output)
    assert data["comparisons"] and data["settings"]["rounds"] == 6
    assert runner.invoke(bench, ["compare", str(old), str(old)], standalone_mode=False).return_value == 0
    found = runner.invoke(bench, ["compare", str(old), str(new)], standalone_mode=False)
    assert found.return_value == 1 and "worse" in found.output


def test_a_long_record_of_equals_is_cut_into_runs(tmp_path: Path) -> None:
    found = {e.what: e for e in equals(record(20), 6)}
    assert found["tcp-up, guest-host: throughput"] == Equals("tcp-up, guest-host: throughput", 3, 3, True), "two rounds are left over"
    assert all(e.kept for e in found.values())
    apart = {e.what: e for e in equals(record(20, (1.0, 1.4, 1.0)), 6)}["tcp-up, guest-host: throughput"]
    assert (apart.runs, apart.equal, apart.kept) == (3, 0, False)
    assert Equals("x", 20, 19, True).kept and not Equals("x", 20, 18, True).kept and Equals("x", 20, 2, False).kept
    with pytest.raises(KvmnetError, match="no load of the record has 6 whole rounds"):
        equals(record(5), 6)
    alone = record()
    alone.wish = Wish(tuple(matrix([], [], ["", "model=e1000", "model=pcnet"], twin=False)), tuple(ANSWERS), (Place.HOST,), 6)
    with pytest.raises(KvmnetError, match="no twin"):
        equals(alone, 6)
    runner = CliRunner()
    (tmp_path / "b").mkdir()
    for made, folder, code in ((record(20), tmp_path, 0), (record(20, (1.0, 1.4, 1.0)), tmp_path / "b", 1)):
        shown = runner.invoke(bench, ["equals", str(written(made, folder))], standalone_mode=False)
        assert shown.return_value == code and "throughput" in shown.output


def test_loads_are_chosen_by_name_and_family() -> None:
    assert chosen(["tcp-up", "quick"]) == [n for n in SCENARIOS if n in FAMILIES["quick"]]
    with pytest.raises(KvmnetError, match="no scenario 'smtp'"):
        chosen(["smtp"])
    assert arguments(SCENARIOS["udp-64"], "192.0.2.1", ["192.0.2.2"], 500) == [
        "udp", "ms=200", "size=64", "to=192.0.2.1", "rate=500", "ask=192.0.2.2"]
    assert [p for _, p in Wish((Configuration(),), ("multicast",), tuple(Place), 1).tasks()] == [Place.GUEST]


def test_what_a_guest_has_negotiated_is_read() -> None:
    bits = ["0"] * 64
    for bit in (0, 11, 22, 34):
        bits[bit] = "1"
    assert negotiated(f"driver virtio_net\nmtu 1500\nrx 2\ntx 2\nfeatures {''.join(bits)}\ncpus 2\n") == {
        "driver": "virtio_net", "mtu": 1500, "rx": 2, "tx": 2, "cpus": 2, "features": ["csum", "host_tso4", "mq", "packed"]}
    assert negotiated("driver e1000\nmtu 1500\nrx 1\ntx 1\ncpus 1\n")["driver"] == "e1000"
    assert line_of(Taken(1, "hold", Place.HOST, 0, {}))["place"] == "guest-host"
