"""Where mirrors take their copies, what their programs take, and what tc's listing says of them."""
from __future__ import annotations

import copy as deep
from typing import Any

import pytest

from kvmnet.bpf.code import as_text, program
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Address, Link, Route
from kvmnet.drivers.linux.wire import parse_links
from kvmnet.drivers.linux.words import create_link
from kvmnet.drivers.mirror import wire
from kvmnet.drivers.mirror.resources import FIRST, LAST, Copy, Shut
from kvmnet.engine.plan import Create, Delete
from kvmnet.engine.resource import Key, Resource, diff
from kvmnet.facts.model import Facts
from kvmnet.policy.mirrors import numbers, tunnel_packets
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import check, lacking
from kvmnet.spec.frames import condition
from kvmnet.spec.load import loads
from kvmnet.spec.mirrors import Frames
from lib import bpf
from lib.frames import arp, ether, ip4, ip6, tcp, udp

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
LINKS: tuple[Resource, ...] = (
    Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master=""),
    Link(name="eth1", type="physical", mtu=1500, mac="02:00:00:00:00:11", master=""),
    Link(name="eth9", type="physical", mtu=1500, mac="02:00:00:00:00:19", master=""),
    Link(name="br0", type="bridge", mtu=1500), Link(name="port0", type="veth", master="br0", peer="out0"),
    Link(name="out0", type="veth", master="", peer="port0"), Link(name="far0", type="veth", master=""),
    Address(name="eth0 192.0.2.2/24", dev="eth0", scope="global"),
    Route(name="default dev eth0", dev="eth0", dst="default", family=4, table="main", via="192.0.2.1"),
    Route(name="10.9.0.0/16 dev eth1", dev="eth1", dst="10.9.0.0/16", family=4, table="main"))
FACTS = Facts(state={r.key: r for r in LINKS}, features={"bridge-vlan-filtering": "", "ipv6": "", "macvtap": "", "nft-netdev-egress": ""})
DOCUMENT = """
version: 1
uplinks: {{wan: {{device: eth0}}, trunk: {{device: eth1}}}}
networks:
  lan: {{mode: nat, uplink: wan, subnet: 10.0.0.0/24}}
  tagged: {{mode: bridge, uplink: trunk, vlan: 100}}
  tap: {{mode: macvtap, uplink: wan}}
vms:
  one: {{nics: [{{network: lan}}, {{network: tap, name: m, ip: 192.0.2.50}}]}}
  two: {{nics: [{{network: lan}}, {{network: tagged, name: t, ip: 10.100.0.2}}]}}
  eye: {{nics: [{{network: lan}}, {{network: lan, name: c, ip: none, receives: copies}}]}}
mirrors: {{m: {{from: [{sources}], to: {to}, direction: {direction}}}}}
"""


def compiled(sources: str, direction: str = "both", to: str = "eye/c") -> Compiled:
    spec = loads(DOCUMENT.format(sources=sources, direction=direction, to=to)).spec
    assert [p for p in check(spec, FACTS) if p.path.startswith("mirrors")] == []
    return compile_spec(spec, FACTS, allocate(spec, {}))


@pytest.mark.parametrize(("sources", "direction", "places"), [
    ("one/nic0", "both", {"kvt-one-0 ingress", "kvt-one-0 egress"}), ("one/nic0", "sent", {"kvt-one-0 ingress"}),
    ("one/m", "sent", {"kvt-one-m egress"}), ("one/m", "received", {"kvt-one-m ingress"}),
    ("'network:lan'", "both", {"kvt-one-0 ingress", "kvt-two-0 ingress", "kvt-eye-0 ingress", "kvb-lan egress"}),
    ("'network:lan'", "received", {"kvb-lan egress"}), ("'network:tagged'", "both", {"kvt-two-t ingress", "eth1 ingress"}),
    ("'network:tap'", "both", {"kvt-one-m egress", "eth0 ingress"}),
    ("'uplink:wan'", "sent", {"eth0 egress"}), ("'vlan:7@trunk'", "both", {"eth1 egress", "eth1 ingress"}),
    ("one, 'network:lan'", "sent", {"kvt-one-0 ingress", "kvt-one-m egress", "kvt-two-0 ingress", "kvt-eye-0 ingress"}),
])
def test_places(sources: str, direction: str, places: set[str]) -> None:
    made = [r for r in compiled(sources, direction).wanted.values() if isinstance(r, Copy)]
    assert {f"{c.dev} {c.side}" for c in made} == places
    assert {c.receiver for c in made} == {"kvt-eye-c"} and len({c.name.split()[2] for c in made}) == 1


def test_the_receiver_of_copies_alone_is_no_port_and_shut() -> None:
    wanted = compiled("one").wanted
    taps = {r.name: r for r in wanted.values() if isinstance(r, Link) and r.name.startswith("kvt-eye")}
    assert (taps["kvt-eye-0"].master, taps["kvt-eye-c"].master) == ("kvb-lan", "")
    assert [r.name for r in wanted.values() if isinstance(r, Shut)] == ["kvt-eye-c"]


def test_vlans_of_an_uplink_are_told_apart() -> None:
    by_side = {c.side: c for c in compiled("'network:tagged'").wanted.values() if isinstance(c, Copy) and c.dev == "eth1"}
    made = [tuple(map(int, i.split())) for i in (by_side["ingress"].program or "").split(",")]
    frame = ether(B, A, 0x0800, ip4("10.0.0.1", "10.0.0.2", 6, tcp("10.0.0.1", "10.0.0.2", 1, 2)))
    assert [bool(bpf.run(made, frame, t)) for t in (100, 101, None)] == [True, False, False]


def test_fields() -> None:
    def frame(kind: str, port: int, host: str = "10.0.0.9") -> bytes:
        ends = ("10.0.0.1", host)
        payload = {"tcp": tcp(*ends, 5000, port), "udp": udp(*ends, 5000, port), "icmp": bytes(8)}[kind]
        return ether(B, A, 0x0800, ip4(*ends, {"tcp": 6, "udp": 17, "icmp": 1}[kind], payload))
    cases: list[tuple[dict[str, Any], list[bool]]] = [
        ({}, [True] * 5), ({"tcp": 80}, [True, False, False, False, False]), ({"tcp": "any"}, [True, True, False, False, False]),
        ({"tcp": 80, "udp": "50-60"}, [True, False, True, False, False]), ({"icmp": True, "arp": True}, [False, False, False, True, True]),
        ({"hosts": ["10.0.0.8/31"]}, [True, False, True, True, False]), ({"tcp": "any", "hosts": ["10.9.0.0/16"]}, [False, True, False, False, False]),
        ({"macs": [A]}, [True] * 5), ({"macs": [B], "protocol": "udp"}, [False, False, True, False, False]),
        ({"expression": "tcp", "hosts": ["10.0.0.9"]}, [True, False, False, False, False]),
    ]
    frames = [frame("tcp", 80), frame("tcp", 81, "10.9.0.1"), frame("udp", 53), frame("icmp", 0),
              ether(B, A, 0x0806, arp(1, (A, "10.3.0.1"), (B, "10.3.0.2")))]
    for fields, expected in cases:
        made = program(condition(Frames(**fields)), 1)
        assert [bool(bpf.run(made, f)) for f in frames] == expected, fields


def test_packets_of_tunnels_are_known_whatever_they_carry() -> None:
    four, six = program(tunnel_packets("192.0.2.9", 4789), 1), program(tunnel_packets("2001:db8::9", 4789), 1)
    ends, ends6 = ("192.0.2.2", "192.0.2.9"), ("2001:db8::2", "2001:db8::9")
    packet = udp(*ends, 5, 4789, b"x" * 50)
    yes = [ip4(*ends, 17, packet), ip4(*ends, 17, packet[8:], frag=0xB9), ip4(*ends, 17, packet, options=bytes(4))]
    no = [ip4(*ends[::-1], 17, packet), ip4(*ends, 17, udp(*ends, 4789, 5)), ip4(*ends, 6, tcp(*ends, 5, 4789))]
    assert [bpf.run(four, ether(B, A, 0x0800, p)) for p in (*yes, *no)] == [1, 1, 1, 0, 0, 0]
    carried = program(tunnel_packets("192.0.2.9", 0), 1)
    assert [bpf.run(carried, ether(B, A, 0x0800, p)) for p in (ip4(*ends, 47, b"gre"), ip4(*ends[::-1], 47, b"gre"), *yes)] == [1, 0, 0, 0, 0]
    packet = udp(*ends6, 5, 4789, b"x")
    found = [ip6(*ends6, 17, packet), ip6(*ends6, 44, bytes(8) + packet), ip6(*ends6[::-1], 17, packet), ip6(*ends6, 6, tcp(*ends6, 5, 4789))]
    assert [bpf.run(six, ether(B, A, 0x86DD, p)) for p in found] == [1, 1, 0, 0]


def test_a_tunnel_goes_up_when_it_takes_nothing_in() -> None:
    wanted = compiled("one", to="{vxlan: {remote: 198.51.100.1, vni: 1}}").wanted
    link, shut = wanted[Key("link", "kvm-m")], wanted[Key("shut", "kvm-m")]
    assert isinstance(link, Link) and link.up is None and isinstance(shut, Shut) and shut.up
    assert not [line for line in create_link(link) if "up" in line.words]
    assert [str(line) for line in wire.opening(Create(shut))] == ["link set dev kvm-m up"]


# As `ip -d -j link` shows them on Linux 6.1, without what is not read.
TUNNELS = {
    "gretap": {"remote": "192.0.2.9", "local": "192.0.2.1", "ttl": 64, "pmtudisc": False, "ignore_df": True, "ikey": "0.0.0.7", "okey": "0.0.0.7"},
    "erspan": {"remote": "192.0.2.9", "local": "any", "ttl": 64, "pmtudisc": False, "ignore_df": True, "ikey": "0.0.0.5", "okey": "0.0.0.5",
               "iseq": True, "oseq": True, "erspan_index": 123, "erspan_ver": 1},
}
WISHES = {"gretap": "{gre: {remote: 192.0.2.9, local: 192.0.2.1, key: 7}}", "erspan": "{erspan: {remote: 192.0.2.9, session: 5, index: 123}}"}
TOLD = {"gretap": "type gretap remote 192.0.2.9 local 192.0.2.1 ttl 64 key 7 nopmtudisc ignore-df",
        "erspan": "type erspan remote 192.0.2.9 ttl 64 key 5 erspan_ver 1 erspan 123 seq nopmtudisc ignore-df"}


@pytest.mark.parametrize("kind", TUNNELS)
def test_tunnels_are_read_as_they_are_told(kind: str) -> None:
    wanted = next(r for r in compiled("one", to=WISHES[kind]).wanted.values() if isinstance(r, Link) and r.name == "kvm-m")
    lines = [str(line) for line in create_link(wanted)]
    assert lines[0] == f"link add dev kvm-m address {wanted.mac} {TOLD[kind]}"
    assert lines[1] == "link set dev kvm-m addrgenmode none", "before it is up and has made itself an address"
    item = {"ifname": "kvm-m", "flags": ["UP"], "mtu": 1500, "link_type": "ether", "address": wanted.mac, "inet6_addr_gen_mode": "none",
            "ifalias": "kvmnet mirror m", "linkinfo": {"info_kind": kind, "info_data": TUNNELS[kind]}}
    (seen,) = parse_links([item], lambda name: 0)
    assert diff(seen, wanted) == {}


def test_numbers_stay_and_never_meet() -> None:
    many = [f"m{i}" for i in range(3000)]
    found = numbers(many)
    assert len(set(found.values())) == 3000 and min(found.values()) >= FIRST and max(found.values()) <= LAST
    assert numbers(["a", "b"])["a"] == numbers(["a"])["a"]


@pytest.mark.parametrize(("sources", "to", "path", "words"), [
    ("'uplink:wan'", "{vxlan: {remote: 198.51.100.1, vni: 1}}", "from[0]", "leave by uplink wan themselves"),
    ("one", "{vxlan: {remote: 192.0.2.2, vni: 1}}", "to.vxlan.remote", "is this host"),
    ("'uplink:wan'", "{gre: {remote: 198.51.100.1}}", "from[0]", "leave by uplink wan themselves"),
    ("one", "{gre: {remote: '2001:db8::1'}}", "to.gre.remote", "over IPv4"),
    ("one", "{erspan: {remote: '2001:db8::1', session: 1}}", "to.erspan.remote", "over IPv4"),
])
def test_refused_on_this_host(sources: str, to: str, path: str, words: str) -> None:
    found = check(loads(DOCUMENT.format(sources=sources, direction="both", to=to)).spec, FACTS)
    assert [(p.path, words in p.message) for p in found if p.path.startswith("mirrors")] == [(f"mirrors.m.{path}", True)]


def test_another_way_is_no_circle() -> None:
    """The uplink that the copies do not leave by, and a VLAN of the one that they do."""
    for sources, remote in (("'uplink:wan'", "10.9.0.1"), ("'vlan:7@wan'", "198.51.100.1")):
        text = DOCUMENT.format(sources=sources, direction="both", to=f"{{vxlan: {{remote: {remote}, vni: 1}}}}")
        assert [p for p in check(loads(text).spec, FACTS) if p.path.startswith("mirrors")] == []


@pytest.mark.parametrize(("device", "words"), [
    ("eth9", ""), ("far0", ""), ("out0", "a veth to port0 on this host"), ("port0", "belongs to br0"), ("br0", "(bridge) leads to other"),
    ("eth7", "this host has no device eth7"),
])
def test_devices_that_may_take_copies(device: str, words: str) -> None:
    spec = loads(DOCUMENT.format(sources="one", direction="both", to=f"{{device: {device}}}")).spec
    found = [p.message for p in lacking(spec, FACTS) if p.path.startswith("mirrors")]
    assert [words in m for m in found] == ([True] if words else [])


def test_a_kernel_without_mirrors_is_said() -> None:
    spec = loads(DOCUMENT.format(sources="one", direction="both", to="eye/c")).spec
    without = Facts(state=FACTS.state, features={**FACTS.features, "tc-mirror": "no act_mirred"})
    assert [p.message for p in lacking(spec, without) if p.path == "mirrors.m"] == ["this host cannot copy frames: no act_mirred"]
    for to, feature in (("{gre: {remote: 192.0.2.9}}", "gre"), ("{vxlan: {remote: 192.0.2.9, vni: 1}}", "vxlan")):
        spec = loads(DOCUMENT.format(sources="one", direction="both", to=to)).spec
        without = Facts(state=FACTS.state, features={**FACTS.features, feature: "not here"})
        assert [p.message for p in lacking(spec, without) if p.path == "mirrors.m"] == ["this host cannot copy frames: not here"]


ALL = as_text(program(condition(Frames()), 0xFFFF_FFFF))
LISTED: dict[str, Any] = {
    "protocol": "all", "pref": 20, "kind": "bpf", "chain": 0, "options": {
        "handle": "0x1", "not_in_hw": True, "bytecode": {"length": 1, "insns": [
            dict(zip(("code", "jt", "jf", "k"), map(int, i.split()), strict=True)) for i in ALL.split(",")]},
        "actions": [{"order": 1, "kind": "mirred", "mirred_action": "mirror", "direction": "egress", "to_dev": "kvt-eye-c",
                     "control_action": {"type": "continue"}, "index": 1, "ref": 1, "bind": 1, "cookie": "6b766d6e6574",
                     "stats": {"bytes": 500, "packets": 5, "overlimits": 2}}]}}


def test_what_tc_shows_is_what_was_told() -> None:
    told = Copy(name="kvt-one-0 ingress 20", dev="kvt-one-0", side="ingress", receiver="kvt-eye-c", program=ALL)
    assert list(wire.parse("kvt-one-0", "ingress", [{"pref": 20, "kind": "bpf"}, LISTED])) == [told]
    assert dict(wire.parse_counts("kvt-one-0", "ingress", [LISTED])) == {"kvt-one-0 ingress 20": (5, 500, 2)}
    (line,) = wire.lines_of(Create(told))
    assert str(line) == (f'filter replace dev kvt-one-0 ingress protocol all pref 20 handle 1 bpf bytecode "{ALL.count(",") + 1},{ALL}" '
                         "action mirred egress mirror dev kvt-eye-c continue cookie 6b766d6e6574")
    assert str(next(wire.lines_of(Delete(told, ())))) == "filter del dev kvt-one-0 ingress protocol all pref 20"
    assert str(next(wire.lines_of(Create(Shut(name="kvm-a", dev="kvm-a", whole=True))))) == (
        'filter replace dev kvm-a ingress protocol all pref 1 handle 1 bpf da bytecode "1,6 0 0 2"')


@pytest.mark.parametrize(("path", "value", "seen"), [
    (("options", "actions", 0, "cookie"), "00", None), (("pref",), 9000, None), (("kind",), "u32", None),
    (("options", "actions", 0, "to_dev"), "*", ("", ALL)), (("options", "actions", 0, "to_dev"), "eth7", ("eth7", ALL)),
    (("options", "actions", 0, "mirred_action"), "redirect", ("kvt-eye-c", "")),
    (("options", "actions", 0, "control_action", "type"), "drop", ("kvt-eye-c", "")),
    (("options", "bytecode", "insns"), [{"code": 6, "jt": 0, "jf": 0, "k": 0}], ("kvt-eye-c", "6 0 0 0")),
])
def test_what_others_changed_is_seen(path: tuple[Any, ...], value: Any, seen: tuple[str, str] | None) -> None:
    """A redirect would take the frame from its receiver: it is no copy of ours any more, and made anew."""
    changed = deep.deepcopy(LISTED)
    here: Any = changed
    for step in path[:-1]:
        here = here[step]
    here[path[-1]] = value
    found = [c for c in wire.parse("kvt-one-0", "ingress", [changed]) if isinstance(c, Copy)]
    assert [(c.receiver, c.program) for c in found] == ([seen] if seen else [])
