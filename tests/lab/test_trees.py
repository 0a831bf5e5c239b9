"""MSTP on a VLAN-aware bridge: a host on two switches, two instances whose VLANs go by different links, and RSTP on the same bridge
with a bond. Here the kernel has states of VLANs; trees of three bridges that speak with each other are in tests/net/test_mstp.py.

The switches are bridges of the kernel's that forward all, and the test says in their names what two switches of a region say which
have come to rest: what closes the ring is the host.
"""
from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from uuid import uuid4

import pytest

from kvmnet.drivers.stp.process import Speaking
from kvmnet.drivers.stp.wiring import Wiring
from kvmnet.host.clock import wait_until
from kvmnet.spanning import tree_statuses
from kvmnet.stp.bpdu import Bpdu, Flags, Message, Region, digest, frame
from kvmnet.stp.vectors import Protocol, Role, Times, Vector, bridge_id
from lib.flood import ear
from lib.frames import BROADCAST, ether
from lib.netns import inside, named_netns, sh
from lib.settled import lines, settled
from lib.switch import roles
from lib.tap import Tap
from lib.world import World, unchanged, world

pytestmark = pytest.mark.lab
SOON = 90.0
A, B = "02:00:00:00:0a:01", "02:00:00:00:0b:01"
REGION = Region("lab", 0, digest(dict.fromkeys(range(100, 200), 1) | {200: 2}))
GUESTS = {100: "52:54:00:00:07:01", 200: "52:54:00:00:07:02"}
MSTP = """
version: 1
uplinks: {ring: {device: n1, redundant: {n2: {}}}}
networks:
  one:
    mode: bridge
    uplink: ring
    vlan: 100
    stp: mstp
    stp_options: {priority: 61440, hello: 1, region: {name: lab, instances: {1: {vlans: 100-199, priority: 61440}, 2: {vlans: 200, priority: 61440}}}}
  two: {mode: bridge, uplink: ring, vlan: 200}
vms:
  a: {nics: [{network: one, mac: '52:54:00:00:07:01', ip: none, ip6: none, guard: 'off'}]}
  b: {nics: [{network: two, mac: '52:54:00:00:07:02', ip: none, ip6: none, guard: 'off'}]}
"""
RSTP = "\n".join(line for line in MSTP.replace("device: n1", "members: [n1]").replace("stp: mstp", "stp: rstp").replace(
    ", region: {name: lab, instances: {1: {vlans: 100-199, priority: 61440}, 2: {vlans: 200, priority: 61440}}}", "").splitlines())
OPEN, SHUT = {"role": "root", "state": "forwarding"}, {"role": "alternate", "state": "discarding"}


def hello(mac: str, trees: dict[int, tuple[int, int, int]]) -> bytes:
    """What a switch of the region says. ``trees``: number -> (its bridge identifier there, that of the root, cost of the way to it)."""
    # Ten seconds between messages are said, one is kept: a busy lab may not send for many of them.
    flags, times = Flags(Role.DESIGNATED, learning=True, forwarding=True), Times(0, 40, 10, 30, 20)
    own, root, cost = trees[0]
    common = Vector(root, 0, root, cost, own, 0x8001)
    instances = {n: Message(flags, Vector(0, 0, top, far, here, 0x8001), times) for n, (here, top, far) in trees.items() if n}
    return frame(mac, Bpdu(Protocol.MSTP, common=Message(flags, common, times), region=REGION, inner=Message(flags, common, times), instances=instances))


def both() -> tuple[bytes, bytes]:
    """What two switches say with a link of cost 2000 between them; a is the root of the common tree and of instance 1, b that of 2."""
    a0, a1, a2 = (bridge_id(priority, A, n) for n, priority in enumerate((4096, 0, 8192)))
    b0, b1, b2 = (bridge_id(priority, B, n) for n, priority in enumerate((8192, 8192, 0)))
    return (hello(A, {0: (a0, a0, 0), 1: (a1, a1, 0), 2: (a2, b2, 2000)}), hello(B, {0: (b0, a0, 2000), 1: (b1, a1, 2000), 2: (b2, b2, 0)}))


class Voices:
    """Says it by the switches' ports, again and again."""

    def __init__(self, places: list[tuple[str, str]]):
        self.wirings = []
        for netns, mac in places:
            with inside(netns):
                self.wirings.append(Wiring("p1", socket.if_nametoindex("p1"), mac))
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        said = both()
        while not self.over.wait(1):
            for wiring, data in zip(self.wirings, said, strict=True):
                wiring.send(data)

    def close(self) -> None:
        self.over.set()
        self.thread.join()
        for wiring in self.wirings:
            wiring.close()


@dataclass
class Ring:
    near: World
    a: str
    b: str
    taps: dict[int, Tap]

    @property
    def speaking(self) -> Speaking:
        return Speaking(self.near.paths.run / "trees" / "kvb-~ring")

    def ways(self, tree: int) -> dict[str, dict[str, str]]:
        return roles(self.speaking.state(), tree)

    def rest(self) -> None:
        """Until each instance has the switch for its root that is to be it, and the way there is the link to it."""
        wait_until(lambda: (self.ways(1), self.ways(2)) == ({"n1": OPEN, "n2": SHUT}, {"n1": SHUT, "n2": OPEN}), SOON)

    def sent(self, vid: int) -> dict[str, int]:
        """Where one broadcast of the guest of a VLAN is heard, and how often: behind each switch, and coming in by a link to it."""
        places = {f"{name} {port}": (switch, port) for name, switch in (("a", self.a), ("b", self.b)) for port in ("p1", "h0")}
        first, nonce, last = (uuid4().bytes for _ in range(3))
        with ExitStack() as stack:
            ears = {name: stack.enter_context(ear(*place, nonce)) for name, place in places.items()}
            for other in (first, last):    # before it the ways are open; after it what goes round has gone round
                ends = [stack.enter_context(ear(switch, "h0", other)) for switch in (self.a, self.b)]
                wait_until(lambda: self.send(vid, other) or all(e.drain() for e in ends), SOON, 0.1)  # type: ignore[func-returns-value]  # noqa: B023
                if other is first:
                    self.send(vid, nonce)
            return {name: found.drain() for name, found in ears.items()}

    def send(self, vid: int, nonce: bytes) -> None:
        self.taps[vid].send(ether(BROADCAST, GUESTS[vid], 0x88B5, nonce))

    def vlan_states(self, port: str) -> dict[int, str]:
        return {v["vlan"]: v["state"] for item in json.loads(sh(f"bridge -j -d vlan show dev {port}")) for entry in item["vlans"]
                for v in [entry | {"vlan": vid} for vid in range(entry["vlan"], entry.get("vlanEnd", entry["vlan"]) + 1)]}


BY_A, BY_B = {"a p1": 1, "a h0": 1, "b p1": 0, "b h0": 1}, {"a p1": 0, "a h0": 1, "b p1": 1, "b h0": 1}


@pytest.fixture
def ring() -> Iterator[Ring]:
    with ExitStack() as stack:
        near = stack.enter_context(world())
        names = [stack.enter_context(named_netns(f"kvt-{os.getpid()}-{uuid4().hex[:6]}")) for _ in range(2)]
        a, b = names
        sh(f"ip link add n1 type veth peer name p1 netns {a}; ip link add n2 type veth peer name p1 netns {b}; "
           f"ip -n {a} link add p2 type veth peer name p2 netns {b}; ip link set n1 up; ip link set n2 up")
        for name in names:    # in few processes: each takes its time here
            ports = ("p1", "p2", "g0")
            links = ["link add br0 up type bridge vlan_filtering 1", "link add g0 type veth peer name h0", "link set h0 up",
                     *(f"link set {port} master br0 up" for port in ports)]
            vlans = [f"vlan add dev {port} vid 100-200" for port in ports]
            sh(f"ip -n {name} -batch - <<'END'\n" + "\n".join(links) + f"\nEND\nbridge -n {name} -batch - <<'END'\n" + "\n".join(vlans)
               + f"\nEND\nip netns exec {name} nft 'add table bridge t; add chain bridge t c {{ type filter hook prerouting priority 0; }}; "
               "add rule bridge t c ether daddr 01:80:c2:00:00:00 drop'")
        stack.callback(Voices([(a, A), (b, B)]).close)
        yield Ring(near, a, b, {})


def test_vlans_go_by_different_links_and_heal(ring: Ring) -> None:
    near, before = ring.near, settled()
    lines(near, MSTP)
    ring.taps.update({100: Tap("kvt-a-0"), 200: Tap("kvt-b-0")})
    ring.rest()
    assert (ring.sent(100), ring.sent(200)) == (BY_A, BY_B)
    seen = near.host.engine.observe({})
    assert {t.instance: (t.root, t.root_port) for t in tree_statuses(near.paths, seen.state)} == {
        0: ("4096.02:00:00:00:0a:01", "n1"), 1: ("0.02:00:00:00:0a:01", "n1"), 2: ("0.02:00:00:00:0b:01", "n2")}
    a_cut_heals(ring)
    vlans_that_come_are_shut_where_their_tree_is(ring)
    nobody_speaks(ring)
    by_rstp_with_a_bond(ring)
    sh("ip link set n1 up")
    for tap in ring.taps.values():
        tap.close()
    near.destroy()
    unchanged(before, settled)


def a_cut_heals(ring: Ring) -> None:
    sh("ip link set n1 down")
    assert ring.sent(100) == {"a p1": 0, "a h0": 1, "b p1": 1, "b h0": 1} and ring.ways(2)["n2"] == OPEN
    sh("ip link set n1 up")
    ring.rest()


def vlans_that_come_are_shut_where_their_tree_is(ring: Ring) -> None:
    """The kernel has a VLAN forward that a port gets."""
    sh("bridge vlan add dev n1 vid 150; bridge vlan add dev n2 vid 150")
    wait_until(lambda: ring.vlan_states("n2").get(150) == "blocking", SOON)
    assert ring.vlan_states("n1") == {1: "forwarding", 100: "forwarding", 150: "forwarding", 200: "blocking"}
    assert ring.vlan_states("n2") == {1: "blocking", 100: "blocking", 150: "blocking", 200: "forwarding"}
    assert set(ring.vlan_states("kvt-a-0").values()) == {"forwarding"}, "guests' ports are no part of it"


def nobody_speaks(ring: Ring) -> None:
    """What is shut stays so without a process, and without the gate."""
    os.kill(int((ring.speaking.read("process.json") or {})["pid"]), signal.SIGKILL)
    wait_until(lambda: not ring.speaking.alive(), SOON)
    sh("nft flush ruleset")
    sh("ip link set n2 down; ip link set n2 up")
    wait_until(lambda: '"state":"forwarding"' in sh("bridge -j link show dev n2"), SOON)
    assert ring.vlan_states("n2") == {1: "blocking", 100: "blocking", 150: "blocking", 200: "forwarding"}
    assert ring.sent(100) == BY_A


def by_rstp_with_a_bond(ring: Ring) -> None:
    """One tree for all VLANs again, on the same bridge: the switches take the host for a region of its own."""
    lines(ring.near, RSTP)
    wait_until(lambda: sorted(p["state"] for p in ring.ways(0).values()) == ["discarding", "forwarding"], SOON)
    wait_until(lambda: set(ring.vlan_states("kvu-ring").values()) == {"forwarding"}, SOON)
    assert ring.ways(0) == {"kvu-ring": OPEN, "n2": SHUT}
    assert (ring.sent(100), ring.sent(200)) == (BY_A, BY_A)
    sh("ip link set n1 down")
    assert ring.sent(200) == BY_B
    assert set(ring.vlan_states("n2").values()) == {"forwarding"}, "those of its instances were opened with the port"
