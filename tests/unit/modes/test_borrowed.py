"""Bonds, VLANs and bridges that the host has already and the document describes: borrowed, not made."""
from __future__ import annotations

import pytest

from kvmnet.compile import compile_spec
from kvmnet.drivers.linux.resources import Address, Link, Route, route
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.errors import HostCannot
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads

BOND = Link(name="bond0", type="bond", mtu=1500, mac="02:00:00:00:00:01", up=True, master="", alias="", bond_mode="802.3ad",
            bond_miimon=50, bond_updelay=0, bond_downdelay=0, bond_hash="layer2", bond_lacp_rate="fast", bond_ad_select="stable",
            bond_min_links=0, bond_peer_notify=1, members=("e0", "e1"))
NICS = tuple(Link(name=f"e{i}", type="physical", mtu=1500, mac="02:00:00:00:00:01", up=True, master="bond0", bonded=True,
                  alias="") for i in (0, 1))
FREE = Link(name="e2", type="physical", mtu=1500, mac="02:00:00:00:00:03", up=False, master="", bonded=False, alias="")
VLAN = Link(name="bond0.7", type="vlan", mtu=1400, mac=BOND.mac, up=True, master="", alias="", parent="bond0", vlan_id=7,
            vlan_protocol="802.1Q")
ADDRESS = Address(name="bond0 192.0.2.2/24", dev="bond0", scope="global", label="bond0", broadcast="192.0.2.255", peer="",
                  flags=(), dynamic="")
WAY = Route(name="default dev bond0", dev="bond0", dst="default", family=4, table="main", metric=0, via="192.0.2.1",
            src="", scope="global", proto="static", flags=("onlink",), options="mtu 1400")
BRIDGE = Link(name="br0", type="bridge", mtu=1500, mac=BOND.mac, up=True, master="", alias="")
HOST: tuple[Resource, ...] = (BOND, *NICS, FREE, VLAN, ADDRESS, WAY, BRIDGE)


def changes(uplinks: str, networks: str = "{}", *more: Resource) -> list[tuple[str, str, object]]:
    """(step, key, changes) of a plan on the host above."""
    document = loads(f"version: 1\nuplinks: {uplinks}\nnetworks: {networks}\n")
    facts = Facts(state={r.key: r for r in (*HOST, *more)})
    require(document, facts)
    compiled = compile_spec(document.spec, facts, {})
    return [(type(s).__name__, str(s.key), sorted(getattr(s, "changes", {})))
            for s in plan(facts.state, compiled.wanted, set(), compiled.borrowed)]


FULL = ("{wan: {device: bond0, members: [e0, e1], bond: 802.3ad, options: {miimon: 50, lacp_rate: fast, hash: layer2}, addresses: "
        "[192.0.2.2/24], gateway: 192.0.2.1}, seven: {device: bond0.7, vlan: 7, on: wan, mtu: 1400}}")


def test_what_describes_the_host_as_it_is_changes_nothing() -> None:
    assert changes(FULL) == []
    assert changes("{wan: {device: bond0, members: [e0, e1], bond: 802.3ad}, seven: {device: bond0.7, vlan: 7, on: wan}}") == []


def test_only_what_is_written_is_changed_and_it_is_given_back() -> None:
    text = FULL.replace("miimon: 50", "miimon: 100, min_links: 1")
    assert changes(text) == [("Update", "link bond0", ["bond_miimon", "bond_min_links"])]
    assert changes(FULL.replace("1400", "1300")) == [("Update", "link bond0.7", ["mtu"])]
    document = loads(f"version: 1\nuplinks: {text}\n")
    compiled = compile_spec(document.spec, Facts(state={r.key: r for r in HOST}), {})
    assert Key("link", "bond0") in compiled.borrowed and Key("link", "e0") in compiled.borrowed


def test_a_further_member_joins_and_one_not_named_stays() -> None:
    found = changes(FULL.replace("[e0, e1]", "[e0, e1, e2]"))
    assert found == [("Update", "link e2", ["bonded", "master", "up"])]
    document = loads(f"version: 1\nuplinks: {FULL.replace('[e0, e1]', '[e0]')}\n")
    assert any("further members, which stay: e1" in n
               for n in compile_spec(document.spec, Facts(state={r.key: r for r in HOST}), {}).notes)


@pytest.mark.parametrize("old, new, words", [
    ("bond: 802.3ad, options: {miimon: 50, lacp_rate: fast, hash: layer2}", "bond: active-backup", "has 802.3ad"),
    ("lacp_rate: fast", "lacp_rate: slow", "has fast"), ("vlan: 7", "vlan: 8", "has 7"),
    ("device: bond0.7, vlan: 7", "device: br0, vlan: 7", "has a bridge br0 already"),
    ("vlan: 7", "vlan: 7, protocol: 802.1ad", "has 802.1Q")])
def test_what_would_have_to_be_made_anew_is_refused(old: str, new: str, words: str) -> None:
    assert old in FULL
    with pytest.raises(HostCannot, match=words):
        changes(FULL.replace(old, new))


def test_a_route_of_our_own_is_whole_and_one_of_the_hosts_goes_the_same_way() -> None:
    assert changes(FULL.replace("gateway: 192.0.2.1", "gateway: 192.0.2.9")) == [("Update", "route default dev bond0", ["via"])]
    ours = route("10.0.0.0/8", dev="bond0", via="192.0.2.1")
    text = FULL.replace("gateway:", "routes: [{to: 10.0.0.0/8, via: 192.0.2.1}], gateway:")
    assert changes(text) == [("Create", "route 10.0.0.0/8 dev bond0", [])]
    assert changes(text, "{}", ours) == []


def test_a_bridge_of_the_hosts_without_guests_needs_no_table() -> None:
    assert changes("{}", "{old: {mode: bridge, bridge: br0}}") == []
    assert changes("{}", "{new: {mode: isolated}}")


def test_a_bridge_takes_a_bond_of_the_hosts_with_its_addresses() -> None:
    document = loads(f"version: 1\nuplinks: {FULL}\nnetworks: {{lan: {{mode: bridge, uplink: wan}}}}\n")
    compiled = compile_spec(document.spec, Facts(state={r.key: r for r in HOST}), {})
    assert compiled.wanted[Key("link", "bond0")].master == "kvb-lan"  # type: ignore[union-attr]
    assert Key("address", "kvb-lan 192.0.2.2/24") in compiled.wanted and Key("link", "bond0") in compiled.borrowed
    assert compiled.wanted[Key("link", "kvb-lan")].mac == BOND.mac  # type: ignore[union-attr]
