"""What the kernel drops by itself when an address goes is in the plan, made again, and undone with the rest."""
from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from kvmnet.errors import ApplyFailed
from lib.netns import sh
from lib.world import ROUTER, World, same, snapshot, steady, unchanged, world

pytestmark = pytest.mark.net

FIRST = """
version: 1
uplinks:
  two: {device: eth2, addresses: [10.5.0.2/24], gateway: 10.5.0.1, routes: [{to: 10.6.0.0/16, via: 10.5.0.1}]}
"""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        sh(f"ip link add eth2 type veth peer name f2 netns {made.outside.netns}; ip link set eth2 up; "
           f"ip -n {made.outside.netns} addr add 10.5.0.1/24 dev f2; ip -n {made.outside.netns} link set f2 up; "
           "ip route del default; sysctl -qw net.ipv4.conf.eth2.promote_secondaries=0")
        steady()
        yield made


def routes() -> list[str]:
    return sorted(r["dst"] for r in json.loads(sh("ip -j -4 route show dev eth2")) if r.get("protocol") != "kernel")


def test_the_routes_of_a_link_that_gets_another_address(net: World) -> None:
    before = snapshot()
    net.apply(FIRST)
    sh("ip route add 10.99.0.0/16 via 10.5.0.1 dev eth2 proto static; ip route add 10.98.0.0/16 dev eth2 src 10.5.0.2 table 7")
    there = routes()
    assert there == ["10.6.0.0/16", "10.99.0.0/16", "default"]
    planned = net.plan(FIRST.replace("10.5.0.2/24", "10.5.0.3/24"))
    assert sorted(s.key.name for s in planned.steps if s.key.kind == "route") == [
        "10.6.0.0/16 dev eth2", "10.99.0.0/16 dev eth2", "default dev eth2"]
    net.apply(FIRST.replace("10.5.0.2/24", "10.5.0.3/24"))
    assert routes() == there and net.drift() == [] and net.here.pings("10.5.0.1")
    assert "10.98" not in sh("ip route show table 7", check=False), "it named the address that is gone"
    sh("ip route del 10.99.0.0/16")
    net.destroy()
    unchanged(before)


def test_they_are_back_when_the_change_is_taken_back(net: World) -> None:
    net.apply(FIRST)
    sh("ip route add 10.99.0.0/16 via 10.5.0.1 dev eth2 proto static; ip route add 10.98.0.0/16 dev eth2 src 10.5.0.2 table 7")
    before = snapshot()
    with pytest.raises(ApplyFailed):
        net.apply(FIRST.replace("10.5.0.2/24", "10.5.0.3/24").replace("to: 10.6.0.0/16, via: 10.5.0.1",
                                                                       "to: 10.6.0.0/16, via: 172.31.0.1"))
    unchanged(before)


@pytest.mark.parametrize("promote", [0, 1])
def test_the_second_address_of_a_prefix_outlives_the_first(net: World, promote: int) -> None:
    sh(f"sysctl -qw net.ipv4.conf.eth2.promote_secondaries={promote}")
    both = FIRST.replace("[10.5.0.2/24]", "[10.5.0.2/24, 10.5.0.3/24]")
    net.apply(both)
    assert "secondary" in sh("ip addr show dev eth2")
    net.apply(FIRST.replace("10.5.0.2/24", "10.5.0.3/24"))
    assert "10.5.0.3/24" in sh("ip addr show dev eth2") and "10.5.0.2" not in sh("ip addr show dev eth2")
    assert routes() == ["10.6.0.0/16", "default"] and net.drift() == []


def test_a_link_that_goes_down_takes_what_is_foreign_with_it_and_the_undo_brings_it_back(net: World) -> None:
    """By the driver and the planner alone: documents of kvmnet never take a link down for good."""
    from kvmnet.drivers.linux.driver import LinuxDriver
    from kvmnet.drivers.linux.resources import Link
    from kvmnet.engine.plan import before_image, plan
    sh(f"ip addr add 10.5.0.2/24 dev eth2; ip addr add 2001:db8:5::2/64 dev eth2 nodad; ip route add 10.9.0.0/16 via {ROUTER} "
       "dev eth2 onlink; ip -6 route add 2001:db8:9::/48 via 2001:db8:5::1 dev eth2")
    steady()
    driver = LinuxDriver()
    before = snapshot()
    seen = driver.observe({})
    down = Link(name="eth2", up=False)
    steps = plan(seen.state, {down.key: down}, seen.ours, {down.key})
    assert [s.key.kind for s in steps] == ["link"]
    driver.apply(steps, lambda n: None)
    image = before_image(seen.state, steps, seen.ours)
    assert {k.kind for k in image} == {"link", "address", "route"}
    now = driver.observe(image)
    driver.apply(plan(now.state, image, frozenset(), adopt=True), lambda n: None)
    steady()
    after = snapshot()
    for part in (before, after):
        for link in part["links"]:
            link["addr_info"] = [a for a in link["addr_info"] if a["scope"] != "link"]
        part["routes"] = [r for r in part["routes"] if "fe80" not in r and "multicast" not in r and "ff00" not in r]
    same(before, after)
