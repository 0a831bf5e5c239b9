"""What VLANs and bonds of a document become, on kernels with and without VLANs in bridges."""
from __future__ import annotations

import pytest

from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, Route
from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.engine.resource import Absent, Key
from kvmnet.errors import HostCannot, SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads

NO_FILTERING = {"bridge-vlan-filtering": "the kernel lacks VLANs in bridges"}
NO_VLANS = {**NO_FILTERING, "vlan": "the kernel lacks VLAN devices"}


def nic(name: str, **more: object) -> Link:
    return Link(**{"name": name, "type": "physical", "mtu": 1500, "mac": f"52:54:00:00:00:0{name[-1]}", "up": True,  # type: ignore[arg-type]
                   "master": "", "alias": "", "bonded": False, "most_mtu": 9000, **more})


STATE = {r.key: r for r in (
    nic("eth1"), nic("eth2"), nic("eth3", mtu=9000),
    Address(name="eth1 192.0.2.2/24", dev="eth1", scope="global", label="eth1", broadcast="", peer="", flags=(), dynamic=""),
    Route(name="default dev eth1", dev="eth1", dst="default", family=4, table="main", metric=0, via="192.0.2.1", src="",
          scope="global", proto="static", flags=(), options=""))}


def compiled(uplinks: str, networks: str = "{}", vms: str = "{}", features: dict[str, str] | None = None) -> Compiled:
    document = loads(f"version: 1\nuplinks: {uplinks}\nnetworks: {networks}\nvms: {vms}\n")
    facts = Facts(state=STATE, features=features or {})
    require(document, facts)
    return compile_spec(document.spec, facts, allocate(document.spec, {}))


def link(out: Compiled, name: str) -> Link:
    found = out.wanted[Key("link", name)]
    assert isinstance(found, Link)
    return found


def vlans(out: Compiled) -> dict[str, str]:
    """Device and id -> tagged, untagged or native."""
    return {k.name: "native" if r.pvid else "tagged" for k, r in out.wanted.items() if isinstance(r, BridgeVlan)}


WAN = "{wan: {device: eth1}}"
TWO = ("{a: {mode: bridge, uplink: wan, vlan: 100, subnet: 10.1.0.0/24}, b: {mode: bridge, uplink: wan, vlan: 200, subnet: "
       "10.2.0.0/24}, c: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24}}")
GUESTS = ("{x: {nics: [{network: a, ip: 10.1.0.9, trunk: [1, 300]}]}, y: {nics: [{network: b, ip: 10.2.0.9}]}, "
          "z: {nics: [{network: c, ip: 192.0.2.9}]}}")


def test_networks_of_one_uplink_share_a_bridge_that_goes_by_vlans() -> None:
    out = compiled(WAN, TWO, GUESTS)
    bridge = link(out, "kvb-~wan")
    assert (bridge.vlan_filtering, bridge.default_pvid, link(out, "eth1").master) == (True, 0, "kvb-~wan")
    assert vlans(out) == {
        "eth1 2": "native", "kvb-~wan 2": "native", "eth1 1": "tagged", "eth1 100": "tagged", "eth1 200": "tagged",
        "eth1 300": "tagged", "kvt-x-0 100": "native", "kvt-x-0 1": "tagged", "kvt-x-0 300": "tagged",
        "kvt-y-0 200": "native", "kvt-z-0 2": "native"}, "1 is on a trunk: the untagged frames count as 2"
    assert isinstance(out.wanted[Key("address", "kvb-~wan 192.0.2.2/24")], Address)
    assert isinstance(out.wanted[Key("address", "eth1 192.0.2.2/24")], Absent)
    zones = [r.zone for r in out.wanted.values() if isinstance(r, NicGuard)]
    assert len(set(zones)) == 3, "link-local addresses are claimed for each VLAN by itself"


def test_without_filtering_each_vlan_has_a_bridge() -> None:
    out = compiled(WAN, TWO, GUESTS.replace(", trunk: [1, 300]", ""), NO_FILTERING)
    assert vlans(out) == {}
    for name, vid in (("a", 100), ("b", 200)):
        sub = link(out, f"kvu-~{name}")
        assert (sub.parent, sub.vlan_id, sub.master) == ("eth1", vid, f"kvb-{name}")
    assert link(out, "eth1").master == "kvb-c" and link(out, "kvb-c").vlan_filtering is None
    assert [n for n in out.notes if "the kernel lacks VLANs in bridges" in n] == [
        f"network {n} has a bridge of its own on a sub-interface for VLAN {v}: the kernel lacks VLANs in bridges"
        for n, v in (("a", 100), ("b", 200))]


@pytest.mark.parametrize(("uplinks", "networks", "vms", "features", "says"), [
    (WAN, TWO, "{}", NO_VLANS, "no VLANs"),
    (WAN, TWO, GUESTS, NO_FILTERING, "tagged twice"),
    ("{wan: {members: [eth1]}}", "{}", "{}", {"bond": "the kernel lacks bonds"}, "no bonds"),
    ("{wan: {members: [eth1, eth9]}}", "{}", "{}", {}, "no device eth9"),
])
def test_what_the_host_lacks(uplinks: str, networks: str, vms: str, features: dict[str, str], says: str) -> None:
    with pytest.raises(HostCannot, match=says):
        compiled(uplinks, networks, vms, features)


def test_an_address_of_the_host_on_a_vlan_needs_a_device() -> None:
    out = compiled(WAN, TWO.replace("10.2.0.0/24", "10.2.0.0/24, address: 10.2.0.1"))
    assert link(out, "kvu-~b").master == "kvb-b" and isinstance(out.wanted[Key("address", "kvb-b 10.2.0.1/24")], Address)
    assert "kvb-~wan 200" not in vlans(out) and link(out, "kvb-~wan").vlan_filtering


def test_a_bond_takes_over_what_its_members_have() -> None:
    out = compiled("{wan: {members: [eth1, eth2], device: bond0, addresses: [192.0.2.3/24], gateway: 192.0.2.1}}")
    bond = link(out, "bond0")
    assert (bond.mac, bond.bond_mode, bond.bond_primary, bond.bond_miimon) == ("52:54:00:00:00:01", "active-backup", "eth1", 100)
    assert all((link(out, n).master, link(out, n).bonded, link(out, n).mtu) == ("bond0", True, 1500) for n in ("eth1", "eth2"))
    assert {Key("link", "eth1"), Key("link", "eth2"), Key("address", "eth1 192.0.2.2/24")} <= out.borrowed
    default = out.wanted[Key("route", "default dev bond0")]
    assert isinstance(default, Route) and (default.via, default.proto, default.replaces) == ("192.0.2.1", "87", "default dev eth1")


def test_a_bridge_on_a_bond_takes_it_all_at_once() -> None:
    out = compiled("{wan: {members: [eth1, eth2]}}", "{lan: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24}}")
    assert link(out, "kvu-wan").master == "kvb-lan" and link(out, "eth1").master == "kvu-wan"
    moved = out.wanted[Key("address", "kvb-lan 192.0.2.2/24")]
    assert isinstance(moved, Address) and moved.replaces == "eth1 192.0.2.2/24"
    assert link(out, "kvb-lan").mac == link(out, "kvu-wan").mac == "52:54:00:00:00:01"


def test_one_mtu_from_the_nic_to_the_guest() -> None:
    out = compiled("{wan: {members: [eth1, eth2], mtu: 9000}, in: {vlan: 7, on: wan}}",
                   "{lan: {mode: bridge, uplink: in, subnet: 10.1.0.0/24}}", "{x: {nics: [{network: lan, ip: 10.1.0.9}]}}")
    assert {link(out, n).mtu for n in ("eth1", "eth2", "kvu-wan", "kvu-in", "kvb-lan", "kvt-x-0")} == {9000}
    assert out.segments["lan"].nics[0].mtu == 9000


@pytest.mark.parametrize(("uplinks", "says"), [
    ("{wan: {members: [eth1, eth3]}}", "the members' MTUs differ: eth1 has 1500, eth3 has 9000"),
    ("{wan: {members: [eth1, eth2], mtu: 9001}}", "eth1 takes an MTU of at most 9000"),
    ("{wan: {device: eth1, vlan: 7, mtu: 9000}}", "9000 is larger than the 1500 of eth1"),
])
def test_an_mtu_that_does_not_hold(uplinks: str, says: str) -> None:
    with pytest.raises(SpecError) as refused:
        compiled(uplinks)
    assert says in str([p.message for p in refused.value.problems])
