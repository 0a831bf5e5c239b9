"""What joining a bridge means, as resources."""
from __future__ import annotations

from dataclasses import replace

import pytest

from kvmnet.drivers.linux.resources import Address, Link, Route, Sysctl
from kvmnet.engine.plan import apply_to, plan
from kvmnet.engine.resource import Absent, Key, Resource
from kvmnet.errors import ConflictError
from kvmnet.facts.model import Facts
from kvmnet.modes.forwarding import PER_DEVICE, advertised, forwarding
from kvmnet.modes.segment import Part
from kvmnet.modes.uplink import stale_references, take_uplink, uplink_sysctls

NIC = Link(name="ens18", type="physical", mtu=9000, mac="52:54:00:00:00:01", master="", up=True, alias="")
BRIDGE = Link(name="kvb-lan", type="bridge", mtu=9000, mac=NIC.mac, master="", up=True, alias="kvmnet network lan")
STATIC = Address(name="ens18 10.0.0.2/24", dev="ens18", scope="global", label="ens18:1", broadcast="10.0.0.255", peer="",
                 flags=(), dynamic="")
STATIC6 = replace(STATIC, name="ens18 2001:db8::2/64", label="", broadcast="")
ADVERTISED = replace(STATIC6, name="ens18 2001:db8:7::5/64", dynamic="ra", flags=("mngtmpaddr",), lifetime=9, preferred=4)
WAY = Route(name="default dev ens18", dev="ens18", dst="default", family=4, table="main", metric=0, via="10.0.0.1",
            src="", scope="global", proto="static", flags=(), options="mtu 1400")
ROUTER = Route(name="::/0 dev ens18 via fe80::1", dev="ens18", dst="default", family=6, table="main", via="fe80::1",
               src="", scope="global", proto="ra", flags=(), options="", lifetime=9)
ON_LINK = Route(name="2001:db8:7::/64 metric 256 dev ens18", dev="ens18", dst="2001:db8:7::/64", family=6, table="main",
                metric=256, via="", src="", scope="global", proto="kernel", flags=(), options="", lifetime=9)


def facts(*resources: Resource, **more: object) -> Facts:
    return Facts(state={r.key: r for r in (NIC, *resources)}, **more)  # type: ignore[arg-type]


def taken(host: Facts) -> tuple[dict[Key, Resource | Absent], set[Key]]:
    resources, borrowed, _ = take_uplink("ens18", "kvb-lan", host)
    assert len({r.key for r in resources}) == len(resources), "one claim for each thing"
    return {r.key: r for r in resources}, borrowed


def test_addresses_and_routes_move_with_everything_they_have() -> None:
    wanted, borrowed = taken(facts(STATIC, STATIC6, WAY))
    assert wanted[Key("address", "kvb-lan 10.0.0.2/24")] == replace(
        STATIC, name="kvb-lan 10.0.0.2/24", dev="kvb-lan", label="kvb-lan:1", replaces=STATIC.name)
    assert wanted[Key("address", "kvb-lan 2001:db8::2/64")] == replace(
        STATIC6, name="kvb-lan 2001:db8::2/64", dev="kvb-lan", flags=("nodad",), replaces=STATIC6.name)
    assert wanted[Key("route", "default dev kvb-lan")] == replace(
        WAY, name="default dev kvb-lan", dev="kvb-lan", replaces=WAY.name)
    for old in (STATIC, STATIC6, WAY):
        assert wanted[old.key] == Absent(old.key)
    assert borrowed == {NIC.key, STATIC.key, STATIC6.key, WAY.key}


def test_the_same_is_wanted_again_once_it_is_taken() -> None:
    """Planned on the host that the first plan leaves behind, nothing is to do and nothing is forgotten."""
    host = facts(STATIC, STATIC6, WAY)
    wanted, borrowed = taken(host)
    full = {BRIDGE.key: BRIDGE, **wanted}
    after = apply_to(host.state, plan(host.state, full, set(), borrowed))
    again, lent = taken(Facts(state=after))
    ours = {k for k, r in after.items() if k == BRIDGE.key or getattr(r, "dev", "") == "kvb-lan"}
    assert plan(after, {BRIDGE.key: BRIDGE, **again}, ours, lent) == ()
    assert lent == borrowed


def test_what_was_advertised_moves_with_its_lifetime_and_is_let_go_of_afterwards() -> None:
    wanted, _ = taken(facts(ADVERTISED, ROUTER, ON_LINK))
    moved = wanted[Key("address", "kvb-lan 2001:db8:7::5/64")]
    assert isinstance(moved, Address) and (moved.lifetime, moved.preferred) == (9, 4)
    assert isinstance(wanted[Key("route", "::/0 dev kvb-lan via fe80::1")], Route)
    assert isinstance(wanted[ON_LINK.key], Absent), "its address does not take it along"
    assert not any(k.name == "2001:db8:7::/64 metric 256 dev kvb-lan" for k in wanted), "the address brings it"
    listen = wanted[Key("sysctl", "net/ipv6/conf/kvb-lan/accept_ra")]
    assert isinstance(listen, Sysctl) and listen.value == "2"
    there = replace(ADVERTISED, name="kvb-lan 2001:db8:7::5/64", dev="kvb-lan")
    later, _ = taken(facts(BRIDGE, there))
    assert there.key not in later


def test_a_connected_route_without_its_address_moves_by_itself() -> None:
    wanted, _ = taken(facts(ON_LINK))
    assert isinstance(wanted[Key("route", "2001:db8:7::/64 metric 256 dev kvb-lan")], Route)


@pytest.mark.parametrize(("accept", "router", "listens"), [("1", "0", "2"), ("1", "1", "0"), ("0", "0", "0"), ("2", "1", "2")])
def test_the_bridge_listens_where_the_nic_did(accept: str, router: str, listens: str) -> None:
    settings = [Sysctl(name=f"net/ipv6/conf/ens18/{n}", value=v, dev="ens18")
                for n, v in (("accept_ra", accept), ("forwarding", router), ("disable_ipv6", "1"))]
    wanted, _ = taken(facts(*settings))
    found = {k.name: r.value for k, r in wanted.items() if isinstance(r, Sysctl)}
    assert found == {"net/ipv6/conf/kvb-lan/accept_ra": listens, "net/ipv6/conf/kvb-lan/disable_ipv6": "1"}
    assert {s.name for s in settings} <= set(uplink_sysctls("ens18", "kvb-lan"))


LEASED = replace(STATIC, dynamic="dhcp", lifetime=600)
SPREAD = replace(WAY, name="default", dev="", via="", options="nexthop via 10.0.0.1 dev ens18 weight 1")


@pytest.mark.parametrize(("things", "more", "says"), [
    ((LEASED,), {"dhcp_clients": {"ens18": "udhcpc, pid 7"}}, r"10\.0\.0\.2/24 comes from DHCP.*by udhcpc, pid 7"),
    ((LEASED,), {"dhcp_clients": {"": "NetworkManager, pid 9"}}, "by NetworkManager, pid 9"),
    ((LEASED,), {}, "by a DHCP client"),
    ((replace(WAY, options="?encap"),), {}, "cannot make again"),
    ((SPREAD,), {}, "between several devices"),
    ((replace(NIC, master="br0"),), {}, "port of br0 already"),
])
def test_what_cannot_move_is_refused_with_a_way_out(things: tuple[Resource, ...], more: dict[str, object], says: str) -> None:
    with pytest.raises(ConflictError, match=says) as refused:
        taken(facts(*things, **more))
    assert "bridge: NAME" in refused.value.hint


def test_every_reason_is_told_at_once() -> None:
    with pytest.raises(ConflictError, match=r"DHCP.*several devices"):
        taken(facts(LEASED, SPREAD))


def test_what_goes_on_naming_the_nic_is_listed() -> None:
    notes = stale_references("ens18", facts(
        Sysctl(name="net/ipv4/conf/ens18/route_localnet", value="1", dev="ens18"),
        Sysctl(name="net/ipv4/conf/default/route_localnet", value="0", dev=""),
        rules=("32765: from all iif ens18 lookup 7", "1: from all iif ens180 lookup 8"),
        ruleset='table inet x {\n  iifname "ens18" drop\n  iifname "ens180" drop\n}'))
    assert len(notes) == 3 and not any("ens180" in n for n in notes)


def test_forwarding_for_all_comes_after_every_device_that_lives_by_advertisements() -> None:
    part = Part()
    forwarding(part, frozenset({6}), ("kvb-lan", "eth7"), facts(ADVERTISED, replace(ROUTER, name="x", dev="eth7")))
    steps = plan({}, {r.key: r for r in part.resources}, set())
    names = [s.key.name for s in steps]
    assert names[-1] == "net/ipv6/conf/all/forwarding"
    assert {"net/ipv6/conf/ens18/accept_ra", "net/ipv6/conf/eth7/accept_ra"} <= set(names)
    assert part.notes and advertised(facts()) == set()


def test_forwarding_by_device_where_the_kernel_can() -> None:
    part = Part()
    forwarding(part, frozenset({6}), ("kvb-lan", "ens18"), facts(ADVERTISED, features={PER_DEVICE: ""}))
    assert "net/ipv6/conf/all/forwarding" not in {r.key.name for r in part.resources} and not part.notes
