"""Groups and tenants as data: what a document becomes, which flows the rules let in, elements there and back."""
from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.adopt.restore_groups import memberships, policies
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.nftables import members, wire
from kvmnet.drivers.nftables.resources import AddressSet, NicGroups
from kvmnet.engine.driver import Seen
from kvmnet.engine.plan import Update, plan
from kvmnet.engine.resource import Absent, Key
from kvmnet.facts.model import Facts
from kvmnet.policy import flows
from kvmnet.policy.flows import Flow, Judge, Policy, Rule, Rules
from kvmnet.policy.grouping import HIGHEST, numbers
from kvmnet.policy.groups import host_chains
from kvmnet.policy.guard import REASONS
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads
from kvmnet.spec.policies import NicGroup, Tenant

DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24, subnet6: "fd00::/64"}
  far: {mode: isolated, subnet: 10.0.0.0/24, address: none}
vms:
  web: {nics: [{network: lan, groups: [web, base]}, {network: far}]}
  db: {nics: [{network: lan, groups: [db]}]}
groups:
  base: {ingress: [{icmp: true}]}
  web: {ingress: [{tcp: [80, 8000-8099], log: true}], refuse: reject}
  db: {ingress: [{tcp: 5432, from: [group:web, set:office, 192.0.2.0/25, 192.0.2.0/24]}], egress: [{to: group:web}], log: true}
address_sets: {office: [10.1.0.0/24, 10.1.1.0/24, 10.9.0.1, "fd01::/64"]}
"""
TENANTS = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
vms:
  a: {tenant: a, nics: [{network: lan}]}
  b: {tenant: b, nics: [{network: lan}]}
  free: {nics: [{network: lan}]}
tenants:
  a: {}
  b: {allow: [{from: tenant:a, tcp: 443}]}
"""
BRIDGE = {"bridge-conntrack": ""}


def compiled(text: str, features: dict[str, str] | None = None) -> Compiled:
    document = loads(text)
    return compile_spec(document.spec, Facts(features=features or {}), allocate(document.spec, {}))


def guard_text(found: Compiled) -> str:
    return getattr(found.wanted[Key("nft-table", "bridge kvmnet")], "text", None) or ""


def host_text(found: Compiled) -> str:
    return getattr(found.wanted[Key("nft-table", "inet kvmnet")], "text", None) or ""


def rules_of(text: str, chain: str) -> list[str]:
    return [line.strip() for line in text.split(f"chain {chain} {{\n", 1)[1].split("\n}", 1)[0].splitlines()]


def test_without_groups_nothing_is_there() -> None:
    found = compiled(DOCUMENT.split("groups:\n")[0].replace(", groups: [web, base]", "").replace(", groups: [db]", ""))
    assert not [k for k in found.wanted if k.kind in ("nic-groups", "address-set")]
    assert flows.read(guard_text(found)) is None and "hook output" not in guard_text(found)
    assert not any(link.nf_call_iptables for link in found.wanted.values() if isinstance(link, Link))


def test_the_rules_of_a_group() -> None:
    text = guard_text(compiled(DOCUMENT))
    assert rules_of(text, "in_web") == [
        'tcp dport { 80, 8000-8099 } limit rate 10/second burst 20 packets log prefix "kvmnet web ingress 0: "',
        'tcp dport { 80, 8000-8099 } counter accept comment "web ingress 0"']
    assert rules_of(text, "in_db") == [
        'meta mark & 0x0000ffff @g_web tcp dport { 5432 } counter accept comment "db ingress 0"',
        'ip saddr @a4_office tcp dport { 5432 } counter accept comment "db ingress 0"',
        'ip6 saddr @a6_office tcp dport { 5432 } counter accept comment "db ingress 0"',
        'ip saddr { 192.0.2.0/24 } tcp dport { 5432 } counter accept comment "db ingress 0"']
    assert rules_of(text, "out_db") == [
        'oifname @h_web counter goto received comment "db egress 0"',
        'ether daddr @routers ip daddr @m4_web counter goto received comment "db egress 0"',
        'ether daddr @routers ip6 daddr @m6_web counter goto received comment "db egress 0"']
    assert rules_of(text, "out_web") == ['counter goto received comment "web egress"']


def test_the_back_end_is_the_hosts() -> None:
    """With conntrack in bridges nothing of the bridges changes; without, ours alone go through the IP hooks."""
    first, second = compiled(DOCUMENT, BRIDGE), compiled(DOCUMENT)
    assert "ct state established,related accept" in guard_text(first) and "hook prerouting priority -300" in guard_text(first)
    assert "meta mark & 0x00010000 == 0x00010000 accept" in guard_text(second) and "ct state" not in guard_text(second)
    assert "reject with tcp reset" in guard_text(first) and "reject with" not in guard_text(second)
    assert "ct zone set iifname map" in host_text(second) and "ct zone" not in host_text(first)
    for found, filtered in ((first, False), (second, True)):
        links = [x for x in found.wanted.values() if isinstance(x, Link) and x.type == "bridge"]
        assert {(link.nf_call_iptables, link.nf_call_ip6tables) for link in links} == {(filtered, filtered)}
    assert not first.notes and any("bridge netfilter" in note for note in second.notes)


def test_reject_without_an_address_of_the_host_is_said() -> None:
    text = DOCUMENT.replace("{network: far}", "{network: far, groups: [web]}")
    assert any("refused packets on far are dropped, not rejected" in note for note in compiled(text).notes)
    assert not compiled(text, BRIDGE).notes


@pytest.mark.parametrize("features", [BRIDGE, {}])
def test_a_new_member_is_one_step(features: dict[str, str]) -> None:
    before, after = (compiled(t, features).wanted for t in (DOCUMENT, DOCUMENT.replace("[db]}", "[db, base]}")))
    steps = plan(before, after, before.keys())  # type: ignore[arg-type]
    assert [(type(s), str(s.key)) for s in steps] == [(Update, "nic-groups kvt-db-0")]
    old, new = (found[Key("nic-groups", "kvt-db-0")] for found in (before, after))
    number = new.number  # type: ignore[union-attr]
    v4, *v6 = ('"{}" . {}'.format(*place.split()) for place in new.places)  # type: ignore[union-attr]
    assert [v4, v6[0]] == ['"kvb-lan" . 10.0.0.3', '"kvb-lan" . fd00::3'] and "fe80::" in v6[1]

    def each(verdict: str) -> str:
        return ", ".join(f"{place}{verdict}" for place in v6)
    assert members.change([old], [new], tables=["inet kvmnet-groups"]) == [  # type: ignore[list-item]
        f"delete element inet kvmnet-groups in4_1 {{ {v4} }}", f"delete element inet kvmnet-groups in6_1 {{ {each('')} }}",
        f"add element inet kvmnet-groups g_base {{ {number:#010x} }}",
        f"add element inet kvmnet-groups in4_1 {{ {v4} : jump in_base }}", f"add element inet kvmnet-groups in4_2 {{ {v4} : jump in_db }}",
        f"add element inet kvmnet-groups in6_1 {{ {each(' : jump in_base')} }}",
        f"add element inet kvmnet-groups in6_2 {{ {each(' : jump in_db')} }}",
        f"add element inet kvmnet-groups r4_base {{ {v4} }}", f"add element inet kvmnet-groups r6_base {{ {each('')} }}"]
    assert members.change([old], [new], tables=["bridge kvmnet"]) == [  # type: ignore[list-item]
        "delete element bridge kvmnet in1 { \"kvt-db-0\" }", "delete element bridge kvmnet out1 { \"kvt-db-0\" }",
        f"add element bridge kvmnet e_base {{ {new.zone} . {new.macs[0]} }}",  # type: ignore[union-attr,index]
        f"add element bridge kvmnet g_base {{ {number:#010x} }}", "add element bridge kvmnet h_base { \"kvt-db-0\" }",
        "add element bridge kvmnet in1 { \"kvt-db-0\" : jump in_base }", "add element bridge kvmnet in2 { \"kvt-db-0\" : jump in_db }",
        "add element bridge kvmnet m4_base { 10.0.0.3 }", "add element bridge kvmnet m6_base { fd00::3 }",
        "add element bridge kvmnet out1 { \"kvt-db-0\" : jump out_base }",
        "add element bridge kvmnet out2 { \"kvt-db-0\" : jump out_db }"]


def test_an_element_that_another_nic_needs_stays() -> None:
    one = NicGroups(name="kvt-a", table="bridge kvmnet", number=1, groups=("g",), tenant="", zone=1, macs=(), addresses=("10.0.0.1",), places=(), isolated=False, traits=())
    two = replace(one, name="kvt-b", number=2, zone=2)
    assert not [line for line in members.change([one], [], [two]) if "10.0.0.1" in line]
    assert [line for line in members.change([one], []) if "10.0.0.1" in line]


@pytest.mark.parametrize("features", [BRIDGE, {}])
@pytest.mark.parametrize("document", [DOCUMENT, TENANTS])
def test_nft_reads_it_and_lists_what_was_loaded(document: str, features: dict[str, str]) -> None:
    """The text of the back end that this kernel has is loaded; of the other only its form is checked."""
    found = compiled(document, features)
    items = [r for r in found.wanted.values() if isinstance(r, NicGroups | AddressSet)]
    tables = ("bridge kvmnet", "inet kvmnet-groups")
    script = [*(line for name in tables for line in wire.table_lines(found.wanted[Key("nft-table", name)])),  # type: ignore[arg-type]
              *members.lines("add", (pair for item in items for pair in members.elements(item)))]
    if features:
        script = [line for line in script if (
            line == "    ct state != new accept" or "ct state" not in line) and "ct zone set" not in line and "reject" not in line]
        script = [line for line in script if "vmap @ask" not in line and not re.match(r" *ct zone \. ether daddr @", line)]
    done = subprocess.run(["unshare", "-rn", "sh", "-c", "nft -f - && nft -j list ruleset"], input="\n".join(script),
                          capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no namespaces here")
    assert not done.stderr
    if not features:
        listed = [wire.read_listing(json.loads(done.stdout), table=name).members for name in tables]
        assert listed[0] | listed[1] == {p for item in items for p in members.elements(item)}


@pytest.mark.parametrize("listed", [
    "10.0.0.1", {"prefix": {"addr": "10.0.0.0", "len": 8}}, {"range": ["10.0.0.0", "10.0.1.255"]}])
def test_intervals_as_nft_lists_them(listed: Any) -> None:
    (text,) = members.prefixes(listed)
    assert ip_network(text)


def test_reasons_are_told() -> None:
    text = guard_text(compiled(DOCUMENT)) + guard_text(compiled(TENANTS))
    used = {int(n) for n in re.findall(r"meta mark set (\d+) goto withhold", text)}
    assert used and used <= REASONS.keys()


@given(st.sets(st.text("abcdef0123456789", min_size=1, max_size=6), max_size=300))
def test_numbers_are_different_and_stay(names: set[str]) -> None:
    found = numbers(names)
    assert len(set(found.values())) == len(names) and all(1 <= n <= HIGHEST for n in found.values())
    assert found == numbers(sorted(names, reverse=True))


# -- which flows the rules let in: against an evaluator that knows no sets -------------------------

HOSTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.1.0.1", "192.0.2.1")
PEERS = ("group:a", "group:b", "set:s", "tenant:t", "10.0.0.0/30", "10.0.0.2", "192.0.2.0/24")
rule_s = st.builds(
    Rule, tcp=st.sampled_from([(), ("80",), ("0-65535",), ("70-90", "443")]), udp=st.sampled_from([(), ("53",)]),
    icmp=st.sampled_from([None, (), ("echo-request",)]), protocol=st.sampled_from([(), (6,), (47,)]),
    peers=st.lists(st.sampled_from(PEERS), max_size=2, unique=True).map(tuple))
egress_s = st.none() | st.lists(rule_s, max_size=2).map(tuple)
policy_s = st.builds(
    Policy, groups=st.fixed_dictionaries({g: st.builds(Rules, ingress=st.lists(rule_s, max_size=2).map(tuple), egress=egress_s)
                                          for g in "ab"}),
    tenants=st.fixed_dictionaries({"t": st.lists(rule_s, max_size=1).map(tuple), "u": st.just(())}))
nic_s = st.tuples(st.sampled_from([(), ("a",), ("b",), ("a", "b")]), st.sampled_from(["", "t", "u"]))
flow_s = st.builds(lambda s, d, p, port: Flow(1, p, s, d, port, d, port), st.sampled_from(HOSTS), st.sampled_from(HOSTS),
                   st.sampled_from([6, 17, 1, 47]), st.sampled_from([80, 53, 443, 8]))


def naive(policy: Policy, where: dict[str, tuple[tuple[str, ...], str]], flow: Flow) -> bool:
    """Straight from docs/design/groups.md."""
    nobody: tuple[tuple[str, ...], str] = ((), "")
    (sent_by, sender_tenant), (got_by, receiver_tenant) = where.get(flow.source, nobody), where.get(flow.destination, nobody)

    def match(rule: Rule, address: str, groups: tuple[str, ...], tenant: str) -> bool:
        kinds = {6: list(rule.tcp), 17: list(rule.udp)}.get(flow.protocol, [])
        lo_hi = [(int(s.split("-")[0]), int(s.split("-")[-1])) for s in kinds]
        kind = ((not rule.tcp and not rule.udp and rule.icmp is None and not rule.protocol) or flow.protocol in rule.protocol
                or any(lo <= flow.port <= hi for lo, hi in lo_hi)
                or (flow.protocol == 1 and rule.icmp is not None and (rule.icmp == () or flow.port == 8)))
        ends = {f"group:{g}" for g in groups} | {f"tenant:{tenant}"}
        peer = (not rule.peers or any(p in ends for p in rule.peers)
                or ("set:s" in rule.peers and address in ("10.1.0.1", "10.0.0.3"))
                or any(ip_address(address) in ip_network(p) for p in rule.peers if ":" not in p))
        return bool(kind and peer)

    egress = [policy.groups[g].egress for g in sent_by]
    out = not egress or None in egress or any(
        match(r, flow.destination, got_by, receiver_tenant) for e in egress for r in e or ())
    known = flow.source in where and flow.destination in where
    cross = not known or not receiver_tenant or sender_tenant == receiver_tenant or any(
        match(r, flow.source, sent_by, sender_tenant) for r in policy.tenants[receiver_tenant])
    enter = not got_by or any(match(r, flow.source, sent_by, sender_tenant) for g in got_by for r in policy.groups[g].ingress)
    return bool(out and cross and enter)


@given(policy_s, st.fixed_dictionaries(dict.fromkeys(HOSTS[:3], nic_s)), st.lists(flow_s, min_size=1, max_size=20))
def test_the_judge_is_the_design(policy: Policy, where: dict[str, tuple[tuple[str, ...], str]], asked: list[Flow]) -> None:
    again = flows.read("first\n" + policy.line() + "\nlast")
    assert again == policy
    nics = [NicGroups(name=h, number=1, groups=g, tenant=t, zone=1, macs=(), addresses=(), places=(), isolated=False, traits=())
            for h, (g, t) in where.items()]
    judge = Judge(again, nics, [AddressSet(name="s", prefixes=("10.1.0.0/24", "10.0.0.3"))], {(1, h): h for h in where})
    assert [judge.allows(f) for f in asked] == [naive(policy, where, f) for f in asked]


def test_what_the_host_hands_on_is_judged_where_it_ends() -> None:
    policy = Policy({"w": Rules((Rule(tcp=("80",)),))})
    nic = NicGroups(name="kvt-w", number=1, groups=("w",), tenant="", zone=5, macs=(), addresses=("10.0.0.1",), places=(), isolated=False, traits=())
    judge = Judge(policy, [nic], [], {(5, "10.0.0.1"): "kvt-w", (0, "10.0.0.1"): "kvt-w"})
    assert judge.allows(Flow(0, 6, "192.0.2.1", "192.0.2.2", 8080, "10.0.0.1", 80))
    assert not judge.allows(Flow(0, 6, "192.0.2.1", "192.0.2.2", 80, "10.0.0.1", 8080))
    assert judge.allows(Flow(6, 6, "10.0.0.9", "10.0.0.1", 22, "10.0.0.1", 22)), "the same address on another network"


def test_the_hosts_chains_name_every_bridge() -> None:
    from kvmnet.policy.groups import Ports, Tracking
    text = host_chains(Tracking.NETFILTER, Ports(zones={"kvb-b": 2, "kvb-a": 1}))
    assert 'iifname map { "kvb-a" : 1, "kvb-b" : 2 }' in text and '"kvb-a" . "kvb-a"' in text


@pytest.mark.parametrize("document", [DOCUMENT, TENANTS])
def test_groups_and_tenants_are_read_back_from_the_host(document: str) -> None:
    found = compiled(document)
    tree = policies(Seen({k: r for k, r in found.wanted.items() if not isinstance(r, Absent)}))
    data = loads(document).spec.model_dump(by_alias=True, exclude={"vms", "networks", "uplinks", "version", "tenants"})
    again = {name: NicGroup.model_validate(g).model_dump(by_alias=True) for name, g in tree.get("groups", {}).items()}
    assert again == data["groups"]
    assert {n: Tenant.model_validate(t).allow for n, t in tree.get("tenants", {}).items()} == {
        n: t.allow for n, t in loads(document).spec.tenants.items()}
    taps = {k.name: memberships(Seen(dict(found.wanted)), k.name) for k in found.wanted if k.kind == "nic-groups"}  # type: ignore[arg-type]
    assert any(groups or tenant for groups, tenant in taps.values())
