"""What the kernel is asked directly, against what the tools show of the same host."""
from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from socket import AF_INET, AF_INET6, if_nametoindex

import pytest

from kvmnet.drivers.linux import driver, routes
from kvmnet.drivers.linux.addresses import SET, told
from kvmnet.drivers.linux.attrs import BRIDGE, PORT
from kvmnet.drivers.linux.driver import LinuxDriver, uid_of
from kvmnet.drivers.linux.links import told as links_told
from kvmnet.drivers.linux.resources import Link, Neighbour, ProxyNeighbour, Route
from kvmnet.drivers.linux.wire import parse_links, parse_routes, with_members
from kvmnet.drivers.mirror.driver import hooks
from kvmnet.host.clock import wait_until
from kvmnet.host.netlink import (
    Layouts,
    addresses,
    attribute,
    attributes,
    disciplines,
    has_elements,
    has_links,
    proxied,
    rules_name_devices,
    settled,
    tables,
    transactions,
)
from kvmnet.host.netlink import links as kernel_links
from kvmnet.host.netlink import routes as kernel_routes
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]


def test_disciplines_are_those_that_tc_shows() -> None:
    sh("for i in 0 1 2 3; do ip link add v$i type veth peer name w$i; ip link set v$i up; done")
    assert disciplines() == {} == hooks()
    sh("tc qdisc add dev v0 clsact && tc qdisc add dev v1 ingress && tc qdisc add dev v1 root tbf rate 1mbit burst 10k limit 20k && "
       "tc qdisc add dev v2 root handle 7: htb && tc class add dev v2 parent 7: classid 7:1 htb rate 1mbit && "
       "tc qdisc add dev v2 parent 7:1 handle 8: bfifo")
    shown: dict[int, set[str]] = {}
    for item in json.loads(sh("tc -json qdisc show")):
        if item["handle"] != "0:":
            shown.setdefault(if_nametoindex(item["dev"]), set()).add(item["kind"])
    assert disciplines() == shown
    assert {kind for kinds in shown.values() for kind in kinds} == {"clsact", "ingress", "tbf", "htb", "bfifo"}
    assert hooks() == {"v0": "clsact", "v1": "ingress"}


LINKS = ("set -e; ip link add b0 type bridge mcast_snooping 0; ip link add b1 type bridge stp_state 1 forward_delay 400 hello_time 300 max_age 900 priority 77 "
         "ageing_time 7700 mcast_querier 1 mcast_query_use_ifaddr 1 no_linklocal_learn 1 nf_call_iptables 1 nf_call_ip6tables 1 nf_call_arptables 1; ip link set b1 up; "
         "ip tuntap add t0 mode tap user 7; ip tuntap add t1 mode tap multi_queue user 65533; ip tuntap add t2 mode tap user root; ip tuntap add u0 mode tun; "
         "ip link set t0 master b0 mtu 1400 up; ip link set t1 master b1 txqueuelen 0 address 02:00:00:00:00:07; ip link set t2 alias 'kvmnet nic a/b | guard=t2 | keeper=guard'; "
         "for i in 0 1 2; do ip link add v$i type veth peer name w$i; ip link set v$i addrgenmode none; done; ip link add i0 type ifb; "
         "ip link set v0 master b0 addrgenmode random; ip link set v0 type bridge_slave isolated on learning off flood off mcast_flood off neigh_suppress on; "
         "ip link set v1 master b0 alias 'of \"another\" hand'; ip link set v1 type bridge_slave hairpin on guard on root_block on; ip link set lo up")
UNUSUAL_LINKS = ("b9 type vxlan id 7 dstport 4789", "b9 link v2 type macvlan", "b9 link v2 type macvtap")


def test_links_are_those_that_ip_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every kind that is told, with every setting, without asking ip; of what is unusual nothing is said, and ip is asked."""
    asked: list[tuple[str, ...]] = []
    plainly = driver.ip_json
    monkeypatch.setattr(driver, "ip_json", lambda *words, **rest: asked.append(words) or plainly(*words, **rest))

    def shown() -> dict[str, Link]:
        return with_members({link.name: link for link in parse_links(json.loads(sh("ip -json -details link")), uid_of)})

    def seen() -> dict[str, Link]:
        return {r.name: r for r in LinuxDriver().observe({}).state.values() if isinstance(r, Link)}
    assert seen() == shown() and shown().keys() == {"lo"} and not asked
    sh(LINKS)
    found = seen()
    assert found == shown() and len(found) == 14 and not asked
    for name in (*BRIDGE, *PORT, "mac", "mtu", "txqlen", "addrgenmode", "master", "up", "alias", "guard", "multi_queue", "user", "peer", "type"):
        assert len({getattr(link, name) for link in found.values()} - {None}) > 1 or name in {"vlan_filtering", "default_pvid", "mcast_vlan_snooping"}, name
    for words in UNUSUAL_LINKS:
        asked.clear()
        sh(f"ip link add {words}")
        assert links_told(kernel_links()) is None
        assert seen() == shown() and ("-details", "link") in asked, words
        sh("ip link del b9")


def test_layouts_are_told_apart() -> None:
    """Data of one length with attributes of other types or lengths, with a type twice, and broken off."""
    layouts = Layouts()
    one, other, third = (attribute(1, b"abcd") + attribute(2, b"ef"), attribute(1, b"ab") + attribute(2, b"cdef"), attribute(3, b"abcd") + attribute(2, b"ef"))
    assert len({len(data) for data in (one, other, third)}) == 1
    for data in (one, other, third, one, attribute(7 | 0x8000, b"x"), attribute(4, b"a") + attribute(4, b"b"), b"", b"\1", one[:-3], one + b"\xff\xff\0\0", one):
        assert {kind: data[place] for kind, place in layouts.of(data).items()} == dict(attributes(data)), data


READ = ("family", "local", "prefixlen", "scope", "label", "broadcast", "address", "dynamic", "secondary", "temporary", *SET.values())
LIFETIMES = ("valid_life_time", "preferred_life_time")


def test_addresses_are_those_that_ip_shows() -> None:
    """Of every kind, with every flag that can be set; lifetimes run meanwhile."""
    sh("for i in 0 1 2; do ip link add v$i type veth peer name w$i; ip link set v$i up; ip link set w$i up; done; ip link set lo up")
    for words in ("10.0.0.1/24 brd + label v0:one", "10.0.0.2/24", "10.1.0.1/32 peer 10.2.0.0/16", "10.3.0.1/24 scope link noprefixroute",
                  "10.4.0.1/24 scope host", "10.5.0.1/24 scope 77", "10.6.0.1/24 valid_lft 90000 preferred_lft 80000", "10.7.0.1/32 broadcast 10.7.0.255",
                  "2001:db8::1/64 nodad", "2001:db8:1::1/64 nodad valid_lft 90000 preferred_lft 0", "2001:db8:2::1/64 nodad mngtmpaddr",
                  "2001:db8:3::1 peer 2001:db8:4::1/64 nodad", "2001:db8:5::1/64 home nodad", "fe80::77/64 nodad", "2001:db8:6::1/64 nodad noprefixroute"):
        sh(f"ip addr add {words} dev v0")
    sh("ip addr add 239.1.1.1/32 dev v1 autojoin; ip addr add 10.8.0.1/24 dev w2")
    wait_until(lambda: "tentative" not in sh("ip -6 addr"), 20)
    names = {item["ifindex"]: item["ifname"] for item in json.loads(sh("ip -json link"))}
    shown = [item for item in json.loads(sh("ip -json address")) if item["addr_info"]]
    seen = told(addresses(), names)
    assert [[item["ifname"], [{k: i[k] for k in READ if k in i} for i in item["addr_info"]]] for item in seen] == \
        [[item["ifname"], [{k: i[k] for k in READ if k in i} for i in item["addr_info"]]] for item in shown]
    assert {key for item in shown for i in item["addr_info"] for key in i} == {*READ, *LIFETIMES} - {"temporary", "dadfailed", "optimistic", "tentative", "stable-privacy"}
    for one, other in zip((i for item in seen for i in item["addr_info"]), (i for item in shown for i in item["addr_info"]), strict=True):
        assert all(abs(one[k] - other[k]) < 60 for k in LIFETIMES)


PLAIN = ("10.1.0.0/24 dev v0", "10.2.0.0/24 via 10.0.0.9", "default via 10.0.0.9 metric 7", "10.3.0.1 dev v1 scope link src 10.0.0.1", "10.4.0.0/16 dev v0 table 77 proto 87",
         "10.5.0.0/16 via 10.9.9.9 dev v0 onlink table 777", "10.6.0.0/24 dev v0 mtu 1400", "0.0.0.0/1 dev v0 proto static", "10.7.0.0/24 dev v0 metric 3", "10.7.0.0/24 dev v1 metric 4")
PLAIN6 = ("2001:db8:1::/64 dev v0", "default via 2001:db8::9 metric 9", "2001:db8:2::/64 via fe80::9 dev v0 proto ra expires 900", "2001:db8:3::1 dev v1 pref high", "::/1 dev v0",
          "2001:db8:4::/64 dev v0 mtu 1400 hoplimit 9", "2001:db8:5::/64 dev v1 table 99 pref low", "default via fe80::9 dev v0 proto ra expires 1800 pref low")
UNUSUAL = ("10.9.0.0/24 dev v0 tos 8", "10.9.0.0/24 nexthop via 10.0.0.8 nexthop via 10.0.0.9", "blackhole 10.9.0.0/24", "10.9.0.0/24 dev v0 advmss 1000", "10.9.0.0/24 dev v0 mtu lock 1400",
           "10.9.0.0/24 via inet6 fe80::9 dev v0", "2001:db8:9::/64 dev v0 initcwnd 9", "unreachable 2001:db8:9::/64", "2001:db8:9::/64 from 2001:db8:8::/64 dev v0")


def test_routes_are_those_that_ip_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain ones of every kind without asking ip; of what is unusual nothing is said, and ip is asked."""
    sh("for i in 0 1; do ip link add v$i type veth peer name w$i; ip link set v$i up; ip link set w$i up; done; ip addr add 10.0.0.1/24 dev v0; ip addr add 2001:db8::1/64 dev v0 nodad")
    asked: list[tuple[str, ...]] = []
    plainly = driver.ip_json
    monkeypatch.setattr(driver, "ip_json", lambda *words, **rest: asked.append(words) or plainly(*words, **rest))
    names = {item["ifindex"]: item["ifname"] for item in json.loads(sh("ip -json link"))}

    def shown(version: int) -> dict[str, Route]:
        items = json.loads(sh(f"ip -json -Numeric -{version} -details route show table all"))
        return {r.name: replace(r, lifetime=None if r.lifetime is None else 1) for r in parse_routes(items, version)}

    def seen() -> dict[str, Route]:
        found = {r.name: r for r in LinuxDriver().observe({}).state.values() if isinstance(r, Route)}
        assert all(r.lifetime is None or 700 < r.lifetime <= 1800 for r in found.values())
        return {name: replace(r, lifetime=None if r.lifetime is None else 1) for name, r in found.items()}

    def routes_were_asked_for() -> bool:
        return any("route" in words for words in asked)
    assert seen() == shown(4) | shown(6) == {} and not routes_were_asked_for()
    for words in (*PLAIN, *PLAIN6):
        sh(f"ip route add {words}")
    assert seen() == shown(4) | shown(6) and len(seen()) == len(PLAIN) + len(PLAIN6) and not routes_were_asked_for()
    assert sum(r.lifetime is not None for r in seen().values()) == 2
    for words in UNUSUAL:
        asked.clear()
        sh(f"ip route add {words}")
        assert routes.told(kernel_routes(AF_INET6 if "2001" in words else AF_INET), names) is None
        assert seen() == shown(4) | shown(6) and routes_were_asked_for(), words
        sh(f"ip route del {words}")
    sh("ip link set w1 down; ip link set w0 down")
    wait_until(lambda: "linkdown" in sh("ip route"), 20)
    assert seen() == shown(4) | shown(6) and len(seen()) > 10


def test_rules_and_tables_are_those_that_the_tools_show() -> None:
    sh("ip rule add to 10.0.0.0/8 table 7; ip -6 rule add fwmark 7 table 7")
    assert not rules_name_devices()
    for command in ("ip rule add iif lo table 7", "ip -6 rule add oif lo table 7"):
        sh(command)
        assert rules_name_devices()
        sh(command.replace(" add ", " del "))
    assert tables() == set() and not rules_name_devices()
    before = transactions()
    assert before is not None
    sh("nft 'add table ip a; add table bridge kvmnet; add table netdev b; add chain ip a c'; nft list ruleset; nft -c add table ip none")
    assert tables() == {line.removeprefix("table ") for line in sh("nft list tables").splitlines()} == {"ip a", "bridge kvmnet", "netdev b"}
    assert transactions() == before + 1
    sh("nft delete table ip a; nft add rule bridge kvmnet none accept 2>/dev/null || true")
    assert transactions() == before + 2


def test_whether_there_is_an_element_or_a_link_of_a_kind() -> None:
    sh("nft 'table bridge kvmnet { set s { typeof iifname . @nh,64,128; size 9; flags dynamic,timeout; timeout 1h; }; set t { type ifname; }; }; "
       "table netdev kvmnet { set s { type ifname; elements = { a }; }; }'")
    assert [has_elements(*of) for of in (("bridge kvmnet", "s"), ("bridge kvmnet", "t"), ("netdev kvmnet", "s"))] == [False, False, True]
    sh("nft 'add element bridge kvmnet s { \"x\" . 0xfe800000000000001122334455667788 }; add element bridge kvmnet t { b }; flush set netdev kvmnet s'")
    assert [has_elements(*of) for of in (("bridge kvmnet", "s"), ("bridge kvmnet", "t"), ("netdev kvmnet", "s"))] == [True, True, False]
    with pytest.raises(OSError):
        has_elements("bridge kvmnet", "none")
    sh("ip link add v0 type veth peer name w0 && ip link add m0 link v0 type macvlan")
    assert has_links("macvlan") and has_links("veth") and not has_links("macvtap")
    sh("ip link add t0 link w0 type macvtap")
    assert has_links("macvtap")


@pytest.mark.parametrize(("command", "there", "kind"), [
    ("ip neigh add proxy 10.0.0.9 dev v0", proxied, ProxyNeighbour),
    ("ip neigh add proxy 2001:db8::9 dev v0", proxied, ProxyNeighbour),
    ("ip neigh add 10.0.0.7 lladdr 02:00:00:00:00:07 dev v0 nud permanent", settled, Neighbour),
    ("ip neigh add 2001:db8::7 lladdr 02:00:00:00:00:07 dev v0 nud permanent", settled, Neighbour)])
def test_neighbours_are_noticed(command: str, there: Callable[[], bool], kind: type) -> None:
    """Also beside others that are none of ours: one that was heard, and no more than that."""
    sh("ip link add v0 type veth peer name w0 && ip link set v0 up && ip link set w0 up && ip addr add 10.0.0.1/24 dev v0 && "
       "ip neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev v0 nud reachable")
    assert not there() and not [r for r in LinuxDriver().observe({}).state.values() if isinstance(r, kind)]
    sh(command)
    assert there()
    assert [r.dev for r in LinuxDriver().observe({}).state.values() if isinstance(r, kind)] == ["v0"]
