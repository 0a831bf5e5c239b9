"""What lldpcli prints, and what follows from the VLANs that a switch announces."""
from __future__ import annotations

import pytest

from kvmnet.drivers.linux.resources import Link
from kvmnet.facts.lldp import parse
from kvmnet.facts.model import Facts, LinkNeighbour
from kvmnet.modes.links import outside_the_trunk
from kvmnet.spec.load import loads

SAID = {"lldp": [{"interface": [
    {"name": "eth0", "via": "LLDP", "rid": "1", "age": "0 day, 00:01:03",
     "chassis": [{"id": [{"type": "mac", "value": "02:00:00:00:00:09"}], "name": [{"value": "sw1"}],
                  "descr": [{"value": "Switch OS\nCopyright"}], "mgmt-ip": [{"value": "198.51.100.9"}]}],
     "port": [{"id": [{"type": "ifname", "value": "Gi0/7"}], "descr": [{"value": "server 12"}], "ttl": [{"value": "120"}]}],
     "vlan": [{"vlan-id": "100", "pvid": True, "value": "prod"}, {"vlan-id": "200", "pvid": False}]},
    {"name": "eth1", "chassis": [{"id": [{"value": "02:00:00:00:00:0a"}]}], "port": [{"id": [{"value": "x"}]}]}]}]}


def test_neighbours() -> None:
    found = dict(parse(SAID))
    assert found["eth0"] == LinkNeighbour("sw1", "Switch OS Copyright", "198.51.100.9", "server 12", "Gi0/7", (100, 200), 100)
    assert found["eth1"] == LinkNeighbour("02:00:00:00:00:0a", port="x", port_id="x")


@pytest.mark.parametrize("data", [{}, {"lldp": []}, {"lldp": [{}]}, {"lldp": [{"interface": [{}]}]}, {"lldp": {"interface": {}}},
                                  {"lldp": [{"interface": [{"name": "e", "vlan": [{"vlan-id": "x"}], "port": [7]}]}]}])
def test_anything_else_is_no_trouble(data: dict[str, object]) -> None:
    assert all(isinstance(n, LinkNeighbour) for _, n in parse(data))


def test_a_vlan_outside_the_trunk_is_said() -> None:
    nic = Link(name="eth0", type="physical")
    facts = Facts(state={nic.key: nic}, link_neighbours={"eth0": (dict(parse(SAID))["eth0"],)})
    spec = loads("version: 1\nuplinks: {wan: {members: [eth0], device: bond0}, a: {vlan: 150, on: wan}, b: {vlan: 200, on: wan},"
                 " c: {vlan: 7, on: b}, d: {device: eth0, vlan: 300}}\n"
                 "networks: {n: {mode: bridge, uplink: wan, vlan: 400, subnet: 10.0.0.0/24}}\n", "x").spec
    assert outside_the_trunk("wan", spec, facts) == [
        f"VLAN {vid} is outside the trunk of eth0: sw1, port server 12, announces only 100, 200 (LLDP)" for vid in (150, 400)]
    assert outside_the_trunk("d", spec, facts) == [
        "VLAN 300 is outside the trunk of eth0: sw1, port server 12, announces only 100, 200 (LLDP)"]
    assert outside_the_trunk("b", spec, facts) == []
