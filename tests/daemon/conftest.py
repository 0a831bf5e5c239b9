"""A dnsmasq driver in a namespace of its own; afterwards no process is left and no log has a warning."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.host.paths import Paths
from lib.dnsmasq import stop_all

EXPECTED = ("no address range available for DHCP", "no address available", "no upstream servers configured",
            "error binding DHCP socket to device", "/../../etc/hostname")
"""Said when somebody asks who has no reservation, of a network without a way out, when a link is taken away,
and when a guest asks TFTP for a file of the host: as the tests want it."""


@pytest.fixture
def driver(netns: None, paths: Paths) -> Iterator[DnsmasqDriver]:
    yield DnsmasqDriver(paths)
    logs = [log.read_text() for log in paths.run.glob("dnsmasq/*/log")]
    stop_all()
    bad = [line for log in logs for line in log.splitlines()
           if any(word in line.lower() for word in ("warning", "error", "failed", "cannot", "not giving", "duplicate"))
           and not any(known in line for known in EXPECTED)]
    assert not bad, "\n".join(bad)
