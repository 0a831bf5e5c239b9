"""What a host must have for limits: limits in elements of sets, and for those of flows who tracks them."""
from __future__ import annotations

import pytest

from kvmnet.drivers.linux.resources import Link
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import lacking
from kvmnet.spec.load import loads

LINKS = {r.key: r for r in (Link(name="eth0", type="physical", mtu=1500, mac="02:00:00:00:00:10", master=""),
                            Link(name="br0", type="bridge", mtu=1500, mac="02:00:00:00:00:11"))}
DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24, limits: {send: {concurrent: 5}}}
  old: {mode: bridge, bridge: br0}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: old, ip: 10.1.0.2, limits: {send: {connections: 5/s}}}]}
  c: {nics: [{network: old, ip: 10.1.0.3, limits: {send: {packets: 5/s}, receive: {syn: 5/s}}}]}
  d: {nics: [{network: lan, limits: {send: {concurrent: none}}}]}
"""


@pytest.mark.parametrize(("features", "where"), [
    ({"bridge-conntrack": ""}, set()),
    ({"bridge-conntrack": "", "nft-element-limits": "old"}, {"networks.lan.limits", "vms.b.nics[0].limits", "vms.c.nics[0].limits"}),
    ({"bridge-conntrack": "no", "bridge-netfilter": ""}, {"vms.b.nics[0].limits"}),
    ({"bridge-conntrack": "no", "bridge-netfilter": "no"}, {"vms.b.nics[0].limits", "networks.lan.limits"})])
def test_what_is_lacking(features: dict[str, str], where: set[str]) -> None:
    found = lacking(loads(DOCUMENT).spec, Facts(state=LINKS, features={"ipv6": "", **features}))
    assert {p.path for p in found if "limits" in p.path} == where


def test_a_kernel_that_cannot_answer_connections() -> None:
    text = ("version: 1\nuplinks: {wan: {device: eth0}}\nnetworks: {lan: {mode: routed, uplink: wan, subnet: 10.0.0.0/24}}\n"
            "vms: {a: {nics: [{network: lan, limits: {receive: {synproxy: [80]}}}]}, b: {nics: [{network: lan, limits: {receive: {synproxy: none}}}]}}\n")
    here, grouped = ["vms.a.nics[0].limits.receive.synproxy"], text + "tenants: {t: {}}\n"
    for document, features, where in ((text, {"bridge-conntrack": ""}, []), (text, {"nft-synproxy": "no"}, here),
                                      (grouped, {"bridge-conntrack": ""}, here), (grouped, {"bridge-conntrack": "no"}, [])):
        found = lacking(loads(document).spec, Facts(state=LINKS, features={"ipv6": "", "nft-synproxy": "", **features}))
        assert [p.path for p in found if "synproxy" in p.path] == where


def test_a_rate_beside_that_of_the_tenant() -> None:
    """What a NIC sends waits in one queue only: it needs a class there."""
    text = ("version: 1\nnetworks: {lan: {mode: isolated, subnet: 10.0.0.0/24}}\ntenants: {t: {rate: {out: 5mbit, in: 5mbit}}}\n"
            "vms: {a: {tenant: t, nics: [{network: lan, rate: {in: 1mbit, out: 1mbit}}]}, b: {nics: [{network: lan, rate: {out: 1mbit}}]}}\n")
    for reason, where in (("", []), ("no", ["vms.a.nics[0].rate.out"])):
        found = lacking(loads(text).spec, Facts(state=LINKS, features={"ipv6": "", "tc-skbedit": reason}))
        assert [p.path for p in found if "rate" in p.path] == where
