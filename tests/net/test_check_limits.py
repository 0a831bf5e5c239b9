"""A check floods idle NICs and counts: limits that hold pass, limits that somebody took away or tightened fail."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.check.attacks import PORTS
from kvmnet.check.model import Claim, Verdict
from kvmnet.check.prove import prove
from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.host.paths import Paths
from lib.applied import Applied, applied
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
networks:
  lan:
    mode: isolated
    subnet: 10.1.0.0/24
    limits:
      send: {packets: 2k/s, bytes: 1MB/s}
      receive: {syn: 200/s}
      storms: {broadcast: 150/s, multicast: 200/s, unknown: 100/s}
      neighbours: 300/s
vms:
  a: {nics: [{network: lan}]}
  same: {nics: [{network: lan}]}
  flows: {nics: [{network: lan, limits: &flows {send: {packets: none, bytes: none, connections: 300/s}, receive: {syn: none},
                  storms: {broadcast: none, multicast: none, unknown: none}, neighbours: none}}]}
  many: {nics: [{network: lan, limits: {<<: *flows, send: {packets: none, bytes: none, connections: 900/s, concurrent: 300}}}]}
  slow: {nics: [{network: lan, limits: {<<: *flows, send: {packets: 2100/s, bytes: none, connections: none}}}]}
  fast: {nics: [{network: lan, limits: {send: {packets: 1M/s, bytes: none}, storms: {broadcast: 900k/s}}}]}
"""
TRIED = {"neighbours", "broadcast", "multicast", "unknown", "packets", "bytes", "syn"}


@pytest.fixture
def here(paths: Paths) -> Iterator[Applied]:
    with new_netns(), applied(DOCUMENT, paths) as found:
        yield found


def claims(here: Applied) -> dict[str, dict[str, Claim]]:
    found: dict[str, dict[str, Claim]] = {}
    for claim in prove(here.subject, lambda *_: None).claims:
        if claim.name.startswith("limit"):
            found.setdefault(claim.subject.partition("/")[0], {})[claim.name.removeprefix("limit ")] = claim
    return found


def test_limits_that_hold_and_what_is_left_behind(here: Applied) -> None:
    """One NIC of those with the same limits; afterwards its counters and flows are as before."""
    driver = NftablesDriver(here.subject.paths)
    before = driver.dropped()
    found = claims(here)
    assert {vm: set(of) for vm, of in found.items()} == {
        "a": TRIED, "flows": {"connections"}, "many": {"connections", "concurrent"}, "slow": {"packets"}, "fast": TRIED - {"bytes"}}
    assert [c for of in (found["a"], found["flows"], found["slow"]) for c in of.values() if c.verdict is not Verdict.PASS] == []
    assert found["many"]["concurrent"].verdict is Verdict.PASS
    assert found["many"]["connections"].evidence == "its limit of concurrent holds first"
    assert found["fast"]["packets"].verdict is found["fast"]["broadcast"].verdict is Verdict.SKIP
    assert "may come at once, more than" in found["fast"]["packets"].evidence
    assert driver.dropped() == before
    assert len([f for f in flows() if f.port == PORTS[1]]) < 10, "those of other claims"


def test_a_limit_that_is_gone_or_too_tight_is_found(here: Applied) -> None:
    sh("nft flush set bridge kvmnet l_broadcast; nft flush set bridge kvmnet l_syn; nft flush set bridge kvmnet l_connections; "
       "nft delete element bridge kvmnet l_packets '{ \"kvt-slow-0\" }'; nft add element bridge kvmnet l_packets "
       "'{ \"kvt-slow-0\" limit rate over 300/second burst 300 packets }'")
    found = claims(here)
    broken = {(vm, name) for vm, of in found.items() for name, c in of.items() if c.verdict is Verdict.FAIL}
    assert broken >= {("a", "broadcast"), ("a", "syn"), ("slow", "packets"), ("flows", "connections")}
    assert "drops what is below it" in found["slow"]["packets"].evidence
    assert "drops" not in found["a"]["broadcast"].evidence
    assert not broken & {("a", "neighbours"), ("a", "multicast"), ("a", "unknown"), ("a", "packets"), ("a", "bytes")}
