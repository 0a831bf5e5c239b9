"""The main job on Debian's kernel: three modes in one document, applied, proved with packets, repaired, destroyed."""
from __future__ import annotations

import pytest

from kvmnet.check.model import Verdict
from lib.netns import sh
from lib.world import OUTSIDE, world

pytestmark = pytest.mark.lab

DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
  office: {device: eth1}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64"}
  cell: {mode: isolated, subnet: 10.10.0.0/24, isolated_ports: true}
  office: {mode: bridge, uplink: office, subnet: 10.20.0.0/24, gateway: 10.20.0.1, pool: 10.20.0.100-10.20.0.120}
vms:
  web: {nics: [{network: lan, vhost: "on"}]}
  one: {nics: [{network: cell}]}
  two: {nics: [{network: cell}]}
  files: {nics: [{network: office, ip: 10.20.0.50}]}
"""


def test_apply_check_drift_destroy() -> None:
    with world(call_iptables=1) as made:        # Debian's default once br_netfilter is loaded
        sh(f"ip link add eth1 type veth peer name office netns {made.outside.netns}; ip link set eth1 up; "
           f"ip -n {made.outside.netns} addr add 10.20.0.1/24 dev office; ip -n {made.outside.netns} link set office up")
        before = sh("ip -br addr; ip -br link; nft list ruleset")
        made.apply(DOCUMENT)
        report = made.host.check([OUTSIDE])
        assert {(c.network, c.subject, c.name): c.evidence for c in report.claims if c.verdict is Verdict.FAIL} == {}
        proved = {c.network for c in report.claims if c.verdict is Verdict.PASS}
        assert proved == {"lan", "cell", "office"}

        web = made.guest("web")
        assert web.lease()["ip"] == web.ip
        assert web.pings(OUTSIDE)

        sh("nft flush chain bridge kvmnet prerouting; ip link set kvb-cell mtu 1300")
        assert made.drift() != []
        document = made.host.current()
        assert document is not None
        made.host.apply(made.host.plan_document(document))
        assert made.drift() == []

        made.destroy()
        assert sh("ip -br addr; ip -br link; nft list ruleset") == before
