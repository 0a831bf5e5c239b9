"""What ``ip -json`` prints as resources."""
from __future__ import annotations

import cProfile
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.linux.attrs import join_alias, split_alias
from kvmnet.drivers.linux.resources import Link, address_name, route, route_name
from kvmnet.drivers.linux.wire import (
    eui64,
    kernel_made,
    parse_addresses,
    parse_links,
    parse_multicast,
    parse_neighbours,
    parse_proxies,
    parse_routes,
    parse_vlans,
    sysctl_device,
)

TAP: dict[str, Any] = json.loads("""
{"ifindex":5,"ifname":"kvt-a","flags":["NO-CARRIER","BROADCAST","MULTICAST","UP"],"mtu":1500,"qdisc":"mq","master":"br0",
"operstate":"DOWN","linkmode":"DEFAULT","group":"default","txqlen":1000,"link_type":"ether","address":"0e:ec:47:a4:5a:22",
"linkinfo":{"info_kind":"tun","info_data":{"type":"tap","pi":false,"vnet_hdr":false,"multi_queue":true,"persist":true,
"user":"cloud"},"info_slave_kind":"bridge","info_slave_data":{"state":"disabled","hairpin":false,"guard":true,
"learning":true,"flood":true,"mcast_flood":true,"neigh_suppress":false,"isolated":true,"locked":false}},
"inet6_addr_gen_mode":"eui64","ifalias":"kvmnet nic a/nic0 | guard=kvt-a | keeper=hold"}""")


def one(item: dict[str, Any]) -> Link:
    return next(parse_links([item], lambda user: 1000 if user == "cloud" else int(user)))


def test_a_tap_in_a_bridge() -> None:
    assert one(TAP) == Link(
        name="kvt-a", type="tap", mtu=1500, mac="0e:ec:47:a4:5a:22", up=True, master="br0", vrf="", guard="kvt-a", keeper="hold",
        alias="kvmnet nic a/nic0", multi_queue=True, user=1000, addrgenmode="eui64", txqlen=1000, isolated=True,
        learning=True, flood=True, mcast_flood=True, hairpin=False, bpdu_guard=True, neigh_suppress=False)


def test_what_a_link_does_not_have_stays_none() -> None:
    nic = one({"ifname": "ens18", "flags": [], "mtu": 9000, "link_type": "ether", "address": "52:54:00:00:00:01"})
    assert (nic.type, nic.up, nic.master, nic.stp, nic.isolated, nic.user, nic.alias) == (
        "physical", False, "", None, None, None, "")


@pytest.mark.parametrize(("item", "kind"), [
    ({"linkinfo": {"info_kind": "tun", "info_data": {"type": "tun"}}}, "tun"), ({"link_type": "loopback"}, "loopback"),
    ({"linkinfo": {"info_kind": "wireguard"}, "link_type": "none"}, "wireguard")])
def test_types(item: dict[str, Any], kind: str) -> None:
    assert one({"ifname": "x", "mtu": 1500, **item}).type == kind


def test_empty_objects_that_a_filtered_dump_prints_are_no_links() -> None:
    assert list(parse_links([{}], int)) == []


NAMES = st.text(st.characters(codec="ascii", exclude_characters="|=\n\0"), max_size=20)


@given(NAMES, NAMES, NAMES, NAMES)
def test_an_alias_comes_back_as_it_was(text: str, guard: str, keeper: str, gate: str) -> None:
    assert split_alias(join_alias(f"kvmnet {text}", guard, keeper, gate)) == (f"kvmnet {text}", guard, keeper, gate)


@pytest.mark.parametrize("text", ["", "their uplink | guard=x", "kvmnet | colour=red", "kvmnet a = b"])
def test_an_alias_that_is_not_of_that_form_is_left_alone(text: str) -> None:
    assert split_alias(text) == (text, "", "", "")


V6: dict[str, Any] = {"family": "inet6", "local": "2001:db8::7", "prefixlen": 64, "scope": "global"}


@pytest.mark.parametrize(("info", "dynamic"), [
    ({}, ""), ({"valid_life_time": 9, "mngtmpaddr": True}, "ra"), ({"valid_life_time": 9}, "ra"),
    ({"valid_life_time": 9, "temporary": True, "noprefixroute": True}, "ra"),
    ({"valid_life_time": 9, "noprefixroute": True}, "dhcp"), ({"valid_life_time": 9, "prefixlen": 128}, "dhcp"),
    ({"valid_life_time": 9, "family": "inet", "local": "10.0.0.1", "prefixlen": 24}, "dhcp")])
def test_who_renews_an_address(info: dict[str, Any], dynamic: str) -> None:
    found = next(parse_addresses([{"ifname": "e", "addr_info": [{**V6, **info}]}], {}))
    assert found.dynamic == dynamic and found.lifetime == (9 if dynamic else None)


def test_link_local_addresses_of_the_kernel_are_told_from_configured_ones() -> None:
    mac = "02:00:00:00:00:01"
    assert eui64(mac) == "fe80::ff:fe00:1"
    info = {"family": "inet6", "scope": "link", "prefixlen": 64}
    link = Link(name="e", mac=mac, addrgenmode="eui64")
    assert kernel_made({**info, "local": eui64(mac)}, link)
    assert not kernel_made({**info, "local": "fe80::1"}, link)
    assert kernel_made({**info, "local": eui64("02:00:00:00:00:77")}, link), "of the MAC that it had before"
    assert not kernel_made({**info, "local": eui64(mac)}, Link(name="e", mac=mac, addrgenmode="none"))
    assert kernel_made({**info, "local": "fe80::1234"}, Link(name="e", mac=mac, addrgenmode="stable_secret"))


def item(**settings: Any) -> dict[str, Any]:
    return {"type": "1", "dst": "10.9.0.0/16", "dev": "e", "table": "254", "protocol": "4", "scope": "0", "flags": [],
            **settings}


def test_routes_of_the_kernel_are_left_out_but_not_those_with_a_lifetime() -> None:
    kept = [r.name for r in parse_routes([
        item(protocol="2"), item(table="255"), item(type="2"), item(type="5"), item(dst="2001:db8::/64", protocol="2",
                                                                                      expires=9, metric=256),
        item(dst="2001:db8:1::/64", protocol="9", expires=-3), item(dst="default", gateway="fe80::1", metric=1024)], 6)]
    assert kept == ["2001:db8::/64 metric 256 dev e", "::/0 dev e"]


def test_two_routers_are_two_routes_and_ours_beside_the_kernels_is_one() -> None:
    both = list(parse_routes([item(dst="default", protocol="9", gateway=gw, metric=m)
                              for gw, m in (("fe80::1", 1024), ("fe80::1", 1025), ("fe80::2", 1024))], 6))
    assert [r.name for r in both] == ["::/0 dev e via fe80::1", "::/0 dev e via fe80::2"]
    assert {r.metric for r in both} == {None}


def test_what_cannot_be_told_back_is_marked() -> None:
    odd = next(parse_routes([item(encap="mpls", nhid=7)], 4))
    assert odd.options == "?encap ?nhid"


def test_the_words_of_a_route() -> None:
    found = next(parse_routes([item(type="7", tos="0x10", metrics=[{"mtu": 1400, "features": ["ecn"]}], metric=5,
                                    gateway="10.0.0.1", prefsrc="10.0.0.2", flags=["onlink", "linkdown"])], 4))
    assert found.name == "10.9.0.0/16 metric 5 dev e tos 0x10"
    assert (found.options, found.flags, found.via, found.src) == (
        "unreachable tos 0x10 mtu 1400 features ecn", ("onlink",), "10.0.0.1", "10.0.0.2")
    hops = next(parse_routes([item(dev="", nexthops=[{"gateway": "10.0.0.3", "dev": "e", "weight": 2}])], 4))
    assert hops.options == "nexthop via 10.0.0.3 dev e weight 2"


def test_the_compilers_name_is_the_drivers_name() -> None:
    ours = route("10.9.0.0/16", dev="e", via="10.0.0.1", metric=7, table="100")
    seen = next(parse_routes([item(gateway="10.0.0.1", metric=7, table="100", protocol="87")], 4))
    assert seen.name == ours.name and seen.key == ours.key
    assert route_name("default", family=6, dev="e") == "::/0 dev e"
    assert address_name("e", "2001:DB8:0::1/64") == "e 2001:db8::1/64"


def test_proxies_carry_who_made_them() -> None:
    found = list(parse_proxies([{"dst": "10.0.0.5", "dev": "e", "proxy": None, "protocol": "87"},
                                {"dst": "2001:db8::5", "dev": "e", "proxy": None}]))
    assert [(p.name, proto) for p, proto in found] == [("e 10.0.0.5", "87"), ("e 2001:db8::5", "")]


def test_vlans_of_ports_and_their_multicast() -> None:
    links = {n: Link(name=n, **more) for n, more in {  # type: ignore[arg-type]
        "b": {"type": "bridge", "vlan_filtering": True, "mcast_vlan_snooping": True, "master": ""},
        "e": {"type": "physical", "master": "b"}, "t": {"type": "tap", "master": "b"}, "x": {"type": "tap", "master": ""}}.items()}
    shown = [{"ifname": "e", "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}, {"vlan": 10, "vlanEnd": 12}]},
             {"ifname": "t", "vlans": [{"vlan": 10}]}, {"ifname": "x", "vlans": [{"vlan": 1}]}]
    vlans = {v.key: v for v in parse_vlans(shown, links)}
    assert [(v.name, v.bridge, v.pvid) for v in vlans.values()] == [
        ("e 1", "b", True), ("e 10", "b", False), ("e 11", "b", False), ("e 12", "b", False), ("t 10", "b", False)]
    options = [{"ifname": "b", "vlans": [{"vlan": 10, "vlanEnd": 11, "mcast_snooping": 1, "mcast_querier": 0},
                                         {"vlan": 20, "mcast_snooping": 0, "mcast_querier": 1}]}]
    state = {**{link.key: link for link in links.values()}, **vlans}
    assert [(m.name, m.member, m.snooping, m.querier) for m in parse_multicast(options, state)] == [
        ("b 10", "e 10", True, False), ("b 11", "e 11", True, False), ("b 20", None, False, True)]


def test_only_neighbours_for_good_count() -> None:
    found = list(parse_neighbours([
        {"dst": "10.0.0.5", "dev": "b", "lladdr": "02:00:00:00:00:05", "protocol": "87", "state": ["PERMANENT"]},
        {"dst": "10.0.0.6", "dev": "b", "lladdr": "02:00:00:00:00:06", "state": ["REACHABLE"]}, {"dst": "10.0.0.7", "dev": "b"}]))
    assert [(n.name, n.mac, proto) for n, proto in found] == [("b 10.0.0.5", "02:00:00:00:00:05", "87")]


@pytest.mark.parametrize(("name", "dev"), [
    ("net/ipv4/conf/eth0.100/forwarding", "eth0.100"), ("net/ipv4/conf/all/forwarding", ""),
    ("net/ipv6/neigh/eth0.100/gc_stale_time", "eth0.100"), ("net/ipv4/ip_forward", "")])
def test_whose_a_setting_is(name: str, dev: str) -> None:
    assert sysctl_device(name, {"eth0.100": Link(name="eth0.100")}) == dev


def test_parsing_costs_the_same_for_each_link() -> None:
    def calls(count: int) -> int:
        """Functions called: no clock, which other work on the machine would be in."""
        items = [{**TAP, "ifname": f"kvt-{i}"} for i in range(count)]
        with cProfile.Profile() as profile:
            assert len({link.name for link in parse_links(items, lambda user: 0)}) == count
        return sum(entry.callcount for entry in profile.getstats())

    small, large = calls(500), calls(5000)
    assert large / small < 11, f"{small} calls for 500, {large} for 5,000"
