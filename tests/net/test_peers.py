"""Networks joined by `peers` on a host that forwards nothing else: guests with what DHCP gave them, in both directions."""
from __future__ import annotations

import pytest

from lib.netns import sh
from lib.world import NEVER, world

pytestmark = pytest.mark.net

DOCUMENT = """\
version: 1
networks:
  lab: {mode: isolated, subnet: 10.10.0.0/24, subnet6: "fd00:10::/64", peers: [store]}
  store: {mode: isolated, subnet: 10.10.1.0/24, subnet6: "fd00:11::/64"}
  cell: {mode: isolated, subnet: 10.10.2.0/24, subnet6: "fd00:12::/64"}
vms:
  bench: {nics: [{network: lab, ip: 10.10.0.10, ip6: "fd00:10::10"}]}
  disk: {nics: [{network: store, ip: 10.10.1.10, ip6: "fd00:11::10"}]}
  one: {nics: [{network: cell, ip: 10.10.2.10, ip6: "fd00:12::10"}]}
"""


def test_peers_are_forwarded_to_and_told_the_way() -> None:
    with world() as host:
        assert sh("sysctl -n net.ipv4.ip_forward").strip() == "0"
        host.apply(DOCUMENT)
        assert host.drift() == []
        guests = {name: host.guest(name) for name in ("bench", "disk", "one")}
        for (name, guest), n in zip(guests.items(), (10, 11, 12), strict=True):
            guest.lease()
            guest.use(f"fd00:{n}::10/64", via6=f"fd00:{n}::1")
            host.service(guest, name, 80)
        bench, disk, one = guests.values()
        assert bench.tcp("10.10.1.10", 80) == "disk 10.10.0.10"
        assert disk.tcp("10.10.0.10", 80) == "bench 10.10.1.10"
        assert bench.tcp("fd00:11::10", 80) == "disk fd00:10::10"
        one.use(via="10.10.2.1")
        for target in ("10.10.1.10", "fd00:11::10"):
            assert one.tcp(target, 80, NEVER) == "", "no peer of theirs"
