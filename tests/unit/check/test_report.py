"""The report: what it counts, how it is shown, what other programs get; and what guests say."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmnet.check.guests import MARK, about, answered, judge_all, questions, read_told, script_of, silent
from kvmnet.check.model import COLUMNS, Claim, Report, Subject, Verdict, check_text
from kvmnet.check.probe import PORT, design
from kvmnet.facts.model import Allocation
from kvmnet.host.paths import Paths
from kvmnet.spec.names import tap_name
from lib.dnsmasq import nic, segment

PATHS = Paths(Path("/nowhere"), Path("/nowhere"))
CLAIMS = (
    Claim("lan", "probe", "dhcp4", Verdict.PASS, "10.1.0.9", 0.1),
    Claim("lan", "probe", "drops arp-spoof", Verdict.PASS, "dropped"),
    Claim("lan", "probe", "drops rogue-ra", Verdict.PASS, "dropped"),
    Claim("lan", "probe", "drops vlan-zero", Verdict.FAIL, "it reached 10.1.0.8"),
    Claim("lan", "probe", "outside4", Verdict.SKIP, "no address"),
)


def test_counts_exit_code_and_json() -> None:
    report = Report(CLAIMS, 1.23456)
    assert (report.count(Verdict.PASS), report.exit_code) == (3, 1)
    assert Report(CLAIMS[:2], 1).exit_code == 0 and Report(CLAIMS[4:], 1).exit_code == 0
    data = json.loads(json.dumps(report.to_json()))
    assert data["counts"] == {"pass": 3, "fail": 1, "skip": 1} and data["seconds"] == 1.235
    assert data["claims"][3] == {"network": "lan", "subject": "probe", "name": "drops vlan-zero", "verdict": "fail",
                                 "evidence": "it reached 10.1.0.8", "seconds": 0.0}


def test_only_forged_frames_that_were_dropped_share_a_row() -> None:
    rows = Report(CLAIMS, 1).rows()
    assert [r[2] for r in rows] == ["dhcp4", "drops forged", "drops vlan-zero", "outside4"]
    assert rows[1][4].startswith("2 kinds of frames, arp-spoof to rogue-ra,")
    assert len(Report(CLAIMS, 1).every_row()) == 5


def test_the_text_is_a_table_with_a_summary() -> None:
    lines = check_text(Report(CLAIMS, 1)).splitlines()
    assert lines[0].split() == list(COLUMNS)
    assert lines[-1] == "3 passed, 1 failed, 1 skipped in 1.0 s"
    assert len({line.index(w) for line, w in zip(lines[1:3], ("10.1.0.9", "2 kinds"), strict=True)}) == 1


def subject(**more: object) -> Subject:
    one = segment([nic("52:54:00:00:00:01", "10.1.0.2", "web1", "fd00:1::2"),
                   nic("52:54:00:00:00:02", "10.1.0.3", "web2", "fd00:1::3")],
                  subnet="10.1.0.0/24", subnet6="fd00:1::/64")
    return Subject(segments={"lan": one}, paths=PATHS, **more)    # type: ignore[arg-type]


def test_probes_take_addresses_that_nobody_has() -> None:
    remembered = {("gone", "nic0", "lan"): Allocation("52:54:00:00:00:03", "10.1.0.254", "")}
    here = subject(allocations=remembered)
    probes = design(here, [here.segments["lan"]] * 2)
    assert [p.ip for p in probes] == ["10.1.0.253", "10.1.0.252"]
    assert len({p.mac for p in probes}) == 2 and all(int(p.mac[:2], 16) & 3 == 2 for p in probes)
    assert probes[0].guard.addresses and probes[0].guard.level == "full" and probes[0].reservation.ip == probes[0].ip


@pytest.mark.parametrize(("vm", "own"), [("a", "nic0"), ("p1", "nic1"), ("web-server-of-acme", "nic0"), ("x" * 40, "eth")])
def test_no_nic_has_a_probes_name(vm: str, own: str) -> None:
    assert not tap_name(vm, own).startswith(PORT)


def test_a_link_local_next_hop_is_no_target() -> None:
    assert subject(outside=("fe80::1", "2001:db8::1", "192.0.2.1")).target(6) == "2001:db8::1"
    assert subject(outside=("fe80::1",)).target(6) == "" and subject().target(4) == ""


def test_questions_of_a_guest_name_its_running_neighbours_only() -> None:
    assert {q.name for q in questions(subject(running=("web1",)), "web1")} == {
        "address4", "address6", "gateway4", "gateway6", "mtu4", "mtu6", "dns"}
    both = {q.name for q in questions(subject(running=("web1", "web2"), outside=("192.0.2.1",)), "web1")}
    assert {"reaches web2 by IPv4", "reaches web2 by IPv6", "outside4"} <= both and "outside6" not in both


def told_of(here: Subject, name: str, words: str) -> dict[str, Claim]:
    asked = questions(here, name)
    return {c.name: c for c in judge_all(asked, read_told(words), 0.0)}


def test_what_a_guest_says_is_judged() -> None:
    here = subject(running=("web1",))
    said = f"{MARK} tool ip\n{MARK} tool ping\nnoise\n{MARK} link eth0 52:54:00:00:00:01 1400\n{MARK} addr eth0 10.1.0.2/24\n"
    asked = questions(here, "web1")
    number = next(i for i, q in enumerate(asked) if q.name == "gateway4")
    found = told_of(here, "web1", said + f"{MARK} answer {number} 0 64 bytes from 10.1.0.1: seq=0 time=0.5 ms\n")
    assert found["address4"].verdict is Verdict.PASS and found["address6"].verdict is Verdict.FAIL
    assert found["gateway4"].evidence == "10.1.0.1 answers echo in 0.5 ms"
    assert found["gateway6"].evidence == "no word about fd00:1::1 within the time"
    assert "1400 instead of 1500" in found["mtu4"].evidence
    assert found["dns"].verdict is Verdict.SKIP and found["dns"].evidence == "the guest has no nslookup or getent"


def test_silence_counts_only_when_others_are_heard() -> None:
    said = read_told(f"{MARK} answer 0 1 1 packets transmitted 100% packet loss\n")
    assert silent("10.1.0.3")(said, said.answers[0]).verdict is Verdict.FAIL
    more = read_told(f"{MARK} answer 0 1 lost\n{MARK} answer 1 0 --- 10.1.0.1 ping statistics ---\n")
    assert silent("10.1.0.3")(more, more.answers[0]).verdict is Verdict.PASS
    assert answered("10.1.0.3")(said, said.answers[0]).evidence == "10.1.0.3: no answer"


def test_the_script_quotes_what_it_runs() -> None:
    here = subject(running=("web1",))
    script = script_of(list(about(here, here.segments["lan"], here.segments["lan"].nics[0])))
    assert script.endswith("wait\n") and "q 2 'ping -6" not in script.splitlines()[0]
    assert all(line.count("'") % 2 == 0 for line in script.splitlines() if line.startswith("q "))
