"""Allocation: the same for ever, never twice, inside the pool; what is declared wins."""
from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.errors import SpecError
from kvmnet.facts.model import Allocation, Allocations, Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import check
from kvmnet.spec.load import loads
from kvmnet.spec.models import Spec

NETWORK = "{mode: isolated, subnet: 10.0.0.0/24, pool: 10.0.0.1-10.0.0.9, gateway: 10.0.0.3, subnet6: fd00::/64}"


def spec(vms: dict[str, str], network: str = NETWORK) -> Spec:
    """A document with one network and a NIC per guest; the values are further options of the NIC."""
    body = "".join(f"  {vm}: {{nics: [{{network: lan, {options}}}]}}\n" for vm, options in vms.items())
    return loads(f"version: 1\nnetworks: {{lan: {network}}}\nvms:\n{body or '  {}'}").spec


def got(allocations: Allocations, vm: str) -> Allocation:
    return allocations[vm, "nic0", "lan"]


def test_lowest_free_without_host_and_gateway() -> None:
    out = allocate(spec({"a": "", "b": "", "c": ""}), {})
    assert [got(out, vm).ip for vm in "abc"] == ["10.0.0.2", "10.0.0.4", "10.0.0.5"]
    assert [got(out, vm).ip6 for vm in "abc"] == ["fd00::2", "fd00::3", "fd00::4"]


def test_macs_are_made_of_the_names() -> None:
    one, two = allocate(spec({"a": "", "b": ""}), {}), allocate(spec({"b": ""}), {})
    assert got(one, "b").mac == got(two, "b").mac != got(one, "a").mac
    assert got(one, "b").mac.startswith("52:54:00:")


def test_a_mac_that_is_taken_is_not_made() -> None:
    natural = got(allocate(spec({"a": ""}), {}), "a").mac
    out = allocate(spec({"a": "", "b": f"mac: {natural}"}), {})
    assert got(out, "b").mac == natural
    assert got(out, "a").mac != natural
    assert got(allocate(spec({"a": ""}), out), "a").mac == got(out, "a").mac, "and stays so"


def test_declared_wins_over_given() -> None:
    before = allocate(spec({"a": ""}), {})
    after = allocate(spec({"a": "", "b": "ip: 10.0.0.2"}), before)
    assert got(after, "b").ip == "10.0.0.2"
    assert got(after, "a").ip == "10.0.0.4"
    assert got(after, "a").ip6 == got(before, "a").ip6


def test_none_is_none() -> None:
    out = allocate(spec({"a": "ip: none", "b": "ip6: none"}), {})
    assert (got(out, "a").ip, got(out, "b").ip6) == ("", "")


def test_addresses_of_others_are_not_given() -> None:
    out = allocate(spec({"a": "", "router": "ip: 10.0.0.9, extra: {addresses: [10.0.0.2, 10.0.0.4/31, 'fd00::/126']}"}), {})
    assert got(out, "a").ip == "10.0.0.6"
    assert got(out, "a").ip6 == "fd00::4"


def test_names_that_are_gone_are_remembered() -> None:
    first = allocate(spec({"a": "", "b": ""}), {})
    gone = allocate(spec({"b": ""}), first)
    assert got(gone, "a") == got(first, "a")
    with_c = allocate(spec({"b": "", "c": ""}), gone)
    assert got(with_c, "c").ip == "10.0.0.5", "a's address waits for a"
    back = allocate(spec({"a": "", "b": "", "c": ""}), with_c)
    assert got(back, "a") == got(first, "a")


def test_the_oldest_that_is_gone_gives_way_when_the_pool_is_full() -> None:
    seven = {f"v{i}": "" for i in range(7)}  # 10.0.0.1 to .9 without host and gateway
    full = allocate(spec(seven), {})
    out = allocate(spec({**{f"v{i}": "" for i in range(2, 7)}, "new": ""}), full)
    assert got(out, "new").ip == got(full, "v0").ip
    assert got(out, "v0").ip == ""
    assert got(out, "v1") == got(full, "v1"), "the younger one keeps its own"
    assert got(out, "v0").mac == got(full, "v0").mac


def test_a_full_pool_is_said() -> None:
    document = spec({f"v{i}": "" for i in range(8)})
    (problem,) = check(document, Facts())
    assert problem.path == "networks.lan.pool"
    assert "8 NICs want an address of 10.0.0.1-10.0.0.9, which has 7 free" in problem.message
    with pytest.raises(SpecError) as caught:
        allocate(document, {})
    assert [p.path for p in caught.value.problems] == ["vms.v7.nics[0]"]


def test_a_smaller_pool_moves_only_those_outside() -> None:
    before = allocate(spec({"a": "", "b": ""}), {})
    narrow = NETWORK.replace("10.0.0.1-10.0.0.9", "10.0.0.4-10.0.0.9")
    after = allocate(spec({"a": "", "b": ""}, narrow), before)
    assert got(after, "b").ip == got(before, "b").ip == "10.0.0.4"
    assert got(after, "a").ip == "10.0.0.5"


def test_bridge_without_prefix_has_no_addresses() -> None:
    out = allocate(spec({"a": "guard: mac", "b": "ip: 10.9.9.9"}, "{mode: bridge, bridge: br0}"), {})
    assert (got(out, "a").ip, got(out, "a").ip6) == ("", "")
    assert got(out, "b").ip == "10.9.9.9"


def test_autoconfigured_guests_get_no_address() -> None:
    out = allocate(spec({"a": "extra: {addresses: ['fd00::/80']}"}, "{mode: isolated, subnet6: fd00::/64, ra: autoconf}"), {})
    assert got(out, "a").ip6 == ""


DECLARED = st.one_of(st.just(""), st.sampled_from(["ip: none", "ip6: none"]),
                     st.integers(2, 60).map(lambda n: f"ip: 10.0.0.{n}"),
                     st.integers(2, 60).map(lambda n: f"ip6: 'fd00::{n:x}'"))
GUESTS = st.dictionaries(st.sampled_from([f"g{i}" for i in range(12)]), DECLARED, max_size=12)


@given(st.lists(GUESTS, min_size=1, max_size=5))
@settings(deadline=None)
def test_never_twice_and_never_moved(history: list[dict[str, str]]) -> None:
    """Over any history of documents: unique, inside the prefix, and a NIC moves only for a declaration."""
    network = "{mode: isolated, subnet: 10.0.0.0/26, subnet6: fd00::/64}"
    known: Allocations = {}
    for guests in history:
        document = spec(guests, network)
        if check(document, Facts()):
            continue  # two guests declare the same address
        before, known = known, allocate(document, known)
        now = {vm: got(known, vm) for vm in guests}
        claimed = {options.split(": ")[1].strip("'") for options in guests.values() if ": " in options}
        for values, net in (([a.ip for a in now.values() if a.ip], "10.0.0.0/26"),
                            ([a.ip6 for a in now.values() if a.ip6], "fd00::/64")):
            assert len(values) == len(set(values))
            assert all(ip_address(value) in ip_network(net) for value in values)
        assert len({a.mac for a in known.values()}) == len(known)
        for vm, options in guests.items():
            old = before.get((vm, "nic0", "lan"))
            if old and not options and old.ip and old.ip not in claimed:
                assert now[vm].ip == old.ip
            if old and not options and old.ip6 and old.ip6 not in claimed:
                assert now[vm].ip6 == old.ip6
        assert allocate(document, known) == known, "again changes nothing"
        assert list(known)[:len(before)] == list(before), "oldest first"


@given(GUESTS, GUESTS)
@settings(deadline=None)
def test_others_do_not_notice(guests: dict[str, str], more: dict[str, str]) -> None:
    """Guests without declared addresses that come and go change nothing for those that stay."""
    guests = dict.fromkeys(guests, "")
    first = allocate(spec(guests, "{mode: isolated, subnet: 10.0.0.0/26}"), {})
    second = allocate(spec({**dict.fromkeys(more, ""), **guests}, "{mode: isolated, subnet: 10.0.0.0/26}"), first)
    assert all(got(second, vm) == got(first, vm) for vm in guests)
