"""MSTP in a ring of three bridges of the same program: the trees of two instances, and the gate, which goes by the tags of frames.

This kernel has no VLANs on bridges, so their states take no part: tags pass the bridges as they are, and the gate judges them.
"""
from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.stp.gate import table_of
from kvmnet.drivers.stp.resources import TreeGate
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.flood import ear
from lib.frames import BROADCAST, ether, tag
from lib.netns import inside, named_netns, sh
from lib.switch import Switch, roles

pytestmark = pytest.mark.net
SOON = 40.0
MACS = ("02:00:00:00:0a:01", "02:00:00:00:0b:01", "02:00:00:00:0c:01")
PRIORITIES = ((4096, 0, 8192), (8192, 8192, 0), (61440, 61440, 61440))
"""Of each bridge in the common tree and in both instances: a, b, and the host between them."""
OPEN, SHUT = {"role": "root", "state": "forwarding"}, {"role": "alternate", "state": "discarding"}
BY_A, BY_B = {"a": 1, "b": 1, "link to a": 1, "link to b": 0}, {"a": 1, "b": 1, "link to a": 0, "link to b": 1}


@dataclass
class Ring:
    a: Switch
    b: Switch
    near: Switch

    def rest(self) -> None:
        """Until each instance goes by the link to its root."""
        wait_until(lambda: [roles(self.near.told(), n) for n in (0, 1, 2)] == [
            {"p1": OPEN, "p2": SHUT}, {"p1": OPEN, "p2": SHUT}, {"p1": SHUT, "p2": OPEN}], SOON)

    def heard(self, vid: int) -> dict[str, int]:
        """How often one broadcast on a VLAN (0: none, -1: given a priority alone) comes to each switch, and by which link."""
        def send(nonce: bytes) -> None:
            frame = ether(BROADCAST, "02:00:00:00:07:01", 0x88B5, nonce)
            out.send(frame if vid == 0 else tag(max(vid, 0), frame))
        first, nonce, last = (uuid4().bytes for _ in range(3))
        with inside(self.near.netns):
            out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            out.bind(("h0", 0))
        with closing(out), ExitStack() as stack:
            places = {"a": (self.a, "h0"), "b": (self.b, "h0"), "link to a": (self.a, "p1"), "link to b": (self.b, "p1")}
            ears = {name: stack.enter_context(ear(switch.netns, port, nonce)) for name, (switch, port) in places.items()}
            for other in (first, last):    # before it the ways are open; after it what goes round has gone round
                ends = [stack.enter_context(ear(switch.netns, "h0", other)) for switch in (self.a, self.b)]
                wait_until(lambda: send(other) or min(e.drain() for e in ends), SOON)  # type: ignore[func-returns-value]  # noqa: B023
                if other is first:
                    send(nonce)
            return {name: found.drain() for name, found in ears.items()}


@pytest.fixture(scope="module")
def ring() -> Iterator[Ring]:
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory(prefix="kvmnet-mstp-")))
        names = [stack.enter_context(named_netns(f"kvt-{os.getpid()}-{uuid4().hex[:6]}")) for _ in range(3)]
        a, b, near = names
        sh(f"ip -n {near} link add p1 type veth peer name p1 netns {a}; ip -n {near} link add p2 type veth peer name p1 netns {b}; "
           f"ip -n {a} link add p2 type veth peer name p2 netns {b};" + "".join(f"ip -n {n} link set {p} up;" for n in names for p in ("p1", "p2")))
        switches = []
        for name, mac, (common, one, two) in zip(names, MACS, PRIORITIES, strict=True):
            switch = Switch(name, StpDriver(Paths(place / name, place / name)), place, instances=(f"1 {one} 100-199", f"2 {two} 200"))
            switch.start(mac, common)
            stack.callback(switch.stop)
            switches.append(switch)
        made = Ring(switches[0], switches[1], switches[2])
        made.rest()
        yield made


def test_vlans_of_two_instances_go_by_different_links_and_come_once(ring: Ring) -> None:
    """On VLANs of no instance, and without one, the common tree counts, whose root is a."""
    assert all(port["inside"] for port in (ring.near.told() or {})["ports"].values())
    assert {vid: ring.heard(vid) for vid in (100, 199, 200, 300, 0, -1)} == {
        100: BY_A, 199: BY_A, 200: BY_B, 300: BY_A, 0: BY_A, -1: BY_A}


def test_a_cut_link_heals_in_one_instance_and_the_other_stays(ring: Ring) -> None:
    sh(f"ip -n {ring.near.netns} link set p1 down")
    assert ring.heard(100) == BY_B and ring.heard(200) == BY_B
    sh(f"ip -n {ring.near.netns} link set p1 up")
    ring.rest()


def test_a_gate_that_was_taken_away_is_made_again_with_its_trees(ring: Ring) -> None:
    def gate() -> TreeGate | None:
        with inside(ring.a.netns):
            return ring.a.driver.gate(ring.a.driver.folder / "br0")
    before = gate()
    assert before is not None and before.whole and before.instances == ("1 100-199", "2 200")
    sh(f"ip netns exec {ring.a.netns} nft delete table {table_of('br0')}")
    wait_until(lambda: gate() == before, SOON, 0.1)
    assert ring.heard(200) == BY_B


def test_when_nobody_speaks_each_vlan_keeps_its_link(ring: Ring) -> None:
    with inside(ring.near.netns):
        speaking = ring.near.driver.speaking("br0")
        os.kill(int((speaking.read("process.json") or {})["pid"]), signal.SIGKILL)
        wait_until(lambda: not speaking.alive(), SOON)
    wait_until(lambda: roles(ring.b.told(), 1)["p1"]["state"] == "forwarding" and roles(ring.a.told(), 2)["p1"]["state"] == "forwarding", SOON)
    assert (ring.heard(100), ring.heard(200)) == (BY_A, BY_B)
    with inside(ring.near.netns):
        speaking.start(ring.near.tree)
    ring.rest()
