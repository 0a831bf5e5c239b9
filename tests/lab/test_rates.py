"""Rates and classes with what the machine's own kernel lacks: fair queues, and the priority in VLAN tags."""
from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from time import monotonic

import pytest

from kvmnet.check.tags import heard
from kvmnet.drivers.tc.driver import TcDriver
from kvmnet.host.clock import wait_until
from kvmnet.host.wire import AUXDATA, PACKET_AUXDATA, SOL_PACKET, VLAN_VALID
from kvmnet.status import status as look
from lib.frames import UDP, checksum, ether, ip4, udp
from lib.netns import inside, sh
from lib.tap import Tap
from lib.world import World, world

pytestmark = pytest.mark.lab

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  shop: {mode: bridge, uplink: wan, vlan: 100, subnet: 10.100.0.0/24%s}
vms:
  a: {nics: [{network: shop, mac: "52:54:00:00:00:0a", ip: 10.100.0.9, mark: {dscp: af11}, rate: {out: 50mbit, in: 60mbit}}]}
  b: {nics: [{network: shop, mac: "52:54:00:00:00:0b", ip: 10.100.0.8%s}]}
"""
RATE, BURST, FRAME, SENT = 256, 16 * 1024, 1514, 300
"""kbit/s; bytes; bytes; frames. At this rate they would take 14 s."""
SO_RCVBUFFORCE = 33
VIDEO = ", in: {min: 3mbit}"
ROUTER = "52:54:00:00:00:01"


def shop(pcp: int, rate: str, received: str = "", trust: str = "", mark: str = "") -> str:
    return DOCUMENT % (f", rate: {{{rate}}}, classes: {{video: {{dscp: af11, min: 64kbit, priority: 0, pcp: {pcp}{received}}}}}{trust}", mark)


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        yield made


class Wire:
    """What arrives at the other end of the uplink, with its tags."""

    def __init__(self, here: World):
        with inside(here.outside.netns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(3))
            self.socket.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
            self.socket.bind(("segment", 3))

    def heard(self, nonce: bytes) -> list[tuple[int, int]]:
        """VLAN and PCP of frames with *nonce* that came since the last call."""
        found: list[tuple[int, int]] = []
        while True:
            try:
                frame, ancillary, *_ = self.socket.recvmsg(70000, 128)
            except BlockingIOError:
                return found
            if nonce in frame:
                status, *_, tci, _ = next(AUXDATA.unpack_from(d) for level, kind, d in ancillary if (level, kind) == (SOL_PACKET, PACKET_AUXDATA))
                if not status & VLAN_VALID:
                    (tci,) = struct.unpack_from("!H", frame, 14) if frame[12:14] == b"\x81\x00" else (0,)
                found.append((tci & 0xFFF, tci >> 13))


def tag(wire: Wire, tap: Tap, mac: str, source: str) -> tuple[int, int]:
    """VLAN and PCP of a guest's frame outside."""
    nonce = os.urandom(8)
    tap.send(ether(ROUTER, mac, 0x0800, ip4(source, "10.100.0.1", UDP, udp(source, "10.100.0.1", 1, 2, nonce + bytes(60)))))
    (found,) = wait_until(lambda: wire.heard(nonce), 20)
    return found


def flood(wire: Wire, tap: Tap, least: int) -> int:
    """How many of b's frames are outside when all are sent, and *least* have come."""
    nonce = os.urandom(8)
    frame = ether(ROUTER, "52:54:00:00:00:0b", 0x0800, ip4("10.100.0.8", "10.100.0.1", UDP, udp(
        "10.100.0.8", "10.100.0.1", 1, 2, nonce + bytes(FRAME - 50))))
    for _ in range(SENT):
        tap.send(frame)
    came: list[tuple[int, int]] = []

    def enough() -> bool:
        came.extend(wire.heard(nonce))
        return len(came) >= least
    wait_until(enough, 20)
    return len(came)


def tagged(payload: bytes, pcp: int, dscp: int) -> bytes:
    """A frame from outside for b, with a tag and without."""
    packet = bytearray(ip4("10.100.0.1", "10.100.0.8", UDP, udp("10.100.0.1", "10.100.0.8", 1, 2, payload)))
    packet[1] = dscp << 2
    packet[10:12] = b"\0\0"
    packet[10:12] = checksum(bytes(packet[:20])).to_bytes(2, "big")
    plain = ether("52:54:00:00:00:0b", ROUTER, 0x0800, bytes(packet))
    return plain[:12] + struct.pack("!HH", 0x8100, pcp << 13 | 100) + plain[12:]


def counted(wire: Wire, tap: Tap, pcp: int, dscp: int) -> bool:
    """Whether a frame from outside passes the class of video on its way to b."""
    name = next(f"kvi-~shop {line.split()[2]}" for line in sh("tc class show dev kvi-~shop").splitlines() if " rate 3Mbit " in line)
    before, nonce = TcDriver().queue_counts()[1][name].sent, os.urandom(8)

    def arrived() -> int:
        wire.socket.send(tagged(nonce + bytes(60), pcp, dscp))
        return tap.got(nonce)
    wait_until(arrived, 20)
    return TcDriver().queue_counts()[1][name].sent > before


def test_fair_queues_and_priorities_in_tags(here: World) -> None:
    here.apply(shop(3, "out: 256kbit, in: 30mbit", VIDEO))
    shown = sh("tc qdisc show")
    # In the bucket of each of a's directions, and in each class: two NICs, one of traffic, the rest.
    assert shown.count("fq_codel 6b77: ") == 2 and shown.count(" dev kvu-~shop parent 6") == 4
    planned = here.plan(shop(5, "out: 256kbit, in: 30mbit", VIDEO))
    assert [str(s.key) for s in planned.steps] == ["link kvu-~shop"], "nothing else differs"
    assert not any("wait in one line" in note for note in planned.notes)
    a, b, wire = Tap("kvt-a-0"), Tap("kvt-b-0"), Wire(here)
    wait_until(lambda: sh("bridge link").count("state forwarding") >= 3, 20)
    assert tag(wire, a, "52:54:00:00:00:0a", "10.100.0.9") == (100, 3)
    assert tag(wire, b, "52:54:00:00:00:0b", "10.100.0.8") == (100, 0)
    assert [counted(wire, b, pcp, dscp) for pcp, dscp in ((3, 0), (0, 10))] == [False, True], "by the DSCP"
    began = monotonic()
    passed = flood(wire, b, 1) * FRAME
    allowed = RATE * 125 * (monotonic() - began) + BURST + FRAME
    assert 0 < passed <= allowed < SENT * FRAME
    sh("tc qdisc del dev kvu-~shop root")
    assert flood(wire, b, SENT) == SENT, "the same frames without the queue"
    chosen = shop(3, "out: 10mbit, in: 30mbit", VIDEO, ", trust: pcp", ", mark: {pcp: 5}, qdisc: fq")
    here.apply(chosen.replace("{device: eth0}", "{device: eth0, qdisc: fq_codel}").replace("mark: {dscp: af11}", "mark: {dscp: af11}, qdisc: cake"))
    assert here.drift() == []
    shown = sh("tc qdisc show")
    assert "qdisc fq_codel 6b76: dev eth0 root" in shown and "qdisc fq 6b76: dev kvt-b-0 root" in shown
    leaves = sorted(line.split()[1] for line in shown.splitlines() if " dev kvu-~shop parent 6" in line)
    assert shown.count("qdisc cake 6b77: ") == 2 and leaves == ["cake", "fq", "fq_codel", "fq_codel"]
    assert [counted(wire, b, pcp, dscp) for pcp, dscp in ((3, 0), (0, 10))] == [True, False], "by the priority in the tag"
    nonce = os.urandom(8)
    assert heard("eth0", b.send, {nonce: ether(ROUTER, "52:54:00:00:00:0b", 0x0800, ip4("10.100.0.8", "10.100.0.1", UDP, udp(
        "10.100.0.8", "10.100.0.1", 1, 2, nonce)))}) == {nonce: 5}
    for opened in (a, b, wire.socket):
        opened.close()


TENANT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.0.0.0/24}
vms:
  a: {tenant: acme, nics: [{network: lan, mac: "52:54:00:00:00:0a", ip: 10.0.0.10%s}]}
  b: {tenant: acme, nics: [{network: lan, mac: "52:54:00:00:00:0b", ip: 10.0.0.11}]}
  c: {nics: [{network: lan, mac: "52:54:00:00:00:0c", ip: 10.0.0.12}]}
tenants: {acme: {%s}}
"""
EACH, ALL = 128, 512
"""kbit/s of the NIC and of the tenant."""


def sent_to_c(a: Tap, b: Tap, c: Tap, least: int) -> tuple[int, int, float]:
    """Bytes that c has of what a and b send at once, a frame each in turn, when it has *least* frames of b; and the seconds."""
    nonces, began = (os.urandom(8), os.urandom(8)), monotonic()
    frames = [ether("52:54:00:00:00:0c", f"52:54:00:00:00:0{n}", 0x0800, ip4(ip, "10.0.0.12", UDP, udp(
        ip, "10.0.0.12", 1, 2, nonce + bytes(FRAME - 50)))) for n, ip, nonce in (("a", "10.0.0.10", nonces[0]), ("b", "10.0.0.11", nonces[1]))]
    c.forget()
    for _ in range(SENT):
        for tap, frame in zip((a, b), frames, strict=True):
            tap.send(frame)
        c.drain()
    wait_until(lambda: c.got(nonces[1]) >= least, 20)
    of_a, of_b = (c.got(nonce) * FRAME for nonce in nonces)
    return of_a, of_b, monotonic() - began


def test_nics_of_a_tenant_have_classes_in_its_queue(here: World) -> None:
    """A NIC's own ceiling holds beside what all of the tenant's get; without both all frames arrive. At once each class lets its burst pass."""
    here.apply(TENANT % (f", rate: {{out: {EACH}kbit}}", f"rate: {{in: 50mbit, out: {ALL}kbit}}"))
    assert here.drift() == []
    shown = sh("tc filter show dev kvt-a-0 ingress; tc filter show dev kvt-a-0 egress; tc class show dev kvi-~o~acme")
    assert shown.count("skbedit") == 2 and shown.count(" leaf ") == 3
    taps = a, b, c = Tap("kvt-a-0"), Tap("kvt-b-0"), Tap("kvt-c-0")
    wait_until(lambda: sh("bridge link").count("state forwarding") >= 3, 20)
    of_a, of_b, seconds = sent_to_c(a, b, c, 40)
    assert 0 < of_a <= EACH * 125 * seconds + BURST + FRAME
    assert of_b > of_a and of_a + of_b <= ALL * 125 * seconds + 3 * BURST + 2 * FRAME
    rates = {n.guest: n.rates for n in (look(here.host) or pytest.fail("no status")).nics}
    assert rates["a"]["out"].rate == EACH * 1000 and "out" not in rates["b"]
    here.apply(TENANT % ("", ""))
    of_a, of_b, _ = sent_to_c(a, b, c, SENT)
    assert (of_a, of_b) == (SENT * FRAME, SENT * FRAME)
    for tap in taps:
        tap.close()
