"""kvmnet check sends what groups, tenants and isolation forbid, and what they allow: each rule that is gone is found, and named."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.check.model import Claim, Verdict
from kvmnet.check.station import Station
from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.host.packets import Tap as Port
from kvmnet.policy.marks import NIC
from lib.netns import sh
from lib.world import OUTSIDE, OUTSIDE6, World, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64", peers: [pub]}
  pub: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64"}
  shared: {mode: isolated, subnet: 10.0.0.0/24}
vms:
  web: {nics: [{network: lan, groups: [web]}]}
  db: {nics: [{network: lan, groups: [db]}]}
  srv: {nics: [{network: pub, groups: [web]}]}
  slow: {nics: [{network: lan, groups: [web], limits: {send: {connections: 50/s}}}]}
  b1: {tenant: b, nics: [{network: shared}]}
  a1: {tenant: a, nics: [{network: shared, isolated: true}]}
  a2: {tenant: a, nics: [{network: shared, isolated: true}]}
groups:
  web: {ingress: [{tcp: [80, 8000-8009]}, {icmp: [echo-request]}], egress: [{tcp: 5432, to: group:db}, {tcp: 25, to: 203.0.113.0/24}], refuse: reject}
  db: {ingress: [{tcp: 5432, from: group:web}, {tcp: 22, from: set:office}]}
address_sets: {office: [203.0.113.64/28, "2001:db8:5::/48"]}
tenants: {a: {networks: [shared], allow: [{from: tenant:b, udp: 53}]}, b: {networks: [shared]}}
"""
PAIRS = {
    ("lan probe", "web/nic0"), ("lan probe", "db/nic0"), ("lan probe", "srv/nic0"), ("pub probe", "web/nic0"), ("pub probe", "db/nic0"),
    ("pub probe", "srv/nic0"), ("shared probe", "a1/nic0"), ("shared probe", "a2/nic0"), ("shared probe", "b1/nic0"),
    ("host", "web/nic0"), ("host", "db/nic0"), ("host", "srv/nic0"), ("web/nic0", "the host"), ("srv/nic0", "the host"),
    ("web/nic0", "outside"), ("srv/nic0", "outside"), ("web/nic0", "db/nic0"), ("web/nic0", "srv/nic0"), ("srv/nic0", "web/nic0"),
    ("srv/nic0", "db/nic0"), ("db/nic0", "web/nic0"), ("db/nic0", "srv/nic0"), ("a1/nic0", "a2/nic0"), ("a2/nic0", "a1/nic0"),
    ("a1/nic0", "b1/nic0"), ("a2/nic0", "b1/nic0"), ("b1/nic0", "a1/nic0"), ("b1/nic0", "a2/nic0")}


MORE = "insert rule bridge kvmnet in_db udp dport 40003 accept; insert rule inet kvmnet-groups in_db udp dport 40003 accept"
"""Where it is judged, and what the host routes or sends is judged a first time."""


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as here:
        for prefix, via in (("198.51.100.0/28", "192.0.2.2"), ("2001:db8:100::/64", "2001:db8:1::2")):
            sh(f"ip -n {here.outside.netns} route add {prefix} via {via}")
        here.apply(DOCUMENT)
        yield here


def claims(made: World) -> dict[tuple[str, str], Claim]:
    """(who sends, to whom) -> what was found about the rules between them."""
    report = made.host.check([OUTSIDE, OUTSIDE6])
    assert [c.verdict for c in report.claims if (c.subject, c.name) == ("slow/nic0", "rules")] == [Verdict.SKIP]
    return {(f"{c.network} probe" if c.subject == "probe" else c.subject, c.name.removeprefix("rules to ")): c
            for c in report.claims if c.name.startswith("rules to ")}


def fallen(made: World) -> dict[tuple[str, str], str]:
    return {pair: c.evidence for pair, c in claims(made).items() if c.verdict is Verdict.FAIL}


def test_rules_that_hold_and_what_is_left_behind(made: World) -> None:
    before = made.host.engine.dispatch.by_kind["nic-groups"].dropped()  # type: ignore[attr-defined]
    found = claims(made)
    assert {pair: c.evidence for pair, c in found.items() if c.verdict is not Verdict.PASS} == {}
    assert set(found) == PAIRS
    assert found["web/nic0", "db/nic0"].evidence.endswith("all 2 allowed ones did (tcp 5432, tcp6 5432)")
    assert found["web/nic0", "outside"].evidence.endswith("all 1 allowed ones did (tcp 25)")
    assert found["host", "db/nic0"].evidence.endswith("all 2 allowed ones did (tcp 22, tcp6 22)")
    assert found["a1/nic0", "a2/nic0"].evidence.endswith("none is allowed")
    assert made.host.engine.dispatch.by_kind["nic-groups"].dropped() == before  # type: ignore[attr-defined]
    assert [f for f in flows() if f.port in (5432, 40003, 8010)] == []
    assert made.drift() == []



@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is proved: it takes seconds, and other tests do it."""
    monkeypatch.setattr("kvmnet.check.prove.prove_network", lambda ground: [])


@pytest.mark.usefixtures("alone")
def test_each_rule_that_another_hand_changed_is_named(made: World) -> None:
    """A rule more, tenants without an end, a sending that nothing limits, a member that is missing, a port that is not isolated."""
    ids = sh("nft list map bridge kvmnet ids").replace(",", "\n").splitlines()
    number = int(next(line for line in ids if '"kvt-web-0"' in line).rpartition(":")[2].split()[0], 16) & NIC
    sh(f"nft '{MORE}; flush chain bridge kvmnet t_a; "
       f"insert rule bridge kvmnet out_web tcp dport 26 goto received; delete element bridge kvmnet g_web {{ {number} }}'")
    sh("bridge link set dev kvt-a1-0 isolated off")
    try:
        found = fallen(made)
    finally:
        made.apply(DOCUMENT)
    to_a = "icmp echo-request, tcp 40003, udp 40003"
    assert found == {
        **{(name, "outside"): "3 of 32 forbidden kinds of packets arrived: tcp 26, tcp6 26" for name in ("web/nic0", "srv/nic0")},
        **{(name, "the host"): "2 of 22 forbidden kinds of packets arrived: tcp 26, tcp6 26" for name in ("web/nic0", "srv/nic0")},
        ("lan probe", "db/nic0"): "2 of 22 forbidden kinds of packets arrived: udp 40003, udp6 40003",
        ("pub probe", "db/nic0"): "2 of 22 forbidden kinds of packets arrived: udp 40003, udp6 40003",
        ("host", "db/nic0"): "6 of 64 forbidden kinds of packets arrived: udp 40003, udp6 40003",
        ("web/nic0", "db/nic0"): "2 of 2 allowed kinds did not arrive: tcp 5432, tcp6 5432",
        ("shared probe", "a1/nic0"): f"7 of 7 forbidden kinds of packets arrived: udp 53, {to_a}, udp 54, tcp 53, ...",
        ("shared probe", "a2/nic0"): f"7 of 7 forbidden kinds of packets arrived: udp 53, {to_a}, udp 54, tcp 53, ...",
        ("b1/nic0", "a1/nic0"): f"6 of 6 forbidden kinds of packets arrived: {to_a}, udp 54, tcp 53, udp 52",
        ("b1/nic0", "a2/nic0"): f"6 of 6 forbidden kinds of packets arrived: {to_a}, udp 54, tcp 53, udp 52",
        ("a1/nic0", "a2/nic0"): f"3 of 6 forbidden kinds of packets arrived: {to_a}",
        ("a2/nic0", "a1/nic0"): f"3 of 6 forbidden kinds of packets arrived: {to_a}"}


@pytest.mark.usefixtures("alone")
def test_a_guest_that_runs_gets_nothing_that_it_may_answer(made: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made.host, "running", lambda: ["db"])
    compiled = made.plan(DOCUMENT).compiled
    assert compiled
    nic = next(n for n in compiled.segments["lan"].nics if n.vm == "db")
    sh(f"nft '{MORE}'")
    try:
        with Port.hold(nic.tap) as port, Station(port, nic.mac, nic.ip, nic.ip6, "db") as guest:
            found = {who: c for (who, whom), c in claims(made).items() if whom == "db/nic0"}
            heard = [p.ports[1] for p in guest.heard if p.protocol in (6, 17)]
    finally:
        made.apply(DOCUMENT)
    assert {who: c.verdict for who, c in found.items()} == {
        "lan probe": Verdict.FAIL, "pub probe": Verdict.FAIL, "host": Verdict.FAIL, "web/nic0": Verdict.PASS, "srv/nic0": Verdict.PASS}
    assert found["web/nic0"].evidence.endswith("its guest runs, what is allowed was not sent")
    assert 40003 in heard and not {5432, 22} & set(heard)
