"""The guard of a NIC as data: canonical, complete, and the same after a way through nft's notation."""
from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.nftables import wire
from kvmnet.drivers.nftables.resources import NftTable, NicGuard
from kvmnet.policy import groups, guard, limits
from kvmnet.policy.guard import REASONS, guard_table, is_eui64, link_local, nic_guard, zone_of
from kvmnet.policy.keeper import HELD, guard_keeper

MAC = "02:00:00:00:00:01"


def test_a_plain_nic() -> None:
    assert nic_guard("kvt-a-0", "full", [MAC], ["fd00::1", "10.0.0.1"], bridge="kvb-lan",
                     protected=["10.0.0.254", "fe80::1", "fe80::ff:fe00:fe"]) == NicGuard(
        name="kvt-a-0", table="bridge kvmnet", level="full", macs=(MAC,),
        addresses=("10.0.0.1", "fd00::1", "fe80::ff:fe00:1"), prefixes=(), vlans=(), roles=(),
        forbidden=("fe80::1",), zone=zone_of("kvb-lan"))


def test_prefixes_are_merged_and_single_hosts_are_addresses() -> None:
    made = nic_guard("kvt-a", "full", [MAC], [], ["10.0.0.128/25", "10.0.0.0/25", "10.9.0.1/32", "fd00::/64",
                                                 "fd00::/65"])
    assert made.prefixes == ("10.0.0.0/24", "fd00::/64")
    assert made.addresses == ("10.9.0.1", str(link_local(MAC)))


def test_an_own_address_is_never_forbidden() -> None:
    made = nic_guard("kvt-gw", "mac", [MAC], ["10.0.0.1"], protected=["10.0.0.1", "10.0.0.254"])
    assert made.forbidden == ("10.0.0.254",)


@pytest.mark.parametrize(("change", "words"), [
    ({"level": "lax"}, "'lax' is not full, mac or open"),
    ({"macs": ["03:00:00:00:00:01"]}, "group address"),
    ({"vlans": [0]}, "VLAN id 0 is not within 1-4094"),
    ({"vlans": [10, 4095]}, "VLAN id 4095 is not within 1-4094"),
    ({"roles": ["boss"]}, "no role boss: the roles are dhcp-server, router, querier"),
])
def test_what_cannot_be_is_said(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        nic_guard(**{"tap": "kvt-a", "level": "full", "macs": [MAC], "addresses": [], **change})


def test_the_link_local_of_a_mac() -> None:
    assert str(link_local("52:54:00:12:34:56")) == "fe80::5054:ff:fe12:3456"
    assert is_eui64(link_local(MAC))


def test_every_reason_is_used_and_every_number_has_a_reason() -> None:
    used = {int(n) for n in re.findall(r"meta mark set (\d+) goto (?:refuse|withhold)", guard.TEXT + groups.TEXT.template)}
    assert used.isdisjoint(limits.REASONS.values()) and used | set(limits.REASONS.values()) == set(REASONS)


def test_every_chain_ends_with_a_verdict() -> None:
    """What no rule of a chain knows is refused, never let through by falling off its end."""
    returning = {"prerouting", "input", "local6_new", "target6_new"}
    for name, body in re.findall(r"^chain (\w+) \{\n(.*?)^\}$", guard.TEXT, re.M | re.S):
        last = body.strip().splitlines()[-1].strip().rstrip("; ")
        unconditional = re.fullmatch(r"meta mark set (\d+|meta mark \| \S+) (goto refuse|accept)|drop|goto \w+", last)
        assert unconditional or name in returning, (name, last)


def test_no_rule_has_two_tests_for_not_equal_that_nft_merges() -> None:
    """nft 1.0.6 turns ``a != 1 b != 2`` on neighbouring fields into one comparison of both."""
    for line in guard.TEXT.splitlines():
        plain = re.findall(r"(?:udp|tcp|ip|ip6|icmpv6|hbh) \w+ != (?![{@])", line)
        assert len(plain) < 2, line


def test_the_table_knows_no_nic_and_the_held_tables_are_one_line() -> None:
    assert guard_table() == NftTable(name="bridge kvmnet", text=guard.TEXT)
    assert all("\n" not in text for text in HELD.values())
    assert guard_keeper() == guard_keeper()


@st.composite
def guards(draw: st.DrawFn) -> NicGuard:
    mac = st.integers(0, 255).map(lambda n: f"02:00:00:00:00:{n:02x}")
    host4 = st.integers(1, 1000).map(lambda n: str(wire.IPv4Address(0x0A000000 + n)))
    host6 = st.integers(1, 1000).map(lambda n: str(wire.IPv6Address((0xFD << 120) + n)))
    nets = st.sampled_from(["10.1.0.0/16", "10.1.2.0/24", "fd01::/64", "2001:db8::/48", "10.2.0.0/31"])
    return nic_guard(draw(st.sampled_from(["kvt-a", "kvt-b~12", "kvt-c-0"])), draw(st.sampled_from(["full", "mac", "off"])),
                     draw(st.lists(mac, min_size=1, max_size=3)), draw(st.lists(host4 | host6, max_size=4)),
                     draw(st.lists(nets, max_size=3)), draw(st.lists(st.integers(1, 4094), max_size=3)),
                     draw(st.lists(st.sampled_from(sorted(guard.ROLES)), max_size=2)), "kvb-x",
                     draw(st.lists(host4 | host6, max_size=2)))


def as_nft_lists(elements: wire.Elements) -> dict[str, Any]:
    """What ``nft -j list table`` answers when *elements* are loaded."""
    def value(text: str) -> Any:
        if text.startswith('"'):
            return text.strip('"')
        if "-" in text:
            return {"range": text.split("-")}
        if "/" in text:
            address, _, length = text.partition("/")
            return {"prefix": {"addr": address, "len": int(length)}}
        return int(text, 0) if int(text, 0) < 1 << 64 else text

    def item(name: str, text: str) -> Any:
        if name == "zone":
            return [value(part) for part in text.split(" : ")]
        parts = [value(part) for part in text.split(" . ")]
        return {"concat": parts} if len(parts) > 1 else parts[0]

    return {"nftables": [{"set": {"family": "bridge", "table": "kvmnet", "name": name.split()[-1],
                                  "elem": [item(name.split()[-1], t) for t in texts]}} for name, texts in elements.items()]}


@given(st.lists(guards(), max_size=3, unique_by=lambda g: g.name))
def test_a_guard_is_read_back_as_it_was_written(wanted: list[NicGuard]) -> None:
    _, added = wire.change((), wanted)
    listing = wire.read_listing(as_nft_lists(added))
    assert listing.guards == {g.name: g for g in wanted}
    assert listing.flows_hold


@given(guards(), guards())
def test_a_change_is_exactly_the_difference(before: NicGuard, after: NicGuard) -> None:
    def pairs(elements: wire.Elements) -> set[tuple[str, str]]:
        return {(name, text) for name, texts in elements.items() for text in texts}

    removed, added = map(pairs, wire.change([before], [after]))
    old, new = set(wire.element(before)), set(wire.element(after))
    assert (old - removed) | added == new and removed <= old and added.isdisjoint(old)


LISTING = """\
table ip filter { # handle 3
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
        counter packets 1 bytes 2 jump DOCKER
    }

    chain DOCKER {
    }
}
table bridge kvmnet-keeper { # progname nft
    flags owner
}
table inet x {
    set s {
        type ifname . ifname
        elements = { "b" . "c",
     "a" . "b" }
    }
}
""".replace("    ", "\t")


def test_tables_and_hooks_of_a_listing() -> None:
    tables = wire.read_tables(LISTING)
    assert list(tables) == ["ip filter", "bridge kvmnet-keeper", "inet x"]
    (chain,) = wire.base_chains(NftTable(name="ip filter", text=tables["ip filter"]))
    assert (chain.hook, chain.priority, chain.policy) == ("forward", "filter", "drop")
    assert chain.rules == ("counter packets 1 bytes 2 jump DOCKER",)
    assert 'elements = { "a" . "b", "b" . "c" }' in wire.canonical(tables["inet x"])
    assert "\tchain FORWARD {\n" in wire.canonical(tables["ip filter"])
