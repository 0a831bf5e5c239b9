"""Ways around groups, frame by frame, from a guest to a guest, to the host and outside by its router: none gets through, and each does
what it should without the groups, or without the guard where that alone refuses it. ``tests/lab/test_groups.py`` runs them on bridge
conntrack."""
from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from kvmnet.drivers.nftables.conntrack import flows
from lib.frames import ICMP, TCP, UDP, ether, fragment, icmp, ip, ip4, ip6, pseudo, tag, tcp, udp
from lib.frames import checksum as total_of
from lib.guardlab import HostEnd
from lib.netns import sh
from lib.verdicts import segment
from lib.world import OUTSIDE, OUTSIDE6
from net.test_groups_frames import IP4, IP6, Wire, wire  # noqa: F401 - the fixture

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.1.0.0/24, subnet6: "fd01::/64", dhcp: {enabled: false}, dns: {enabled: false}, ra: "off"}
  one: {mode: isolated, subnet: 10.0.0.0/24, address: none}
  two: {mode: isolated, subnet: 10.0.0.0/24, address: none}
vms:
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


def stray(flags: int) -> Callable[[Wire, End, bytes], list[bytes]]:
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


ATTACKS: dict[str, Callable[[Wire, End, bytes], list[bytes]]] = {
    "a datagram": plain, "a datagram, IPv6": plain6, "fragments": fragments, "fragments, IPv6": fragments6,
    "a reply to nothing": reply, "an error about nothing": complaint,
    "a segment of no connection": stray(16), "the answer of no connection": stray(18), "the end of no connection": stray(17)}
"""What groups alone refuse."""
BEGIN = {name for name in ATTACKS if name.startswith(("a datagram", "fragments"))} | {"a segment of no connection"}
"""Those that the host's own table lets out: the others are of no flow that it knows (``ct state invalid``)."""
GUARDED: dict[str, Callable[[Wire, End, bytes], list[bytes]]] = {
    "a VLAN tag": tagged, "two VLAN tags": stacked, "source routing": source_route, "destination options": options6,
    "a routing header": routing6, "another guest's address": as_another}
"""What the guard refuses in any case."""


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


def arrived(wire: Wire, to: End, ear: HostEnd | None, attack: Callable[[Wire, End, bytes], list[bytes]]) -> bool:  # noqa: F811
    nonce = os.urandom(12)
    there = wire.arrives("a", "b", *attack(wire, to, nonce), nonce=nonce)
    return bool(ear.got(nonce)) if ear else there


def through(wire: Wire, ends: Ends,  # noqa: F811
            attacks: dict[str, Callable[[Wire, End, bytes], list[bytes]]]) -> set[str]:
    return {f"{name}, to {where}" for name, attack in attacks.items() for where, (to, ear) in ends.items() if arrived(wire, to, ear, attack)}


def test_nothing_gets_around_the_groups(wire: Wire, ends: Ends) -> None:  # noqa: F811
    everything = {f"{name}, to {where}" for name in ATTACKS for where in ends if where != "outside" or name in BEGIN}
    wire.use(DOCUMENT)
    assert through(wire, ends, ATTACKS | GUARDED) == set()
    wire.use(OPEN)
    assert through(wire, ends, ATTACKS) == everything
    assert through(wire, ends, GUARDED) == set()
    wire.use(UNGUARDED)
    assert {name for name in through(wire, ends, GUARDED) if name.endswith("a guest")} == {f"{name}, to a guest" for name in GUARDED}


def test_overlapping_fragments_change_no_port(wire: Wire, ends: Ends) -> None:  # noqa: F811
    wire.use(DOCUMENT)
    to, _ = ends["a guest"]
    assert arrived(wire, to, None, halves)
    for length in (16, 24):  # within the first: a repetition, and the first counts
        assert arrived(wire, to, None, lambda w, end, nonce, length=length: halves(w, end, nonce, length))  # type: ignore[misc]
        assert not wire.taps["b"].got(struct.pack("!HH", 20, 777))
    assert not arrived(wire, to, None, lambda w, end, nonce: halves(w, end, nonce, 32)), "the kernel drops what overlaps in part"
    assert not wire.taps["b"].got(struct.pack("!HH", 20, 777))
    wire.use(OPEN)
    frame = whole(wire, to, TCP, tcp(wire.nics["a"].ip, to.ip, 20, 777))
    assert wire.arrives("a", "b", frame, nonce=struct.pack("!HH", 20, 777)), "it would be seen"


def test_no_helper_opens_a_port(wire: Wire, ends: Ends) -> None:  # noqa: F811
    """An FTP server that announces a port: conntrack's helper would expect a connection to it. The flow is known, its words count
    for nothing."""
    wire.use(DOCUMENT)
    a, b = wire.nics["a"], wire.nics["b"]
    to, _ = ends["a guest"]
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
