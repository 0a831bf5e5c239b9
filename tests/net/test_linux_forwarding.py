"""Packets pass between a guest network and its way out, and nothing else of the host begins to route."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.engine.plan import plan
from kvmnet.facts.model import Facts
from kvmnet.host.clock import wait_until
from kvmnet.modes.forwarding import PER_DEVICE, forwarding
from kvmnet.modes.segment import Part
from lib.netns import named_netns, sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]

GUEST, ISP, OTHER = (f"{name}{os.getpid()}" for name in ("guest", "isp", "other"))
PLACES = ((GUEST, "kvb-lan", 1), (ISP, "eth0", 2), (OTHER, "eth5", 3))
HAS_PER_DEVICE = os.path.exists("/proc/sys/net/ipv6/conf/all/force_forwarding")  # noqa: PTH110


@pytest.fixture
def places(netns: None) -> Iterator[None]:
    """A guest network, an outside and a third network of the host, each a namespace of its own."""
    with named_netns(GUEST), named_netns(ISP), named_netns(OTHER):
        for place, dev, number in PLACES:
            sh(f"ip link add {dev} type veth peer name nic netns {place} && ip link set {dev} up alias kvmnet &&"
               f"ip addr add 10.{number}.0.1/24 dev {dev} && ip addr add 2001:db8:{number}::1/64 dev {dev} nodad &&"
               f"ip -n {place} link set nic up && ip -n {place} addr add 10.{number}.0.2/24 dev nic &&"
               f"ip -n {place} addr add 2001:db8:{number}::2/64 dev nic nodad &&"
               f"ip -n {place} route add default via 10.{number}.0.1 &&"
               f"ip -n {place} -6 route add default via 2001:db8:{number}::1")
        sh("ip link set eth0 alias '' && ip link set eth5 alias ''")
        yield


def reaches(netns: str, number: int, family: int, wait: float = 1) -> bool:
    address = f"10.{number}.0.2" if family == 4 else f"2001:db8:{number}::2"
    try:
        return bool(wait_until(lambda: "1 received" in sh(
            f"ip netns exec {netns} ping -{family} -n -c 1 -W 1 {address}", check=False), wait, 0.1))
    except TimeoutError:
        return False


@pytest.mark.usefixtures("places")
@pytest.mark.parametrize("per_device", [
    False, pytest.param(True, marks=pytest.mark.skipif(not HAS_PER_DEVICE, reason="Linux older than 6.17"))])
def test_only_the_two_devices_route(per_device: bool) -> None:
    driver, part = LinuxDriver(), Part()
    features = {PER_DEVICE: "" if per_device else "too old"}
    forwarding(part, frozenset({4, 6}), ("kvb-lan", "eth0"), Facts(state=driver.observe({}).state, features=features))
    assert not any(reaches(GUEST, 2, family, wait=0.2) for family in (4, 6))
    wanted = {r.key: r for r in part.resources}
    seen = driver.observe(wanted)
    driver.apply(plan(seen.state, wanted, seen.ours & wanted.keys(), part.borrowed), lambda _: None)
    again = driver.observe(wanted)
    assert plan(again.state, wanted, again.ours & wanted.keys(), part.borrowed) == ()
    for family in (4, 6):
        assert reaches(GUEST, 2, family, 10) and reaches(ISP, 1, family, 10)
    assert not reaches(OTHER, 1, 4, wait=0.2)
    assert reaches(OTHER, 1, 6, wait=0.5) == (not per_device)  # the one switch for all, and its price
    assert bool(part.notes) == (not per_device)
    assert sh("cat /proc/sys/net/ipv4/ip_forward").strip() == "0"


def test_nothing_is_switched_on_for_a_family_that_is_not_used() -> None:
    part = Part()
    forwarding(part, frozenset({4}), ("kvb-lan", "eth0"), Facts())
    assert {r.key.name for r in part.resources} == {
        "net/ipv4/conf/kvb-lan/forwarding", "net/ipv4/conf/eth0/forwarding"}
    assert {k.name for k in part.borrowed} == {"net/ipv4/conf/eth0/forwarding"}
