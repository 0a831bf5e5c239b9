"""Who must still be reached after a change: read off states and steps."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, Route, address_name, route, vlan_name
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Resource
from kvmnet.reach.session import peer
from kvmnet.reach.targets import (
    GATEWAY,
    LONG,
    NAMED,
    USUAL,
    Hit,
    Target,
    after,
    gateways,
    patience,
    preferred,
)

ROUTER = "192.0.2.1"


def state(*things: Resource) -> dict[Key, Resource]:
    return {r.key: r for r in things}


LINKS = (Link(name="eth0", type="physical", master="bond0", bonded=True), Link(name="eth1", type="physical"),
         Link(name="bond0", type="bond"), Link(name="v5", type="vlan", parent="bond0", master="br0"),
         Link(name="br0", type="bridge"), Link(name="kvt-a-0", type="tap", master="br0"))
DEFAULT = route("default", via=ROUTER, dev="br0")
HOST = state(*LINKS, DEFAULT)


def test_gateways_of_every_table_family_and_next_hop() -> None:
    many = Route(name="default", dev="", dst="default", family=4, table="7", metric=0, via="",
                 options="nexthop via 192.0.2.3 dev eth0 weight 1 nexthop dev ppp0 weight 1 nexthop via 192.0.2.4 dev eth1 weight 2")
    hole = Route(name="x", dst="default", family=4, table="main", via="192.0.2.9", dev="eth1", options="unreachable")
    six = route("default", via="fe80::1", dev="eth1")
    found = [(t.address, t.dev) for t in gateways(state(many, hole, six, DEFAULT, route("10.0.0.0/8", via="192.0.2.8", dev="eth1")))]
    assert set(found[:2]) == {(ROUTER, "br0"), ("fe80::1", "eth1")}
    assert found[2:] == [("192.0.2.3", "eth0"), ("192.0.2.4", "eth1")]


@pytest.mark.parametrize(("step", "yes"), [
    (Update(LINKS[0], Link(name="eth0", mtu=9000)), True),
    (Update(LINKS[1], Link(name="eth1", mtu=9000)), False),
    (Update(LINKS[3], Link(name="v5", up=False)), True),
    (Create(Link(name="kvt-b-0", type="tap", master="br0")), False),
    (Delete(LINKS[5]), False),
    (Delete(LINKS[2]), True),
    (Create(BridgeVlan(name=vlan_name("v5", 7), dev="v5", bridge="br0")), True),
    (Create(BridgeVlan(name=vlan_name("kvt-a-0", 7), dev="kvt-a-0", bridge="br0")), False),
    (Create(Address(name=address_name("eth1", "10.0.0.1/24"), dev="eth1")), False),
    (Create(Address(name=address_name("eth1", "192.0.2.7/24"), dev="eth1")), True),
    (Create(route("default", via="10.0.0.1", dev="eth1")), True),
    (Create(route("default", via="fe80::1", dev="eth1")), False),
    (Create(route("192.0.2.0/28", via="10.0.0.1", dev="eth1")), True),
    (Create(route("192.0.3.0/28", via="10.0.0.1", dev="eth1")), False),
], ids=str)
def test_what_concerns_the_gateway(step: Step, yes: bool) -> None:
    assert Hit.by([step]).concerns(Target(ROUTER, GATEWAY, "br0"), "br0", HOST) is yes


def test_a_gateway_that_is_replaced_gives_way_to_the_new_one() -> None:
    new = replace(DEFAULT, via="192.0.2.9")
    held = after([Target(ROUTER, GATEWAY, "br0")], HOST, state(*LINKS, new), [Update(DEFAULT, new)])
    assert held.required == (Target("192.0.2.9", GATEWAY, "br0"),) and held.notes and not held.lost


def test_a_gateway_that_moves_is_asked_where_it_is() -> None:
    old, new = route("default", via=ROUTER, dev="eth1"), DEFAULT
    held = after([Target(ROUTER, GATEWAY, "eth1")], state(*LINKS, old), HOST, [Delete(old), Create(new)])
    assert held.required == (Target(ROUTER, GATEWAY, "br0"),)


def test_a_route_that_goes_with_its_link_was_taken_away() -> None:
    held = after([Target(ROUTER, GATEWAY, "br0")], HOST, {}, [Delete(LINKS[4], (DEFAULT.key,))])
    assert not held.required and not held.lost and "no gateway any more" in held.notes[0]


def test_a_route_that_nobody_took_away_is_lost() -> None:
    held = after([Target(ROUTER, GATEWAY, "br0")], HOST, state(*LINKS), [Update(LINKS[4], Link(name="br0", mtu=1400))])
    assert held.lost == (ROUTER,)


def test_a_spare_gateway_that_is_added_is_not_required() -> None:
    spare = route("default", via="192.0.2.9", dev="eth1", metric=100)
    held = after([Target(ROUTER, GATEWAY, "br0")], HOST, HOST | state(spare), [Create(spare)])
    assert held.required == (Target(ROUTER, GATEWAY, "br0"),)


def test_routers_of_two_links_with_one_address() -> None:
    """fe80::1 is everybody's favourite: the one that was not asked is not required."""
    one, two = (route("default", via="fe80::1", dev=dev, metric=m) for dev, m in (("eth0", 1024), ("eth1", 2048)))
    moved = route("default", via="fe80::1", dev="br0")
    held = after([Target("fe80::1", GATEWAY, "eth0")], state(one, two), state(moved, two), [Delete(one), Create(moved)])
    assert held.required == (Target("fe80::1", GATEWAY, "br0"),)


def test_an_advertised_route_ranks_as_the_kernel_has_it() -> None:
    advertised = Route(name="a", dst="default", family=6, table="main", via="fe80::9", dev="eth0", proto="ra", lifetime=60)
    mine = route("default", via="fe80::1", dev="eth1", metric=512)
    assert [t.address for t in gateways(state(advertised, mine))] == ["fe80::1", "fe80::9"]
    assert preferred(state(advertised, mine), 6) == mine


def test_patience_with_switches() -> None:
    assert patience([Update(LINKS[0], Link(name="eth0", mtu=9000))]) == USUAL
    assert patience([Create(Link(name="bond9", type="bond"))]) == LONG
    assert patience([Create(Link(name="br9", type="bridge", stp=True))]) == LONG
    assert patience([Update(LINKS[1], Link(name="eth1", master="bond0", bonded=True))]) == LONG
    assert patience([Update(LINKS[0], Link(name="eth0", master="br1", bonded=False))]) == LONG


def test_families() -> None:
    assert Target("::1", NAMED).family == 6 and Target("1.2.3.4", NAMED).family == 4


@pytest.mark.parametrize(("told", "table", "line", "found"), [
    ("192.0.2.9 51000 192.0.2.2 22", "tcp", "0: 020200C0:0016 090200C0:C738 01", "192.0.2.9"),
    ("192.0.2.9 51000 192.0.2.2 22", "tcp", "0: 020200C0:0016 090200C0:C738 06", ""),
    ("192.0.2.9 51001 192.0.2.2 22", "tcp", "0: 020200C0:0016 090200C0:C738 01", ""),
    ("192.0.2.9 51000 192.0.2.2 22", "tcp6",
     "0: 0000000000000000FFFF0000020200C0:0016 0000000000000000FFFF0000090200C0:C738 01", "192.0.2.9"),
    ("nonsense", "tcp", "0: 020200C0:0016 090200C0:C738 01", ""),
    ("x y z 22", "tcp", "0: 020200C0:0016 090200C0:C738 01", ""),
])
def test_the_session_by_the_table_of_connections(told: str, table: str, line: str, found: str, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "thread-self" / "net"
    place.mkdir(parents=True)
    (place / table).write_text(f"head\n{line} 00000000:00000000 00:00000000 00000000 0 0 1\n")
    monkeypatch.setenv("SSH_CONNECTION", told)
    assert peer(tmp_path) == found
