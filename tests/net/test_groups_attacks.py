"""Ways around groups, frame by frame, from a guest to a guest, to the host and outside by its router: none gets through, and each does
what it should without the groups, or without the guard where that alone refuses it. ``tests/lab/test_groups.py`` runs them on bridge
conntrack."""
from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import count
from types import SimpleNamespace
from typing import TypeAlias

import pytest

from kvmnet.drivers.nftables.conntrack import flows
from kvmnet.host.clock import wait_until
from lib.frames import ICMP, TCP, UDP, ether, fragment, icmp, ip, ip4, ip6, pseudo, tag, tcp, udp
from lib.frames import checksum as total_of
from lib.guardlab import HostEnd
from lib.netns import inside, sh
from lib.tap import Tap
from lib.verdicts import segment
from lib.world import OUTSIDE, OUTSIDE6
from net.test_groups_frames import IP4, IP6, Wire, wire  # noqa: F401 - the fixture

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}, yard: {device: eth1}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd01::/64", dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"}
  one: {mode: isolated, subnet: 10.0.0.0/24, address: none}
  two: {mode: isolated, subnet: 10.0.0.0/24, address: none}
  yard: {mode: bridge, uplink: yard, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
vms:
  y: {nics: [{network: yard, ip: 10.9.0.9, ip6: "fd09::9", groups: [shut]}]}
  a: {nics: [{network: lan, groups: [narrow]}]}
  b: {nics: [{network: lan, groups: [shut]}]}
  e: {nics: [{network: lan}]}
  c1: {nics: [{network: one, ip: 10.0.0.1}]}
  d1: {nics: [{network: one, ip: 10.0.0.2}]}
  c2: {nics: [{network: two, ip: 10.0.0.1}]}
  d2: {nics: [{network: two, ip: 10.0.0.2}]}
groups:
  narrow: {ingress: [{}], egress: [{tcp: 21}]}
  shut: {ingress: [{tcp: 21}]}
"""
OPEN = DOCUMENT.replace(", groups: [narrow]", "").replace(", groups: [shut]", "").partition("groups:\n")[0]
UNGUARDED = OPEN.replace("network: lan}", 'network: lan, guard: "off"}')
PORTS = count(20000)


@dataclass(frozen=True)
class End:
    """Who is attacked: a guest, the host, or somebody outside, by the MAC that leads there."""

    name: str
    mac: str
    ip: str
    ip6: str


Attack: TypeAlias = Callable[[Wire, End, bytes], list[bytes]]
"""Frames to an end that carry a nonce."""


class Mouth:
    """Somebody on the wire."""

    def __init__(self, netns: str, device: str):
        with inside(netns):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self.socket.bind((device, 0))

    def send(self, frame: bytes) -> None:
        self.socket.send(frame)


@dataclass(frozen=True)
class Yard:
    """The ground as somebody outside of the bridge with an uplink sees it: that one is a, and y is b."""

    wire: Wire
    ends: dict[str, tuple[End, HostEnd | None]]

    @classmethod
    def laid(cls, wire: Wire, text: str, stack: ExitStack) -> Yard:  # noqa: F811
        """With the document *text* in force, which knows it."""
        outer = wire.made.outside.netns
        sh(f"ip link add eth1 type veth peer name yard netns {outer}; ip link set eth1 up; ip -n {outer} link set yard up")
        planned = wire.made.plan(text)
        wire.made.host.apply(planned)
        assert planned.compiled is not None
        nic = next(n for s in planned.compiled.segments.values() for n in s.nics if n.vm == "y")
        mouth, tap = Mouth(outer, "yard"), stack.enter_context(Tap(nic.tap))
        stack.callback(mouth.socket.close)
        wait_until(lambda: sh(f"bridge link show dev {nic.tap}; bridge link show dev eth1").count("state forwarding") == 2, 20)
        outsider = SimpleNamespace(mac="02:00:00:00:00:77", ip="10.9.0.200", ip6="fd09::200")
        there = replace(wire, nics={**wire.nics, "a": outsider, "b": nic}, taps={**wire.taps, "a": mouth, "b": tap})  # type: ignore[dict-item]
        return cls(there, {"a guest": (End("y", nic.mac, nic.ip, nic.ip6), None)})


@pytest.fixture(scope="module")
def yard(wire: Wire) -> Iterator[Yard]:  # noqa: F811
    with ExitStack() as stack:
        yield Yard.laid(wire, DOCUMENT, stack)


def whole(wire: Wire, to: End, kind: int, body: bytes, **more: bytes | int) -> bytes:  # noqa: F811
    a = wire.nics["a"]
    return ether(to.mac, a.mac, IP4, ip4(a.ip, to.ip, kind, body, **more))  # type: ignore[arg-type]


def whole6(wire: Wire, to: End, following: int, body: bytes) -> bytes:  # noqa: F811
    a = wire.nics["a"]
    return ether(to.mac, a.mac, IP6, ip6(a.ip6, to.ip6, following, body))


def plain(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    return [whole(wire, to, UDP, udp(wire.nics["a"].ip, to.ip, next(PORTS), 777, nonce))]


def plain6(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    return [whole6(wire, to, UDP, udp(wire.nics["a"].ip6, to.ip6, next(PORTS), 777, nonce))]


def fragments(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    """The second first, which has no port."""
    data = udp(wire.nics["a"].ip, to.ip, next(PORTS), 777, bytes(64) + nonce + bytes(20))
    return [whole(wire, to, UDP, data[64:], frag=8), whole(wire, to, UDP, data[:64], frag=0x2000)]


def halves(wire: Wire, to: End, nonce: bytes, length: int = 0) -> list[bytes]:  # noqa: F811
    """A segment for the allowed port in two fragments; between them, if *length*, so much of one for another port at the same place."""
    a = wire.nics["a"]
    good, bad = (segment(a.ip, to.ip, 20, port, 2, bytes(4) + nonce) for port in (21, 777))
    over = [whole(wire, to, TCP, bad[:length], frag=0x2000)] if length else []
    return [whole(wire, to, TCP, good[:24], frag=0x2000), *over, whole(wire, to, TCP, good[24:], frag=3)]


def fragments6(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    data = udp(wire.nics["a"].ip6, to.ip6, next(PORTS), 777, bytes(1224) + nonce + bytes(20))
    return [whole6(wire, to, 44, fragment(UDP, data[1232:], offset=1232, more=False)), whole6(wire, to, 44, fragment(UDP, data[:1232]))]


def stray(flags: int) -> Attack:
    """A segment of a connection that never was."""
    def made(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
        a = wire.nics["a"]
        head = struct.pack("!HHIIBBHHH", next(PORTS), 777, 9, 9, 0x50, flags, 1000, 0, 0)
        total = total_of(pseudo(a.ip, to.ip, TCP, 20 + len(nonce)) + head + nonce)
        return [whole(wire, to, TCP, head[:16] + struct.pack("!H", total) + head[18:] + nonce)]
    return made


def reply(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    """The answer to an echo that nobody asked."""
    return [whole(wire, to, ICMP, icmp(0, 0, struct.pack("!HH", next(PORTS), 1) + nonce))]


def complaint(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    """An ICMP error about a packet that the receiver never sent here."""
    a = wire.nics["a"]
    quoted = ip4(to.ip, a.ip, UDP, udp(to.ip, a.ip, next(PORTS), 53))
    return [whole(wire, to, ICMP, icmp(3, 3, bytes(4) + quoted + nonce))]


def tagged(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    return [tag(7, plain(wire, to, nonce)[0])]


def stacked(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    return [tag(7, tag(8, plain(wire, to, nonce)[0]), 0x88A8)]


def source_route(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    """Loose source routing by way of the receiver (RFC 791)."""
    data = udp(wire.nics["a"].ip, to.ip, next(PORTS), 777, nonce)
    return [whole(wire, to, UDP, data, options=b"\x83\x07\x04" + ip(to.ip) + b"\0")]


def options6(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    data = udp(wire.nics["a"].ip6, to.ip6, next(PORTS), 777, nonce)
    return [whole6(wire, to, 60, bytes([UDP, 0, 1, 4, 0, 0, 0, 0]) + data)]


def routing6(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    data = udp(wire.nics["a"].ip6, to.ip6, next(PORTS), 777, nonce)
    return [whole6(wire, to, 43, bytes([UDP, 2, 0, 0, 0, 0, 0, 0]) + ip(to.ip6) + data)]


def as_another(wire: Wire, to: End, nonce: bytes) -> list[bytes]:  # noqa: F811
    """From the address of a guest that nobody limits."""
    a, e = wire.nics["a"], wire.nics["e"]
    return [ether(to.mac, a.mac, IP4, ip4(e.ip, to.ip, UDP, udp(e.ip, to.ip, next(PORTS), 777, nonce)))]


ATTACKS: dict[str, Attack] = {
    "a datagram": plain, "a datagram, IPv6": plain6, "fragments": fragments, "fragments, IPv6": fragments6,
    "a reply to nothing": reply, "an error about nothing": complaint,
    "a segment of no connection": stray(16), "the answer of no connection": stray(18), "the end of no connection": stray(17)}
"""What groups alone refuse."""
BEGIN = {name for name in ATTACKS if name.startswith(("a datagram", "fragments"))} | {"a segment of no connection"}
"""Those that the host's own table lets out: the others are of no flow that it knows (``ct state invalid``)."""
GUARDED: dict[str, Attack] = {
    "a VLAN tag": tagged, "two VLAN tags": stacked, "source routing": source_route, "destination options": options6,
    "a routing header": routing6, "another guest's address": as_another}
"""What the guard refuses in any case."""

UNJUDGED = {name: attack for name, attack in GUARDED.items() if attack is not as_another}
"""What it does not refuse to those outside."""


class WireEnd(HostEnd):
    """What leaves by the uplink."""

    def __init__(self) -> None:
        super().__init__()
        self.socket.bind(("eth0", 0))

    def drain(self) -> list[bytes]:
        while True:
            try:
                data, address = self.socket.recvfrom(70000, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return self.seen
            if address[2] == socket.PACKET_OUTGOING:
                self.seen.append(data)


Ends = dict[str, tuple[End, HostEnd | None]]


@pytest.fixture
def ends(wire: Wire) -> Iterator[Ends]:  # noqa: F811
    b, ear, far = wire.nics["b"], HostEnd(), WireEnd()
    router = json.loads(sh("ip -j link show kvb-lan"))[0]["address"]
    yield {"a guest": (End("b", b.mac, b.ip, b.ip6), None), "the host": (End("host", router, "10.1.0.1", "fd01::1"), ear),
           "outside": (End("outside", router, OUTSIDE, OUTSIDE6), far)}
    ear.socket.close()
    far.socket.close()


def arrived(wire: Wire, to: End, ear: HostEnd | None, attack: Attack) -> bool:  # noqa: F811
    nonce = os.urandom(12)
    there = wire.arrives("a", "b", *attack(wire, to, nonce), nonce=nonce)
    return bool(ear.got(nonce)) if ear else there


def through(wire: Wire, ends: Ends, attacks: dict[str, Attack], expected: Collection[str] = ()) -> set[str]:  # noqa: F811
    """Those of *attacks* that came to where they were sent, all of them one after the other, and behind them what always arrives. What is
    *expected* has time to come."""
    sinks = {where: ear or wire.taps["b"] for where, (_, ear) in ends.items()}
    nonces = {(name, where): os.urandom(12) for name in attacks for where in ends}
    wire.taps["b"].forget()
    for (name, where), nonce in nonces.items():
        for frame in attacks[name](wire, ends[where][0], nonce):
            wire.taps["a"].send(frame)
    conclude(wire, ends)

    def found() -> set[str]:
        return {f"{name}, to {where}" for (name, where), nonce in nonces.items() if sinks[where].got(nonce)}
    with suppress(TimeoutError):
        wait_until(lambda: found() >= set(expected), 20)
    return found()


def conclude(wire: Wire, ends: Ends) -> None:  # noqa: F811
    """What always arrives: a question by ARP, which the host hears too, and on the way outside the beginning of what is allowed."""
    a, nonce = wire.nics["a"], os.urandom(12)
    question = b"\0\1\x08\0\6\4\0\1" + bytes.fromhex(a.mac.replace(":", "")) + ip(a.ip) + bytes(6) + ip(wire.nics["b"].ip)
    wire.taps["a"].send(ether("ff:ff:ff:ff:ff:ff", a.mac, 0x0806, question + nonce))
    wire.taps["b"].wait(nonce)
    for where, (to, ear) in ends.items():
        if where == "outside":
            wire.taps["a"].send(whole(wire, to, TCP, segment(a.ip, to.ip, next(PORTS), 21, 2, nonce)))
        if ear:
            wait_until(lambda heard=ear: heard.got(nonce), 20)  # type: ignore[misc]


def everything(ends: Ends) -> set[str]:
    return {f"{name}, to {where}" for name in ATTACKS for where in ends if where != "outside" or name in BEGIN}


def test_nothing_gets_around_the_groups(wire: Wire, yard: Yard, ends: Ends) -> None:  # noqa: F811
    """Nor from outside, where no guard judges the sender: there groups alone refuse tags, headers and options."""
    wire.use(DOCUMENT)
    assert through(wire, ends, ATTACKS | GUARDED) == through(yard.wire, yard.ends, ATTACKS | UNJUDGED) == set()
    assert arrived(yard.wire, yard.ends["a guest"][0], None, halves), "what is allowed"
    wire.use(OPEN)
    assert through(wire, ends, ATTACKS, everything(ends)) == everything(ends)
    assert through(wire, ends, GUARDED) == set()
    assert through(yard.wire, yard.ends, ATTACKS | UNJUDGED, past(ATTACKS | UNJUDGED)) == past(ATTACKS | UNJUDGED)
    wire.use(UNGUARDED)
    assert {name for name in through(wire, ends, GUARDED, past(GUARDED)) if name.endswith("a guest")} == past(GUARDED)


def past(attacks: Collection[str]) -> set[str]:
    return {f"{name}, to a guest" for name in attacks}


def test_overlapping_fragments_change_no_port(wire: Wire, yard: Yard, ends: Ends) -> None:  # noqa: F811
    wire.use(DOCUMENT)
    to, _ = ends["a guest"]
    overlaps(wire, to)
    wire.use(OPEN)
    frame = whole(wire, to, TCP, tcp(wire.nics["a"].ip, to.ip, 20, 777))
    assert wire.arrives("a", "b", frame, nonce=struct.pack("!HH", 20, 777)), "it would be seen"


def overlaps(wire: Wire, to: End) -> None:  # noqa: F811
    """Fragments of a segment for the allowed port, and pieces for another over them."""
    assert arrived(wire, to, None, halves)
    for length in (16, 24):  # within the first: a repetition, and the first counts
        assert arrived(wire, to, None, lambda w, end, nonce, length=length: halves(w, end, nonce, length))  # type: ignore[misc]
        assert not wire.taps["b"].got(struct.pack("!HH", 20, 777))
    assert not arrived(wire, to, None, lambda w, end, nonce: halves(w, end, nonce, 32)), "the kernel drops what overlaps in part"
    assert not wire.taps["b"].got(struct.pack("!HH", 20, 777))


def test_no_helper_opens_a_port(wire: Wire, yard: Yard, ends: Ends) -> None:  # noqa: F811
    wire.use(DOCUMENT)
    announced(wire, ends["a guest"][0])


def announced(wire: Wire, to: End) -> None:  # noqa: F811
    """An FTP server that announces a port: conntrack's helper would expect a connection to it. The flow is known, its words count
    for nothing."""
    a, b = wire.nics["a"], wire.nics["b"]
    for source, target, ports, flags in (("a", "b", (1099, 21), 2), ("b", "a", (21, 1099), 18), ("a", "b", (1099, 21), 16)):
        frame = wire.packet(source, target, TCP, lambda x, y, p=ports, f=flags: tcp(x, y, *p, f))  # type: ignore[misc]
        assert wire.arrives(source, target, frame, nonce=frame[26:])
    words = f"227 Entering Passive Mode ({b.ip.replace('.', ',')},3,9)\r\n".encode()
    head = struct.pack("!HHIIBBHHH", 21, 1099, 2, 2, 0x50, 24, 1000, 0, 0)
    total = total_of(pseudo(b.ip, a.ip, TCP, 20 + len(words)) + head + words)
    said = ether(a.mac, b.mac, IP4, ip4(b.ip, a.ip, TCP, head[:16] + struct.pack("!H", total) + head[18:] + words))
    assert wire.arrives("b", "a", said, nonce=words)
    frame = whole(wire, to, TCP, tcp(a.ip, b.ip, 1100, 777))
    assert not wire.arrives("a", "b", frame, nonce=frame[26:])
    assert [f for f in flows() if f.port == 777 and f.protocol == TCP] == []
