"""``kvmnet check`` measures rates and reads marks; a rate that is not kept, and a mark that is not made, are seen."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from kvmnet.check.model import Claim, Verdict
from kvmnet.host.clock import wait_until
from lib.netns import sh
from lib.world import World, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
  out: {mode: routed, uplink: wan, subnet: 10.2.0.0/24, rate: {out: 12mbit, in: 9mbit}}
  apart: {mode: isolated, subnet: 10.1.0.0/24, isolated_ports: true}
vms:
  a: {nics: [{network: lan, rate: {out: 8mbit, in: 20mbit, burst: 32k}, mark: {dscp: af11}}]}
  b: {nics: [{network: lan, mark: {dscp: cs1, trust: true}}]}
  c: {nics: [{network: lan, rate: {in: 100gbit, out: 64kbit, burst: 1m}}]}
  e: {nics: [{network: out}]}
  d: {nics: [{network: apart, rate: {out: 8mbit}}]}
"""


HELD_UP = "other work held this process up"


@pytest.fixture(scope="module")
def made() -> Iterator[World]:
    with world() as here:
        here.apply(DOCUMENT)
        yield here


def claims(made: World, *, rates: bool = True) -> dict[tuple[str, str], Claim]:
    """Each as it was judged when no other work held the check up, which says so."""
    found: dict[tuple[str, str], Claim] = {}

    def judged() -> bool:
        for claim in made.host.check(rates=rates).claims:
            of = claim.subject, claim.name
            if claim.name.startswith(("rate", "mark")) and (of not in found or HELD_UP in found[of].evidence):
                found[of] = claim
        return not any(HELD_UP in claim.evidence for claim in found.values())

    with suppress(TimeoutError):
        wait_until(judged, 90, 0)
    return found


def test_rates_and_marks_are_proved(made: World) -> None:
    found = claims(made)
    verdicts = {of: claim.verdict for of, claim in found.items()}
    assert verdicts == {
        ("a/nic0", "rate in"): Verdict.PASS, ("a/nic0", "rate out"): Verdict.PASS, ("a/nic0", "mark"): Verdict.PASS,
        ("b/nic0", "mark"): Verdict.PASS, ("c/nic0", "rate in"): Verdict.SKIP, ("c/nic0", "rate out"): Verdict.SKIP,
        ("d/nic0", "rate out"): Verdict.SKIP, ("guests", "rate in"): Verdict.PASS, ("guests", "rate out"): Verdict.PASS}, found
    assert "0 arrives as 10, 46 arrives as 10" in found["a/nic0", "mark"].evidence
    assert "0 arrives as 8, 46 arrives as 46" in found["b/nic0", "mark"].evidence
    assert "too little to try 100 Gbit/s" in found["c/nic0", "rate in"].evidence
    assert "beside its burst it would take" in found["c/nic0", "rate out"].evidence and "no probe hears" in found["d/nic0", "rate out"].evidence
    assert made.drift() == []


def test_what_is_not_kept_is_seen(made: World) -> None:
    whole = next(line.split()[2] for line in sh("tc class show dev kvi-~out").splitlines() if " root " in line)
    sh("tc qdisc change dev kvi-a-0 root handle 6b76: tbf rate 6mbit burst 32k limit 64k; tc qdisc del dev kvt-a-0 root; tc qdisc del dev kvb-out root; "
       f"tc class change dev kvi-~out parent {whole[:-1]} classid {whole} htb rate 9mbit ceil 9mbit burst 128k cburst 128k; "
       "nft delete element bridge kvmnet-marks marked '{ \"kvt-b-0\" }'")
    try:
        found = claims(made)
        assert {of for of, claim in found.items() if claim.verdict is Verdict.FAIL} == {
            ("a/nic0", "rate in"), ("a/nic0", "rate out"), ("b/nic0", "mark"), ("guests", "rate in"), ("guests", "rate out")}, found
        assert found["a/nic0", "rate in"].evidence.startswith("2") and "of 20 Mbit/s" in found["a/nic0", "rate in"].evidence
        assert not [name for _, name in claims(made, rates=False) if name.startswith("rate")], "only when asked for"
    finally:
        made.apply(DOCUMENT)
