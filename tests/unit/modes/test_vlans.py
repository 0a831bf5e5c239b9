"""What VLANs and bonds of a document become, on kernels with and without VLANs in bridges."""
from __future__ import annotations

import pytest
import yaml

from kvmnet.adopt.restore import region as restored
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, Neighbour, Route, VlanMulticast
from kvmnet.drivers.nftables.resources import NicGuard
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.engine.resource import Absent, Key
from kvmnet.errors import HostCannot, SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads
from kvmnet.spec.networks import Region

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


def test_a_nic_that_sends_only_tags() -> None:
    out = compiled(WAN, TWO, "{x: {nics: [{network: a, ip: 10.1.0.9, trunk: [300], untagged: false}]}}")
    assert {n: v for n, v in vlans(out).items() if n.startswith("kvt-")} == {"kvt-x-0 100": "tagged", "kvt-x-0 300": "tagged"}
    guard = out.wanted[Key("nic-guard", "kvt-x-0")]
    assert isinstance(guard, NicGuard) and guard.vlans == (100, 300)


def test_multicast_of_each_vlan() -> None:
    networks = TWO.replace("10.1.0.0/24", "10.1.0.0/24, querier: true").replace("10.2.0.0/24", "10.2.0.0/24, snooping: false")
    out = compiled(WAN, networks)
    bridge = link(out, "kvb-~wan")
    assert (bridge.mcast_snooping, bridge.mcast_vlan_snooping, bridge.mcast_querier) == (True, True, False)
    found = {k.name: (r.snooping, r.querier, r.member) for k, r in out.wanted.items() if isinstance(r, VlanMulticast)}
    assert found == {"kvb-~wan 100": (True, True, "eth1 100"), "kvb-~wan 200": (False, False, "eth1 200")}


def test_multicast_of_each_vlan_needs_the_kernel() -> None:
    lacks = {"bridge-vlan-multicast": "Linux 5.15"}
    out = compiled(WAN, TWO, features=lacks)
    assert (link(out, "kvb-~wan").mcast_snooping, link(out, "kvb-~wan").mcast_vlan_snooping) == (False, None)
    assert "no multicast snooping on kvb-~wan: Linux 5.15" in out.notes
    with pytest.raises(HostCannot, match="cannot have a querier here"):
        compiled(WAN, TWO.replace("10.1.0.0/24", "10.1.0.0/24, querier: true"), features=lacks)


def test_a_bridge_of_its_own_asks_from_the_hosts_address() -> None:
    out = compiled(WAN, "{c: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24, querier: true}, d: {mode: isolated, subnet: "
                        "10.9.0.0/24, querier: true}, e: {mode: isolated, querier: true}}")
    assert {n: (link(out, n).mcast_querier, link(out, n).mcast_query_use_ifaddr) for n in ("kvb-c", "kvb-d", "kvb-e")} == {
        "kvb-c": (True, True), "kvb-d": (True, True), "kvb-e": (True, False)}


def test_a_network_whose_bridge_answers_for_its_guests_has_one_of_its_own() -> None:
    out = compiled(WAN, TWO.replace("10.1.0.0/24", "10.1.0.0/24, neigh_suppress: true"),
                   GUESTS.replace(", trunk: [1, 300]", ""))
    assert link(out, "kvu-~a").master == "kvb-a" and link(out, "kvt-x-0").neigh_suppress
    assert out.wanted[Key("neighbour", "kvb-a 10.1.0.9")] == Neighbour(
        name="kvb-a 10.1.0.9", dev="kvb-a", mac=out.segments["a"].nics[0].mac)
    assert not link(out, "kvt-y-0").neigh_suppress and "eth1 200" in vlans(out) and "eth1 100" not in vlans(out)
    out = compiled(WAN, TWO.replace("192.0.2.0/24", "192.0.2.0/24, neigh_suppress: true"))
    assert vlans(out) == {}, "the host's own VLAN inside has no device: then none is shared"
    assert "VLAN 200: the bridge of the uplink wan answers for its guests" in " ".join(out.notes)


def test_a_spanning_tree_and_its_guest_ports() -> None:
    out = compiled(WAN, TWO.replace("10.2.0.0/24", "10.2.0.0/24, stp: true, stp_options: {priority: 8192, hello: 1, "
                                    "forward_delay: 10, max_age: 12}"), GUESTS.replace("10.1.0.9,", "10.1.0.9, guard: off,"))
    bridge = link(out, "kvb-~wan")
    assert (bridge.stp, bridge.priority, bridge.hello_time, bridge.forward_delay, bridge.max_age) == (True, 8192, 100, 1000, 1200)
    assert {n: (link(out, n).root_guard, link(out, n).bpdu_guard) for n in ("kvt-x-0", "kvt-y-0", "kvt-z-0")} == {
        "kvt-x-0": (True, False), "kvt-y-0": (True, True), "kvt-z-0": (True, True)}, "the tree is of the whole bridge"


def test_five_hundred_networks_are_compiled_in_one_go() -> None:
    """Each network of a shared bridge adds to it; the bridge itself, its uplink and its VLANs are wired once."""
    networks = ", ".join(f"n{i}: {{mode: bridge, uplink: wan, vlan: {i + 2}, subnet: 10.{i // 250}.{i % 250}.0/24}}" for i in range(500))
    vms = ", ".join(f"g{i}: {{nics: [{{network: n{i}, ip: 10.{i // 250}.{i % 250}.9}}]}}" for i in range(500))
    out = compiled(WAN, f"{{{networks}}}", f"{{{vms}}}")
    assert len(vlans(out)) == 500 + 500 + 2 and vlans(out)["kvb-~wan 1"] == "native"
    assert sum(isinstance(r, Link) and r.type == "bridge" for r in out.wanted.values()) == 1


def test_rstp_has_a_gate_before_the_bridge_has_ports() -> None:
    uplink = WAN.replace("device: eth1", "device: eth1, redundant: {eth2: {cost: 7}}, tree: {priority: 16}")
    assert uplink != WAN
    out = compiled(uplink, TWO.replace("subnet: 10.1.0.0/24", "stp: rstp, subnet: 10.1.0.0/24").replace(
        "subnet: 10.2.0.0/24", "stp: rstp, subnet: 10.2.0.0/24").replace("subnet: 192.0.2.0/24", "stp: rstp, subnet: 192.0.2.0/24"), GUESTS)
    bridge = link(out, "kvb-~wan")
    assert (bridge.stp, bridge.forward_delay, bridge.gate) == (False, 0, "kvb-~wan")
    gate, tree = out.wanted[Key("tree-gate", "kvb-~wan")], out.wanted[Key("spanning-tree", "kvb-~wan")]
    assert isinstance(gate, TreeGate) and isinstance(tree, SpanningTree)
    assert gate.ports == ("eth1", "eth2") and tree.ports == ("eth1 0 16", "eth2 7 128") and tree.protocol == "rstp"
    assert link(out, "eth2").master == "kvb-~wan" and vlans(out)["eth2 100"] == vlans(out)["eth1 100"]
    assert ("eth2", "kvb-~wan") in out.outer and not link(out, "kvt-x-0").bpdu_guard
    with pytest.raises(HostCannot, match="inside of VLAN 100, where switches do not listen for RSTP: the kernel lacks VLANs in bridges"):
        compiled(WAN, TWO.replace("subnet: 10.1.0.0/24", "stp: rstp, subnet: 10.1.0.0/24"), features=NO_FILTERING)


def test_mstp_gives_the_gate_and_the_process_the_vlans_of_each_tree() -> None:
    """One network says it for all of the bridge."""
    uplink = WAN.replace("device: eth1", "device: eth1, redundant: {eth2: {costs: {7: 9}}}")
    region = "{name: core, revision: 3, untagged: 5, instances: {7: {vlans: [100-199, 5], priority: 4096}, 2: {vlans: 200}}}"
    networks = TWO.replace("subnet: 10.1.0.0/24", f"stp: mstp, stp_options: {{region: {region}}}, subnet: 10.1.0.0/24")
    out = compiled(uplink, networks, GUESTS)
    gate, tree = out.wanted[Key("tree-gate", "kvb-~wan")], out.wanted[Key("spanning-tree", "kvb-~wan")]
    assert isinstance(gate, TreeGate) and isinstance(tree, SpanningTree)
    assert (gate.instances, gate.untagged) == (("2 200", "7 5 100-199"), 5)
    assert (tree.protocol, tree.region, tree.revision, tree.untagged) == ("mstp", "core", 3, 5)
    assert tree.instances == ("2 32768 200", "7 4096 5 100-199") and tree.ports == ("eth1 0 128", "eth2 0 128 7:9")
    assert link(out, "kvb-~wan").gate == "kvb-~wan" and not link(out, "kvb-~wan").stp
    assert Region.model_validate(restored(tree)) == Region.model_validate(yaml.safe_load(region)), "import writes what was written"
    with pytest.raises(HostCannot, match=r"VLANs of a port cannot have states of their own: Linux 5\.6"):
        compiled(uplink, networks, GUESTS, features={"bridge-vlan-states": "Linux 5.6"})
    with pytest.raises(HostCannot, match="inside of VLAN 200 of the uplink's first NIC alone: the kernel lacks VLANs in bridges"):
        compiled(uplink.replace("costs: {7: 9}", ""), networks.replace("mstp", "rstp").replace(f", stp_options: {{region: {region}}}", ""), GUESTS.replace(", trunk: [1, 300]", ""),
                 features=NO_FILTERING)
