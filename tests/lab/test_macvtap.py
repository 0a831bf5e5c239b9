"""Macvtaps where the machine's own kernel has no VLANs: on a VLAN of the uplink, and a device that is made anew."""
from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture
from lib.frames import BROADCAST, arp, ether
from lib.netns import inside, sh
from lib.tap import Tap
from lib.world import World, snapshot, unchanged, world

pytestmark = pytest.mark.lab

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  cell: {mode: macvtap, uplink: wan, vlan: 100, subnet: 10.100.0.0/24, address: 10.100.0.1, dhcp: {enabled: false}, dns: {enabled: false}}
vms:
  a: {nics: [{network: cell, mac: "52:54:00:00:00:0a", ip: 10.100.0.9, ip6: none}]}
  b: {nics: [{network: cell, mac: "52:54:00:00:00:0b", ip: 10.100.0.8, ip6: none}]}
"""
A = "52:54:00:00:00:0a"


@pytest.fixture
def here() -> Iterator[World]:
    with world() as made:
        yield made


def ask(mac: str, ip: str, nonce: bytes) -> bytes:
    return ether(BROADCAST, mac, 0x0806, arp(1, (mac, ip), ("00:00:00:00:00:00", "10.100.0.7")) + nonce)


def comes_out(here: World, port: Tap, frame: bytes) -> bool:
    """Whether a frame of a guest reaches the wire."""
    with inside(here.outside.netns):
        wire = Capture("segment")
    with wire:
        port.send(frame)
        while found := wire.receive():
            if frame[-12:] in found:
                return True
    return False


def test_on_a_vlan_and_made_anew(here: World) -> None:
    before = snapshot()
    here.apply(DOCUMENT)
    assert here.drift() == []
    with Tap.of_macvtap("kvt-a-0") as a, Tap.of_macvtap("kvt-b-0") as b:
        assert not comes_out(here, a, ask(A, "10.100.0.99", b"forged-forged"))
        assert comes_out(here, a, ask(A, "10.100.0.9", b"honest-honest"))
        b.wait(b"honest-honest")
        assert b.got(b"forged-forged") == 0
    assert "vlan protocol 802.1Q id 100" in sh("ip -d link show kvu-~cell")
    # The device made anew by another hand: this kernel's chain hangs on nothing then, and the gate is gone too.
    sh("ip link del kvt-a-0; ip link add link kvu-~cell name kvt-a-0 address 52:54:00:00:00:0a type macvtap mode bridge; "
       "ip link set kvt-a-0 addrgenmode none alias 'kvmnet nic a/nic0'")
    assert {"create gate kvt-a-0", "create open-port kvt-a-0"} <= set(here.drift())
    here.apply(DOCUMENT)
    assert here.drift() == []
    with Tap.of_macvtap("kvt-a-0") as a, Tap.of_macvtap("kvt-b-0") as b:
        a.send(ask(A, "10.100.0.99", b"forged-again"))
        a.send(ask(A, "10.100.0.9", b"honest-again"))
        b.wait(b"honest-again")
        assert b.got(b"forged-again") == 0
    # A device that is gone must not keep the keeper from loading the rules of the others: nft refuses a file that names it.
    sh("ip link del kvt-a-0; nft flush ruleset")
    wait_until(lambda: "goto guest" in sh("nft list chain netdev kvmnet egress_kvt-b-0 2>&1", check=False), 20)
    with Tap.of_macvtap("kvt-b-0") as b:
        wait_until(lambda: comes_out(here, b, ask("52:54:00:00:00:0b", "10.100.0.8", b"kept-on-and-on")), 20)
        assert not comes_out(here, b, ask("52:54:00:00:00:0b", "10.100.0.99", b"forged-and-kept"))
    here.destroy()
    unchanged(before)
