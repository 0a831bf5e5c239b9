"""RSTP by a process of ours, in a ring of three bridges: one of a document's, two of the same program in namespaces beside it.

The ring is real: a broadcast comes back to the port that is shut, where it ends.
"""
from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from kvmnet.adopt.restore import restore
from kvmnet.check.model import failed
from kvmnet.check.one_tree import one_tree
from kvmnet.drivers.stp.driver import StpDriver
from kvmnet.drivers.stp.process import Speaking
from kvmnet.drivers.stp.wiring import Wiring
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.spec.networks import Mode, Network
from kvmnet.status import status
from kvmnet.stp.bpdu import Bpdu, Flags, Message, frame
from kvmnet.stp.vectors import Protocol, Times, Vector, bridge_id, port_id
from lib.flood import Ear, ear
from lib.fork import die, in_child
from lib.frames import ether
from lib.netns import inside, named_netns, sh
from lib.switch import Switch, roles, root_of
from lib.tap import Tap
from lib.world import World, same, snapshot, steady, world

pytestmark = pytest.mark.net
DOCUMENT = """
version: 1
uplinks: {ring: {device: n1, redundant: {n2: {cost: 2500}}}}
networks: {lan: {mode: bridge, uplink: ring, stp: rstp, stp_options: {priority: 61440, hello: 1}}}
vms: {a: {nics: [{network: lan, mac: '52:54:00:00:07:01', ip: none, ip6: none, guard: 'off'}]}}
"""
EVERYBODY, GUEST = "ff:ff:ff:ff:ff:ff", "52:54:00:00:07:01"
SOON = 90.0
"""What was heard of a bridge that fell silent grows old, and a port waits for two delays: 36 s, on a machine that has nothing else to do."""
ROOT = "4096.02:00:00:00:0a:01"


def better(mac: str) -> bytes:
    """What a bridge says that is better than any other."""
    own = bridge_id(0, mac)
    return frame(mac, Bpdu(Protocol.RSTP, common=Message(Flags(proposal=True), Vector(own, 0, own, 0, own, port_id(128, 1)), Times(0, 6, 1, 4))))


@dataclass
class Ring:
    near: World
    a: Switch
    b: Switch
    guest: Tap

    @property
    def speaking(self) -> Speaking:
        return Speaking(self.near.paths.run / "trees" / "kvb-lan")

    def state(self) -> dict[str, dict[str, str]]:
        return roles(self.speaking.state())

    def shut(self) -> list[str]:
        """Ports of the ring that pass nothing."""
        found = {f"{where} {name}": p["state"] for where, ports in (("near", self.state()), ("a", self.a.state()), ("b", self.b.state()))
                 for name, p in ports.items()}
        return [name for name, state in found.items() if state != "forwarding"] if len(found) == 6 else ["a process has not told yet"]

    def rest(self) -> None:
        """Until one port is shut and every bridge knows the root that it must have."""
        wait_until(lambda: self.shut() == ["near n2"] and {self.root(), self.a.root(), self.b.root()} == {ROOT}, SOON)

    def root(self) -> str:
        return root_of(self.speaking.state())

    def broadcast(self, nonce: bytes) -> None:
        self.guest.send(ether(EVERYBODY, GUEST, 0x88B5, nonce))

    def copies(self) -> tuple[int, int, int]:
        """Of one broadcast of the guest: how often it came to both switches, and back to the port that is shut."""
        first, nonce, last = (uuid4().bytes for _ in range(3))
        early, back, late = (Ear("n2", n) for n in (first, nonce, last))
        with closing(early.socket), closing(back.socket), closing(late.socket), \
                ear(self.a.netns, "h0", nonce) as a, ear(self.b.netns, "h0", nonce) as b:
            wait_until(lambda: self.broadcast(first) or early.drain(), SOON)    # the way all around is open
            self.broadcast(nonce)
            wait_until(lambda: self.broadcast(last) or late.drain(), SOON)      # what would go round has gone round by now
            return a.drain(), b.drain(), back.drain()


    def heard(self) -> tuple[int, int]:
        """Of one broadcast of the guest: how often it came to both switches, by whichever way is open."""
        nonce, others = uuid4().bytes, (uuid4().bytes, uuid4().bytes)
        with ear(self.a.netns, "h0", nonce) as a, ear(self.b.netns, "h0", nonce) as b:
            for other in others:    # before it the ways are open; after it what goes round has gone round
                with ear(self.a.netns, "h0", other) as at_a, ear(self.b.netns, "h0", other) as at_b:
                    wait_until(lambda: self.broadcast(other) or (at_a.drain() and at_b.drain()), SOON)  # noqa: B023 (asked at once)
                if other is others[0]:
                    self.broadcast(nonce)
            return a.drain(), b.drain()


@pytest.fixture(scope="module")
def ring() -> Iterator[Ring]:
    with ExitStack() as stack:
        near = stack.enter_context(world())
        names = [stack.enter_context(named_netns(f"kvt-{os.getpid()}-{uuid4().hex[:6]}")) for _ in range(2)]
        a, b = names
        sh(f"ip link add n1 type veth peer name p1 netns {a}; ip link add n2 type veth peer name p1 netns {b}; "
           f"ip -n {a} link add p2 type veth peer name p2 netns {b}; ip link set n1 up; ip link set n2 up")
        switches = [Switch(name, StpDriver(Paths(near.paths.state / name, near.paths.run / name)), near.paths.run) for name in names]
        for switch, mac, priority in zip(switches, ("02:00:00:00:0a:01", "02:00:00:00:0b:01"), (4096, 32768), strict=True):
            for port in ("p1", "p2"):
                sh(f"ip -n {switch.netns} link set {port} up")
            switch.start(mac, priority)
            stack.callback(switch.stop)
        near.apply(DOCUMENT)
        guest = stack.enter_context(Tap("kvt-a-0"))
        made = Ring(near, *switches, guest)
        stack.callback(near.destroy)    # while the far ends of its NICs are there
        made.rest()
        yield made


def test_a_ring_has_one_port_that_is_shut_and_a_frame_comes_once(ring: Ring) -> None:
    assert ring.near.drift() == []
    assert ring.state() == {"n1": {"role": "root", "state": "forwarding"}, "n2": {"role": "alternate", "state": "discarding"}}
    assert '"state":"listening"' in sh("bridge -j link show dev n2"), "shut in the kernel, too"
    assert ring.copies() == (1, 1, 1), "it came back by the ring and went no farther"


def claims(ring: Ring) -> tuple[str, str]:
    found = next(c for c in ring.near.host.check().claims if c.name == "one tree")
    return found.verdict.value, found.evidence


def test_check_proves_that_there_is_one_tree_and_sees_what_is_not_as_it_says(ring: Ring) -> None:
    assert claims(ring) == ("pass", f"a broadcast left by n1 (root), came back by n2 (alternate), and ended there; shut: n2 (alternate); root {ROOT}")
    child = worker(ring.speaking)
    os.kill(child, signal.SIGSTOP)    # it would open the gate again
    sh("nft delete element bridge kvmnet-tree-kvb-lan open '{ \"n1\" }'")
    assert claims(ring) == ("fail", "a broadcast left by no port, but open are n1")
    os.kill(child, signal.SIGKILL)
    wait_until(lambda: children(ring) - {child}, SOON)
    assert ring.copies() == (1, 1, 1)    # by a port that the next one has opened, whatever the last has told
    ring.rest()


def test_a_cut_link_heals_by_agreement_and_not_by_waiting(ring: Ring) -> None:
    nonce = uuid4().bytes
    with ear(ring.b.netns, "h0", nonce) as heard:
        sh(f"ip -n {ring.a.netns} link set p1 down")
        began = time.monotonic()
        wait_until(lambda: ring.broadcast(nonce) or heard.drain(), 20)    # STP: 30 s
        print(f"cut off for {(time.monotonic() - began) * 1000:.0f} ms")
    assert ring.state()["n2"]["role"] == "root"
    sh(f"ip -n {ring.a.netns} link set p1 up")
    ring.rest()
    assert ring.copies() == (1, 1, 1)


def test_a_guest_that_wants_to_be_the_root_is_not_heard_and_a_neighbour_is(ring: Ring) -> None:
    mac = "52:54:00:00:07:01"
    before = ring.a.root()
    mark = uuid4().bytes
    with ear(ring.a.netns, "h0", mark) as passed, ear(ring.a.netns, "p1", b"BB\x03") as bpdus:
        for _ in range(20):
            ring.guest.send(better(mac))
        wait_until(lambda: ring.broadcast(mark) or passed.drain(), SOON)
        bpdus.drain()
        assert not [f for f in bpdus.heard.frames if f[6:12] == bytes.fromhex(mac.replace(":", ""))], "it does not leave the host"
    assert ring.near.drift() == [] and ring.a.root() == before and ring.state()["n1"]["role"] == "root"
    with inside(ring.b.netns):    # the same message by the wire
        wire = Wiring("p1", socket.if_nametoindex("p1"), mac)
        for _ in range(3):
            wire.send(better(mac))
        wire.close()
    wait_until(lambda: ring.state()["n2"]["role"] == "root", SOON)
    ring.rest()


def test_a_flushed_ruleset_opens_nothing_and_the_gate_comes_back(ring: Ring) -> None:
    sh("nft flush ruleset")
    assert ring.copies() == (1, 1, 1)
    wait_until(lambda: ring.near.drift() == [], SOON, 0.5)
    assert ring.copies() == (1, 1, 1)


def worker(speaking: Speaking) -> int:
    pid = int((speaking.read("process.json") or {})["pid"])
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_process_that_ends_is_started_again(ring: Ring) -> None:
    first = worker(ring.speaking)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: Path(f"/proc/{(ring.speaking.read('process.json') or {})['pid']}/task").exists() and children(ring) - {first}, SOON)
    ring.rest()
    assert ring.copies() == (1, 1, 1) and ring.near.drift() == []


def children(ring: Ring) -> set[int]:
    pid = int((ring.speaking.read("process.json") or {})["pid"])
    return {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_when_nobody_speaks_what_was_shut_stays_shut(ring: Ring) -> None:
    os.kill(int((ring.speaking.read("process.json") or {})["pid"]), signal.SIGKILL)
    wait_until(lambda: not ring.speaking.alive(), SOON)
    assert ring.near.drift() == ["update spanning-tree kvb-lan"]
    place = SimpleNamespace(subject=SimpleNamespace(paths=ring.near.paths), segment=SimpleNamespace(bridge="kvb-lan", network=Network(mode=Mode.BRIDGE)))
    assert one_tree(place) == failed("nobody speaks for the spanning tree of kvb-lan: kvmnet apply has it spoken again")  # type: ignore[arg-type]
    sh("ip link set n2 down; ip link set n2 up")
    wait_until(lambda: '"state":"forwarding"' in sh("bridge -j link show dev n2"), SOON)    # so the kernel thinks
    wait_until(lambda: ring.b.state()["p1"]["state"] == "forwarding", SOON)     # and the other end sends into it
    assert ring.copies() == (1, 1, 1)
    ring.near.apply(DOCUMENT)
    ring.rest()
    assert ring.near.drift() == []


def opened(netns: str, table: str) -> set[str]:
    listed = json.loads(sh(f"ip netns exec {netns} nft -j list set {table} open"))["nftables"]
    found = next(item["set"].get("elem", []) for item in listed if "set" in item)
    return {e["elem"]["val"] if isinstance(e, dict) else e for e in found}


def test_the_kernels_stp_takes_over_without_an_open_loop(ring: Ring) -> None:
    """What was shut begins in LISTENING: the kernel on its own would have opened it, and shut it when it hears its neighbours."""
    ring.near.apply(DOCUMENT.replace("stp: rstp", "stp: true"))
    assert '"stp_state":1' in sh("ip -j -d link show kvb-lan") and "kvmnet-tree-" not in sh("nft list tables")
    assert port_states()["n2"] in ("listening", "blocking") and port_states()["n1"] == "forwarding"
    assert ring.heard() == (1, 1)
    ring.near.apply(DOCUMENT)
    ring.rest()
    assert ring.near.drift() == []


def test_of_two_open_ports_one_shuts_when_nobody_speaks_for_them(ring: Ring) -> None:
    """The neighbours of a silent root open the way between them: with two open ports it would close the ring."""
    table = "bridge kvmnet-tree-br0"
    wait_until(lambda: opened(ring.a.netns, table) == {"p1", "p2"}, SOON)
    with inside(ring.a.netns):
        speaking = ring.a.driver.speaking("br0")
    os.kill(int((speaking.read("process.json") or {})["pid"]), signal.SIGKILL)
    wait_until(lambda: len(opened(ring.a.netns, table)) == 1, SOON)
    with inside(ring.a.netns):
        speaking.start(ring.a.tree)
    ring.rest()


def test_it_falls_back_to_the_kernels_stp() -> None:
    """Another implementation at the other end: what we send is understood, and what it sends."""
    with ExitStack() as stack:
        names = [stack.enter_context(named_netns(f"kvt-{os.getpid()}-{uuid4().hex[:6]}")) for _ in range(2)]
        ours, theirs = names
        sh(f"ip -n {ours} link add p1 type veth peer name p1 netns {theirs}; ip -n {ours} link add p2 type veth peer name p2 netns {theirs}")
        sh("".join(f"ip -n {n} link set p1 up; ip -n {n} link set p2 up;" for n in names))
        sh(f"ip -n {theirs} link add br0 address 02:00:00:00:0b:01 type bridge stp_state 1 priority 4096 hello_time 100 max_age 600 "
           f"forward_delay 400; ip -n {theirs} link set br0 up; ip -n {theirs} link set p1 master br0; ip -n {theirs} link set p2 master br0")
        place = Path(stack.enter_context(TemporaryDirectory(prefix="kvmnet-rstp-")))
        switch = Switch(ours, StpDriver(Paths(place, place)), place)
        switch.start("02:00:00:00:0a:01", 32768)
        stack.callback(switch.stop)
        wait_until(lambda: switch.state() == {"p1": {"role": "root", "state": "forwarding"}, "p2": {"role": "alternate", "state": "discarding"}}, SOON)
        assert switch.root() == "4096.02:00:00:00:0b:01"
        sh(f"ip -n {ours} link set p1 down")
        wait_until(lambda: switch.state()["p2"] == {"role": "root", "state": "forwarding"}, SOON)
        sh(f"ip -n {theirs} link set br0 type bridge priority 61440; ip -n {ours} link set p1 up")
        def speaks() -> set[str]:
            with inside(ours):
                return {p["speaks"] for p in (switch.driver.speaking("br0").state() or {"ports": {}})["ports"].values()}
        wait_until(lambda: switch.root() == "32768.02:00:00:00:0a:01" and speaks() == {"stp"}, SOON)
        shown = json.loads(sh(f"ip -n {theirs} -j -d link show br0"))[0]["linkinfo"]["info_data"]
        wait_until(lambda: json.loads(sh(f"ip -n {theirs} -j -d link show br0"))[0]["linkinfo"]["info_data"]["root_port"] != 0, SOON)
        assert shown["stp_state"] == 1


ALONE = """
version: 1
uplinks: {ring: {device: n1, redundant: {n2: {cost: 7}}}}
networks: {lan: {mode: bridge, uplink: ring, stp: rstp, subnet: 10.77.0.0/24}}
"""


def port_states() -> dict[str, str]:
    return {p["ifname"]: p["state"] for p in json.loads(sh("bridge -j link show"))}


def dying(work: Callable[..., None]) -> Callable[..., None]:
    def act(*words: object) -> None:
        work(*words)
        die()
    return act


def gone(host: World, before: dict[str, Any]) -> None:
    """Nothing is left, and the NICs are as they were."""
    steady()
    assert not list((host.paths.run / "trees").glob("*")) and str(host.paths.run / "trees") not in sh("ps axww -o args")
    same(before, snapshot())


def test_it_is_made_changed_taken_back_and_leaves_nothing() -> None:
    with world() as host:
        for nic in ("n1", "n2"):
            sh(f"ip link add {nic} type veth peer name {nic}x; ip link set {nic} up; ip link set {nic}x up")
        sh("ip addr add 10.77.0.5/24 dev n1")
        steady()
        before = snapshot()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StpDriver, "apply_tree", dying(StpDriver.apply_tree))
            assert in_child(lambda: host.apply(ALONE)) == -signal.SIGKILL
        assert "kvmnet-tree-" in sh("nft list tables") and str(host.paths.run / "trees") in sh("ps axww -o args"), "killed when it stands"
        host.host.recover()
        gone(host, before)
        host.apply(ALONE)
        assert host.drift() == [] and "bridge kvmnet-tree-kvb-lan" in sh("nft list tables")
        found = status(host.host)
        assert found is not None and [t.root_port for t in found.trees] == [""] and set(found.trees[0].ports) == {"n1", "n2"}
        again = restore(host.host.engine.observe({}), {})
        assert again is not None and again["networks"]["lan"]["stp"] == "rstp"
        assert again["uplinks"] == {"n1": {"device": "n1", "redundant": {"n2": {"cost": 7}}}}
        host.apply(ALONE.replace("rstp", "true"))
        assert host.drift() == [] and "kvmnet-tree-" not in sh("nft list tables")
        assert set(port_states().values()) <= {"listening", "learning", "forwarding"}, "no port is left shut by nobody"
        host.apply(ALONE)
        assert host.drift() == [] and "kvmnet-tree-" in sh("nft list tables")
        host.destroy()
        gone(host, before)
