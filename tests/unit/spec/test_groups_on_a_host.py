"""What a host must have for groups and tenants; what it lacks is said with the place that needs it."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import Link
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import lacking
from kvmnet.spec.load import loads

LINKS = {r.key: r for r in (Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master=""),
                            Link(name="br0", type="bridge", mtu=1500, mac="02:00:00:00:00:11"))}
DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
  old: {mode: bridge, bridge: br0}
  tagged: {mode: bridge, uplink: wan, vlan: 10}
vms:
  a: {nics: [{network: lan, groups: [web]}]}
  b: {nics: [{network: old, ip: 10.1.0.2, groups: [web]}]}
  c: {nics: [{network: tagged, ip: 10.2.0.2}]}
  d: {nics: [{network: old, ip: 10.1.0.3}]}
groups: {web: {}}
tenants: {acme: {networks: [tagged]}}
"""


def lacks(**features: str) -> list[tuple[str, str]]:
    found = lacking(loads(DOCUMENT).spec, Facts(state=LINKS, features={"bridge-vlan-filtering": "", "ipv6": "", **features}))
    return [(p.path, p.message) for p in found if "vms" in p.path]


def test_bridge_conntrack_is_all_that_is_needed() -> None:
    assert lacks(**{"bridge-conntrack": ""}) == []


def test_without_it_bridges_of_others_and_shared_ones_cannot_be_judged() -> None:
    found = dict(lacks(**{"bridge-conntrack": "no", "bridge-netfilter": ""}))
    assert found.keys() == {"vms.b.nics[0].groups", "vms.c.nics[0].network"}
    assert "does not change bridges of others" in found["vms.b.nics[0].groups"]
    assert "VLAN-aware" in found["vms.c.nics[0].network"]


def test_without_either_nothing_can() -> None:
    found = dict(lacks(**{"bridge-conntrack": "no", "bridge-netfilter": "the kernel lacks bridge netfilter"}))
    assert found.keys() == {"vms.a.nics[0].groups", "vms.b.nics[0].groups", "vms.c.nics[0].network"}
    assert all("lacks bridge netfilter" in message for message in found.values())
