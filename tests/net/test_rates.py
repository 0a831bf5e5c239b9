"""Rates of NICs on a real kernel: what passes in each direction; changes, drift, leftovers.

A machine that is busy lets less through, never more: the upper bound is exact, the lower one is loose.
"""
from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial

import pytest

from kvmnet.errors import ApplyFailed, HostCannot
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Stamped, steady
from kvmnet.status import status as look
from lib.flood import Heard, ear, flood
from lib.frames import UDP, checksum, ether, ip4, udp
from lib.netns import sh
from lib.world import Guest, World, snapshot, unchanged, world

pytestmark = pytest.mark.net

RATE, BURST = 4000, 16 * 1024
"""kbit/s and bytes of the limited NICs."""
OFFERED, SECONDS, FRAME = 4 * RATE, 0.5, 1014
WHOLE = 0.7
"""Part of a flood that arrives when nothing holds it up, on a machine that is busy. Four times the rate loses more."""
PATIENCE = 20
"""Seconds in which a machine that is busy has a moment for a flood: the upper bounds hold at each attempt, the lower ones at one."""
FREE = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
  wire: {mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, pool: 192.0.2.50-192.0.2.60}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: lan}]}
  m: {nics: [{network: wire}]}
  n: {nics: [{network: wire}]}
"""


def limited(vm: str, rate: str) -> str:
    """The document with a rate for one guest's NIC."""
    network = "lan" if vm in "ab" else "wire"
    return FREE.replace(f"{vm}: {{nics: [{{network: {network}", f"{vm}: {{nics: [{{network: {network}, rate: {{{rate}}}")


@pytest.fixture(scope="module")
def ground() -> Iterator[World]:
    with world() as made:
        made.apply(FREE)
        for name in "abmn":
            made.guest(name)
        yield made


def frame_of(source: Guest, target: Guest, nonce: bytes, size: int = FRAME) -> bytes:
    payload = nonce + bytes(size - 42 - len(nonce))
    return ether(target.mac, source.mac, 0x0800, ip4(source.ip, target.ip, UDP, udp(source.ip, target.ip, 1234, 5678, payload)))


def passed(source: Guest, target: Guest, rate: int = OFFERED, seconds: float = SECONDS) -> tuple[int, Heard]:
    """The bytes that *source* sent, and what of it *target* got."""
    nonce = os.urandom(8)
    with ear(target.netns, "eth0", nonce) as hears:
        sent = flood(partial(os.write, source.outer.fd), frame_of(source, target, nonce), rate, seconds)
        return sent, hears.rest()


@pytest.mark.parametrize(("source", "target", "vm", "direction"), [
    ("a", "b", "a", "out"), ("a", "b", "b", "in"), ("m", "n", "m", "out"), ("m", "n", "n", "in")])
def test_what_passes_is_what_was_promised(ground: World, source: str, target: str, vm: str, direction: str) -> None:
    one, other = ground.guest(source), ground.guest(target)
    ground.apply(limited(vm, f"{direction}: 4mbit"))
    assert ground.drift() == []

    def limited_to_its_rate() -> bool:
        sent, heard = passed(one, other)
        assert heard.octets <= heard.allowed(RATE, BURST) and heard.octets < WHOLE * sent
        return heard.octets >= 0.75 * RATE * 125 * SECONDS

    def whole(source: Guest, target: Guest) -> bool:
        sent, heard = passed(source, target)
        return heard.octets >= WHOLE * sent

    wait_until(limited_to_its_rate, PATIENCE)
    wait_until(lambda: whole(other, one), PATIENCE)    # the other direction is not limited
    ground.apply(FREE)
    wait_until(lambda: whole(one, other), PATIENCE)
    assert ground.drift() == []


def tcp(source: Guest, target: Guest) -> float:
    """kbit/s of frames of a connection by which *source* sends as fast as it can, behind *target*'s tap and by the kernel's clock."""
    nonce, total = os.urandom(8), RATE * 125 * 3 // 2
    with ExitStack() as stack:
        server, client = (stack.enter_context(guest.socket(socket.AF_INET, socket.SOCK_STREAM)) for guest in (target, source))
        hears, pool = stack.enter_context(Stamped("kvt-b-0", nonce)), stack.enter_context(ThreadPoolExecutor(1))
        server.bind((target.ip, 0))
        server.listen()
        for opened in (server, client):
            opened.settimeout(3 * PATIENCE)
        client.connect(server.getsockname())
        taken = stack.enter_context(server.accept()[0])
        taking = pool.submit(lambda: [True for _ in iter(lambda: taken.recv(65536), b"")])
        client.sendall(nonce * (total // len(nonce)))    # each segment has it in it
        client.shutdown(socket.SHUT_WR)
        assert taking.result()
        hears.drain()
        return steady(hears.sent, 2 * SECONDS) * 8 / 1000


def test_tcp_gets_its_rate_within_five_percent(ground: World) -> None:
    one, other = (ground.guest(name).use(f"{ground.guest(name).ip}/24") for name in "ab")
    ground.apply(limited("a", "out: 4mbit"))
    wait_until(lambda: abs(tcp(one, other) / RATE - 1) <= 0.05, 3 * PATIENCE)
    ground.apply(FREE)
    wait_until(lambda: tcp(one, other) > 2 * RATE, PATIENCE)


def test_macvtaps_are_marked_on_their_way_to_the_guard(ground: World) -> None:
    """DSCPs of frames from macvtap to macvtap; forged ones are dropped whatever their mark."""
    one, other = ground.guest("m"), ground.guest("n")

    def arrives(dscp: int, mac: str = "") -> list[int]:
        nonce = os.urandom(8)
        frame = bytearray(frame_of(one, other, nonce, 200))
        frame[15] = dscp << 2
        frame[24:26] = b"\0\0"
        frame[24:26] = checksum(bytes(frame[14:34])).to_bytes(2, "big")
        if mac:
            frame[6:12] = bytes.fromhex(mac.replace(":", ""))
        with ear(other.netns, "eth0", nonce) as hears:
            os.write(one.outer.fd, frame)
            return [heard[15] >> 2 for heard in hears.rest(not mac).frames]

    ground.apply(FREE)
    assert (arrives(0), arrives(46)) == ([0], [46])
    for mark, found in (("dscp: af11", ([10], [10])), ("dscp: 10, trust: true", ([10], [46]))):
        ground.apply(FREE.replace("m: {nics: [{network: wire", f"m: {{nics: [{{network: wire, mark: {{{mark}}}"))
        assert ground.drift() == [] and (arrives(0), arrives(46)) == found
        assert arrives(0, "52:54:00:99:99:99") == [], "another MAC"


def test_a_change_of_the_rate_loses_nothing(ground: World) -> None:
    one, other = ground.guest("a"), ground.guest("b")
    ground.apply(limited("a", "out: 50mbit, in: 50mbit"))
    steps = ground.plan(limited("a", "out: 60mbit, in: 60mbit")).steps
    assert [(type(s).__name__, str(s.key)) for s in steps] == [("Update", "qdisc kvi-a-0 6b76:"), ("Update", "qdisc kvt-a-0 6b76:")]
    nonce = os.urandom(8)
    with ear(other.netns, "eth0", nonce) as hears:
        sent = 0
        for rate in (60, 40, 70, 50):
            sent += flood(partial(os.write, one.outer.fd), frame_of(one, other, nonce), 1000, 0.1)
            ground.apply(limited("a", f"out: {rate}mbit, in: {rate}mbit"))
            sent += flood(partial(os.write, one.outer.fd), frame_of(one, other, nonce), 1000, 0.1)
        assert hears.rest(sent // FRAME).octets == sent


def test_what_is_taken_away_is_seen_and_put_back(ground: World) -> None:
    text = limited("a", "out: 4mbit, in: 3mbit, burst: 32k")
    ground.apply(text)
    for damage, drift in (("tc qdisc del dev kvt-a-0 root", ["create qdisc kvt-a-0 6b76:"]),
                          ("tc filter del dev kvt-a-0 ingress", ["create detour kvt-a-0"]),
                          ("tc qdisc change dev kvi-a-0 root handle 6b76: tbf rate 5mbit burst 32k limit 64k",
                           ["update qdisc kvi-a-0 6b76:"]),
                          ("ip link del kvi-a-0", ["create link kvi-a-0", "create qdisc kvi-a-0 6b76:", "update detour kvt-a-0"])):
        sh(damage)
        assert ground.drift() == drift
        ground.apply(text)
        assert ground.drift() == []
    assert ground.apply(text).steps == ()


def test_a_queue_of_somebody_else_stays(ground: World) -> None:
    ground.apply(FREE)
    sh("tc qdisc add dev kvt-b-0 root handle 5: tbf rate 7mbit burst 20k limit 90k")
    theirs = sh("tc qdisc show dev kvt-b-0 root")
    with pytest.raises(ApplyFailed, match="qdisc kvt-b-0") as refused:
        ground.apply(limited("b", "in: 4mbit, out: 4mbit"))
    assert "tc qdisc del dev" in str(refused.value.hint)
    assert sh("tc qdisc show dev kvt-b-0 root") == theirs and ground.drift() == []
    assert "kvi-b-0" not in sh("ip -br link")
    sh("tc qdisc del dev kvt-b-0 root")


def test_how_frames_wait_is_chosen_and_given_back(ground: World) -> None:
    ground.apply(FREE)
    before = sh("tc qdisc show")
    chosen = FREE.replace("{device: eth0}", "{device: eth0, qdisc: noqueue}").replace("b: {nics: [{network: lan", "b: {nics: [{network: lan, qdisc: noqueue")
    ground.apply(chosen)
    assert all(f"qdisc noqueue 6b76: dev {dev} root" in sh("tc qdisc show") for dev in ("eth0", "kvt-b-0"))
    assert ground.plan(chosen).steps == ()
    (wan,) = (look(ground.host) or pytest.fail("no status")).uplinks
    assert [(nic, q.discipline) for nic, q in wan.queues.items()] == [("eth0", "noqueue")]
    sent, heard = passed(ground.guest("a"), ground.guest("b"))
    assert 0 < heard.octets <= sent
    sh("tc qdisc del dev kvt-b-0 root")
    assert ground.drift() == ["create qdisc kvt-b-0 6b76:"]
    ground.apply(chosen)
    sh("tc qdisc del dev eth0 root; tc qdisc add dev eth0 root handle 7: pfifo limit 99")
    with pytest.raises(HostCannot, match=r"uplinks\.wan\.qdisc: eth0 has a queue that somebody else has set: pfifo 7:"):
        ground.plan(chosen)
    sh("tc qdisc del dev eth0 root")
    ground.apply(limited("b", "in: 4mbit"))
    assert "tbf 6b76:" in sh("tc qdisc show dev kvt-b-0"), "a rate takes its place"
    ground.apply(chosen)
    ground.apply(FREE)
    assert sh("tc qdisc show") == before


def test_status_tells_rates_and_what_was_dropped(ground: World) -> None:
    ground.apply(limited("a", "out: 4mbit, in: 8mbit"))
    before = {n.guest: n.rates for n in (look(ground.host) or pytest.fail("no status")).nics}
    assert set(before["a"]) == {"in", "out"} and before["b"] == {}
    assert (before["a"]["out"].rate, before["a"]["in"].rate, before["a"]["out"].dropped) == (4_000_000, 8_000_000, 0)
    sent, heard = passed(ground.guest("a"), ground.guest("b"))
    after = next(n.rates for n in (look(ground.host) or pytest.fail("no status")).nics if n.guest == "a")
    assert after["out"].dropped == (sent - heard.octets) // FRAME > 0 and after["in"].dropped == 0


def test_destroy_leaves_nothing() -> None:
    with world() as made:
        before, queues = snapshot(), sh("tc qdisc show")
        made.apply(limited("a", "out: 4mbit, in: 4mbit").replace("m: {nics: [{network: wire", "m: {nics: [{network: wire, rate: {in: 1gbit}"))
        assert "tbf" in sh("tc qdisc show")
        made.destroy()
        unchanged(before)
        assert sh("tc qdisc show") == queues
