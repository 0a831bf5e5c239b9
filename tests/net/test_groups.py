"""Groups on a real kernel: who reaches whom, what attackers try, and what a change does to flows.

Every refusal has its control: the same attempt gets through once the NICs are in no group. The lab runs the same
tests with the other back end (tests/lab/test_groups.py).
"""
from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise

import pytest

from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from kvmnet.status import status as look
from lib.flood import SO_RCVBUFFORCE
from lib.frames import ICMP, UDP, ether, icmp, ip4, ip6, udp
from lib.netns import inside, sh
from lib.world import NEVER, OUTSIDE, OUTSIDE6, SOON, Guest, Place, World, world

pytestmark = pytest.mark.net
IP4, IP6 = 0x0800, 0x86DD

DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
  office: {device: eth1}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64", forwards: [{port: 8080, to: db, to_port: 80}]}
  pub: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64", peers: [lan]}
  office: {mode: bridge, uplink: office, subnet: 10.20.0.0/24, gateway: 10.20.0.1, pool: 10.20.0.100-10.20.0.120}
  cell: {mode: isolated, subnet: 10.0.0.0/24, address: none}
  cell2: {mode: isolated, subnet: 10.0.0.0/24, address: none}
vms:
  web: {nics: [{network: lan, groups: [web]}]}
  db: {nics: [{network: lan, groups: [db]}]}
  any: {nics: [{network: lan}]}
  srv: {nics: [{network: pub, groups: [web]}]}
  files: {nics: [{network: office, groups: [db]}]}
  a1: {nics: [{network: cell, ip: 10.0.0.1}]}
  b1: {nics: [{network: cell, ip: 10.0.0.2, groups: [shut]}]}
  a2: {nics: [{network: cell2, ip: 10.0.0.1}]}
  b2: {nics: [{network: cell2, ip: 10.0.0.2, groups: [web]}]}
groups:
  web: {ingress: [{tcp: 80}, {icmp: [echo-request]}], refuse: reject}
  db:
    ingress: [{tcp: [80, 5432-5433], from: group:web}, {udp: any, from: set:known}]
    egress: [{tcp: 80, to: [group:web, 203.0.113.0/24]}]
  shut: {}
address_sets:
  known: [10.20.0.1, 192.168.100.240/28]
"""
OPEN = re.sub(r", groups: \[\w+\]", "", DOCUMENT)
GATEWAYS = {"lan": ("192.168.100.1/24", "fd00:100::1"), "pub": ("198.51.100.1/28", "2001:db8:100::1"), "office": ("10.20.0.1/24", ""),
            "cell": ("", ""), "cell2": ("", "")}
NETWORKS = {"web": "lan", "db": "lan", "any": "lan", "srv": "pub", "files": "office", "a1": "cell", "b1": "cell",
            "a2": "cell2", "b2": "cell2"}


@dataclass
class Ground:
    world: World

    def guest(self, name: str) -> Guest:
        return self.world.guest(name)

    def place(self, name: str) -> Place:
        return {"outside": self.world.outside, "host": self.world.here}.get(name) or self.guest(name)

    def asks(self, source: str, target: str, what: str, timeout: float = NEVER) -> bool:
        """Whether *source* is answered by *target*: ``tcp 80``, ``tcp6 80``, ``udp 5432`` or ``ping``."""
        word, _, port = what.partition(" ")
        place, address = self.place(source), self.address(source, target, word.endswith("6"))
        if word.startswith("ping"):
            return place.pings(address, timeout=timeout)
        ask = place.tcp if word.startswith("tcp") else place.udp
        return bool(ask(address, int(port), timeout))

    def address(self, source: str, target: str, six: bool) -> str:
        if target == "outside":
            return "10.20.0.1" if NETWORKS.get(source) == "office" else OUTSIDE6 if six else OUTSIDE
        if target == "host":
            return GATEWAYS[NETWORKS[source]][six].partition("/")[0]
        return self.guest(target).ip6 if six else self.guest(target).ip


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with world() as made:
        up = made.outside.netns
        sh(f"ip link add eth1 type veth peer name office netns {up}; ip link set eth1 up; "
           f"ip -n {up} addr add 10.20.0.1/24 dev office; ip -n {up} link set office up")
        for prefix, via in (("198.51.100.0/28", "192.0.2.2"), ("2001:db8:100::/64", "2001:db8:1::2")):
            sh(f"ip -n {up} route add {prefix} via {via}")
        made.apply(DOCUMENT)
        for name, network in NETWORKS.items():
            guest, (gateway, gateway6) = made.guest(name), GATEWAYS[network]
            via, _, length = gateway.partition("/")
            guest.use(f"{guest.ip}/{length or 24}", via=via)
            if gateway6:
                guest.use(f"{guest.ip6}/64", via6=gateway6)
            for port in (80, 5432, 9999):
                made.service(guest, name, port)
        for port in (80, 9999):
            made.service(made.outside, "outside", port)
            made.service(made.here, "host", port)
        yield Ground(made)


ALLOWED = [
    ("any", "web", "tcp 80"), ("any", "web", "tcp6 80"), ("any", "web", "ping"), ("web", "db", "tcp 5432"), ("web", "db", "tcp6 5432"),
    ("db", "web", "tcp 80"), ("db", "outside", "tcp 80"), ("web", "outside", "tcp 9999"), ("web", "any", "udp 9999"),
    ("host", "web", "tcp 80"), ("outside", "srv", "tcp 80"), ("outside", "srv", "tcp6 80"), ("srv", "db", "tcp 5432"),
    ("db", "srv", "tcp 80"), ("outside", "files", "udp 9999"), ("a2", "b2", "tcp 80")]
"""(from, to, what): group to group, by address set, between networks through the host, from outside."""
REFUSED = [
    ("any", "web", "tcp 5432"), ("any", "web", "udp 80"), ("any", "db", "tcp 5432"), ("any", "db", "tcp6 80"), ("any", "db", "ping"),
    ("web", "db", "udp 5432"), ("db", "any", "tcp 80"), ("db", "web", "tcp6 5432"), ("db", "outside", "tcp 9999"),
    ("db", "outside", "tcp6 80"), ("host", "db", "tcp 80"), ("outside", "srv", "tcp 5432"),
    ("outside", "srv", "tcp6 9999"), ("any", "srv", "tcp 9999"), ("db", "srv", "tcp 5432"), ("outside", "files", "tcp 80"),
    ("files", "outside", "tcp 9999"), ("a1", "b1", "tcp 80"), ("a1", "b1", "ping"), ("a2", "b2", "udp 9999")]
"""The same with a port, a sender, a receiver, a family or a protocol that no rule has."""


def test_who_reaches_whom(ground: Ground) -> None:
    assert [case for case in ALLOWED if not ground.asks(*case, timeout=SOON)] == []
    assert [case for case in REFUSED if ground.asks(*case)] == []
    assert ground.world.drift() == []


def test_without_groups_everything_refused_gets_through(ground: Ground) -> None:
    ground.world.apply(OPEN)
    try:
        assert [case for case in REFUSED if not ground.asks(*case, timeout=SOON)] == []
    finally:
        ground.world.apply(DOCUMENT)
    assert ground.world.drift() == []


def test_a_forwarded_port_is_judged_where_it_arrives(ground: Ground) -> None:
    """A forward does not open a group: what the host hands on is judged by the receiver's rules."""
    assert not ground.world.outside.tcp("192.0.2.2", 8080, NEVER)
    ground.world.apply(DOCUMENT.replace("from: group:web}, {udp", "from: [group:web, 203.0.113.0/24, 192.0.2.0/24]}, {udp"))
    try:
        assert ground.world.outside.tcp("192.0.2.2", 8080).startswith("db ")
    finally:
        ground.world.apply(DOCUMENT)


def test_a_refusal_is_answered_where_the_group_says_so(ground: Ground) -> None:
    """A reset for TCP and an ICMP error for UDP; silence where nothing was said."""
    with ground.guest("any").socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.settimeout(SOON)
        assert s.connect_ex((ground.guest("web").ip, 81)) == 111
    with ground.guest("any").socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(SOON)
        s.connect((ground.guest("web").ip, 81))
        with pytest.raises(OSError, match=r"unreachable|refused|No route|Permission"):
            for _ in range(2):
                s.send(b"?")
                s.recv(10)
    with ground.guest("a1").socket(socket.AF_INET, socket.SOCK_STREAM) as s, pytest.raises(TimeoutError):
        s.settimeout(NEVER)
        s.connect((ground.guest("b1").ip, 80))


# -- attacks ---------------------------------------------------------------------------------------

def heard(ground: Ground, target: str, send: Callable[[bytes], object], timeout: float = NEVER) -> bool:
    """Whether a frame with the nonce given to *send* comes to the NIC of *target*, in so many seconds."""
    nonce, guest = os.urandom(12), ground.guest(target)
    with inside(guest.netns):
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        seen.bind(("eth0", 0))
    with seen:
        send(nonce)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if select.select([seen], [], [], left)[0] and nonce in seen.recv(70000):
                return True
    return False


def datagram(source: str, target: str, sport: int, dport: int, data: bytes) -> bytes:
    make = ip6 if ":" in source else ip4
    return make(source, target, UDP, udp(source, target, sport, dport, data))


def to(a: Guest, b: Guest, body: bytes) -> None:
    a.outer.send(ether(b.mac, a.mac, IP4, body))


def fragment(ground: Ground, nonce: bytes) -> None:
    """The port is in the first fragment only; the nonce is in the second."""
    a, b = ground.guest("any"), ground.guest("web")
    whole = datagram(a.ip, b.ip, 5, 777, bytes(72) + nonce + bytes(20))
    header, payload = whole[:20], whole[20:]
    for offset, more in ((8, False), (0, True)):
        part = payload[:64] if more else payload[64:]
        head = bytearray(header)
        head[2:4] = (20 + len(part)).to_bytes(2, "big")
        head[4:6] = b"\x12\x34"
        head[6:8] = ((0x2000 if more else 0) | offset).to_bytes(2, "big")
        head[10:12] = b"\0\0"
        head[10:12] = checksum(bytes(head)).to_bytes(2, "big")
        to(a, b, bytes(head) + part)


def checksum(data: bytes) -> int:
    total = sum(int.from_bytes(data[i:i + 2], "big") for i in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def blind(ground: Ground, nonce: bytes) -> None:
    """The reply of a flow that exists with the same addresses in the other network."""
    a, b = ground.guest("a1"), ground.guest("b1")
    with ground.guest("b2").socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((ground.guest("b2").ip, 4444))
        s.sendto(b"?", (ground.guest("a2").ip, 9999))
        s.settimeout(SOON)
        s.recv(100)
        to(a, b, datagram(a.ip, b.ip, 9999, 4444, nonce))


def plain(ground: Ground, nonce: bytes, source: str = "any", target: str = "db") -> None:
    a, b = ground.guest(source), ground.guest(target)
    to(a, b, datagram(a.ip, b.ip, 5, 777, nonce))


def routed(ground: Ground, nonce: bytes) -> None:
    """To a neighbour by way of the host's router."""
    a, b = ground.guest("any"), ground.guest("db")
    mac = json.loads(sh("ip -j link show kvb-lan"))[0]["address"]
    a.outer.send(ether(mac, a.mac, IP4, datagram(a.ip, b.ip, 5, 777, nonce)))


def of_set(ground: Ground, nonce: bytes) -> None:
    """With a source address that the address set has."""
    a, b = ground.guest("any"), ground.guest("db")
    to(a, b, datagram("192.168.100.241", b.ip, 5, 777, nonce))


def tagged(ground: Ground, nonce: bytes) -> None:
    a, b = ground.guest("any"), ground.guest("web")
    a.outer.send(ether(b.mac, a.mac, 0x8100, b"\0\x05\x08\0" + datagram(a.ip, b.ip, 5, 777, nonce)))


def extension(ground: Ground, nonce: bytes) -> None:
    """Destination options in front of UDP."""
    a, b = ground.guest("any"), ground.guest("web")
    body = bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + udp(a.ip6, b.ip6, 5, 777, nonce)
    a.outer.send(ether(b.mac, a.mac, IP6, ip6(a.ip6, b.ip6, 60, body)))


def error(ground: Ground, nonce: bytes) -> None:
    """An ICMP error about a flow that never was."""
    a, b = ground.guest("any"), ground.guest("db")
    about = datagram(b.ip, a.ip, 1234, 80, nonce)
    body = b"\x03\x01\0\0\0\0\0\0" + about
    body = body[:2] + checksum(body + bytes(len(body) % 2)).to_bytes(2, "big") + body[4:]
    to(a, b, ip4(a.ip, b.ip, 1, body))


ATTACKS: dict[str, tuple[str, Callable[[Ground, bytes], None]]] = {
    "a datagram": ("db", plain), "fragments": ("web", fragment), "the reply of another network's flow": ("b1", blind),
    "an ICMP error about nothing": ("db", error)}
"""What arrives once there are no groups."""
GUARDED: dict[str, tuple[str, Callable[[Ground, bytes], None]]] = {
    "by way of the host's router": ("db", routed), "a source that the set has": ("db", of_set), "a VLAN tag": ("web", tagged),
    "an extension header": ("web", extension)}
"""What the guard refuses in any case: groups change nothing of that."""


def test_attacks(ground: Ground) -> None:
    for name, (target, attack) in (ATTACKS | GUARDED).items():
        assert not heard(ground, target, lambda nonce, run=attack: run(ground, nonce)), name  # type: ignore[misc]
    ground.world.apply(OPEN)
    try:
        for name, (target, attack) in ATTACKS.items():
            assert heard(ground, target, lambda nonce, run=attack: run(ground, nonce), SOON), name  # type: ignore[misc]
        for name, (target, attack) in GUARDED.items():
            assert not heard(ground, target, lambda nonce, run=attack: run(ground, nonce)), name  # type: ignore[misc]
    finally:
        ground.world.apply(DOCUMENT)


def test_what_is_dropped_is_told_by_nic_and_what_passes_by_rule(ground: Ground) -> None:
    assert not ground.asks("any", "db", "tcp 80")
    assert ground.asks("any", "web", "tcp 80", SOON)
    status = look(ground.world.host)
    assert status is not None
    of = {n.guest: n.refused for n in status.nics}
    assert of["db"]["received: no rule of its groups allows it"] >= 1
    rules = {(r.group, r.direction, r.position): r.packets for r in status.rules}
    assert rules["web", "ingress", 0] >= 1 and rules["web", "ingress", 1] >= 0


# -- changes ---------------------------------------------------------------------------------------

def test_a_change_of_members_is_two_steps_and_cuts_what_it_forbids(ground: Ground) -> None:
    """``any`` joins web and may ask db; when it leaves, its flow is cut and that of web is not."""
    joined = DOCUMENT.replace("any: {nics: [{network: lan}]}", "any: {nics: [{network: lan, groups: [web]}]}")
    before = sh("nft -a -t list table bridge kvmnet").splitlines()[0]
    planned = ground.world.plan(joined)
    assert [str(s.key) for s in planned.steps] == ["nic-groups kvt-any-0"]
    ground.world.host.apply(planned)
    with ExitStack() as stack:
        any_, web = (talk(stack, ground, name, "db") for name in ("any", "web"))
        assert alive(any_) and alive(web)
        ground.world.apply(DOCUMENT)
        assert alive(web) and not alive(any_, NEVER)
        assert {(f.source, f.port) for f in flows() if f.destination == ground.guest("db").ip and f.port == 5433} == {
            (ground.guest("web").ip, 5433)}
    assert sh("nft -a -t list table bridge kvmnet").splitlines()[0] == before, "the table was loaded anew"


def talk(stack: ExitStack, ground: Ground, source: str, target: str) -> tuple[socket.socket, socket.socket]:
    """Both ends of an open TCP connection to port 5433."""
    with inside(ground.guest(target).netns):
        listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ground.guest(target).ip, 5433))
        listener.listen(1)
    asking = stack.enter_context(ground.guest(source).socket(socket.AF_INET, socket.SOCK_STREAM))
    asking.settimeout(SOON)
    asking.connect((ground.guest(target).ip, 5433))
    answering = stack.enter_context(listener.accept()[0])
    listener.close()
    return asking, answering


def alive(ends: tuple[socket.socket, socket.socket], timeout: float = SOON) -> bool:
    """Whether a word gets from one end to the other in so many seconds."""
    nonce = os.urandom(8)
    with suppress(OSError):
        ends[0].send(nonce)
        return bool(select.select([ends[1]], [], [], timeout)[0]) and nonce in ends[1].recv(1000)
    return False


def test_a_change_of_members_leaks_nothing_and_loses_nothing(ground: Ground) -> None:
    """A flood of what is forbidden and a 1 ms probe of what is allowed, while members come and go."""
    joined = DOCUMENT.replace("any: {nics: [{network: lan}]}", "any: {nics: [{network: lan, groups: [web]}]}")
    asked, arrived = under_fire(ground, joined)
    assert arrived == asked


def test_a_change_of_rules_leaks_nothing_and_loses_nothing(ground: Ground) -> None:
    """Rules of other groups and of the probe's own, a group that comes and goes, an address set that changes."""
    asked, arrived = under_fire(ground, DOCUMENT.replace("shut: {}", "shut: {ingress: [{tcp: 9}]}\n  more: {ingress: [{udp: 9}], egress: []}")
                                .replace("{icmp: [echo-request]}]", "{icmp: [echo-request], from: [set:known, set:lan]}]")
                                .replace("  known: [10.20.0.1,", "  lan: [192.168.100.0/24]\n  known: [10.20.0.2,"))
    assert arrived == asked


def under_fire(ground: Ground, other: str) -> tuple[int, int]:
    """Probes sent and arrived while the document becomes *other* and back; of the flood nothing may arrive.

    It is counted where it would arrive, and arrives when there are no groups.
    """
    a1, b1, any_, web = (ground.guest(n) for n in ("a1", "b1", "any", "web"))
    flood = Stream(a1, b1, 0.0003, lambda number, nonce: datagram(a1.ip, b1.ip, 5 + number % 9, 777, nonce))
    probe = Stream(any_, web, 0.001, lambda number, nonce: ip4(
        any_.ip, web.ip, ICMP, icmp(8, 0, struct.pack("!HH", 7 if number % 2 else number % 60000, number % 65536) + nonce)))
    wanted = {text: rules_of(ground, text) for text in (DOCUMENT, other)}
    driver = ground.world.host.engine.dispatch.by_kind["nic-groups"]
    driver.observe({})
    with flood, probe:
        for before, after in pairwise((DOCUMENT, *(other, DOCUMENT) * (CHANGES // 2))):
            driver.apply(plan(wanted[before], wanted[after], wanted[before].keys()), lambda done: None)
        sent, leaked = flood.count()
        found = probe.whole()
        ground.world.apply(OPEN)
        wait_until(lambda: flood.seen > leaked, SOON)    # the flood would be seen
    ground.world.apply(DOCUMENT)
    assert sent > 5 * CHANGES and leaked == 0
    assert found[0] > 5 * CHANGES
    return found


CHANGES = 100


def rules_of(ground: Ground, text: str) -> dict[Key, Resource]:
    """What *text* wants of the tables and of who is in what."""
    compiled = ground.world.plan(text).compiled
    assert compiled is not None
    return {k: r for k, r in compiled.wanted.items() if k.kind in ("nft-table", "nic-groups", "address-set") and isinstance(r, Resource)}


class Stream:
    """Frames one after the other until the end of the ``with`` block, counted where they arrive."""

    def __init__(self, sender: Guest, receiver: Guest, pace: float, frame: Callable[[int, bytes], bytes]):
        """``pace``: seconds between two. ``frame``: makes the IP packet of a number and a nonce."""
        self.nonce, self.sent, self.seen, self.pace = os.urandom(12), 0, 0, pace
        self.sender, self.receiver, self.frame = sender, receiver, frame
        with inside(receiver.netns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 24)
            self.socket.bind(("eth0", 0))
        self.stopping, self.paused, self.idle = (threading.Event() for _ in range(3))
        self.threads = [threading.Thread(target=self.send), threading.Thread(target=self.receive)]

    def send(self) -> None:
        while not self.stopping.is_set():
            if self.paused.is_set():
                self.idle.set()
            else:
                self.idle.clear()
                to(self.sender, self.receiver, self.frame(self.sent, self.nonce))
                self.sent += 1
            self.stopping.wait(self.pace)

    def receive(self) -> None:
        while not self.stopping.is_set():
            if select.select([self.socket], [], [], 0.05)[0]:
                data, address = self.socket.recvfrom(2000)
                self.seen += address[2] != socket.PACKET_OUTGOING and self.nonce in data

    def count(self) -> tuple[int, int]:
        """Sent and arrived so far, with nothing under way."""
        self.paused.set()
        wait_until(self.idle.is_set, SOON)
        self.stopping.wait(NEVER)
        found = self.sent, self.seen
        self.paused.clear()
        return found

    def whole(self) -> tuple[int, int]:
        """Sent and arrived, when what was sent has time to arrive, and no more is sent."""
        self.paused.set()
        wait_until(self.idle.is_set, SOON)
        with suppress(TimeoutError):
            wait_until(lambda: self.seen >= self.sent, SOON)
        return self.count()

    def __enter__(self) -> Stream:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        self.socket.close()
