"""Real dnsmasqs, real DHCPv4 clients."""
from __future__ import annotations

import pytest
from lib.dhcp import client
from lib.dnsmasq import apply, make_bridge, nic, segment, wanted

from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver, leases

pytestmark = pytest.mark.daemon
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"


def test_reserved_address_and_options(driver: DnsmasqDriver) -> None:
    lan = segment([nic(MAC, "10.1.0.10", "web1", mtu=1400)], mtu=1400)
    make_bridge(lan)
    apply(driver, wanted(lan))
    with client(lan.bridge, MAC) as guest:
        got = guest.lease4()
    assert (got["ip"], got["router"], got["dns"], got["mtu"]) == ("10.1.0.10", "10.1.0.1", "10.1.0.1", "1400")
    assert (got["domain"], got["search"], got["lease"], got["mask"]) == ("lan", "lan", "43200", "24")
    [lease] = leases(driver.paths, "lan")
    assert (lease.mac, lease.ip, lease.hostname) == (MAC, "10.1.0.10", "web1")
