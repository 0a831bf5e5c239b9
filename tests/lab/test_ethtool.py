"""Rings and coalescing of a NIC with real hardware behind it (e1000e): set, read back, refused, given back."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import plan
from kvmnet.errors import ApplyFailed, HostCannot, SpecError
from kvmnet.host.clock import wait_until
from lib.netns import sh
from lib.world import World, world

pytestmark = pytest.mark.lab

NIC, MAC = "nic0", "52:54:00:e1:00:0e"


@pytest.fixture
def net() -> Iterator[World]:
    """A host that the lab's NIC belongs to; it goes back by itself when the namespace ends."""
    sh("modprobe e1000e")
    with world() as made:
        outer = "nsenter -t 1 -n ip"
        found = wait_until(lambda: re.search(rf"^\d+: (\S+): .*\n\s+link/ether {MAC}", sh(f"{outer} link"), re.M), 20)
        assert found
        sh(f"{outer} link set {found[1]} down; {outer} link set {found[1]} name {NIC}; {outer} link set {NIC} netns {os.getpid()}")
        sh(f"ip link set {NIC} up")
        yield made
        sh(f"ip link set {NIC} down; ip link set {NIC} netns 1")


def document(ethtool: str) -> str:
    return f"version: 1\nuplinks: {{two: {{device: {NIC}, ethtool: {ethtool}}}}}\n"


def shown(option: str, *names: str) -> list[int]:
    """Numbers as the tool prints them."""
    text = sh(f"ethtool {option} {NIC}").rpartition("Current hardware settings:")[2]
    return [int(m[1]) for n in names if (m := re.search(rf"^{n}:\s+(\d+)", text, re.M))]


def test_an_mtu_that_the_nic_does_not_take(net: World) -> None:
    """Refused with the maximum when planned, and with the kernel's words where only the kernel is asked."""
    shown = re.search(r"maxmtu (\d+)", sh(f"ip -d link show {NIC}"))
    assert shown
    with pytest.raises(SpecError) as wrong:
        net.plan(f"version: 1\nuplinks: {{two: {{device: {NIC}, mtu: 20000}}}}\n")
    assert f"{NIC} takes an MTU of at most {shown[1]}" in str(wrong.value.problems)
    driver, claim = LinuxDriver(), Link(name=NIC, mtu=20000)
    seen = driver.observe({})
    with pytest.raises(StepFailed, match="mtu greater than device maximum"):
        driver.apply(plan(seen.state, {claim.key: claim}, seen.ours, {claim.key}), lambda n: None)


def test_rings_and_coalescing(net: World) -> None:
    rings, delay = shown("-g", "RX", "TX"), shown("-c", "rx-usecs")
    assert len(rings) == 2 and len(delay) == 1
    net.apply(document("{rings: {rx: 1024, tx: 512}, coalesce: {rx_usecs: 100}, features: {generic-receive-offload: false}}"))
    assert shown("-g", "RX", "TX") == [1024, 512] and shown("-c", "rx-usecs") == [100] and net.drift() == []
    with pytest.raises(HostCannot, match=rf"{NIC} takes at most 4096"):
        net.plan(document("{rings: {rx: 8192}}"))
    for told, words in (("{rings: {rx: 2048}, coalesce: {rx_usecs: 2}}", "Invalid argument"),
                        ("{rings: {rx: 2048}, coalesce: {tx_usecs: 50}}", "unsupported")):
        with pytest.raises(ApplyFailed) as failed:
            net.apply(document(told))
        assert words in str(failed.value) and f"nic-tuning {NIC}" in str(failed.value), "the kernel's words are shown"
        assert shown("-g", "RX", "TX") == [1024, 512] and shown("-c", "rx-usecs") == [100]
    net.apply(document("{coalesce: {rx_usecs: 100}}"))
    assert shown("-g", "RX", "TX") == rings and shown("-c", "rx-usecs") == [100]
    net.destroy()
    assert shown("-g", "RX", "TX") == rings and shown("-c", "rx-usecs") == delay
