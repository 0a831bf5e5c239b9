"""kvmnet check on macvtaps: all kinds pass when sound, every claim about a guard fails without it, nothing stays behind."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kvmnet.check.attacks import ATTACKS
from kvmnet.check.model import Claim, Verdict
from kvmnet.check.probe import sweep
from kvmnet.check.prove import prove
from kvmnet.host.paths import Paths
from lib.applied import Applied, applied
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: wan0}, second: {device: wan1}, third: {device: wan2}}
networks:
  lan: {mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, address: 192.0.2.250, pool: 192.0.2.100-192.0.2.150,
        subnet6: "2001:db8:1::/64", address6: "2001:db8:1::250", limits: {receive: {syn: 100/s}}}
  bare: {mode: macvtap, uplink: second, subnet: 10.5.0.0/24}
  shy: {mode: macvtap, macvtap: private, uplink: third, subnet: 10.6.0.0/24}
vms:
  web1: {nics: [{network: lan}, {network: bare}, {network: shy}]}
"""
FORGED = {f"drops {name}" for name in ATTACKS}
JUDGED = "nft 'flush chain netdev kvmnet guest; add rule netdev kvmnet guest goto pass'"


@pytest.fixture
def here(paths: Paths) -> Iterator[Applied]:
    with new_netns():
        for name in ("wan1", "wan2"):
            sh(f"ip link add {name} type veth peer name far{name}; ip link set {name} up; ip link set far{name} up")
        with applied(DOCUMENT, paths) as found:
            yield found


def claims(here: Applied) -> dict[tuple[str, str, str], Claim]:
    return {(c.network, c.subject, c.name): c for c in prove(here.subject, lambda *_: None).claims}


def fallen(found: dict[tuple[str, str, str], Claim], network: str) -> set[str]:
    return {name for (n, by, name), c in found.items() if n == network and by == "probe" and c.verdict is Verdict.FAIL}


def test_sound_networks_pass_and_nothing_is_left(here: Applied) -> None:
    links, rules = sh("ip -o link | cut -d: -f2"), sh("nft -s list ruleset")
    found = claims(here)
    assert {k: c.evidence for k, c in found.items() if c.verdict is not Verdict.PASS} == {}
    names = {n: {name for network, _, name in found if network == n} for n in ("lan", "bare", "shy")}
    assert {n: FORGED - got for n, got in names.items()} == {
        "lan": set(), "bare": {"drops spoofed-ipv6"}, "shy": {"drops spoofed-ipv6"}}, "these have no IPv6"
    assert names["lan"] >= {"dhcp4", "dhcp6", "dns", "gateway4", "outside4", "guest-to-guest4", "guest-to-guest6", "host-closed"}
    assert "guest-to-guest4" in names["bare"] and "apart from lan" in names["bare"]
    assert "guests-apart" in names["shy"] and "guest-to-guest4" not in names["shy"]
    assert ("lan", "web1/nic0", "drops spoofed-ip4") in found or any(k[1] == "web1/nic0" for k in found)
    assert ("lan", "web1/nic0", "limit syn") in found
    assert here.left() == []
    assert (sh("ip -o link | cut -d: -f2"), sh("nft -s list ruleset")) == (links, rules)


def test_without_the_judgement_every_forged_frame_is_reported(here: Applied) -> None:
    sh(f"{JUDGED}; nft flush chain netdev kvmnet receipt")
    found = claims(here)
    assert found["lan", "web1/nic0", "limit syn"].verdict is Verdict.FAIL
    for network in ("lan", "bare", "shy"):
        assert fallen(found, network) >= {n for _, by, n in found if by == "probe" and n in FORGED and _ == network}, network


def test_guests_that_should_be_apart_and_are_not(here: Applied) -> None:
    """A switch that sends frames back carries them between macvtaps of kind private too: the check says so."""
    sh("ip link add back type bridge; ip link set back up; ip link set farwan2 master back; bridge link set dev farwan2 hairpin on")
    assert "guests-apart" in fallen(claims(here), "shy")


def test_a_killed_check_leaves_what_the_next_one_sweeps(here: Applied) -> None:
    if (child := os.fork()) == 0:
        try:
            prove(here.subject, lambda what, done, total: os.kill(os.getpid(), signal.SIGKILL) if done else None)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert "kvt-~p1" in sh("ip -o link") and any("kvt-~p1" in k for k in here.left())
    assert sweep(here.engine.paths) > 0
    assert "kvt-~p1" not in sh("ip -o link") and here.left() == []
