"""Which addresses of several NICs, and prefixes, the host's own look at groups knows, and by whose rules."""
from __future__ import annotations

from ipaddress import ip_network

from kvmnet.policy.routed import Judged, Stretch, apart, interval, stretch_chains

WEB: Judged = ("", ("web",), False)
ACME: Judged = ("acme", (), False)
NOBODY: Judged = ("", (), False)


def claim(prefix: str, number: int, judged: Judged | None = WEB, bridge: str = "kvb-lan") -> Stretch:
    return Stretch(bridge, ip_network(prefix), number, judged)


def test_what_lies_within_another_of_the_same_rules_is_one_stretch() -> None:
    assert apart([claim("10.0.1.0/24", 2), claim("10.0.0.0/16", 3), claim("10.1.0.0/16", 1), claim("fd00::/64", 1)]) == [
        claim("10.0.0.0/16", 3), claim("10.1.0.0/16", 1), claim("fd00::/64", 1)]


def test_where_rules_differ_nobody_gets_anything_new() -> None:
    assert apart([claim("10.0.0.9/32", 1), claim("10.0.0.9/32", 2, ACME)]) == [claim("10.0.0.9/32", 1, None)]
    assert apart([claim("10.0.0.0/16", 1, NOBODY), claim("10.0.1.0/24", 2)]) == [claim("10.0.0.0/16", 1, None)]
    assert list(stretch_chains([claim("10.0.0.9/32", 1, None)])) == [
        f"chain {claim('10.0.0.9/32', 1, None).chain} {{\n    goto unheard\n}}"]


def test_bridges_are_apart_and_what_nobody_judges_is_left_out() -> None:
    assert apart([claim("10.0.0.0/24", 1), claim("10.0.0.0/24", 2, ACME, "kvb-b"), claim("10.2.0.0/24", 3, NOBODY)]) == [
        claim("10.0.0.0/24", 2, ACME, "kvb-b"), claim("10.0.0.0/24", 1)]


def test_a_chain_asks_the_tenant_then_the_groups() -> None:
    asked = claim("10.0.0.0/24", 1, ("acme", ("db", "web"), True))
    (found,) = stretch_chains([asked, claim("10.1.0.0/24", 2, asked.judged)])
    assert [line.split()[:2] for line in found.splitlines()[1:-1]] == [
        ["jump", "t_acme"], ["jump", "in_db"], ["jump", "in_web"], ["limit", "rate"], ["goto", "unheard"]]
    assert interval(6, "map", [asked], lambda s: "1") == []
    assert interval(4, "map", [asked], lambda s: f"{s.number}") == ['oifname . ip daddr map { "kvb-lan" . 10.0.0.0/24 : 1 }']
