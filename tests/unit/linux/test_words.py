"""Steps as the lines that ``ip -batch`` gets."""
from __future__ import annotations

import pytest

from kvmnet.drivers.linux.driver import Batch, LinuxDriver, arrange
from kvmnet.drivers.linux.resources import (
    Address,
    BridgeVlan,
    Link,
    Neighbour,
    ProxyNeighbour,
    Route,
    Sysctl,
    VlanMulticast,
    route,
)
from kvmnet.drivers.linux.words import lines_of, quote
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update

TAP = Link(name="kvt-a-0", type="tap", mtu=1400, up=True, master="kvb-a", guard="kvt-a-0", keeper="hold",
           alias="kvmnet nic a/nic0", addrgenmode="none", multi_queue=True, user=64, isolated=False, learning=True,
           flood=True, mcast_flood=True, hairpin=False, bpdu_guard=False, neigh_suppress=False)
ALIAS = '"kvmnet nic a/nic0 | guard=kvt-a-0 | keeper=hold"'
OURS = Address(name="kvb-a 10.0.0.1/24", dev="kvb-a", scope="global", label="kvb-a", broadcast="10.0.0.255", peer="",
               flags=(), dynamic="")
ADVERTISED = Route(name="::/0 dev e via fe80::1", dev="e", dst="default", family=6, table="main", via="fe80::1", src="",
                   proto="ra", flags=(), options="", lifetime=9)

CASES: dict[str, tuple[Step, list[str]]] = {
    "a NIC is two lines": (Create(TAP), [
        "tuntap add dev kvt-a-0 mode tap multi_queue user 64",
        f"link set dev kvt-a-0 mtu 1400 addrgenmode none master kvb-a alias {ALIAS} up"]),
    "port settings come before it goes up": (Create(Link(name="t", type="tap", master="b", up=True, isolated=True)), [
        "tuntap add dev t mode tap", "link set dev t master b down",
        "link set dev t up type bridge_slave isolated on"]),
    "a bridge gets its MTU afterwards": (
        Create(Link(name="b", type="bridge", mac="02:00:00:00:00:01", mtu=1500, up=True, master="", stp=False,
                    forward_delay=0, alias="kvmnet")), [
        "link add dev b address 02:00:00:00:00:01 mtu 1499 type bridge stp_state 0 forward_delay 0",
        "link set dev b mtu 1500 nomaster alias kvmnet up"]),
    "STP goes off before the delay": (
        Update(Link(name="b", stp=True, forward_delay=1500), Link(name="b", stp=False, forward_delay=0)), [
        "link set dev b type bridge stp_state 0", "link set dev b type bridge forward_delay 0"]),
    "only what changes is told": (Update(TAP, Link(name="kvt-a-0", mtu=1300, up=True)),
                                  ["link set dev kvt-a-0 mtu 1300"]),
    "a guard alone rewrites the alias": (Update(TAP, Link(name="kvt-a-0", guard="")), [
        'link set dev kvt-a-0 alias "kvmnet nic a/nic0 | keeper=hold"']),
    "joining again tells the port settings again": (
        Update(Link(name="t", master="", isolated=True, up=True), Link(name="t", master="b")), [
        "link set dev t master b down", "link set dev t up type bridge_slave isolated on"]),
    "a link goes": (Delete(TAP), ["link del dev kvt-a-0"]),
    "an address": (Create(OURS), ["address add 10.0.0.1/24 dev kvb-a broadcast 10.0.0.255 scope global"]),
    "an address with a peer and a label": (
        Create(Address(name="e 10.0.0.1/32", dev="e", peer="10.9.9.9", label="e:1")),
        ["address add 10.0.0.1 peer 10.9.9.9/32 dev e label e:1"]),
    "an advertised address with what is left of it": (
        Create(Address(name="e 2001:db8::5/64", dev="e", scope="global", dynamic="ra", flags=("mngtmpaddr",),
                       lifetime=9, preferred=3)),
        ["address replace 2001:db8::5/64 dev e valid_lft 9 preferred_lft 3 mngtmpaddr"]),
    "a route of ours": (Create(route("10.1.0.0/16", dev="e", via="10.0.0.9", metric=5)),
                        ["route add 10.1.0.0/16 via 10.0.0.9 dev e metric 5 proto 87"]),
    "the default route of IPv6": (Create(route("default", dev="e", via="fe80::1")),
                                  ["route add ::/0 via fe80::1 dev e metric 1024 proto 87"]),
    "an advertised route ranks behind the kernel's own": (
        Create(ADVERTISED), ["route add ::/0 via fe80::1 dev e metric 1025 proto 9 expires 9"]),
    "and both go": (Delete(ADVERTISED), ["route del ::/0 via fe80::1 dev e"] * 2),
    "a route to nowhere": (
        Create(Route(name="x", dst="10.8.0.0/16", dev="", family=4, table="7", metric=0, via="", src="", scope="global",
                     proto="static", flags=(), options="blackhole tos 0x10 mtu 1400")),
        ["route add blackhole 10.8.0.0/16 table 7 tos 0x10 proto 4 scope global mtu 1400"]),
    "a proxy": (Create(ProxyNeighbour(name="e 10.0.0.7", dev="e", address="10.0.0.7")),
                ["neigh replace proxy 10.0.0.7 dev e protocol 87"]),
    "a bond": (Create(Link(name="bond0", type="bond", mac="02:00:00:00:00:01", mtu=9000, up=True, master="", alias="kvmnet",
                           bond_mode="active-backup", bond_miimon=100, bond_primary="e")), [
        "link add dev bond0 address 02:00:00:00:00:01 type bond mode active-backup miimon 100 primary e",
        "link set dev bond0 mtu 9000 nomaster alias kvmnet up"]),
    "a NIC goes down to join a bond": (
        Update(Link(name="e", master="", bonded=False, mtu=1500, up=True),
               Link(name="e", master="bond0", bonded=True, mtu=9000, up=True)),
        ["link set dev e down", "link set dev e mtu 9000 master bond0"]),
    "and has left it without its MTU": (
        Update(Link(name="e", master="bond0", bonded=True, mtu=9000, up=True), Link(name="e", master="", bonded=False)),
        ["link set dev e nomaster", "link set dev e mtu 9000 nomaster up"]),
    "a bond lets its members go": (
        Delete(Link(name="bond0", type="bond", mtu=9000, members=("e", "f"), alias="kvmnet")), [
        "link set dev e nomaster", "link set dev e mtu 9000 up", "link set dev f nomaster", "link set dev f mtu 9000 up",
        "link del dev bond0"]),
    "monitoring by ARP instead": (
        Update(Link(name="b", bond_miimon=100, bond_arp_interval=0, bond_arp_targets=()),
               Link(name="b", bond_miimon=0, bond_arp_interval=200, bond_arp_targets=("192.0.2.1", "192.0.2.2"))),
        ["link set dev b type bond miimon 0 arp_interval 200 arp_ip_target 192.0.2.1,192.0.2.2"]),
    "a VLAN": (Create(Link(name="v", type="vlan", parent="bond0", vlan_id=100, vlan_protocol="802.1Q", up=True, alias="kvmnet")), [
        "link add link bond0 name v type vlan protocol 802.1Q id 100", "link set dev v alias kvmnet up"]),
    "a VLAN-aware bridge filters before it has ports": (
        Create(Link(name="b", type="bridge", up=True, vlan_filtering=True, default_pvid=0, stp=False)), [
        "link add dev b type bridge vlan_filtering 1 vlan_default_pvid 0 stp_state 0", "link set dev b up"]),
    "a port's own VLAN": (Create(BridgeVlan(name="t 100", dev="t", bridge="b", pvid=True, untagged=True)),
                          ["vlan add dev t vid 100 pvid untagged"]),
    "the bridge's own VLAN": (Create(BridgeVlan(name="b 100", dev="b", bridge="b", pvid=False, untagged=False)),
                              ["vlan add dev b vid 100 self"]),
    "a VLAN that a port leaves": (Delete(BridgeVlan(name="t 100", dev="t", bridge="b", pvid=True, untagged=True)),
                                  ["vlan del dev t vid 100"]),
    "multicast of a VLAN": (Create(VlanMulticast(name="b 100", bridge="b", snooping=True, querier=True)),
                            ["vlan global set dev b vid 100 mcast_snooping 1 mcast_querier 1"]),
    "a spanning tree": (Create(Link(name="b", type="bridge", up=True, stp=True, priority=4096, forward_delay=400, hello_time=100,
                                    max_age=600, mcast_querier=True, mcast_vlan_snooping=False)), [
        "link add dev b type bridge stp_state 1 priority 4096 forward_delay 400 hello_time 100 max_age 600 mcast_querier 1",
        "link set dev b up"]),
    "a neighbour for good": (Create(Neighbour(name="b 10.0.0.5", dev="b", mac="02:00:00:00:00:05")),
                             ["neigh replace 10.0.0.5 lladdr 02:00:00:00:00:05 dev b nud permanent protocol 87"]),
    "a neighbour that goes": (Delete(Neighbour(name="b 10.0.0.5", dev="b", mac="02:00:00:00:00:05")),
                              ["neigh del 10.0.0.5 dev b"]),
}


@pytest.mark.parametrize("case", CASES)
def test_lines(case: str) -> None:
    step, lines = CASES[case]
    assert [str(line) for line in lines_of(step)] == lines
    assert {line.key for line in lines_of(step)} == {step.key}


@pytest.mark.parametrize(("step", "says"), [
    (Create(Link(name="ens18", type="physical")), "no such device"),
    (Create(Route(name="x", dst="10.0.0.0/8", dev="e", family=4, options="?encap")), "encap"),
])
def test_what_ip_cannot_make_is_told(step: Step, says: str) -> None:
    with pytest.raises(StepFailed, match=says) as failed:
        lines_of(step)
    assert failed.value.key == step.key and failed.value.hint


@pytest.mark.parametrize(("word", "quoted"), [
    ("kvt-a~1", "kvt-a~1"), ("a b", '"a b"'), ('say "x"', "'say \"x\"'"), ("", '""'), ("#no comment", '"#no comment"'),
    ("two\nlines", '"two lines"'), ("it's", '"it\'s"'), ("both ' and \"", "'both  and \"'"),
])
def test_a_word_reaches_ip_as_it_is(word: str, quoted: str) -> None:
    assert quote(word) == quoted


def test_one_batch_per_run_with_settings_between_and_routes_without_gateway_first() -> None:
    steps: list[Step] = [
        Create(OURS), Create(Sysctl(name="net/ipv4/ip_forward", value="1")),
        Create(route("10.1.0.0/16", dev="e", via="172.16.0.1")), Create(route("172.16.0.0/24", dev="e"))]
    shown = LinuxDriver().commands(steps)
    assert [c.argv for c in shown] == [
        ("ip", "-batch", "-"), ("sysctl", "-w", "net/ipv4/ip_forward=1"), ("ip", "-batch", "-")]
    assert shown[2].stdin.splitlines()[0].startswith("route add 172.16.0.0/24")
    assert [k.name for k in shown[2].keys] == ["172.16.0.0/24 dev e", "10.1.0.0/16 dev e"]


def test_neighbouring_vlans_are_one_line_and_a_ports_own_is_not() -> None:
    steps: list[Step] = [Create(BridgeVlan(name=f"e {v}", dev="e", bridge="b", pvid=v == 5, untagged=v == 5))
                         for v in (10, 100, 3, 4, 5, 6, 7, 9, 11)]
    steps += [Create(BridgeVlan(name="t 8", dev="t", bridge="b", pvid=False, untagged=False))]
    steps += [Create(VlanMulticast(name=f"b {v}", bridge="b", snooping=True, querier=v < 12)) for v in (11, 12, 10)]
    (part,) = arrange(steps, lambda links: None)
    assert isinstance(part, Batch) and part.tool == "bridge" and part.steps == len(steps)
    assert [str(line) for line in part.lines] == [
        "vlan add dev e vid 3-4", "vlan add dev e vid 5 pvid untagged", "vlan add dev e vid 6-7", "vlan add dev e vid 9-11",
        "vlan add dev e vid 100", "vlan add dev t vid 8", "vlan global set dev b vid 10-11 mcast_snooping 1 mcast_querier 1",
        "vlan global set dev b vid 12 mcast_snooping 1 mcast_querier 0"]


def test_many_links_of_ours_go_as_a_group_and_foreign_ones_never() -> None:
    ours: list[Step] = [Delete(Link(name=f"kvt-{i}", alias="kvmnet x")) for i in range(30)]
    theirs: list[Step] = [Delete(Link(name=f"tap{i}", alias="")) for i in range(30)]
    lines = [str(line) for part in arrange([*ours, *theirs], lambda links: 7) for line in part.lines]  # type: ignore[union-attr]
    assert lines[:30] == [f"link set dev kvt-{i} group 7" for i in range(30)]
    assert lines[30] == "link del group 7"
    assert lines[31:] == [f"link del dev tap{i}" for i in range(30)]


def test_delays_of_a_bond_outlive_another_interval() -> None:
    """The kernel counts them in looks at the carrier: told again with the new interval, they stay what they were."""
    bond = Link(name="bond0", type="bond", bond_mode="802.3ad", bond_miimon=50, bond_updelay=100, bond_downdelay=0)
    step = Update(bond, Link(name="bond0", bond_miimon=100))
    words = next(line.words for line in lines_of(step))
    assert [words[words.index(w) + 1] for w in ("miimon", "updelay", "downdelay")] == ["100", "100", "0"]
