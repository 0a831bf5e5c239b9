"""Each mode with packets: a document applied through the public API, guests behind the real guard.

Forwarding is switched on for the whole host here, as Docker does it, so that what does not pass is
stopped by our rules and not by chance. The last test takes the rules away and shows that every
refused attempt then gets through.
"""
from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from kvmnet.host.clock import wait_until
from kvmnet.host.process import Process
from lib.netns import sh
from lib.world import HOST, HOST6, NEVER, OUTSIDE, OUTSIDE6, ROUTER, SOON, Guest, Place, World, steady, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
networks:
  lan:
    mode: nat
    uplink: wan
    subnet: 192.168.100.0/24
    subnet6: fd00:100::/64
    mtu: 1400
    allow: [{port: 2222}]
    metadata: {to_port: 8775}
    forwards:
      - {port: 8080, to: web, to_port: 80}
      - {port: 5353, protocol: udp, to: web, to_port: 80}
      - {port: 8081, to: web, to_port: 80, address: 192.0.2.2}
  dmz: {mode: nat, uplink: wan, subnet: 192.168.101.0/24}
  public:
    mode: routed
    uplink: wan
    subnet: 198.51.100.0/28
    subnet6: 2001:db8:100::/64
  front:
    mode: routed
    uplink: wan
    subnet: 203.0.113.64/28
    subnet6: 2001:db8:1:1::/64
    proxy: true
  lab: {mode: isolated, subnet: 10.10.0.0/24, peers: [store]}
  store: {mode: isolated, subnet: 10.10.1.0/24}
  cell: {mode: isolated, subnet: 10.10.2.0/24, isolated_ports: true}
vms:
  web: {nics: [{network: lan, ip: 192.168.100.10, ip6: "fd00:100::10"}]}
  app: {nics: [{network: lan, ip: 192.168.100.11, ip6: "fd00:100::11"}]}
  mail: {nics: [{network: dmz, ip: 192.168.101.10}]}
  srv: {nics: [{network: public, ip: 198.51.100.3, ip6: "2001:db8:100::3"}]}
  edge: {nics: [{network: front, ip: 203.0.113.66, ip6: "2001:db8:1:1::66"}]}
  bench: {nics: [{network: lab, ip: 10.10.0.10}]}
  disk: {nics: [{network: store, ip: 10.10.1.10}]}
  one: {nics: [{network: cell, ip: 10.10.2.11}]}
  two: {nics: [{network: cell, ip: 10.10.2.12}]}
  open: {nics: [{network: cell, ip: 10.10.2.13, isolated: false}]}
  tenant1: {nics: [{network: dmz, ip: 192.168.101.21, isolated: true}]}
  tenant2: {nics: [{network: dmz, ip: 192.168.101.22, isolated: true}]}
"""
PREFIX = {"lan": (24, "192.168.100.1", 64, "fd00:100::1"), "dmz": (24, "192.168.101.1", 0, ""),
          "public": (28, "198.51.100.1", 64, "2001:db8:100::1"), "front": (28, "203.0.113.65", 64, "2001:db8:1:1::1"),
          "lab": (24, "10.10.0.1", 0, ""), "store": (24, "10.10.1.1", 0, ""), "cell": (24, "10.10.2.1", 0, "")}
BACK = ("192.168.100.0/24", "192.168.101.0/24", "198.51.100.0/28", "10.10.0.0/16", "fd00:100::/64", "2001:db8:100::/64")
"""Prefixes that the router sends to the host: also those that it should not need to."""


@pytest.fixture(scope="module", params=[0, 1], ids=["", "call-iptables"])
def net(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(request.param) as made:
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for prefix in BACK:
            sh(f"ip -n {made.outside.netns} route add {prefix} via {HOST6 if ':' in prefix else HOST}")
        for prefix in ("203.0.113.64/28", "2001:db8:1:1::/64"):
            sh(f"ip -n {made.outside.netns} route add {prefix} dev segment")
        made.apply(DOCUMENT)
        document = made.host.current()
        assert document is not None
        for name in document.spec.vms:
            settle(made, name)
            made.service(made.guest(name), name, 80)
        steady()
        made.service(made.outside, "outside", 80)
        for port in (22, 2222, 8775):
            made.service(made.here, "host", port)
        yield made


def settle(net: World, name: str) -> Guest:
    """The guest with its static addresses and default routes."""
    guest = net.guest(name)
    length, gateway, length6, gateway6 = PREFIX[network_of(net, name)]
    guest.use(f"{guest.ip}/{length}", via=gateway)
    return guest.use(f"{guest.ip6}/{length6}", via6=gateway6) if guest.ip6 else guest


def test_an_apply_of_the_same_document_does_nothing(net: World) -> None:
    assert net.drift() == []


# -- nat -------------------------------------------------------------------------------------------

def test_nat_guests_go_out_under_the_address_of_the_host(net: World) -> None:
    web = net.guest("web")
    assert web.tcp(OUTSIDE, 80) == web.udp(OUTSIDE, 80) == f"outside {HOST}"
    assert web.tcp(OUTSIDE6, 80) == web.udp(OUTSIDE6, 80) == f"outside {HOST6}"
    assert net.guest("mail").tcp(ROUTER, 80) == f"outside {HOST}"
    assert web.pings(OUTSIDE) and web.pings(OUTSIDE6)


def test_nat_guests_see_each_other_under_their_own_addresses(net: World) -> None:
    app = net.guest("app")
    assert app.tcp("192.168.100.10", 80) == "web 192.168.100.11"
    assert app.tcp("fd00:100::10", 80) == "web fd00:100::11"


def test_forwarded_ports_lead_to_the_guest_from_everywhere(net: World) -> None:
    web, app = net.guest("web"), net.guest("app")
    assert net.outside.tcp(HOST, 8080) == net.outside.tcp(HOST, 8081) == f"web {ROUTER}"
    assert net.outside.udp(HOST, 5353) == f"web {ROUTER}"
    assert net.outside.tcp(HOST6, 8080) == "web 2001:db8:1::1"
    assert net.here.tcp(HOST, 8080) and net.here.tcp(HOST6, 8080), "from the host itself"
    assert net.guest("mail").tcp(HOST, 8080), "from another network behind the same host"
    # With bridge netfilter on for the whole host the kernel bridges what is redirected to the same bridge,
    # and a bridge never sends a frame back to its own port (br_nf_pre_routing_finish()).
    through_bridge = sh("sysctl -n net.bridge.bridge-nf-call-iptables").strip() == "1"
    if through_bridge:
        assert app.tcp(HOST, 8080) and app.tcp(HOST, 8081) and app.udp(HOST, 5353) and app.tcp(HOST6, 8080)
        assert web.tcp(HOST, 8080, NEVER) == ""
        assert any("not those forwarded to themselves" in note for note in net.plan(DOCUMENT).notes), "and that is said"
        return
    for guest in (web, app):  # hairpin: answers have to come back through the host
        assert guest.tcp(HOST, 8080) == guest.tcp(HOST, 8081) == "web 192.168.100.1", guest.vm
        assert guest.udp(HOST, 5353) == "web 192.168.100.1", guest.vm
        assert guest.tcp(HOST6, 8080) == "web fd00:100::1", guest.vm


def test_a_forward_takes_only_its_own_port(net: World) -> None:
    assert net.outside.tcp(HOST, 22) == f"host {ROUTER}", "the host's own service is untouched"
    assert net.outside.tcp(HOST, 8082, NEVER) == ""


def test_the_host_reaches_its_guests(net: World) -> None:
    assert net.here.tcp("192.168.100.10", 80) == "web 192.168.100.1"
    assert net.here.tcp("fd00:100::10", 80) == "web fd00:100::1"
    assert net.here.tcp("10.10.2.11", 80) == "one 10.10.2.1"


def test_metadata_answers_at_its_own_address(net: World) -> None:
    web = net.guest("web")
    assert web.tcp("169.254.169.254", 80) == "host 192.168.100.10"
    assert web.tcp("192.168.100.1", 8775, NEVER) == "", "the service's own port stays closed"


def test_dhcp_announces_address_router_and_mtu(net: World) -> None:
    app = net.guest("app")
    got = app.lease()
    assert (got["ip"], got["mask"], got["router"], got["mtu"]) == ("192.168.100.11", "24", "192.168.100.1", "1400")
    assert "169.254.169.254/32 192.168.100.1" in got["staticroutes"]
    assert app.pings("192.168.100.10", 1400 - 28) and not app.pings("192.168.100.10", 1400 - 27, timeout=1)
    assert app.name("web.lan", "192.168.100.1") == "192.168.100.10"
    sh(f"ip -n {app.netns} link set eth0 mtu 1500")
    settle(net, "app")


def test_router_advertisements_give_a_default_route(net: World) -> None:
    web = net.guest("web")

    def advertised() -> bool:
        return "proto ra" in web.run("ip -6 route show default")

    web.run("ip -6 route del default", check=False)
    sh(f"ip -n {web.netns} link set eth0 down; ip -n {web.netns} link set eth0 up")
    wait_until(advertised, 20, 0.1)
    assert "mtu 1400" in web.run("ip -6 route show default")
    web.use("192.168.100.10/24", "fd00:100::10/64", via="192.168.100.1")
    assert wait_until(lambda: web.tcp(OUTSIDE6, 80, NEVER), 20) == f"outside {HOST6}"


# -- routed ----------------------------------------------------------------------------------------

def test_routed_guests_keep_their_addresses_in_both_directions(net: World) -> None:
    srv = net.guest("srv")
    assert srv.tcp(OUTSIDE, 80) == "outside 198.51.100.3"
    assert srv.tcp(OUTSIDE6, 80) == "outside 2001:db8:100::3"
    assert net.outside.tcp("198.51.100.3", 80) == f"srv {ROUTER}"
    assert net.outside.tcp("2001:db8:100::3", 80) == "srv 2001:db8:1::1"


def test_proxy_answers_for_guests_alone(net: World) -> None:
    edge = net.guest("edge")
    assert net.outside.tcp("203.0.113.66", 80) == f"edge {ROUTER}"
    assert net.outside.tcp("2001:db8:1:1::66", 80) == "edge 2001:db8:1::1"
    assert edge.tcp(OUTSIDE, 80) == "outside 203.0.113.66"
    for vacant in ("203.0.113.70", "2001:db8:1:1::70"):
        net.outside.tcp(vacant, 80, NEVER)
        known = sh(f"ip -n {net.outside.netns} neigh show {vacant}")
        assert "lladdr" not in known, "nobody answers for an address without a guest"


# -- isolated, peers, ports ------------------------------------------------------------------------

def test_peers_reach_each_other_and_nothing_else(net: World) -> None:
    assert net.guest("bench").tcp("10.10.1.10", 80) == "disk 10.10.0.10"
    assert net.guest("disk").tcp("10.10.0.10", 80) == "bench 10.10.1.10"


def test_every_network_has_its_services_and_echo(net: World) -> None:
    for name in ("web", "mail", "srv", "bench", "one"):
        guest = net.guest(name)
        _, gateway, _, gateway6 = PREFIX[network_of(net, name)]
        assert guest.lease()["ip"] == guest.ip, name
        assert guest.pings(gateway) and (not gateway6 or guest.pings(gateway6)), name
        assert guest.name(f"{name}.{network_of(net, name)}", gateway) == guest.ip, name
        settle(net, name)
    assert net.guest("web").tcp("192.168.100.1", 2222) == "host 192.168.100.10", "allowed by the document"


def test_isolated_guests_are_told_no_router(net: World) -> None:
    try:
        assert net.guest("bench").lease()["router"] == ""
    finally:
        settle(net, "bench")


def network_of(net: World, vm: str) -> str:
    document = net.host.current()
    assert document is not None
    return document.spec.vms[vm].nics[0].network


# -- what must not pass ----------------------------------------------------------------------------

@dataclass(frozen=True)
class Attempt:
    who: str
    """Guest, or 'outside'."""
    address: str
    port: int = 80

    def made(self, net: World, timeout: float = NEVER) -> str:
        place: Place | Guest = net.outside if self.who == "outside" else net.guest(self.who)
        return place.any(self.address, self.port, timeout)


REFUSED = [
    # outside cannot start anything with guests behind NAT or without a way out
    Attempt("outside", "192.168.100.10"), Attempt("outside", "fd00:100::10"), Attempt("outside", "10.10.0.10"),
    Attempt("outside", "192.168.101.10"),
    # isolated guests have no way out, whatever the host forwards
    Attempt("bench", OUTSIDE), Attempt("one", OUTSIDE), Attempt("disk", ROUTER),
    # networks do not reach each other, whatever their mode
    Attempt("web", "192.168.101.10"), Attempt("mail", "192.168.100.10"), Attempt("web", "198.51.100.3"),
    Attempt("srv", "192.168.100.10"), Attempt("srv", "203.0.113.66"), Attempt("web", "2001:db8:100::3"),
    Attempt("srv", "fd00:100::10"), Attempt("bench", "10.10.2.11"), Attempt("bench", "192.168.100.10"),
    Attempt("web", "10.10.0.10"),
    # the host's own services, on every address that it has
    Attempt("web", "192.168.100.1", 22), Attempt("web", HOST, 22), Attempt("web", HOST6, 22),
    Attempt("web", "fd00:100::1", 22), Attempt("web", "192.168.101.1", 22), Attempt("srv", HOST, 22),
    Attempt("bench", HOST, 22), Attempt("one", "10.10.2.1", 22), Attempt("mail", "192.168.101.1", 2222),
    Attempt("web", "192.168.100.1", 8775),
]


@pytest.mark.parametrize("attempt", REFUSED, ids=lambda a: f"{a.who}-{a.address}-{a.port}")
def test_refused(net: World, attempt: Attempt) -> None:
    assert attempt.made(net) == ""


def test_isolated_ports_do_not_talk_and_others_do(net: World) -> None:
    for first, second, free in (("one", "two", "open"), ("tenant1", "tenant2", "mail")):
        a, b, c = (net.guest(name) for name in (first, second, free))
        assert a.tcp(c.ip, 80) == f"{free} {a.ip}" and c.tcp(a.ip, 80) == f"{first} {c.ip}"
        assert a.tcp(b.ip, 80, NEVER) == ""
        sh(f"bridge link set dev {a.tap} isolated off")
        try:
            assert a.tcp(b.ip, 80) == f"{second} {a.ip}"
            assert net.drift() == [f"update link {a.tap}"]
        finally:
            net.apply(DOCUMENT)
        assert a.tcp(b.ip, 80, NEVER) == ""


@pytest.mark.parametrize(("first", "second"), [("one", "two"), ("tenant1", "tenant2")])
def test_isolated_ports_do_not_talk_by_way_of_the_host(net: World, first: str, second: str) -> None:
    """Frames to the host's MAC for a neighbour's address: a router would send them back out."""
    a, b = net.guest(first), net.guest(second)
    gateway = PREFIX[network_of(net, first)][1]
    a.run(f"ip route add {b.ip} via {gateway}")
    b.run(f"ip route add {a.ip} via {gateway}")
    try:
        assert a.tcp(b.ip, 80, NEVER) == ""
        with rules_off(net):
            assert a.tcp(b.ip, 80) == f"{second} {a.ip}"
    finally:
        a.run(f"ip route del {b.ip}")
        b.run(f"ip route del {a.ip}")


@contextmanager
def rules_off(net: World) -> Iterator[None]:
    """The body runs without the host's own table, and without the keeper that would put it back."""
    keeper = json.loads((net.paths.guard / "keeper.json").read_text())
    Process(keeper["pid"], int(keeper["start"])).terminate()
    wait_until(lambda: "kvmnet-keeper" not in sh("nft list tables"), 20)
    try:
        sh("nft delete table inet kvmnet; conntrack -F 2>/dev/null; true")
        yield
    finally:
        net.apply(DOCUMENT)


def test_without_our_rules_every_refused_attempt_gets_through(net: World) -> None:
    with rules_off(net):
        silent = [a for a in REFUSED if not a.made(net, SOON)]
    assert silent == []
    assert net.drift() == []
