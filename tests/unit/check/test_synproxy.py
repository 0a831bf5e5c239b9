"""Which port of a guest a check asks as if from outside."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from kvmnet.check.allowed import Allowed
from kvmnet.check.synproxy import open_port
from kvmnet.drivers.nftables.resources import NicGroups
from kvmnet.policy.flows import Judge, Policy, Rule, Rules


@pytest.mark.parametrize(("ports", "groups", "port"), [
    (("80", "443"), (), 80), (("0-65535",), (), 65535), (("0-65535",), ("web",), 8080), (("1-100", "443"), ("web", "tls"), 443),
    (("80",), ("web",), None), (("80",), ("near",), None), (("22",), ("near", "all"), 22)])
def test_a_port_that_somebody_outside_may_ask(ports: tuple[str, ...], groups: tuple[str, ...], port: int | None) -> None:
    policy = Policy({"web": Rules((Rule(tcp=("8080-8090",)),)), "tls": Rules((Rule(tcp=("443",)),)), "all": Rules((Rule(),)),
                     "near": Rules((Rule(tcp=("80",), peers=("10.0.0.0/8",)),))})
    known = NicGroups(name="kvt-a-0", groups=groups, tenant="")
    allowed = Allowed(Judge(policy, [known], [], {}), {"kvt-a-0": known})
    place, nic = SimpleNamespace(subject=SimpleNamespace(allowed=allowed)), SimpleNamespace(tap="kvt-a-0")
    assert open_port(place, nic, ports, "198.51.100.1", "203.0.113.9") == port  # type: ignore[arg-type]
