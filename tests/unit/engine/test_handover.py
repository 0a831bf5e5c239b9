"""What needs a NIC to be a port of a bridge comes after the NIC has joined it."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Address, BridgeVlan, Link, VlanMulticast, address_name
from kvmnet.engine.plan import plan
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
