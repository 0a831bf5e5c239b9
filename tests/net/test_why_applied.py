"""On a host that kvmnet made, with real guests' stacks: what ``why`` says is what packets do."""
from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations

import pytest

from kvmnet.doctor.finding import Severity
from kvmnet.doctor.scene import Scene, read
from kvmnet.doctor.trip import State
from kvmnet.doctor.why import Probe, why
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from lib.netns import sh
from lib.world import OUTSIDE, OUTSIDE6, Guest, World, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64"}
  lab: {mode: isolated, subnet: 10.10.0.0/24, isolated_ports: true}
vms:
  web1: {nics: [{network: lan, groups: [web]}]}
  db1: {nics: [{network: lan}]}
  one: {nics: [{network: lab}]}
  two: {nics: [{network: lab}]}
groups:
  web: {ingress: [{tcp: 80}, {icmp: [echo-request], from: any}]}
"""
ADDRESSES = {"lan": ("192.168.100.1/24", "24"), "lab": ("10.10.0.1/24", "24")}
PORTS = (80, 81)


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[World, dict[str, Guest], Scene]]:
    with world() as w:
        w.apply(DOCUMENT)
        guests = {name: w.guest(name) for name in ("web1", "db1", "one", "two")}
        for name, guest in guests.items():
            lan = name in ("web1", "db1")
            guest.use(f"{guest.ip}/24", *([f"{guest.ip6}/64"] if lan else []), via="192.168.100.1" if lan else "10.10.0.1", via6="fd00:100::1" if lan else "")
            for port in PORTS:
                w.service(guest, name, port)
        wait_until(lambda: all(g.pings("192.168.100.1" if n in ("web1", "db1") else "10.10.0.1", timeout=1) for n, g in guests.items()), 20)
        yield w, guests, read(json.loads(json.dumps(capture(w.host.paths), default=list)))


def test_every_pair_as_packets_say(made: tuple[World, dict[str, Guest], Scene]) -> None:
    _, guests, scene = made
    wrong = []
    seen = set()
    for (a, source), (b, target) in permutations(guests.items(), 2):
        for port in PORTS:
            report = why(scene, a, b, Probe("tcp", port))
            passes = bool(source.tcp(target.ip, port, 5 if report.state is State.OK else 0.4))
            seen.add(passes)
            if (report.state is State.OK) is not passes:
                wrong.append((a, b, port, passes, [(f.code, f.where, f.what) for f in report.findings]))
    assert wrong == [] and seen == {True, False}


def test_six_the_host_and_outside(made: tuple[World, dict[str, Guest], Scene]) -> None:
    _, guests, scene = made
    ways = [("db1", "web1", Probe(version=6)), ("web1", "db1", Probe(version=6)), ("web1", OUTSIDE, Probe()), ("db1", OUTSIDE6, Probe(version=6)), ("one", OUTSIDE, Probe()),
            ("db1", "host", Probe()), ("host", "db1", Probe()), ("db1", "host", Probe("tcp", 22)), ("db1", "host", Probe("udp", 53)), ("web1", OUTSIDE, Probe("udp", 53))]
    said = {(a, b, str(p)): why(scene, a, b, p) for a, b, p in ways}
    assert {key: r.state for key, r in said.items() if r.state is not State.OK}.keys() == {("one", OUTSIDE, "ping"), ("db1", "host", "tcp 22")}, {k: r.findings for k, r in said.items()}
    assert guests["db1"].pings(guests["web1"].ip6) and guests["web1"].pings(OUTSIDE) and guests["db1"].pings(OUTSIDE6) and not guests["one"].pings(OUTSIDE, timeout=0.4)


def test_a_refusal_of_ours_is_told_as_such(made: tuple[World, dict[str, Guest], Scene]) -> None:
    report = why(made[2], "db1", "web1", Probe("tcp", 81))
    first = report.findings[0]
    assert first.code == "rule-drop" and "kvmnet" in first.where and "document" in first.why and not first.fix


def test_a_spoofed_address_is_dropped_by_the_guard(made: tuple[World, dict[str, Guest], Scene]) -> None:
    report = why(made[2], "db1@192.168.100.77", "web1", Probe("tcp", 80))
    assert report.state is State.BLOCKED and any(f.where.startswith("bridge kvmnet") for f in report.findings)


MACVTAPS = """
version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, pool: 192.0.2.100-192.0.2.150}}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: lan, limits: {receive: {syn: 100/s}}}]}
"""


def test_guests_behind_macvtaps() -> None:
    """Their guards, a rule of somebody else's at the receiver's device, and a guard that has lost its hook."""
    with world() as w:
        w.apply(MACVTAPS)
        a, b = w.guest("a").use("192.0.2.100/24"), w.guest("b").use("192.0.2.101/24")

        def told(source: str) -> tuple[State, list[tuple[str, tuple[str, ...]]]]:
            report = why(read(json.loads(json.dumps(capture(w.host.paths), default=list))), source, "b", Probe())
            return report.state, [(f.code, f.fix) for f in report.findings if f.severity is Severity.BLOCKS]

        assert (a.ip, b.ip) == ("192.0.2.100", "192.0.2.101") and told("a") == (State.OK, []) and a.pings(b.ip)
        assert told("a@192.0.2.77") == (State.BLOCKED, [("rule-drop", ())])
        sh('nft add table netdev theirs; nft "add chain netdev theirs in { type filter hook ingress device kvt-b-0 priority 0; }"; nft add rule netdev theirs in icmp type echo-request drop')
        assert [code for code, _ in told("a")[1]] == ["rule-drop"] and not a.pings(b.ip, timeout=0.5)
        sh("nft delete table netdev theirs; nft delete chain netdev kvmnet egress_kvt-a-0")
        assert told("a") == (State.BLOCKED, [("gate-closed", ("kvmnet apply",))]) and not a.pings(b.ip, timeout=0.5)
        w.apply(MACVTAPS)
        assert told("a") == (State.OK, []) and a.pings(b.ip)
