"""A packet that the receiver's rules refuse leaves no flow behind for its sender's accomplice to answer in, where the host routes or sends.

The control is the same attempt with the chain of the host that judges before conntrack notes the flow taken away: the bridge
refuses the first packet still, and what comes back gets through.
"""
from __future__ import annotations

import re
import select
import socket
from collections.abc import Iterator
from contextlib import suppress
from itertools import count

import pytest

from kvmnet.drivers.nftables.driver import NftablesDriver
from lib.netns import inside, sh
from lib.world import NEVER, OUTSIDE, OUTSIDE6, SOON, World, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: routed, uplink: wan, subnet: 198.51.100.16/28, subnet6: "2001:db8:200::/64", peers: [pub]}
  pub: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64"}
vms:
  one: {tenant: t, nics: [{network: lan}]}
  two: {tenant: u, nics: [{network: pub}]}
  shy: {nics: [{network: pub, groups: [shy], extra: {addresses: [198.51.100.8/30, "2001:db8:100:0:1::/80", 198.51.100.13]}}]}
  twin: {nics: [{network: pub, groups: [shy], extra: {addresses: [198.51.100.13]}}]}
groups:
  shy: {ingress: [{tcp: 80}], egress: []}
tenants: {t: {}, u: {}}
"""
ALSO = {"prefix": ("198.51.100.9", "2001:db8:100:0:1::9"), "shared": ("198.51.100.13", "")}
"""What ``shy`` uses beside its own addresses."""
WAYS = [("outside", "prefix"), ("outside6", "prefix"), ("outside", "shared"), ("outside", "shy"), ("outside6", "shy"), ("host", "shy"), ("one", "two"), ("two", "one"), ("one6", "two")]
"""Who sends first, to whom: a guest that may send nothing, and two tenants."""
PORTS = count(20000, 2)
TABLE = "inet kvmnet-groups"


@pytest.fixture(scope="module")
def ground() -> Iterator[World]:
    with world() as made:
        for prefix, via in (("198.51.100.0/27", "192.0.2.2"), ("2001:db8:100::/64", "2001:db8:1::2"), ("2001:db8:200::/64", "2001:db8:1::2")):
            sh(f"ip -n {made.outside.netns} route add {prefix} via {via}")
        made.apply(DOCUMENT)
        for name, via, via6 in (("one", "198.51.100.17", "2001:db8:200::1"), ("two", "198.51.100.1", "2001:db8:100::1"),
                                ("shy", "198.51.100.1", "2001:db8:100::1")):
            guest = made.guest(name)
            guest.use(f"{guest.ip}/28", via=via)
            guest.use(f"{guest.ip6}/64", via6=via6)
        for address in ("198.51.100.9/28", "198.51.100.13/28", "2001:db8:100:0:1::9/64"):
            sh(f"ip -n {made.guest('shy').netns} addr add {address} dev eth0 nodad")
        yield made


def bound(made: World, name: str, six: bool, port: int) -> tuple[socket.socket, str]:
    """A socket of that end, and its address."""
    if name == "outside":
        netns, address = made.outside.netns, OUTSIDE6 if six else OUTSIDE
    elif name == "host":
        netns, address = "", "198.51.100.1"
    else:
        guest = made.guest("shy" if name in ALSO else name)
        netns, address = guest.netns, ALSO.get(name, (guest.ip, guest.ip6))[six]
    family = socket.AF_INET6 if six else socket.AF_INET
    if not netns:
        made_here = socket.socket(family, socket.SOCK_DGRAM)
        made_here.bind((address, port))
        return made_here, address
    with inside(netns):
        there = socket.socket(family, socket.SOCK_DGRAM)
    there.bind((address, port))
    return there, address


def comes_back(made: World, way: tuple[str, str], wait: float) -> tuple[bool, bool]:
    """Whether the first end's packet comes to the second, and then the second's to the first, on the same ports."""
    (first, six), second, port = (way[0].rstrip("6"), way[0].endswith("6")), way[1], next(PORTS)
    (a, a_is), (b, b_is) = bound(made, first, six, port), bound(made, second, six, port + 1)
    with a, b:
        with suppress(PermissionError):  # what the kernel says of a packet of the host's own that is dropped before it leaves
            a.sendto(b"poke", (b_is, port + 1))
        came = heard(b, NEVER)
        b.sendto(b"back", (a_is, port))
        return came, heard(a, wait)


def heard(ear: socket.socket, wait: float) -> bool:
    return bool(select.select([ear], [], [], wait)[0])


def test_a_refused_packet_opens_no_way_back(ground: World) -> None:
    assert [way for way in WAYS if comes_back(ground, way, NEVER) != (False, False)] == []
    counted = NftablesDriver(ground.paths).drops()[TABLE]
    taps = {name: f"kvt-{name}-0" for name in ("one", "two", "shy", "twin")}
    assert sum(counted[taps[name]][19] for name in ("shy", "twin") if taps[name] in counted) >= 6 and counted[taps["two"]][20] >= 1 and counted[taps["one"]][20] >= 1
    sh(f"nft flush chain {TABLE} postrouting")
    try:
        assert [way for way in WAYS if comes_back(ground, way, SOON) != (False, True)] == []
        assert "update nft-table inet kvmnet-groups" in [d.lower() for d in ground.drift()]
    finally:
        ground.apply(DOCUMENT)
    assert ground.drift() == []
    assert [way for way in WAYS if comes_back(ground, way, NEVER) != (False, False)] == []


def test_rules_change_in_place_members_are_elements_and_nothing_is_left(ground: World) -> None:
    handle = re.findall(r"table inet kvmnet-groups .*handle (\d+)", sh("nft -a list ruleset"))
    ground.apply(DOCUMENT.replace("{tcp: 80}", "{udp: any, from: 203.0.113.0/24}"))
    assert comes_back(ground, ("outside", "shy"), SOON) == (True, True) and comes_back(ground, ("outside6", "shy"), NEVER) == (False, False)
    ground.apply(DOCUMENT.replace("network: pub}", "network: pub, groups: [shy]}"))
    assert ground.drift() == []
    assert handle == re.findall(r"table inet kvmnet-groups .*handle (\d+)", sh("nft -a list ruleset"))
    key = re.search(r'"kvb-pub" \. 198\.51\.100\.\d+', sh(f"nft list map {TABLE} end4"))
    assert key
    sh(f"nft 'delete element {TABLE} end4 {{ {key[0]} }}'")
    assert [d.lower() for d in ground.drift()] == ["update nft-table inet kvmnet-groups"]
    ground.apply(DOCUMENT)
    assert ground.drift() == []
    ground.apply(re.sub(r"groups:\n.*", "", re.sub(r"tenant: \w, |, groups: \[shy\]", "", DOCUMENT), flags=re.S))
    assert ground.drift() == [] and "kvmnet-groups" not in sh("nft list tables")
    assert [way for way in WAYS if way[0] != "host" and comes_back(ground, way, SOON) != (True, True)] == []
