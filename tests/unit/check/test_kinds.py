"""Which packets tell rules apart, and what the rules say of each."""
from __future__ import annotations

import pytest

from kvmnet.check import frames
from kvmnet.check.kinds import MOST, Kind, allows, are_apart, is_judged, kinds, rules_between, shot, strangers
from kvmnet.check.rules import PAIRS, sample
from kvmnet.drivers.nftables.resources import AddressSet, NicGroups
from kvmnet.policy.flows import Judge, Policy, Rule, Rules

WEB = NicGroups(name="web", groups=("web",), tenant="", zone=1, isolated=False)
DB = NicGroups(name="db", groups=("db",), tenant="", zone=1, isolated=False)
SHOP = NicGroups(name="shop", groups=(), tenant="shop", zone=2, isolated=True)
MAIL = NicGroups(name="mail", groups=(), tenant="mail", zone=2, isolated=True)
PROBE = NicGroups(name="probe", groups=(), tenant="", zone=2, isolated=False)
POLICY = Policy(
    {"web": Rules(ingress=(Rule(tcp=("80", "8000-8009")),), egress=(Rule(tcp=("5432",), peers=("group:db",)),)),
     "db": Rules(ingress=(Rule(tcp=("5432",), peers=("group:web",)), Rule(udp=("53",), peers=("set:office", "192.0.2.0/24"))))},
    {"shop": (Rule(icmp=("echo-request",), peers=("tenant:mail",)),), "mail": ()})
JUDGE = Judge(POLICY, [WEB, DB, SHOP, MAIL], [AddressSet(name="office", prefixes=("198.51.100.7",))], {})


def words(rules: list[Rule], family: int = 4) -> list[str]:
    return [str(kind) for kind in kinds(rules, family)]


def test_a_rule_is_told_from_what_lies_beside_it() -> None:
    assert words([Rule(tcp=("80", "8000-8009"))]) == [
        "tcp 80", "tcp 8000", "tcp 8009", "icmp echo-request", "tcp 40003", "udp 40003", "tcp 81", "udp 80", "tcp 79", "tcp 8010", "udp 8000",
        "tcp 7999"]
    assert words([Rule(icmp=("echo-request", "echo-reply"))], 6) == ["icmp6 echo-request", "tcp6 40003", "udp6 40003"]
    assert words([Rule(protocol=(47, 132))]) == ["protocol 47", "icmp echo-request", "tcp 40003", "udp 40003"]


def test_what_begins_no_flow_and_what_the_guard_judges_is_not_sent() -> None:
    """SCTP without a checksum, an echo's answer, DHCP, ports that are none."""
    found = set(words([Rule(protocol=(132,), icmp=("echo-reply",), udp=("67-68",), tcp=("65535",))]))
    assert {"tcp 65535", "tcp 65534", "udp 69", "udp 66"} <= found
    assert not {"protocol 132", "icmp echo-reply", "udp 67", "udp 68", "tcp 65536"} & found


def test_many_rules_leave_room_for_what_they_do_not_allow() -> None:
    rules = [Rule(tcp=(str(port),)) for port in range(100, 300, 2)]
    found = kinds(rules, 4)
    allowed = [k for k in found if k.protocol == 6 and k.port in range(100, 300, 2)]
    assert len(found) == MOST and len(allowed) == MOST // 2


@pytest.mark.parametrize(("source", "target", "kind", "expected"), [
    (WEB, DB, Kind(4, 6, 5432), True), (WEB, DB, Kind(4, 6, 5433), False), (WEB, DB, Kind(4, 17, 5432), False),
    (DB, WEB, Kind(4, 6, 8009), True), (DB, WEB, Kind(6, 6, 8010), False), (None, DB, Kind(4, 6, 5432), False),
    (WEB, None, Kind(4, 6, 5432), False), (DB, None, Kind(4, 6, 5432), True), (PROBE, SHOP, Kind(4, 1, 8), False),
    (MAIL, PROBE, Kind(4, 6, 80), True), (MAIL, SHOP, Kind(4, 1, 8), False)])
def test_what_the_rules_say(source: NicGroups | None, target: NicGroups | None, kind: Kind, *, expected: bool) -> None:
    """The last would be allowed by the tenants; both are isolated."""
    assert allows(JUDGE, source, target, ("10.0.0.2", "10.0.0.3"), kind) is expected


def test_a_crossing_of_tenants_is_allowed_where_isolation_is_not_in_the_way() -> None:
    lone = NicGroups(name="mail", groups=(), tenant="mail", zone=2, isolated=False)
    assert are_apart(MAIL, SHOP) and not are_apart(lone, SHOP)
    assert allows(JUDGE, lone, SHOP, ("10.0.0.2", "10.0.0.3"), Kind(4, 1, 8))
    assert list(rules_between(POLICY, lone, SHOP)) == [Rule(icmp=("echo-request",), peers=("tenant:mail",))]


def test_who_is_judged() -> None:
    assert is_judged(POLICY, WEB, None) and is_judged(POLICY, None, DB) and is_judged(POLICY, PROBE, SHOP) and is_judged(POLICY, MAIL, SHOP)
    assert not is_judged(POLICY, DB, None) and not is_judged(POLICY, None, SHOP) and not is_judged(POLICY, SHOP, PROBE)


def test_those_outside_are_of_no_network_of_the_host() -> None:
    """One of each prefix that rules name, and one of none."""
    rules = rules_between(POLICY, None, DB)
    assert strangers(list(rules), JUDGE.sets, ["10.0.0.0/24"], 4) == ("198.51.100.7", "192.0.2.1", "198.51.100.1")
    rules = rules_between(POLICY, None, DB)
    assert strangers(list(rules), JUDGE.sets, ["198.51.100.0/24", "192.0.2.0/24"], 4) == ("203.0.113.1",)
    assert strangers([], {}, ["2001:db8::/64"], 6) == ("2001:db8:ffff::c9",)
    assert strangers([Rule(peers=("0.0.0.0/0", "2001:db8:5::/48", "group:web", "any"))], {}, [], 6) == ("2001:db8:5::1", "2001:db8::1")
    assert strangers([Rule(peers=("0.0.0.0/0",))], {}, ["198.51.100.0/24"], 4) == ()


@pytest.mark.parametrize("kind", [Kind(4, 6, 80), Kind(4, 17, 53), Kind(4, 1, 8), Kind(4, 47, 0), Kind(6, 6, 80), Kind(6, 17, 53), Kind(6, 58, 128)])
def test_a_packet_is_of_its_kind_and_known_again(kind: Kind) -> None:
    ends = ("fd00::2", "fd00::3") if kind.family == 6 else ("10.0.0.2", "10.0.0.3")
    one, other = (shot(kind, ends, allowed=False, hops=2) for _ in range(2))
    read = frames.read(frames.ether("02:00:00:00:00:02", "02:00:00:00:00:01", frames.family(one.packet), one.packet))
    assert read and (read.src, read.dst, read.protocol) == (*ends, kind.protocol)
    assert read.ports[1] == kind.port if kind.protocol in (6, 17) else read.icmp in (kind.port, -1)
    assert one.mark in one.packet and one.mark not in other.packet
    assert one.packet[7 if kind.family == 6 else 8] == 2


def test_of_each_kind_of_pair_one_comes_before_any_second() -> None:
    possible = [((number % 7,), lambda: None) for number in range(PAIRS + 50)] + [(("rare",), lambda: None)]
    found = [kind for kind, _ in sample(possible)]  # type: ignore[arg-type]
    assert len(found) == PAIRS and ("rare",) in found and set(found) == {(n,) for n in range(7)} | {("rare",)}
