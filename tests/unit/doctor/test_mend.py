"""What a program may mend by itself, and what takes it back."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.doctor.mend import MENDS, mending, setting_file
from kvmnet.doctor.rules.table import RULES, examine
from kvmnet.doctor.view import View

from .test_rules import BR, CASES, MAC, STRICT, T1, T2, bridge, card, default, learned, link, netstat, tap


def done(facts: dict[str, Any]) -> list[tuple[str, str]]:
    view = View(facts)
    return [(" ".join(c.do), " ".join(c.undo)) for c in mending(view, examine(view)).changes]


def test_only_rules_have_cures() -> None:
    assert set(MENDS) <= set(RULES)


@pytest.mark.parametrize(("facts", "do", "undo"), [
    ({"links": [bridge(stp_state=1, forward_delay=1500), T1]}, "ip link set br0 type bridge forward_delay 200", "ip link set br0 type bridge forward_delay 1500"),
    ({"links": [bridge(ageing_time=100), T1, T2, tap("t3")]}, "ip link set br0 type bridge ageing_time 30000", "ip link set br0 type bridge ageing_time 100"),
    ({"links": [BR, T1], "sysctls": {"net/ipv4/conf/br0/proxy_arp": "1"}}, "sysctl -qw net.ipv4.conf.br0.proxy_arp=0", "sysctl -qw net.ipv4.conf.br0.proxy_arp=1"),
    ({"sysctls": {"net/netfilter/nf_conntrack_count": "99", "net/netfilter/nf_conntrack_max": "100"}}, "sysctl -qw net.netfilter.nf_conntrack_max=262144", "sysctl -qw net.netfilter.nf_conntrack_max=100"),
    ({"links": [BR, tap(mtu=1400), T2, tap("t3")]}, "ip link set t1 mtu 1500", "ip link set t1 mtu 1400"),
    ({"links": [BR, link("eth0", master="br0")], "offloads": {"eth0": ["rx-lro"]}}, "ethtool -K eth0 lro off", "ethtool -K eth0 lro on"),
    ({"links": [link("bond0", "bond", mode="active-backup", miimon=0)]}, "ip link set bond0 type bond miimon 100", "ip link set bond0 type bond miimon 0"),
    ({"links": [BR, T1, T2], "guests": [card("a", MAC)], "fdb": [learned(MAC, "t2", state="static", flags=["sticky"])]}, f"bridge fdb del {MAC} dev t2 master", f"bridge fdb replace {MAC} dev t2 master static sticky"),
    ({"nics": [{"vm": "a", "nic": "n", "mac": MAC, "ip": "10.0.0.5", "tap": "t1"}], "neighbours": [{"dst": "10.0.0.5", "dev": "br0", "lladdr": "02:00:00:00:00:09", "state": ["PERMANENT"]}]},
     "ip neigh del 10.0.0.5 dev br0", "ip neigh replace 10.0.0.5 lladdr 02:00:00:00:00:09 dev br0 nud permanent"),
    ({"links": [link("eth0", addresses=[{"family": "inet6", "local": "2001:db8::5", "prefixlen": 64, "scope": "global", "dynamic": True}])],
      "sysctls": {"net/ipv6/conf/all/forwarding": "1", "net/ipv6/conf/eth0/accept_ra": "1"}}, "sysctl -qw net.ipv6.conf.eth0.accept_ra=2", "sysctl -qw net.ipv6.conf.eth0.accept_ra=1"),
    ({"sysctls": {"net/ipv4/neigh/default/gc_thresh3": "4"}, "neighbours": [{"dst": f"10.0.0.{n}"} for n in range(4)]}, "sysctl -qw net.ipv4.neigh.default.gc_thresh3=8192", "sysctl -qw net.ipv4.neigh.default.gc_thresh3=4"),
])
def test_what_is_safe_is_done_and_can_be_taken_back(facts: dict[str, Any], do: str, undo: str) -> None:
    assert (do, undo) in done(facts)


@pytest.mark.parametrize("facts", [
    {"links": [bridge(stp_state=1, forward_delay=1500), T1, link("eth0", master="br0")]},                      # other bridges need the time
    {"links": [bridge("kvb-lan", ageing_time=100), *(tap(f"kvt-{n}", "kvb-lan") for n in range(3))]},          # the document says it
    {"links": [BR, tap(mtu=9000), link("eth0", master="br0")]},                                                # a guest would have to know
    {"routes4": [default("eth0"), default("eth1", "10.1.0.254")], "netconf": STRICT, "counters": netstat(9)},  # a looser check
    {"links": [BR, T1, T2], "guests": [card("a", MAC)], "fdb": [learned(MAC, "t2")]},                          # learned: the next frame mends or repeats it
], ids=["uplink", "ours", "lower-mtu", "rp-filter", "learned"])
def test_what_only_a_person_can_decide_is_left(facts: dict[str, Any]) -> None:
    view = View(facts)
    found = examine(view)
    assert found and done(facts) == [] and mending(view, found).left == found


def test_nothing_is_weakened() -> None:
    """Over every bad capture of every rule: no command touches a firewall, switches routing on, loosens a check, or opens a port."""
    for _, bad, _ in CASES:
        for do, undo in done(bad):
            assert not any(word in do for word in ("nft", "iptables", "ip_forward", "rp_filter", "bridge-nf", "master br", " up", "guard", "isolated", "learning"))
            assert undo and undo != do


def test_files_of_settings() -> None:
    assert setting_file("net.ipv4.conf.eth0.100.proxy_arp") == "net/ipv4/conf/eth0.100/proxy_arp"
    assert setting_file("net.netfilter.nf_conntrack_max") == "net/netfilter/nf_conntrack_max"
