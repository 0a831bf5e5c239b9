"""kvmnet check shows that what is forbidden is dropped; with the guard, the host's table or the
separation of networks undone, every one of these claims fails, so none passes by silence."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.check import probe
from kvmnet.check.attacks import ATTACKS
from kvmnet.check.model import Claim, Verdict
from kvmnet.check.prove import prove
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.applied import Applied, applied
from lib.netns import new_netns, sh
from lib.tap import Tap

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks:
  wan: {device: wan0}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd00:1::/64", peers: [lab]}
  iso: {mode: isolated, subnet: 10.2.0.0/24, subnet6: "fd00:2::/64"}
  lab: {mode: routed, uplink: wan, subnet: 10.3.0.0/24, subnet6: "fd00:3::/64"}
  flat: {mode: isolated, isolated_ports: true}
vms:
  web1: {nics: [{network: lan}]}
"""
OPEN = "nft 'flush chain bridge kvmnet {0}; add rule bridge kvmnet {0} iifname \"kvt-*\" goto pass'"
FORGED = {f"drops {name}" for name in ATTACKS}


@pytest.fixture
def here(paths: Paths) -> Iterator[Applied]:
    with new_netns(), applied(DOCUMENT, paths, ("10.3.0.0/24", "fd00:3::/64")) as found:
        yield found


def claims(here: Applied, network: str) -> dict[str, Claim]:
    return {c.name: c for c in prove(here.subject, lambda *_: None).claims if (c.network, c.subject) == (network, "probe")}


def fallen(found: dict[str, Claim]) -> set[str]:
    return {name for name, c in found.items() if c.verdict is Verdict.FAIL}


def test_everything_forbidden_is_dropped(here: Applied) -> None:
    report = prove(here.subject, lambda *_: None)
    assert [c for c in report.claims if c.verdict is not Verdict.PASS] == []
    names = {(c.network, c.name) for c in report.claims}
    assert {("lan", "apart from iso"), ("lan", "reaches lab"), ("lab", "reaches lan"), ("iso", "apart from lab"),
            ("iso", "no-way-out4"), ("iso", "no-way-out6"), ("flat", "guests-apart"), ("flat", "apart from lan"),
            ("lan", "host-closed")} <= names
    assert {n for network, n in names if network == "lan"} >= FORGED
    assert here.left() == []


def test_without_the_guard_every_forged_frame_gets_through_and_harms_nobody(here: Applied) -> None:
    """The declared guest beside the probes receives none of them."""
    sh(OPEN.format("prerouting"))
    with Tap("kvt-web1-0") as guest:
        found = claims(here, "lan")
        frames = guest.drain()
    assert fallen(found) == FORGED
    assert "reached 10.1.0.253 and the host" in found["drops spoofed-mac"].evidence
    assert "reached 10.1.0.253 and the host" in found["drops arp-spoof"].evidence
    own = bytes.fromhex(here.compiled.segments["lan"].nics[0].mac.replace(":", ""))
    assert [f for f in frames if f[:6] == own] == []
    probes = b"\x02\x6b\x76"
    assert [f for f in frames if f[6:9] == probes and f[12:14] == b"\x08\x06" and f[20:22] == b"\0\2"] == []
    assert [f for f in frames if f[6:9] == probes and f[12:14] == b"\x86\xdd" and f[54] in (134, 136)] == []


def test_one_hole_in_the_guard_is_named(here: Applied) -> None:
    sh("nft insert rule bridge kvmnet guest ether type 8021q goto pass")
    sh("nft insert rule bridge kvmnet guest ether type 8021ad goto pass")
    assert fallen(claims(here, "lan")) == {"drops vlan-tagged", "drops vlan-zero", "drops vlan-stacked"}


def test_a_guard_that_drops_everything_proves_nothing(here: Applied) -> None:
    sh("nft insert rule bridge kvmnet prerouting 'iifname \"kvt-*\" drop'")
    found = claims(here, "lan")
    assert fallen(found) >= FORGED
    assert "cannot be proved" in found["drops spoofed-mac"].evidence


def test_an_open_host_is_noticed(here: Applied) -> None:
    sh("nft 'flush chain inet kvmnet host; add rule inet kvmnet host goto pass'")
    found = claims(here, "lan")
    assert {n: c.evidence for n, c in found.items() if n in fallen(found) - {"host-closed"}} == {}
    assert "22 (closed)" in found["host-closed"].evidence


def test_routing_between_networks_is_noticed(here: Applied) -> None:
    sh("nft 'flush chain inet kvmnet guests; add rule inet kvmnet guests goto pass'")
    assert fallen(claims(here, "lan")) == {"apart from iso"}


def test_a_way_out_of_an_isolated_network_is_noticed(here: Applied) -> None:
    """Seen on the uplink, though no answer comes back."""
    sh("nft 'flush chain inet kvmnet guests; add rule inet kvmnet guests goto pass'")
    sh("echo 1 > /proc/sys/net/ipv4/conf/kvb-iso/forwarding; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding;"
       " echo 1 > /proc/sys/net/ipv6/conf/kvb-iso/force_forwarding || true")
    found = claims(here, "iso")
    assert {"no-way-out4", "no-way-out6", "apart from lan", "apart from lab"} == fallen(found)
    assert "left by an uplink" in found["no-way-out4"].evidence


def test_a_cable_between_two_networks_is_noticed(here: Applied) -> None:
    sh("ip link add x1 type veth peer name x2; ip link set x1 master kvb-lan up; ip link set x2 master kvb-iso up")
    wait_until(lambda: sh("bridge link show dev x1; bridge link show dev x2").count("state forwarding") == 2, 20)
    found = claims(here, "lan")
    assert "apart from iso" in fallen(found)
    assert "a frame from lan came out on iso" in found["apart from iso"].evidence


def test_peers_that_do_not_reach_each_other_are_noticed(here: Applied) -> None:
    sh("nft flush set inet kvmnet reach")
    assert "reaches lab" in fallen(claims(here, "lan"))


def test_ports_that_are_not_isolated_are_noticed(here: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    attach = probe.attach

    def joined(probes: list[probe.Probe]) -> None:
        attach(probes)
        for p in probes:
            sh(f"bridge link set dev {p.device} isolated off")

    monkeypatch.setattr(probe, "attach", joined)
    assert fallen(claims(here, "flat")) == {"guests-apart"}
