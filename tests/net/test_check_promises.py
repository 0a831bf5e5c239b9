"""kvmnet check on a whole applied document: it passes when all is well, and each claim fails when the
very thing that it claims is broken by another hand."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvmnet.check.model import Claim, Report, Verdict
from kvmnet.check.prove import prove
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.host.paths import Paths
from lib.applied import UPLINK, Applied, applied
from lib.dnsmasq import pid_of
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks:
  wan: {device: wan0}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"}
vms:
  web1: {nics: [{network: lan}]}
  web2: {nics: [{network: lan}]}
"""
EVERY = {"dhcp4", "dhcp6", "ra", "dns", "gateway4", "gateway6", "outside4", "outside6", "guest-to-guest4",
         "guest-to-guest6", "mtu4", "mtu6", "mtu-outside4", "mtu-outside6", "host-closed"}
OUTSIDE_MTU = {"mtu-outside4", "mtu-outside6"}
SERVED = {"dhcp4", "dhcp6", "ra", "dns"}


@pytest.fixture
def lan(paths: Paths) -> Iterator[Applied]:
    with new_netns(), applied(DOCUMENT, paths) as here:
        yield here


def quiet(text: str, done: int, total: int) -> None:
    pass


def by_name(report: Report) -> dict[str, Claim]:
    """Claims of the probe."""
    return {c.name: c for c in report.claims if c.subject in ("probe", "host")}


def fallen(here: Applied) -> dict[str, str]:
    """The probe's claims that failed -> their evidence."""
    return {n: c.evidence for n, c in by_name(prove(here.subject, quiet)).items() if c.verdict is Verdict.FAIL}


def test_a_sound_network_passes_and_nothing_is_left(lan: Applied) -> None:
    links, rules = sh("ip -o link | cut -d: -f2"), sh("nft -s list ruleset")
    report = prove(lan.subject, quiet)
    claims = by_name(report)
    assert {n for n, c in claims.items() if c.verdict is not Verdict.PASS} == set()
    assert claims.keys() >= EVERY and sum(n.startswith("drops ") for n in claims) == 16
    assert report.exit_code == 0
    assert "10.1.0.254 from 10.1.0.1" in claims["dhcp4"].evidence
    assert "web1.lan is 10.1.0.2" in claims["dns"].evidence
    assert [c for c in report.claims if c.verdict is not Verdict.PASS] == []
    assert lan.left() == []
    assert (sh("ip -o link | cut -d: -f2"), sh("nft -s list ruleset")) == (links, rules)
    leases = lan.engine.paths.leases("lan").read_text()
    assert "10.1.0.254" not in leases and "ffff:ffff" not in leases


def test_a_dead_server_fails_what_it_serves_and_no_more(lan: Applied) -> None:
    os.kill(pid_of(DnsmasqDriver(lan.engine.paths), "lan"), signal.SIGKILL)
    assert set(fallen(lan)) == SERVED


def test_a_smaller_bridge_fails_the_mtu(lan: Applied) -> None:
    sh("ip link set kvb-lan mtu 1400")
    found = fallen(lan)
    assert {"mtu4", "mtu6"} <= set(found) <= {"mtu4", "mtu6", "ra", *OUTSIDE_MTU}
    assert "fragments" in found["mtu4"]


def test_a_larger_bridge_fails_the_mtu(lan: Applied) -> None:
    sh("ip link set kvb-lan mtu 1504")
    found = fallen(lan)
    assert {"mtu4", "mtu6"} <= set(found) <= {"mtu4", "mtu6", "ra", *OUTSIDE_MTU}
    assert "1501 bytes came back" in found["mtu4"]


def test_a_lost_ipv6_address_fails_ipv6_and_not_ipv4(lan: Applied) -> None:
    sh("ip addr del fd00:1::1/64 dev kvb-lan")
    found = set(fallen(lan))
    assert found >= {"gateway6", "outside6", "mtu6"}
    assert not found & {"dhcp4", "gateway4", "outside4", "mtu4", "guest-to-guest6"}


def test_a_lost_ipv4_address_fails_ipv4_and_not_ipv6(lan: Applied) -> None:
    sh("ip addr del 10.1.0.1/24 dev kvb-lan")
    found = set(fallen(lan))
    assert found >= {"gateway4", "outside4", "mtu4", "dhcp4"}
    assert not found & {"gateway6", "outside6", "mtu6", "guest-to-guest4"}


def test_a_dead_uplink_fails_outside_and_no_more(lan: Applied) -> None:
    sh(f"ip -n {lan.upstream} link set eth0 down")
    assert set(fallen(lan)) == {"outside4", "outside6"}


def test_an_uplink_that_is_switched_off_fails_outside(lan: Applied) -> None:
    sh(f"ip link set {UPLINK} down")
    assert set(fallen(lan)) == {"outside4", "outside6"}


def test_missing_translation_fails_outside(lan: Applied) -> None:
    sh("nft flush chain inet kvmnet srcnat")
    assert set(fallen(lan)) == {"outside4", "outside6"}


def test_a_router_that_knows_no_way_back_is_told_from_one_that_is_dead(paths: Paths) -> None:
    with new_netns(), applied(DOCUMENT.replace("mode: nat", "mode: routed"), paths) as here:
        words = fallen(here)
    assert words["outside4"].endswith("does the router there know the way back to 10.1.0.0/24?")


def test_without_an_address_outside_nothing_is_claimed_of_it(lan: Applied) -> None:
    claims = by_name(prove(replace(lan.subject, outside=()), quiet))
    for name in ("outside4", "outside6"):
        assert claims[name].verdict is Verdict.SKIP and "--outside" in claims[name].evidence


def test_a_stranger_on_the_servers_place_is_noticed(lan: Applied) -> None:
    """Another DHCP server on the segment gives other addresses than the document."""
    os.kill(pid_of(DnsmasqDriver(lan.engine.paths), "lan"), signal.SIGKILL)
    pid = int(sh("dnsmasq -k --port=0 --interface=kvb-lan --bind-interfaces --except-interface=lo --conf-file=/dev/null"
                 " --dhcp-range=10.1.0.60,10.1.0.70 --no-ping --dhcp-leasefile=/dev/null --dhcp-authoritative"
                 " --user=root --pid-file >/dev/null 2>&1 & echo $!"))
    try:
        assert "instead of 10.1.0.254" in fallen(lan)["dhcp4"]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_name_that_points_elsewhere_is_noticed(lan: Applied) -> None:
    wrong = replace(lan.compiled.segments["lan"].nics[0], ip="10.1.0.99")
    segment = replace(lan.compiled.segments["lan"], nics=(wrong,))
    report = prove(replace(lan.subject, segments={"lan": segment}), quiet)
    assert by_name(report)["dns"].evidence == "web1.lan is 10.1.0.2 instead of 10.1.0.99"


def test_a_network_that_is_not_there_is_one_failed_claim(lan: Applied) -> None:
    sh("ip link del kvb-lan")
    report = prove(lan.subject, quiet)
    assert [(c.name, c.verdict) for c in report.claims] == [("bridge", Verdict.FAIL)]
    assert report.exit_code == 1


def test_a_full_pool_leaves_no_address_for_a_probe(paths: Paths) -> None:
    full = DOCUMENT.replace('subnet: 10.1.0.0/24, subnet6: "fd00:1::/64"', "subnet: 10.1.0.0/24, pool: 10.1.0.2-10.1.0.3")
    with new_netns(), applied(full, paths) as here:
        claims = by_name(prove(here.subject, quiet))
    assert {n for n, c in claims.items() if c.verdict is Verdict.SKIP} >= {"dhcp4", "gateway4", "outside4"}
    assert all(c.verdict is not Verdict.FAIL for c in claims.values())
    assert claims["drops spoofed-mac"].verdict is Verdict.PASS


def test_jumbo_frames(paths: Paths) -> None:
    with new_netns():
        text = DOCUMENT.replace("mode: nat", "mtu: 9000, mode: nat").replace("device: wan0", "device: wan0, mtu: 9000")
        with applied(text, paths) as here:
            claims = by_name(prove(here.subject, quiet))
            assert claims["mtu4"].verdict is Verdict.PASS and "9000 bytes" in claims["mtu4"].evidence
            assert claims["mtu-outside4"].verdict is Verdict.FAIL, "the router's own MTU is 1500"
            assert "MTU 9000" in claims["dhcp4"].evidence and "MTU 9000" in claims["ra"].evidence
