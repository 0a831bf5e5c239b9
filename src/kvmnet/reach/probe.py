"""Asking targets until they answer: by ARP or neighbour discovery on the wire, and by echo.

An answer is one that came back from the wire to a question of our own: ARP and ND answers to frames that we
sent ourselves by the way out (what the kernel remembers of the neighbour does not count, nor does an entry that
somebody made for ever), and echo replies that carry our nonce. A full packet is as long as the way's MTU says, and must
not be fragmented.
"""
from __future__ import annotations

import select
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from enum import StrEnum
from time import monotonic

from kvmnet.check import frames
from kvmnet.errors import HostCannot
from kvmnet.host.packets import has_carrier
from kvmnet.host.wire import Pinger, Wire, asks_neighbours, entropy, own_address6, way_to
from kvmnet.reach.targets import Target
from kvmnet.records import dataclass, field

AGAIN = 0.2
"""Seconds until a question is asked once more."""
HEADERS = {4: 28, 6: 48}
"""Bytes of the IP and ICMP headers."""
ECHO = {4: (8, 0), 6: (128, 129)}
"""ICMP types of an echo request and its reply."""
MOST = 65000
"""Bytes of the largest packet that is asked with (lo and tunnels have larger MTUs)."""


class Proof(StrEnum):
    """How a target answered."""

    NEIGHBOUR = "neighbour"
    ECHO = "echo"
    FULL = "full packet"


@dataclass
class Question:
    """A target under way. ``way``: device that packets to it leave by. ``neighbour``: the same, when it is on that
    device's segment; '' when it lies further out. ``needs``: proofs that are asked for; without any, all are tried."""

    target: Target
    way: str = ""
    neighbour: str = ""
    needs: frozenset[Proof] = frozenset(Proof)
    proofs: set[Proof] = field(default_factory=set)
    asked: int = 0
    size: int = 0
    """Bytes of the full packet."""
    trouble: str = ""
    """Why the last request could not be sent."""
    wire: Wire | None = None
    pinger: Pinger | None = None
    nonces: dict[bytes, Proof] = field(default_factory=dict)

    def open(self, stack: ExitStack) -> None:
        """Where that is not possible, because the device is gone, it is not answered either."""
        try:
            if self.neighbour and asks_neighbours(self.neighbour):
                self.wire = Wire(self.neighbour)
                stack.callback(self.wire.close)
            elif len(self.needs) > 1:
                self.needs -= {Proof.NEIGHBOUR}
            if self.needs & {Proof.ECHO, Proof.FULL}:
                self.pinger = Pinger(self.target.address, self.target.dev)
                stack.callback(self.pinger.close)
        except HostCannot as error:
            self.trouble = str(error)

    @property
    def missing(self) -> frozenset[Proof]:
        return self.needs - self.proofs

    def ask(self) -> None:
        self.asked += 1
        address = self.target.address
        if self.wire and Proof.NEIGHBOUR in self.missing:
            self.wire.send(neighbour_request(self.wire, address))
        if self.pinger:
            for proof in (Proof.ECHO, Proof.FULL):
                if proof in self.missing:
                    self.trouble = self.send_echo(proof)

    def send_echo(self, proof: Proof) -> str:
        assert self.pinger
        nonce = entropy()
        _, mtu = way_to(self.target.address, self.target.dev)
        if not mtu:
            return "the host has no route there"
        size = 0 if proof is Proof.ECHO else max(0, min(mtu, MOST) - HEADERS[self.target.family] - len(nonce))
        if proof is Proof.FULL:
            self.size = min(mtu, MOST)
        self.nonces[nonce] = proof
        rest = struct.pack("!HH", int.from_bytes(nonce[:2], "big"), self.asked & 0xFFFF) + nonce + bytes(size)
        kind = ECHO[self.target.family][0]
        # The kernel computes the checksum of ICMPv6 (RFC 3542, 3.1), not that of ICMP.
        return self.pinger.send(frames.icmp(kind, rest))

    def hear(self) -> None:
        """Take in all that has come."""
        while self.wire and (frame := self.wire.receive()) is not None:
            packet = frames.read(frame)
            if packet and is_answer(packet, self.target.address, self.wire.mac):
                self.proofs.add(Proof.NEIGHBOUR)
        while self.pinger and (message := self.pinger.receive()) is not None:
            source, data = message
            proof = self.nonces.get(data[8:24])
            if proof and source == self.target.address and data[:1] == bytes([ECHO[self.target.family][1]]):
                self.proofs.add(proof)

    def words(self) -> str:
        """What was seen instead of an answer."""
        how = {Proof.NEIGHBOUR: "ND" if self.target.family == 6 else "ARP", Proof.ECHO: "echo",
               Proof.FULL: f"packets of {self.size} bytes"}
        silent = " and ".join(how[p] for p in Proof if p in self.missing)
        by = self.way
        seen = [f"{self.asked} requests" + (f" by {by}" if by else "")]
        if self.proofs:
            seen.append("it does answer " + " and ".join(how[p] for p in Proof if p in self.proofs))
        if self.trouble:
            seen.append(self.trouble)
        if by and not has_carrier(by):
            seen.append(f"{by} has no carrier")
        elif self.wire:
            seen.append(f"{self.wire.heard or 'no'} frames came in" + self.tags())
        return f"no answer to {silent} ({', '.join(seen)})"

    def tags(self) -> str:
        """VLANs that are on the wire, when it may be the tag that is wrong."""
        found = self.wire.tags.most_common(3) if self.wire else ()
        return "".join(f", {count} of VLAN {vid}" for vid, count in found)


def neighbour_request(wire: Wire, address: str) -> bytes:
    """An ARP request or neighbour solicitation of our own. An IPv4 host without an address asks as one that probes
    (RFC 5227)."""
    if ":" not in address:
        source = way_to(address, wire.device)[0] or "0.0.0.0"
        question = frames.arp(1, (wire.mac, source), (frames.NOBODY, address))
        return frames.ether(frames.BROADCAST, wire.mac, frames.ARP, question)
    source = own_address6(wire.device, link_local=address.startswith("fe80:")) or frames.link_local(wire.mac)
    return frames.ether(frames.multicast_mac(frames.solicited_node(address)), wire.mac, frames.IP6,
                        frames.solicitation(source, wire.mac, address))


def is_answer(packet: frames.Packet, address: str, own_mac: str) -> bool:
    """Whether a frame that came in is *address* telling us its MAC."""
    if packet.mac_src == own_mac:
        return False
    if packet.kind == frames.ARP:
        return packet.protocol == 2 and packet.src == address and packet.body[18:24] == frames.mac(own_mac)
    return packet.icmp == 136 and packet.body[8:24] == frames.ip(address) and packet.mac_dst == own_mac


def ask_all(questions: Sequence[Question], seconds: float) -> None:
    """Ask until every proof is there or the time is over."""
    deadline = monotonic() + seconds
    with ExitStack() as stack:
        poll = select.poll()
        for question in questions:
            question.open(stack)
            for port in (question.wire, question.pinger):
                if port:
                    poll.register(port.fd, select.POLLIN)
        next_round = 0.0
        while open_ones := [q for q in questions if q.missing]:
            now = monotonic()
            if now >= deadline:
                return
            if now >= next_round:
                for question in open_ones:
                    question.ask()
                next_round = now + AGAIN
            poll.poll(max(0.0, min(next_round, deadline) - monotonic()) * 1000)
            for question in questions:
                question.hear()
