"""Connections that the host answers in a guest's place, proved on NICs whose guest does not run.

Somebody outside asks: frames come in by the uplink as if from the wire, out of a tap that hands them over to it (act_mirred). Many begin
connections and none of them goes on: the host must answer, and the guest hear nothing. Then one goes on, and its connection must come
to the guest, and what it says. The answers leave by the uplink, for an address that nobody has (RFC 5737, RFC 3849).
"""
from __future__ import annotations

import os
import secrets
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from kvmnet.check import frames
from kvmnet.check.frames import IP4, IP6, TCP, Packet, checksum, ether, ip4, ip6, pseudo
from kvmnet.check.idle import Idle
from kvmnet.check.kinds import strangers
from kvmnet.check.model import Finding, failed, passed, skipped
from kvmnet.check.probe import PORT
from kvmnet.check.promises import Place
from kvmnet.check.rules import own_prefixes
from kvmnet.check.station import AGAIN, PATIENCE, Station
from kvmnet.drivers.nftables.conntrack import cut
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Tap, device_mac
from kvmnet.host.run import ToolFailed, run
from kvmnet.host.wire import asks_neighbours
from kvmnet.modes.model import NicOnNetwork
from kvmnet.policy.flows import Flow
from kvmnet.records import dataclass
from kvmnet.spec.limits import proxied

MANY = 20
"""Connections that are begun and not gone on with."""
SYN, ANSWER, ACK = 2, 0x12, 0x10
NEEDS_CSUM, SUM = 1, 16
"""VIRTIO_NET_HDR_F_NEEDS_CSUM; where the checksum is in a TCP header."""


@dataclass(frozen=True, slots=True)
class Way:
    """From somebody outside to a port of a guest."""

    mouth: Tap
    station: Station
    place: Place
    mac: str
    """The uplink's."""
    client: str
    guest: str
    port: int

    def send(self, sport: int, flags: int, sequence: int, ack: int = 0, data: bytes = b"") -> None:
        """A segment whose checksum the NIC has seen to: nft's synproxy takes that of IPv4 for IPv6 too, and drops what no NIC has checked."""
        segment = frames.tcp(self.client, self.guest, sport, self.port, flags, sequence, ack, data)
        left = ~checksum(pseudo(self.client, self.guest, TCP, len(segment))) & 0xFFFF
        segment = segment[:SUM] + left.to_bytes(2, "big") + segment[SUM + 2:]
        six = ":" in self.guest
        packet = (ip6 if six else ip4)(self.client, self.guest, TCP, segment)
        header = struct.pack("=BBHHHH", NEEDS_CSUM, 0, 0, 0, 14 + len(packet) - len(segment), SUM)
        self.mouth.send(header + ether(self.mac, self.place.other_mac, IP6 if six else IP4, packet))

    def answers(self) -> dict[int, int]:
        """Port of the client -> sequence number of what answered its SYN outside."""
        return {p.ports[1]: number(p, 4) for ear in self.place.uplinks for p in list(ear.heard)
                if (p.src, p.dst) == (self.guest, self.client) and p.protocol == TCP and flags_of(p) & (SYN | ACK) == ANSWER}

    def begun(self) -> dict[int, Packet]:
        """Port of the client -> the SYN that the guest heard."""
        return {p.ports[0]: p for p in list(self.station.heard)
                if (p.src, p.dst) == (self.client, self.guest) and p.protocol == TCP and flags_of(p) & (SYN | ACK) == SYN}


def flags_of(packet: Packet) -> int:
    return packet.body[13] if len(packet.body) > 13 else 0


def number(packet: Packet, at: int) -> int:
    return int.from_bytes(packet.body[at:at + 4], "big")


def proofs(idle: Sequence[Idle], place: Place) -> Iterator[tuple[str, str, Finding]]:
    """(NIC, claim, finding) for NICs with such ports, one of each kind."""
    tried = set()
    stations = {i.nic.tap: i.station for i in idle}
    for nic in sorted(place.segment.nics, key=lambda n: stations.get(n.tap) is None):
        ports, _ = proxied(nic.declared.limits, place.segment.network.limits)
        if not ports or (kind := (ports, nic.declared.groups)) in tried:
            continue
        tried.add(kind)
        name, station = f"{nic.vm}/{nic.nic}", stations.get(nic.tap)
        if station is None:
            yield name, "synproxy", skipped("a check answers in the name of idle NICs alone, and no idle one has the same ports")
            continue
        for family, address in ((4, nic.ip), (6, nic.ip6)):
            if address:
                yield name, f"synproxy{family}", prove(place, station, nic, ports, address)


def prove(place: Place, station: Station, nic: NicOnNetwork, ports: Sequence[str], address: str) -> Finding:
    device, family = place.segment.way_out, 6 if ":" in address else 4
    clients = strangers((), {}, own_prefixes(place.subject), family)
    if not clients or not place.subject.target(family):
        return skipped("this host has no way outside, so nobody would hear its answer")
    if not asks_neighbours(device):
        return skipped(f"{device} is no Ethernet, so no frame can be given to it")
    port = open_port(place, nic, ports, clients[0], address)
    if port is None:
        return skipped("its groups let nobody outside begin anything on these ports")
    with ExitStack() as stack:
        try:
            mouth = stack.enter_context(as_if_from(device, f"{PORT}o{place.number}"))
        except ToolFailed as refused:
            return skipped(f"no frame can be given to {device} as if from outside: {refused.detail or refused}")
        try:
            return tried(Way(mouth, station, place, device_mac(device), clients[0], address, port))
        finally:
            with suppress(OSError):
                cut(lambda flow: (flow.source, flow.destination) == (clients[0], address))


@contextmanager
def as_if_from(device: str, name: str) -> Iterator[Tap]:
    """A tap: what is sent by it comes in by *device*. It has that one's MAC, else frames for the host would be taken for another's."""
    tap = Tap.make_headed(name)
    try:
        run(["ip", "-batch", "-"], stdin=f"link set dev {name} address {device_mac(device)} addrgenmode none\nlink set dev {name} up\n")
        run(["tc", "-batch", "-"], stdin=f"qdisc add dev {name} ingress\nfilter add dev {name} parent ffff: protocol all prio 1 u32 match u32 0 0 "
                                         f"action mirred ingress redirect dev {device}\n")
        yield tap
    finally:
        tap.close()


def open_port(place: Place, nic: NicOnNetwork, ports: Sequence[str], client: str, address: str) -> int | None:
    """A port that is answered for and that the NIC's groups let *client* begin at."""
    allowed = place.subject.allowed
    known = allowed.nics.get(nic.tap)
    spans = [(int(low), int(high or low)) for low, _, high in (p.partition("-") for p in ports)]
    if allowed.judge is None or known is None or not known.groups:
        return spans[0][1]
    named = [int(p.partition("-")[0]) for g in known.groups for rule in allowed.judge.policy.groups[g].ingress for p in rule.tcp]
    chosen = [high for _, high in spans] + [p for p in named if any(low <= p <= high for low, high in spans)]
    return next((p for p in chosen if allowed.judge.between(None, known, Flow(0, TCP, client, address, p, address, p))), None)


def tried(way: Way) -> Finding:
    """Connections are begun, then one of them goes on."""
    first = 20_000 + secrets.randbelow(40_000)
    started = {first + n: secrets.randbits(32) for n in range(MANY)}

    def begin() -> None:
        for sport in started.keys() - way.answers().keys():
            way.send(sport, SYN, started[sport])
    until(lambda: started.keys() <= way.answers().keys() or bool(way.begun()), begin)
    answered = len(started.keys() & way.answers().keys())
    if heard := started.keys() & way.begun().keys():
        return failed(f"{len(heard)} of {MANY} SYN from {way.client} to {way.guest} port {way.port} came to the guest before anybody had "
                      "answered; kvmnet apply restores the rules")
    if answered < MANY:
        return failed(f"{answered} of {MANY} SYN from {way.client} to {way.guest} port {way.port} were answered; the host's firewall may "
                      "not let them forward: kvmnet why says")
    if lacks := connected(way, first, started[first]):
        return failed(f"{answered} of {MANY} SYN were answered, but {lacks}")
    if others := way.begun().keys() & started.keys() - {first}:
        return failed(f"{len(others)} connections that nobody went on with came to the guest")
    return passed(f"{answered} SYN from {way.client} to port {way.port} were answered outside and none came to the guest; the connection of "
                  "one that went on did, with what it said")


def until(ready: Callable[[], bool], send: Callable[[], None]) -> bool:
    """Send, and again while it is not *ready*: a frame may be lost, and an answer wait for a neighbour's MAC."""
    for _ in range(round(PATIENCE / AGAIN)):
        send()
        with suppress(TimeoutError):
            return wait_until(ready, AGAIN, 0.01)
    return False


def connected(way: Way, sport: int, sequence: int) -> str:
    """What is missing when the client at *sport* goes on; '' for nothing."""
    mark, cookie = os.urandom(12), way.answers()[sport]
    if not until(lambda: sport in way.begun(), lambda: way.send(sport, ACK, sequence + 1, cookie + 1)):
        return "the connection of one that went on did not come to the guest"
    asked, own = way.begun()[sport], secrets.randbits(31)
    answer = frames.tcp(way.guest, way.client, way.port, sport, ANSWER, own, number(asked, 4) + 1)
    packet = (ip6 if ":" in way.guest else ip4)(way.guest, way.client, TCP, answer)

    def agreed() -> bool:
        return any(p.ports == (sport, way.port) and flags_of(p) & (SYN | ACK) == ACK and number(p, 8) == own + 1 for p in list(way.station.heard))
    if not until(agreed, lambda: way.station.send_ip(packet, asked.mac_src)):
        return "nobody took the guest's answer"
    if not until(lambda: way.station.carried(mark), lambda: way.send(sport, ACK | 8, sequence + 1, cookie + 1, mark)):
        return "what it said then did not"
    return ""
