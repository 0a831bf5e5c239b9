"""Groups, tenants, isolation and limits of flows where networks are in routing domains: one zone for a flow on both layers."""
from __future__ import annotations

import json
import re
import subprocess

import pytest

from kvmnet.check.allowed import allowed
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.nftables import members, wire
from kvmnet.drivers.nftables.cutting import owners
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.drivers.nftables.tables import GUARD, ROUTED
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.policy.flows import Flow, Judge, read
from kvmnet.policy.grouping import HIGHEST, numbers
from kvmnet.spec import domains
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import lacking
from kvmnet.spec.load import loads

BRIDGE = {"bridge-conntrack": "", "nft-bridge-ibrname": ""}
DOCUMENT = """
version: 1
vrfs: {red: {}, blue: {}}
networks:
  red: {mode: isolated, vrf: red, subnet: 10.1.0.0/24, subnet6: 'fd00:1::/64'}
  blue: {mode: isolated, vrf: blue, subnet: 10.1.0.0/24}
  deep: {mode: isolated, vrf: blue, subnet: 10.2.0.0/24, peers: [blue]}
  plain: {mode: isolated, subnet: 10.3.0.0/24}
vms:
  r: {nics: [{network: red, ip: 10.1.0.10, groups: [app]}]}
  b: {nics: [{network: blue, ip: 10.1.0.10, groups: [app]}]}
  d: {nics: [{network: deep, ip: 10.2.0.10, groups: [peer]}]}
  p: {nics: [{network: plain, ip: 10.3.0.10, groups: [peer]}]}
groups:
  app: {ingress: [{tcp: 80}], egress: [{to: group:peer}], refuse: reject}
  peer: {ingress: [{tcp: 80, from: group:app}]}
tenants: {acme: {networks: [red]}, other: {networks: [blue, deep]}}
"""


def compiled(text: str = DOCUMENT) -> Compiled:
    document = loads(text)
    return compile_spec(document.spec, Facts(features=BRIDGE), allocate(document.spec, {}))


def zones() -> dict[str, int]:
    return domains.zones(loads(DOCUMENT).spec)


def text_of(found: Compiled, table: str) -> str:
    return str(found.wanted[Key("nft-table", table)].text)  # type: ignore[union-attr]


def nic(found: Compiled, vm: str) -> NicGroups:
    item = found.wanted[Key("nic-groups", f"kvt-{vm}-0")]
    assert isinstance(item, NicGroups)
    return item


def test_what_is_routed_has_the_domains_zone_on_both_layers() -> None:
    found = compiled()
    bridge, host = text_of(found, "bridge kvmnet"), text_of(found, "inet kvmnet")
    pairs = dict(re.findall(r'"(kvb-\w+)" : (\d+)', next(x for x in bridge.splitlines() if "ct zone set meta ibrname" in x)))
    assert pairs == {f"kvb-{n}": str(zones()[f"kvr-{v}"]) for n, v in (("red", "red"), ("blue", "blue"), ("deep", "blue"))}
    for name, zone in pairs.items():
        assert f'"{name}" : {zone}' in next(x for x in host.splitlines() if x.startswith("ct zone set iifname"))
    assert "ether daddr @routers goto routed" in bridge and "ether daddr @routers return" not in bridge
    assert bridge.index("chain routed {") < bridge.index("chain network {")
    assert 'iifname "kvr-*" meta sdifname . oifname @same accept' in host


def test_without_domains_nothing_of_it_is_there() -> None:
    plain = re.sub(r", vrf: \w+", "", DOCUMENT).replace("subnet: 10.1.0.0/24}", "subnet: 10.4.0.0/24}").replace("network: blue, ip: 10.1", "network: blue, ip: 10.4")
    found = compiled(plain.replace("vrfs: {red: {}, blue: {}}\n", ""))
    bridge, host = text_of(found, "bridge kvmnet"), text_of(found, "inet kvmnet")
    assert "ether daddr @routers return" in bridge
    assert not re.search(r"ibrname|d4_|ct zone 0", bridge) and "sdifname" not in host
    assert {nic(found, vm).routed for vm in "rbdp"} == {0}


def test_a_member_is_known_by_its_own_domain() -> None:
    found = compiled()
    said = {vm: {name.rpartition(" ")[2] + " " + text for name, text in members.elements(nic(found, vm))} for vm in "dp"}
    assert f"d4_peer {zones()['kvr-blue']} . 10.2.0.10" in said["d"] and not [x for x in said["d"] if x.startswith("m4_")]
    assert "m4_peer 10.3.0.10" in said["p"] and not [x for x in said["p"] if x.startswith("d4_")]
    bridge = text_of(found, "bridge kvmnet")
    for chain in ("out_app", "tell_app"):
        rules = bridge.split(f"chain {chain} {{\n", 1)[1].split("\n}", 1)[0]
        assert "ct zone . ip daddr @d4_peer" in rules and "ct zone . ip6 daddr @d6_peer" in rules
        assert all("ct zone 0 " in line for line in rules.splitlines() if re.search("@m[46]_", line))


def test_what_is_routed_is_judged_by_the_bridge_that_it_leaves_by() -> None:
    """A bridge is in one domain, so receivers of equal addresses are two keys, and no zone has to be asked."""
    said = {vm: dict(pair for pair in members.elements(nic(compiled(), vm)) if pair[0].startswith(ROUTED)) for vm in "rb"}
    for vm, network, tenant in (("r", "red", "acme"), ("b", "blue", "other")):
        assert said[vm][f"{ROUTED} tenant4"] == f'"kvb-{network}" . 10.1.0.10 : jump t_{tenant}'
        assert said[vm][f"{ROUTED} r4_app"] == f'"kvb-{network}" . 10.1.0.10'


def test_a_networks_zone_is_no_domains() -> None:
    for name in ("kvb-red", "kvb-plain"):
        alone = numbers([name])[name]
        assert numbers([name], [alone]) == {name: alone % HIGHEST + 1}
    found = compiled()
    assert not {nic(found, vm).zone for vm in "rbdp"} & {0, *zones().values()}


def test_established_flows_are_judged_in_the_domains_zone() -> None:
    found = compiled()
    nics = [nic(found, vm) for vm in "rbdp"]
    policy = read(text_of(found, "bridge kvmnet"))
    assert policy is not None
    judge = Judge(policy, nics, [], owners(nics, {}, {}))
    red, blue = zones()["kvr-red"], zones()["kvr-blue"]

    def passes(zone: int, source: str, target: str, port: int = 80) -> bool:
        return judge.allows(Flow(zone, 6, source, target, port, target, port))

    assert passes(blue, "10.1.0.10", "10.2.0.10") and not passes(blue, "10.1.0.10", "10.2.0.10", 81)
    assert not passes(red, "10.1.0.10", "10.2.0.10"), "a member of another domain, which is somebody outside here"
    assert not passes(red, "192.0.2.1", "10.1.0.10", 81) and passes(red, "192.0.2.1", "10.1.0.10")
    asked = allowed(found.wanted)
    assert not asked.echo("kvt-r-0", "10.1.0.10", "10.2.0.10", beside=False) and asked.echo("kvt-p-0", "10.3.0.10", "192.0.2.1", beside=False)


def test_nft_reads_it_and_lists_what_was_loaded() -> None:
    """As far as this kernel has bridge conntrack; the lab loads the rest."""
    found = compiled()
    items = [nic(found, vm) for vm in "rbdp"]
    script = [*(line for table in (GUARD, ROUTED) for line in wire.table_lines(found.wanted[Key("nft-table", table)])),  # type: ignore[arg-type]
              *members.lines("add", (pair for item in items for pair in members.elements(item)))]
    script = [x for x in script if not re.search(r"ct state|ct zone set|reject with|vmap @ask|^ *(ether daddr @routers )?ct zone ", x)]
    done = subprocess.run(["unshare", "-rn", "sh", "-c", f"nft -f - && nft -j list table {GUARD} && nft -j list table {ROUTED}"],
                          input="\n".join(script), capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("no namespaces here")
    assert not done.stderr
    loaded = set().union(*(wire.read_listing(json.loads(line), table=table).members
                           for table, line in zip((GUARD, ROUTED), done.stdout.splitlines(), strict=True)))
    assert loaded == {p for item in items for p in members.elements(item)} and [text for name, text in loaded if "d6_app" in name]


HOST = {r.key: r for r in (
    Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master="", vrf=""),
    Link(name="br0", type="bridge", mtu=1500, mac="02:00:00:00:00:11", master="", vrf=""),
    Link(name="br0.5", type="vlan", parent="br0", mtu=1500, mac="02:00:00:00:00:11", master="", vrf=""))}
USERS = """
version: 1
vrfs: {red: {}}
uplinks: {out: UPLINK}
networks:
  red: {mode: nat, vrf: red, uplink: out, subnet: 10.1.0.0/24}
  old: {mode: bridge, bridge: br0}
vms:
  a: {nics: [{network: red, groups: [g]}, {network: red, limits: {send: {concurrent: 5}}}, {network: old, isolated: true}]}
groups: {g: {}}
tenants: {acme: {networks: [red]}}
"""


def lacks(uplink: str = "{device: eth0, vrf: red}", text: str = USERS, **features: str) -> dict[str, str]:
    found = lacking(loads(text.replace("UPLINK", uplink)).spec, Facts(state=HOST, features={"ipv6": "", "vrf": "", "vrf-exec": "", "vlan": "", **features}))
    return {p.path: p.message for p in found if "VRF" in p.message}


def test_a_host_that_can() -> None:
    assert lacks(**BRIDGE) == {}


@pytest.mark.parametrize("features", [{**BRIDGE, "bridge-conntrack": "no"}, {**BRIDGE, "nft-bridge-ibrname": "no"}, {}])
def test_a_host_that_cannot_says_where(features: dict[str, str]) -> None:
    found = lacks(**features)
    assert found.keys() == {"vms.a.nics[0].groups", "vms.a.nics[1]", "vms.a.nics[2]", "tenants.acme"}
    assert all("in a document with networks in a VRF: " in message for message in found.values())


@pytest.mark.parametrize("uplink", ["{device: br0, vrf: red}", "{device: br0, vlan: 10, vrf: red}", "{device: br0.5, vrf: red}"])
def test_an_uplink_on_a_bridge_would_be_in_no_zone(uplink: str) -> None:
    assert "on the bridge br0" in lacks(uplink, **BRIDGE)["uplinks.out.vrf"]
    alone = re.sub(r", groups: \[g\]|, limits: \{send: \{concurrent: 5\}\}|, isolated: true|tenants: .*", "", USERS)
    assert lacks(uplink, alone, **BRIDGE) == {}
