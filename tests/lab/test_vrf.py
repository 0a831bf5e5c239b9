"""Two tenants with the same prefixes on one host: each with its own way out, its own servers, and no way to the other.

Everything is there twice: uplink, router, server outside, network and guest of red and of blue have equal addresses.
"""
from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from kvmnet.check.passage import prove
from kvmnet.doctor.why import Probe, why
from kvmnet.errors import ApplyFailed
from kvmnet.host.clock import wait_until
from kvmnet.spec.load import loads
from lib.documents import quiet
from lib.netns import named_netns, sh
from lib.settled import lines, settled
from lib.world import NEVER, SOON, Guest, Place, World, steady, unchanged, world

pytestmark = pytest.mark.lab

TENANTS = ("red", "blue")
OTHER = {"red": "blue", "blue": "red"}
HOST, ROUTER, SERVER = "198.18.0.2", "198.18.0.1", "203.0.113.9"
HOST6, ROUTER6, SERVER6 = "2001:db8:18::2", "2001:db8:18::1", "2001:db8:99::9"
GUEST, GUEST6 = "10.1.0.10", "fd00:1::10"


class Two:
    """The host with an uplink to a router of each tenant; both routers have the same addresses."""

    def __init__(self, near: World, stack: ExitStack):
        self.near = near
        self.outside: dict[str, Place] = {}
        for tenant in TENANTS:
            there = stack.enter_context(named_netns(f"kvt-{tenant}-{os.getpid()}"))
            self.outside[tenant] = Place(there)
            sh(f"ip link add {tenant}0 type veth peer name far netns {there}; ip link set {tenant}0 up; ip -n {there} link set far up;"
               f"ip -n {there} addr add {ROUTER}/24 dev far; ip -n {there} addr add {ROUTER6}/64 dev far nodad;"
               f"ip -n {there} addr add {SERVER}/32 dev lo; ip -n {there} addr add {SERVER6}/128 dev lo nodad")
            near.service(self.outside[tenant], f"{tenant}-outside", 80)
        self.before = settled()

    def guest(self, tenant: str) -> Guest:
        return self.near.guest(f"{tenant}1")


def document(table: str = "", blue: str = "") -> str:
    out = f"version: 1\nvrfs: {{red: {{{table}}}, blue: {{}}}}\nuplinks:\n"
    for t in TENANTS:
        out += f"  {t}: {{device: {t}0, vrf: {t}, addresses: [{HOST}/24, '{HOST6}/64'], gateway: {ROUTER}, gateway6: '{ROUTER6}'}}\n"
    out += "networks:\n"
    for t in TENANTS:
        out += (f"  {t}: {{mode: nat, vrf: {t}, uplink: {t}, subnet: 10.1.0.0/24, subnet6: 'fd00:1::/64',\n"
                f"    forwards: [{{port: 8080, to: {t}1, to_port: 80}}]}}\n")
    out += f"  deep: {{mode: isolated, vrf: blue, subnet: 10.2.0.0/24{blue}}}\nvms:\n"
    for t in TENANTS:
        out += f"  {t}1: {{nics: [{{network: {t}, ip: {GUEST}, ip6: '{GUEST6}'}}]}}\n"
    return out + "  deep1: {nics: [{network: deep, ip: 10.2.0.10}]}\n"


@pytest.fixture(scope="module")
def two() -> Iterator[Two]:
    with world() as near, ExitStack() as stack:
        made = Two(near, stack)
        yield made


def test_two_tenants_of_equal_addresses(two: Two) -> None:
    near = two.near
    lines(near, document())
    for t in TENANTS:
        guest = two.guest(t)
        got = guest.lease(2)
        assert (got["ip"], got["router"], got["dns"]) == (GUEST, "10.1.0.1", "10.1.0.1")
        guest.use(f"{GUEST6}/64")
        near.service(guest, f"{t}-guest", 80)
    for t in TENANTS:
        guest = two.guest(t)
        wait_until(lambda g=guest: "default via fe80" in g.run("ip -6 route"), 20)  # type: ignore[misc]
        assert guest.tcp(SERVER, 80) == f"{t}-outside {HOST}" and guest.tcp(SERVER6, 80) == f"{t}-outside {HOST6}"
        assert guest.name(f"{t}1.{t}", "10.1.0.1") == guest.name(f"{t}1.{t}", "fd00:1::1") == GUEST
        assert guest.name(f"{OTHER[t]}1.{OTHER[t]}", "10.1.0.1", NEVER) == ""
        assert two.outside[t].tcp(HOST, 8080) == f"{t}-guest {ROUTER}"
        assert guest.tcp(HOST, 8080) == f"{t}-guest 10.1.0.1"    # hairpin
        assert guest.tcp("10.1.0.1", 22, NEVER) == ""
    assert near.apply(document()).steps == ()
    scene = quiet(near.paths, loads(document()).spec.networks, without=("deep",))
    for t in TENANTS:    # what the host sends in a domain, and what answers there
        assert prove(scene, why(scene, f"{t}0", SERVER, Probe())).live.answered


def intrudes(two: Two, opener: str, victim: str, seconds: float = 2 * NEVER) -> bool:
    """A guest of *opener* asks its server; then that address of *victim*'s outside answers what nobody there asked."""
    sh("conntrack -F 2>/dev/null")
    with two.guest(opener).socket(socket.AF_INET, socket.SOCK_DGRAM) as asks, two.guest(victim).socket(socket.AF_INET, socket.SOCK_DGRAM) as hears, \
            two.outside[victim].socket(socket.AF_INET, socket.SOCK_DGRAM) as sends:
        asks.bind((GUEST, 5555))
        hears.bind((GUEST, 5555))
        sends.bind((SERVER, 4000))
        asks.sendto(b"asked", (SERVER, 4000))
        wait_until(lambda: "sport=5555 dport=4000" in sh("conntrack -L -p udp 2>/dev/null"), 20)
        hears.settimeout(seconds)
        sends.sendto(b"answered", (HOST, 5555))
        try:
            return hears.recv(100) == b"answered"
        except TimeoutError:
            return False


def crosses(two: Two, seconds: float = 2 * NEVER) -> bool:
    """A guest of red sends to a network of blue, by a route that somebody put into red's table."""
    with two.guest("red").socket(socket.AF_INET, socket.SOCK_DGRAM) as sends, two.near.guest("deep1").socket(socket.AF_INET, socket.SOCK_DGRAM) as hears:
        hears.bind(("10.2.0.10", 5556))
        hears.settimeout(seconds)
        sends.sendto(b"across", ("10.2.0.10", 5556))
        try:
            return hears.recv(100) == b"across"
        except TimeoutError:
            return False


def test_nothing_gets_from_one_tenant_to_the_other(two: Two) -> None:
    near = two.near
    lines(near, document())
    for t in TENANTS:
        two.guest(t).use(f"{GUEST}/24", via="10.1.0.1")
    near.guest("deep1").use("10.2.0.10/24", via="10.2.0.1")
    near.service(near.guest("deep1"), "deep-guest", 80)
    assert two.guest("red").tcp("10.2.0.10", 80, NEVER) == two.guest("blue").tcp("10.2.0.10", 80, NEVER) == ""
    assert not intrudes(two, "red", "blue") and not intrudes(two, "blue", "red")
    table = sh("ip -j -d link show kvr-red").partition('"table":')[2].partition("}")[0]
    sh(f"ip route add 10.2.0.0/24 dev kvb-deep table {table}")
    assert not crosses(two)
    sh("nft insert rule inet kvmnet vrf_forward goto pass")    # the controls: the same packets without the rules
    assert crosses(two, SOON)
    for way in ("in", "out"):
        sh(f"nft flush chain inet kvmnet vrf_zones_{way}")
    assert intrudes(two, "red", "blue", SOON)
    assert sorted(near.drift()) == [f"delete route table {table} 10.2.0.0/24 dev kvb-deep", "update nft-table inet kvmnet"]
    lines(near, document(blue=", peers: [blue]"))
    assert not intrudes(two, "blue", "red") and not crosses(two)
    assert two.guest("blue").tcp("10.2.0.10", 80) == f"deep-guest {GUEST}", "a peer of its own domain"
    assert two.guest("red").tcp("10.2.0.10", 80, NEVER) == ""


def grouped() -> str:
    """Both tenants' guests in one group; of whom they may reach, those on deep are in blue alone. Of red2 to red4 and deep2 nobody has the taps."""
    text = document(blue=", peers: [blue]").replace("to_port: 80}]", "to_port: 8082}, {port: 8081, to: TO, to_port: 8083}]")
    for t in TENANTS:
        text = text.replace("to: TO", f"to: {t}1", 1).replace(f"{{network: {t}, ", f"{{network: {t}, groups: [app], ")
    return text.replace("{network: deep, ", "{network: deep, groups: [peer], ") + f"""
  red2: {{nics: [{{network: red, groups: [app]}}]}}
  deep2: {{nics: [{{network: deep, groups: [peer]}}]}}
  red3: {{nics: [{{network: red, isolated: true}}]}}
  red4: {{nics: [{{network: red, isolated: true}}]}}
groups:
  app: {{ingress: [{{tcp: 8082}}], egress: [{{to: [group:peer, {SERVER}]}}]}}
  peer: {{ingress: [{{tcp: 8082, from: group:app}}]}}
tenants: {{acme: {{networks: [red]}}, other: {{networks: [blue, deep]}}}}
"""


def test_groups_of_two_tenants_of_equal_addresses(two: Two) -> None:
    near = two.near
    lines(near, grouped())
    (red, blue), deep = (two.guest(t) for t in TENANTS), near.guest("deep1")
    for guest, name in ((red, "red"), (blue, "blue"), (deep, "deep")):
        guest.use("10.2.0.10/24" if guest is deep else f"{GUEST}/24", via="10.2.0.1" if guest is deep else "10.1.0.1")
        near.service(guest, f"{name}-open", 8082)
        near.service(guest, f"{name}-shut", 8083)
    two.outside["red"].run("ip addr add 10.2.0.10/32 dev lo")    # red's own of that address, which is in no group
    sh("conntrack -F 2>/dev/null")
    for t, guest in (("red", red), ("blue", blue)):
        assert guest.tcp(SERVER, 80) == f"{t}-outside {HOST}"
        assert two.outside[t].tcp(HOST, 8080) == f"{t}-open {ROUTER}" and two.outside[t].tcp(HOST, 8081, NEVER) == ""
    flows = [x for x in sh("conntrack -L -p tcp 2>/dev/null").splitlines() if f"src={GUEST}" in x]
    assert len({x.partition(" zone=")[2].partition(" ")[0] for x in flows}) == 2 and all(" zone=" in x for x in flows)
    assert blue.tcp("10.2.0.10", 8082) == f"deep-open {GUEST}" and blue.tcp("10.2.0.10", 8083, NEVER) == ""
    assert red.tcp("10.2.0.10", 80, NEVER) == "" and not intrudes(two, "red", "blue")
    for guest in (red, blue):    # their servers serve IPv6 as soon as its addresses are known to be nobody else's
        wait_until(lambda g=guest: "default via fe80" in g.run("ip -6 route"), 60)  # type: ignore[misc]
    proved(near)
    sh("nft flush chain bridge kvmnet routed")    # the controls: without the zone of what is routed no reply is one
    assert red.tcp(SERVER, 80, 2 * NEVER) == ""
    for way in ("in", "out"):
        sh(f"nft flush chain inet kvmnet vrf_zones_{way}")
    assert red.tcp(SERVER, 80) == f"red-outside {HOST}" and intrudes(two, "red", "blue", SOON)
    sh("nft insert rule bridge kvmnet entering accept; nft insert rule bridge kvmnet sent goto received;"
       " nft insert rule inet kvmnet-groups judge4 accept; conntrack -F 2>/dev/null")
    assert two.outside["red"].tcp(HOST, 8081) == f"red-shut {ROUTER}" and red.tcp("10.2.0.10", 80) == f"red-outside {HOST}"


def proved(near: World) -> None:
    """By kvmnet's own packets: what domains promise, and what groups allow and refuse in them."""
    report = near.host.check()
    assert [c for c in report.claims if c.verdict.value == "fail"] == []
    passed = {(c.network, c.name) for c in report.claims if c.verdict.value == "pass"}
    assert {(t, n) for t in TENANTS for n in ("dhcp4", "outside4", "outside6", "dns", f"apart from {OTHER[t]}", "apart from deep")
            if not (t == "blue" and n in ("dns", "apart from deep"))} <= passed
    rules = {(c.network, c.subject, c.name) for c in report.claims if c.verdict.value == "pass" and c.name.startswith("rules to ")}
    assert {("red", "host", "rules to red2/nic0"), ("red", "red2/nic0", "rules to outside"), ("deep", "host", "rules to deep2/nic0"),
            ("blue", "probe", "rules to deep2/nic0"), ("red", "red3/nic0", "rules to red4/nic0")} <= rules, rules


def test_a_domain_made_anew_lost_and_taken_back(two: Two) -> None:
    near, red = two.near, two.guest("red")
    lines(near, document("table: 4711"))
    red.use(f"{GUEST}/24", via="10.1.0.1")
    wait_until(lambda: red.tcp(SERVER, 80), 20)
    assert red.name("red1.red", "10.1.0.1") == GUEST and "default via 198.18.0.1" in sh("ip route show table 4711")
    sh("ip link del kvr-red")
    assert "create link kvr-red" in near.drift()
    lines(near, document("table: 4711"))
    assert red.name("red1.red", "10.1.0.1") == GUEST and red.tcp(SERVER, 80) == f"red-outside {HOST}"
    steady()
    was = settled()
    wrong = document("table: 4712").replace(f"gateway6: '{ROUTER6}'}}", f"gateway6: '{ROUTER6}', routes: [{{to: 10.77.0.0/16, via: 198.19.0.9}}]}}", 1)
    with pytest.raises(ApplyFailed, match=r"(?s)10\.77\.0\.0|gateway"):
        near.apply(wrong)
    steady()    # an IPv6 address has its own routes when it is known to be nobody else's
    unchanged(without_numbers(was), lambda: without_numbers(settled()))
    assert near.drift() == [] and red.name("red1.red", "10.1.0.1") == GUEST
    near.destroy()
    unchanged(two.before, without_the_kernels_rule)


def without_the_kernels_rule() -> dict[str, object]:
    """The rule for domains is there for good once there was one."""
    found = settled()
    assert isinstance(found["rules"], list)
    return {**found, "rules": [rule for rule in found["rules"] if "l3mdev" not in rule]}


def without_numbers(found: dict[str, object]) -> dict[str, object]:
    """What stands, without the MAC that the kernel makes up for a domain. It lists some local routes of a link that has moved twice."""
    assert isinstance(found["routes"], list)
    return {"routes": sorted(set(found["routes"])), "nft": found["nft"]}
