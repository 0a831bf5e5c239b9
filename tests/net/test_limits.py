"""Abuse limits on a real kernel: what is over a limit does not arrive, what is below does, and who dropped what is told.

Frames are written to the taps of guests at once, far more than a limit lets pass; what may arrive is what the bucket held, and what
the time of the sending added. Each limit has its control: the same frames from a NIC without limits. The lab runs
the same on bridge conntrack (tests/lab/test_limits.py).
"""
from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.host.clock import wait_until
from kvmnet.modes.model import NicOnNetwork
from kvmnet.policy.guard import REASONS
from kvmnet.status import nftables
from kvmnet.status import status as look
from lib.frames import (
    BROADCAST,
    ICMP6,
    TCP,
    UDP,
    arp,
    ether,
    icmp6,
    ip4,
    ip6,
    multicast_mac,
    option,
    solicited_node,
    tag,
    tcp,
    udp,
)
from lib.frames import ip as packed_ip
from lib.frames import mac as packed
from lib.netns import sh
from lib.tap import Tap
from lib.world import World, world

pytestmark = pytest.mark.net
IP4, IP6 = 0x0800, 0x86DD
SENT = 300
"""Frames of a flood: fewer than a tap's queue holds, 500."""
DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.1.0.0/24, subnet6: "fd01::/64", dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"}
  big: {mode: isolated, subnet: 10.2.0.0/24, address: none, mtu: 65000}
vms:
  free: {nics: [{network: lan}]}
  sink: {nics: [{network: lan}]}
  packets: {nics: [{network: lan, limits: {send: {packets: 20/s, bytes: none}, neighbours: 30/s}}]}
  storms: {nics: [{network: lan, limits: {storms: {broadcast: 20/s, multicast: 30/s, unknown: 10/s}}}]}
  flows: {nics: [{network: lan, limits: {send: {connections: 20/s}}}]}
  many: {nics: [{network: lan, limits: {send: {concurrent: 25}}}]}
  shy: {nics: [{network: lan, limits: {receive: {packets: 40/s, syn: 15/s}}}]}
  raw: {nics: [{network: lan, guard: "off", limits: {send: {packets: 20/s}, neighbours: 30/s}}]}
  trunk: {nics: [{network: lan, trunk: [10], limits: {send: {packets: 20/s}, storms: {broadcast: 10/s}, neighbours: 30/s}}]}
  bulk: {nics: [{network: big, limits: {send: {packets: 1000/s, bytes: 500kB/s}}}]}
  bulksink: {nics: [{network: big}]}
"""
FASTER = DOCUMENT.replace("packets: 20/s, bytes", "packets: 60/s, bytes")


@dataclass
class Ground:
    """The taps of all guests, and what the document gave them."""

    made: World
    taps: Mapping[str, Tap]
    nics: Mapping[str, NicOnNetwork]

    def ip4(self, source: str, target: str, protocol: int, body: bytes) -> bytes:
        a, b = self.nics[source], self.nics[target]
        return ether(b.mac, a.mac, IP4, ip4(a.ip, b.ip, protocol, body))

    def udp(self, source: str, target: str, data: bytes, sport: int = 1000) -> bytes:
        return self.ip4(source, target, UDP, udp(self.nics[source].ip, self.nics[target].ip, sport, 9, data))

    def syn(self, source: str, target: str, sport: int, flags: int = 2) -> bytes:
        return self.ip4(source, target, TCP, tcp(self.nics[source].ip, self.nics[target].ip, sport, 80, flags))

    def question(self, source: str, target: str, data: bytes = b"") -> bytes:
        a, b = self.nics[source], self.nics[target]
        return ether(BROADCAST, a.mac, 0x0806, arp(1, (a.mac, a.ip), ("00:00:00:00:00:00", b.ip)) + data)

    def solicitation(self, source: str, target: str) -> bytes:
        a, b = self.nics[source], self.nics[target]
        to = solicited_node(b.ip6)
        body = icmp6(a.ip6, to, 135, bytes(4) + packed_ip(b.ip6) + option(1, packed(a.mac)))
        return ether(multicast_mac(to), a.mac, IP6, ip6(a.ip6, to, ICMP6, body))

    def flood(self, source: str, target: str, frames: Iterable[bytes], known: Callable[[bytes], bool]) -> tuple[int, float]:
        """How many of *frames* come to *target*, and the seconds that sending took. What the host hands on arrives in order,
        so a question by ARP from a NIC without limits says when the last would have come."""
        frames, tap, mark = list(frames), self.taps[source], os.urandom(12)
        self.taps[target].forget()
        started = time.monotonic()
        for number, frame in enumerate(frames):
            tap.send(frame)
            if number % 50 == 0:  # what lies in a macvtap's queue is its sender's memory
                self.taps[target].drain()
        took = time.monotonic() - started
        other = "bulksink" if self.nics[target].ip.startswith("10.2.") else "free" if target != "free" else "sink"
        if other != target:
            self.taps[other].send(self.question(other, target, mark))
            self.taps[target].wait(mark)
        return sum(map(known, self.taps[target].drain())), took

    def refused(self, name: str) -> Mapping[str, int]:
        driver = nftables(self.made.host)
        assert driver is not None
        return {REASONS[number]: count for number, count in driver.dropped().get(self.nics[name].tap, {}).items()}


@contextmanager
def grounded(text: str, made: World) -> Iterator[Ground]:
    """*text* applied, and a descriptor for each guest."""
    planned = made.plan(text)
    made.host.apply(planned)
    assert planned.compiled is not None
    with ExitStack() as stack:
        segments = planned.compiled.segments.values()
        nics = {nic.vm: nic for s in segments for nic in s.nics}
        taps = {nic.vm: stack.enter_context(Tap.of_macvtap(nic.tap) if s.parent else Tap(nic.tap)) for s in segments for nic in s.nics}
        bridged = sum(len(s.nics) for s in segments if not s.parent)
        wait_until(lambda: sh("bridge link").count("state forwarding") >= bridged, 20)
        for vm, nic in nics.items():  # bridges learn where everybody is
            taps[vm].send(ether(BROADCAST, nic.mac, 0x0806, arp(1, (nic.mac, nic.ip), ("00:00:00:00:00:00", nic.ip))))
        yield Ground(made, taps, nics)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with world() as made, grounded(DOCUMENT, made) as found:
        yield found


def held(arrived: int, took: float, rate: int, burst: int = 0) -> None:
    """What arrived is what the bucket held, and what the time added to it."""
    burst = burst or rate
    assert burst <= arrived <= burst + rate * took + 1, (arrived, rate, took)
    assert arrived < SENT


def test_nothing_drifts_and_a_second_apply_is_nothing(ground: Ground) -> None:
    assert ground.made.drift() == []


def marked(nonce: bytes) -> Callable[[bytes], bool]:
    return lambda frame: nonce in frame


def datagrams(ground: Ground, source: str, target: str, nonce: bytes, count: int = SENT) -> list[bytes]:
    return [ground.udp(source, target, nonce) for _ in range(count)]


def test_packets_and_their_control(ground: Ground) -> None:
    nonce = os.urandom(12)
    before = ground.refused("packets").get("sent: more packets than its limit", 0)
    arrived, took = ground.flood("packets", "sink", datagrams(ground, "packets", "sink", nonce), marked(nonce))
    held(arrived, took, 20)
    assert ground.refused("packets")["sent: more packets than its limit"] - before == SENT - arrived
    arrived, _ = ground.flood("free", "sink", datagrams(ground, "free", "sink", nonce), marked(nonce))
    assert arrived == SENT, "without a limit all of it arrives"


def test_who_is_over_its_limit_still_resolves_addresses_and_no_more_than_that(ground: Ground) -> None:
    """ARP and ND have a budget of their own; they go on while packets are refused, and are held by it."""
    ground.flood("packets", "sink", datagrams(ground, "packets", "sink", os.urandom(12)), lambda frame: False)
    question, solicitation = ground.question("packets", "sink"), ground.solicitation("packets", "sink")
    arrived, took = ground.flood("packets", "sink", [question, solicitation] * 5, lambda f: f in (question, solicitation))
    assert arrived == 10
    time_over()
    arrived, took = ground.flood("packets", "sink", [question, solicitation] * (SENT // 2), lambda f: f in (question, solicitation))
    held(arrived, took, 30)
    assert ground.refused("packets")["sent: more ARP and ND than its limit"] == SENT - arrived


def time_over() -> None:
    """Until every bucket of a second is full again."""
    wait_for(time.monotonic() + 1.05)


def wait_for(moment: float) -> None:
    wait_until(lambda: time.monotonic() >= moment, 20)


def test_no_shape_of_a_frame_goes_by_the_limit(ground: Ground) -> None:
    """IPv6, tags, types that nobody knows, other MACs of a NIC without a guard: each counts, and ARP in a VLAN as ARP."""
    nonce, sink = os.urandom(12), ground.nics["sink"]
    raw, trunk = ground.nics["raw"], ground.nics["trunk"]

    shapes: dict[str, tuple[str, Callable[[int], bytes], int]] = {
        "IPv6": ("packets", lambda n: ether(sink.mac, ground.nics["packets"].mac, IP6, ip6(
            ground.nics["packets"].ip6, sink.ip6, UDP, udp(ground.nics["packets"].ip6, sink.ip6, n, 9, nonce))), 20),
        "an unknown type": ("raw", lambda n: ether(sink.mac, raw.mac, 0x88B5, nonce), 20),
        "stacked tags": ("raw", lambda n: tag(5, tag(7, ether(sink.mac, raw.mac, IP4, nonce))), 20),
        "an 802.2 header": ("raw", lambda n: ether(sink.mac, raw.mac, len(nonce), nonce), 20),
        "an address of its own making": ("raw", lambda n: ether(sink.mac, f"02:aa:00:00:{n >> 8:02x}:{n & 255:02x}", 0x88B5, nonce), 20),
        "broadcast in a VLAN": ("trunk", lambda n: tag(10, ether(BROADCAST, trunk.mac, IP4, ip4(trunk.ip, sink.ip, UDP, nonce))), 10),
        "ARP in a VLAN": ("trunk", lambda n: tag(10, ground.question("trunk", "sink", nonce)), 30)}
    for name, (vm, frame, rate) in shapes.items():
        time_over()
        arrived, took = ground.flood(vm, "sink", map(frame, range(SENT)), marked(nonce))
        assert rate * 0.9 <= arrived <= rate + rate * took + 1, (name, arrived, took)


def test_what_a_flush_removes_the_keeper_brings_back(ground: Ground) -> None:
    sh("nft flush ruleset")
    wait_until(lambda: "kvt-packets-0" in sh("nft list set bridge kvmnet l_packets", check=False), 20)
    nonce = os.urandom(12)
    held(*ground.flood("packets", "sink", datagrams(ground, "packets", "sink", nonce), marked(nonce)), 20)
    assert ground.made.drift() == []


def test_a_limit_that_somebody_took_away_is_drift_and_mended(ground: Ground) -> None:
    sh("nft delete element bridge kvmnet l_packets '{ \"kvt-packets-0\" }'")
    nonce = os.urandom(12)
    assert ground.flood("packets", "sink", datagrams(ground, "packets", "sink", nonce), marked(nonce))[0] == SENT, "it is gone"
    assert ground.made.drift() == ["update nft-table bridge kvmnet"]
    ground.made.apply(DOCUMENT)
    held(*ground.flood("packets", "sink", datagrams(ground, "packets", "sink", nonce), marked(nonce)), 20)
    assert ground.made.drift() == []


def test_forged_frames_use_up_nobodys_budget(ground: Ground) -> None:
    time_over()
    nonce, victim = os.urandom(12), ground.nics["packets"]
    sink = ground.nics["sink"]
    forged = ether(sink.mac, victim.mac, IP4, ip4(victim.ip, sink.ip, UDP, udp(victim.ip, sink.ip, 1, 9, bytes(12))))
    ground.flood("free", "sink", [forged] * SENT, lambda frame: False)
    own = datagrams(ground, "packets", "sink", nonce)
    own_forged = [frame[:26] + bytes([10, 1, 0, 99]) + frame[30:] for frame in own]
    ground.flood("packets", "sink", own_forged, lambda frame: False)
    arrived, took = ground.flood("packets", "sink", own, marked(nonce))
    held(arrived, took, 20)


@pytest.mark.parametrize(("kind", "rate", "reason"), [
    ("broadcast", 20, "sent: more broadcasts than its limit"), ("multicast", 30, "sent: more multicasts than its limit"),
    ("unknown", 10, "sent: more to unknown MACs than its limit")])
def test_storms(ground: Ground, kind: str, rate: int, reason: str) -> None:
    """Unicast of the same NIC is not limited; to a MAC that nobody has, a bridge sends to all."""
    time_over()
    to = {"broadcast": BROADCAST, "multicast": "01:00:5e:00:00:fb", "unknown": "02:11:22:33:44:55"}[kind]
    nonce = os.urandom(12)

    def storm(source: str) -> list[bytes]:
        ip = ground.nics[source].ip
        return [ether(to, ground.nics[source].mac, IP4, ip4(ip, "10.1.0.200", UDP, udp(ip, "10.1.0.200", 1, 9, nonce)))] * SENT

    before = ground.refused("storms").get(reason, 0)
    arrived, took = ground.flood("storms", "sink", storm("storms"), marked(nonce))
    held(arrived, took, rate)
    assert ground.refused("storms")[reason] - before == SENT - arrived
    assert ground.flood("free", "sink", storm("free"), marked(nonce))[0] == SENT
    plain = os.urandom(12)
    assert ground.flood("storms", "sink", datagrams(ground, "storms", "sink", plain), marked(plain))[0] == SENT


def test_a_large_packet_counts_by_its_bytes(ground: Ground) -> None:
    """One packet of 60,000 bytes is one of the 1,000 packets; the bytes hold it."""
    nonce = os.urandom(12)

    def large(source: str) -> list[bytes]:
        return [ground.udp(source, "bulksink", nonce + bytes(60_000))] * 40
    arrived, took = ground.flood("bulk", "bulksink", large("bulk"), marked(nonce))
    assert 500_000 // 60_100 <= arrived <= (500_000 + 500_000 * took) / 60_000 + 1 < 40
    assert ground.refused("bulk").keys() == {"sent: more bytes than its limit"}
    assert ground.flood("bulksink", "bulk", [ground.udp("bulksink", "bulk", nonce + bytes(60_000))] * 40, marked(nonce))[0] == 40


def test_flows_a_second_and_packets_of_known_flows(ground: Ground) -> None:
    """Each source port is a flow of its own. What belongs to one that was let in is not limited."""
    nonce = os.urandom(12)
    arrived, took = ground.flood("flows", "sink", [ground.udp("flows", "sink", nonce, 2000 + n) for n in range(SENT)], marked(nonce))
    held(arrived, took, 20)
    assert ground.flood("free", "sink", [ground.udp("free", "sink", nonce, 2000 + n) for n in range(SENT)], marked(nonce))[0] == SENT
    time_over()
    ask, answer = os.urandom(12), os.urandom(12)
    assert ground.flood("flows", "sink", [ground.udp("flows", "sink", ask, 5)], marked(ask))[0] == 1
    reply = ground.ip4("sink", "flows", UDP, udp(ground.nics["sink"].ip, ground.nics["flows"].ip, 9, 5, answer))
    assert ground.flood("sink", "flows", [reply], marked(answer))[0] == 1
    known = os.urandom(12)
    assert ground.flood("flows", "sink", [ground.udp("flows", "sink", known, 5)] * SENT, marked(known))[0] == SENT


def test_flows_at_once(ground: Ground) -> None:
    """A guest cannot fill the kernel's table: what is refused leaves no flow behind, what lives goes on."""
    nonce = os.urandom(12)
    arrived, _ = ground.flood("many", "sink", [ground.udp("many", "sink", nonce, 3000 + n) for n in range(SENT)], marked(nonce))
    assert arrived == 25
    assert ground.refused("many")["sent: has more flows than its limit"] == SENT - 25
    assert sum(f.source == ground.nics["many"].ip for f in flows()) == 25
    again = os.urandom(12)
    assert ground.flood("many", "sink", [ground.udp("many", "sink", again, 3000 + n) for n in range(25)], marked(again))[0] == 25
    assert ground.flood("free", "sink", [ground.udp("free", "sink", again, 3000 + n) for n in range(SENT)], marked(again))[0] == SENT


def test_what_comes_to_a_guest(ground: Ground) -> None:
    time_over()
    nonce = os.urandom(12)
    before = ground.refused("shy").get("received: more packets than its limit", 0)
    arrived, took = ground.flood("free", "shy", datagrams(ground, "free", "shy", nonce), marked(nonce))
    held(arrived, took, 40)
    assert ground.refused("shy")["received: more packets than its limit"] - before == SENT - arrived
    assert ground.flood("free", "sink", datagrams(ground, "free", "sink", nonce), marked(nonce))[0] == SENT
    time_over()
    syn = {ground.syn("free", "shy", 4000 + n)[34:36] for n in range(SENT)}
    arrived, took = ground.flood("free", "shy", [ground.syn("free", "shy", 4000 + n) for n in range(SENT)],
                                 lambda f: f[23] == TCP and f[34:36] in syn)
    held(arrived, took, 15)
    assert ground.refused("shy")["received: more TCP connections begun than its limit"] == SENT - arrived


def test_what_the_host_sends_or_routes_to_a_guest(ground: Ground) -> None:
    time_over()
    nonce = os.urandom(12)
    for vm in ("shy", "free"):
        sh(f"ip neigh replace {ground.nics[vm].ip} lladdr {ground.nics[vm].mac} dev kvb-lan nud permanent")
    for vm, rate in (("shy", 40), ("free", 0)):
        ground.taps[vm].forget()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            started = time.monotonic()
            for _ in range(SENT):
                asker.sendto(nonce, (ground.nics[vm].ip, 9))
        took = time.monotonic() - started
        arrived = ground.taps[vm].got(nonce)
        sh(f"ip neigh del {ground.nics[vm].ip} dev kvb-lan")
        held(arrived, took, rate) if rate else None
        assert rate or arrived == SENT


def test_a_change_of_a_limit_is_one_step_and_loses_nothing(ground: Ground) -> None:
    """Elements of one NIC change in one transaction; a stream below both limits arrives whole."""
    time_over()
    planned = ground.made.plan(FASTER)
    assert [str(s.key) for s in planned.steps] == ["nic-limits kvt-packets-0"]
    tables = sh("nft -a -t list ruleset")
    nonce, begun, sent = os.urandom(12), time.monotonic(), 0
    ground.taps["sink"].forget()
    for text in (FASTER, DOCUMENT) * 3:
        for _ in range(6):
            wait_for(begun + (sent - 15) / 10)  # 15 of the bucket, then 10 a second where 20 are allowed
            ground.taps["packets"].send(ground.udp("packets", "sink", nonce))
            sent += 1
        ground.made.apply(text)
    mark = os.urandom(12)
    ground.taps["free"].send(ground.question("free", "sink", mark))
    ground.taps["sink"].wait(mark)
    assert ground.taps["sink"].got(nonce) == sent == 36
    assert ground.made.drift() == []
    assert sh("nft -a -t list ruleset") == tables, "no table was loaded anew"


def test_status_tells_the_limits_and_what_was_over_them(ground: Ground) -> None:
    found = look(ground.made.host)
    assert found is not None
    nics = {n.guest: n for n in found.nics}
    assert nics["bulk"].limits == {"packets": 1000, "bytes": 500_000, "neighbours": 100}
    assert nics["many"].limits == {"concurrent": 25, "connections": 1000}
    assert nics["free"].limits == {} and nics["free"].limited == 0
    assert nics["packets"].limited == sum(n for why, n in nics["packets"].refused.items() if "limit" in why) > 0


def test_the_first_limit_of_a_kind_loses_nothing(ground: Ground) -> None:
    """Rules come and go in the table that stands, while a NIC sends as fast as it can."""
    others = DOCUMENT.replace(", syn: 15/s", "")
    nonce, sent, going = os.urandom(12), 0, threading.Event()

    def send() -> None:
        nonlocal sent
        frame = ground.udp("free", "sink", nonce)
        while not going.wait(0.001):
            ground.taps["free"].send(frame)
            sent += 1
            if sent % 50 == 0:    # a tap's queue holds 500
                ground.taps["sink"].drain()

    ground.taps["sink"].forget()
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for text in (others, DOCUMENT) * 3:
            planned = ground.made.plan(text)
            assert {s.key.kind for s in planned.steps} == {"nft-table", "nic-limits"}
            before = sent
            ground.made.host.apply(planned)
            wait_until(lambda before=before: sent > before + 50, 20)  # type: ignore[misc]
    finally:
        going.set()
        sender.join()
    mark = os.urandom(12)
    ground.taps["free"].send(ground.question("free", "sink", mark))
    ground.taps["sink"].wait(mark)
    assert ground.taps["sink"].got(nonce) == sent


MACVTAPS = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, pool: 192.0.2.100-192.0.2.150,
        limits: {send: {packets: 20/s}, storms: {broadcast: 10/s}, neighbours: 30/s}}
vms:
  a: {nics: [{network: lan}]}
  free: {nics: [{network: lan, limits: {send: {packets: none}, storms: {broadcast: none}, neighbours: none}}]}
  sink: {nics: [{network: lan, limits: {send: {packets: none}}}]}
  shy: {nics: [{network: lan, limits: {send: {packets: none}, receive: {packets: 40/s, syn: 15/s}}}]}
"""


def test_macvtaps_where_their_guests_send() -> None:
    with world() as made, grounded(MACVTAPS, made) as ground:
        assert made.drift() == []
        nonce = os.urandom(12)
        for vm, rate in (("a", 20), ("free", 0)):
            arrived, took = ground.flood(vm, "sink", datagrams(ground, vm, "sink", nonce), marked(nonce))
            held(arrived, took, rate) if rate else None
            assert rate or arrived == SENT
        assert ground.refused("a")["sent: more packets than its limit"] >= SENT - 25
        arrived, took = ground.flood("a", "sink", [ground.question("a", "sink", nonce)] * SENT, marked(nonce))
        assert 25 <= arrived <= 30 + 30 * took + 1
        time_over()
        storm = ether(BROADCAST, ground.nics["a"].mac, IP4, ip4(ground.nics["a"].ip, "192.0.2.255", UDP, nonce))
        held(*ground.flood("a", "sink", [storm] * SENT, marked(nonce)), 10)
        planned = made.plan(MACVTAPS.replace("packets: 20/s", "packets: 40/s"))
        assert [str(s.key) for s in planned.steps] == ["nic-limits kvt-a-0"]
        made.host.apply(planned)
        held(*ground.flood("a", "sink", datagrams(ground, "a", "sink", nonce), marked(nonce)), 40)


def test_macvtaps_where_something_comes_to_their_guests() -> None:
    """From another guest and from outside, by unicast, as a SYN and by broadcast. ARP is not counted, and another guest gets all of it."""
    with world() as made, grounded(MACVTAPS, made) as ground, made.outside.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        assert made.drift() == []
        wire.bind(("segment", 0))
        nonce, mac = os.urandom(12), wire.getsockname()[4].hex(":")

        def plain(target: str) -> tuple[int, float]:
            return ground.flood("free", target, datagrams(ground, "free", target, nonce), marked(nonce))

        def from_outside(target: str) -> tuple[int, float]:
            packet = ip4("192.0.2.9", ground.nics[target].ip, UDP, udp("192.0.2.9", ground.nics[target].ip, 1, 9, nonce))
            ground.taps[target].forget()
            started = time.monotonic()
            for number in range(SENT):
                wire.send(ether(ground.nics[target].mac, mac, IP4, packet))
                if number % 50 == 0:
                    ground.taps[target].drain()
            took, mark = time.monotonic() - started, os.urandom(12)
            wire.send(ether(ground.nics[target].mac, mac, 0x0806, arp(1, (mac, "192.0.2.9"), ("00:00:00:00:00:00", "192.0.2.9")) + mark))
            ground.taps[target].wait(mark)
            return sum(map(marked(nonce), ground.taps[target].drain())), took

        arrived, took = plain("shy")
        held(arrived, took, 40)
        assert ground.refused("shy")["received: more packets than its limit"] == SENT - arrived
        time_over()
        held(*from_outside("shy"), 40)
        assert plain("sink")[0] == from_outside("sink")[0] == SENT
        question = ground.question("free", "shy", os.urandom(12))
        assert ground.flood("free", "shy", [question] * SENT, lambda frame: frame == question)[0] == SENT
        time_over()
        for target in ("shy", "sink"):
            begun = [ground.syn("free", target, 4000 + n) for n in range(SENT)]
            arrived, took = ground.flood("free", target, begun, lambda f: f[23] == TCP and f[47] == 2)
            held(arrived, took, 15) if target == "shy" else None
            assert target == "shy" or arrived == SENT
        time_over()
        storm = ether(BROADCAST, ground.nics["free"].mac, IP4, ip4(ground.nics["free"].ip, "192.0.2.255", UDP, nonce))
        held(*ground.flood("free", "shy", [storm] * SENT, marked(nonce)), 40)
        sh("nft delete chain netdev kvmnet ingress_kvt-shy-0")
        assert plain("shy")[0] == SENT, "nobody counts"
        assert made.drift() == ["create guard-hook kvt-shy-0 in"]
        made.apply(MACVTAPS)
        time_over()
        held(*plain("shy"), 40)
        sh("nft flush ruleset")
        wait_until(lambda: "ingress_kvt" in sh("nft list table netdev kvmnet", check=False), 20)
        time_over()
        held(*plain("shy"), 40)
        made.apply(MACVTAPS.replace(", receive: {packets: 40/s, syn: 15/s}", ""))
        assert made.drift() == [] and "ingress_kvt" not in sh("nft list table netdev kvmnet")
        assert plain("shy")[0] == SENT
