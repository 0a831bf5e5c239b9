"""Where the order of a plan is another than that of references: what moves, and what goes last."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, VlanMulticast, address_name
from kvmnet.drivers.stp.resources import SpanningTree, TreeGate
from kvmnet.engine.plan import Delete, Update, plan
from kvmnet.engine.resource import Absent, Key


def test_vlans_of_a_nic_wait_until_it_has_joined_the_bridge_with_its_addresses() -> None:
    nic = Link(name="eth1", type="physical", up=True, master="")
    old = Address(name=address_name("eth1", "192.0.2.5/24"), dev="eth1")
    new = Address(name=address_name("kvb-t", "192.0.2.5/24"), dev="kvb-t", replaces=old.name)
    bridge = Link(name="kvb-t", type="bridge", up=True)
    vlan = BridgeVlan(name="eth1 100", dev="eth1", bridge="kvb-t")
    asks = VlanMulticast(name="kvb-t 100", bridge="kvb-t", member="eth1 100", querier=True)
    own = BridgeVlan(name="kvb-t 1", dev="kvb-t", bridge="kvb-t")
    joins = Link(name="eth1", master="kvb-t", up=True)
    wanted = {r.key: r for r in (bridge, new, vlan, asks, own, joins)} | {old.key: Absent(old.key)}
    steps = [s.key for s in plan({nic.key: nic, old.key: old}, wanted, set(), {nic.key, old.key})]
    assert steps == [bridge.key, own.key, old.key, Key("link", "eth1"), new.key, vlan.key, asks.key]


def test_a_gate_goes_when_its_ports_have_left_and_the_bridge_speaks_for_itself() -> None:
    gate = TreeGate(name="kvb-t", ports=("eth1", "eth2"), whole=True)
    tree = SpanningTree(name="kvb-t", bridge="kvb-t", gate="kvb-t", protocol="rstp")
    bridge = Link(name="kvb-t", type="bridge", stp=False, gate="kvb-t")
    port = Link(name="eth2", type="physical", master="kvb-t")
    seen = {r.key: r for r in (gate, tree, bridge, port)}
    speaks, leaves = Link(name="kvb-t", stp=True, gate=""), Link(name="eth2", master="")
    steps = plan(seen, {speaks.key: speaks, leaves.key: leaves}, {gate.key, tree.key, bridge.key}, {leaves.key})
    assert [(type(s), s.key) for s in steps] == [(Delete, tree.key), (Update, leaves.key), (Update, bridge.key), (Delete, gate.key)]
    assert [s.key for s in plan(seen, {}, {gate.key, tree.key, bridge.key})] == [tree.key, bridge.key, gate.key], "as the references say, too"
