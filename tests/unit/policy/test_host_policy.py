"""The host's own table: what of it follows from the networks."""
from __future__ import annotations

import pytest

from kvmnet.modes.segment import HostPolicy
from kvmnet.policy.host import host_table, prefixes


def table(**fields: object) -> str:
    policy = HostPolicy()
    for name, value in fields.items():
        getattr(policy, name).update(value)
    return host_table(policy).text or ""


def rules(text: str, chain: str) -> list[str]:
    """The rules of a chain, '' lines left out."""
    if f"chain {chain} {{" not in text:
        return []
    body = text.split(f"chain {chain} {{\n", 1)[1].split("\n}", 1)[0]
    return [line for line in body.splitlines() if not line.startswith("type ")]


def test_nothing_is_translated_where_nothing_asks_for_it() -> None:
    assert not any(f"chain {name} " in table(bridged=["kvb-a"]) for name in ("dstnat", "localnat", "srcnat"))


def test_masquerade_is_only_towards_the_uplink_and_only_for_the_networks_prefix() -> None:
    text = table(masquerade=[("eth0", "10.0.0.0/24"), ("eth0", "fd00::/64")])
    assert rules(text, "srcnat") == ['oifname "eth0" ip saddr 10.0.0.0/24 masquerade', 'oifname "eth0" ip6 saddr fd00::/64 masquerade']
    assert rules(text, "dstnat") == []


def test_a_thousand_forwards_are_one_lookup() -> None:
    forwards = [("", "tcp", port, "10.0.0.2", 80, "kvb-lan") for port in range(1000, 2000)]
    text = table(forwards=forwards, inward=["eth0", "kvb-lan"], own=["10.0.0.1"])
    (rule,) = rules(text, "dstnat")
    assert rule.count(" . 80") == 1000 and rule.startswith('iifname { "eth0", "kvb-lan" } ip daddr != { 10.0.0.1 } fib daddr')
    (local,) = rules(text, "localnat")
    assert local.startswith("ip daddr != 127.0.0.0/8 ")
    assert rules(text, "srcnat") == ['iifname "kvb-lan" oifname "kvb-lan" ct status dnat masquerade']


def test_a_forward_to_a_named_address_and_to_ipv6() -> None:
    text = table(forwards=[("192.0.2.9", "udp", 53, "10.0.0.2", 5353, "kvb-a"), ("", "tcp", 80, "fd00::2", 8080, "kvb-a")],
                 inward=["eth0"])
    named, any6 = rules(text, "dstnat")
    assert named == 'iifname { "eth0" } ip daddr 192.0.2.9 udp dport 53 dnat ip to 10.0.0.2:5353'
    assert any6 == 'iifname { "eth0" } fib daddr type local dnat ip6 to meta l4proto . th dport map { tcp . 80 : fd00::2 . 8080 }'


@pytest.mark.parametrize("domain", [False, True])
def test_a_forwarded_port_leads_no_isolated_guest_to_another(*, domain: bool) -> None:
    """Others reach it, those of another network as well; with ports that are not isolated so do its neighbours."""
    given: dict[str, object] = {"inward": ["eth0", "kvb-a", "kvb-b"], "forwards": [("", "tcp", 80, "10.0.0.2", 80, "kvb-a")]}
    if domain:
        given = {"vrf_forwards": [("eth0", "192.0.2.9", "tcp", 80, "10.0.0.2", 80, "kvb-a")], "vrf_members": [("v", "kvb-a"), ("v", "eth0")]}
    free, apart = table(**given), table(**given, apart=["kvb-a"])
    for name in ("handed", "paths"):
        assert '"kvb-a" . "kvb-a"' in elements(free, name) and '"kvb-a" . "kvb-a"' not in elements(apart, name)
        assert '"eth0" . "kvb-a"' in elements(apart, name) and elements(free, name) - elements(apart, name) == {'"kvb-a" . "kvb-a"'}


def elements(text: str, name: str) -> set[str]:
    body = text.split(f"set {name} {{", 1)[1].split("\n}", 1)[0]
    return set(body.rpartition("{ ")[2].rstrip(" }").split(", "))


@pytest.mark.parametrize(("given", "kept"), [
    ([("a", "10.0.0.0/8"), ("a", "10.1.0.0/16")], ['"a" . 10.0.0.0/8']),
    ([("a", "10.0.0.0/8"), ("b", "10.1.0.0/16")], ['"a" . 10.0.0.0/8', '"b" . 10.1.0.0/16']),
    ([("a", "10.0.0.0/24"), ("a", "10.0.0.0/24"), ("a", "fd00::/64")], ['"a" . 10.0.0.0/24']),
    ([("a", "10.1.0.0/16"), ("a", "10.1.2.0/24"), ("a", "10.1.2.3/32"), ("a", "10.2.0.0/16")],
     ['"a" . 10.1.0.0/16', '"a" . 10.2.0.0/16'])])
def test_a_prefix_inside_another_is_left_out(given: list[tuple[str, str]], kept: list[str]) -> None:
    """An interval set refuses what overlaps."""
    assert prefixes(given, 4) == kept


def test_the_text_is_the_same_in_whatever_order_the_networks_come() -> None:
    first = {"reach": [("a", "b"), ("b", "a"), ("c", "d")], "services": [("a", "udp", 67), ("b", "tcp", 53)],
             "metadata": [("a", "169.254.169.254", 80, "10.0.0.1", 8775)], "own": ["10.0.0.1", "fd00::1"]}
    assert table(**first) == table(**{k: list(reversed(v)) for k, v in first.items()})
    assert 'iifname "a" ip daddr 169.254.169.254 tcp dport 80 dnat ip to 10.0.0.1:8775' in table(**first)
