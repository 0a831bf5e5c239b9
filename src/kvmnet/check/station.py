"""A guest's place on a network, played by this process: a small IP host over a tap's descriptor.

No network namespace and no kernel stack stands behind the port: what is not sent here on purpose is
not sent, nothing can be routed through it, and a tap that was made for it dies with the process.
"""
from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from kvmnet.check import frames
from kvmnet.check.frames import ARP, BROADCAST, IP4, IP6, NOBODY, Packet
from kvmnet.host.packets import Gone, Tap

PATIENCE = 2.0
"""Seconds to wait for an answer; questions are repeated meanwhile."""
AGAIN = 0.5
"""Seconds until a question is asked once more."""

Match = Callable[[Packet], bool]


class Source(Protocol):
    """Where frames come from: a tap, or the capture of a device."""

    fd: int

    def receive(self) -> bytes | None: ...


class Listener:
    """Keeps every frame of a source, read by a thread of its own."""

    def __init__(self, source: Source, answer: Callable[[Packet], None] = lambda packet: None):
        self.source, self.answer = source, answer
        self.heard: list[Packet] = []
        self.news = threading.Condition()
        self.bell = os.eventfd(0)
        self.thread = threading.Thread(target=self.listen, daemon=True)

    def listen(self) -> None:
        poll = select.poll()
        poll.register(self.source.fd, select.POLLIN)
        poll.register(self.bell, select.POLLIN)
        while self.bell not in (ready := [fd for fd, _ in poll.poll()]):
            assert ready
            try:
                frame = self.source.receive()
            except Gone:
                return
            if frame and (packet := frames.read(frame)):
                self.answer(packet)
                with self.news:
                    self.heard.append(packet)
                    self.news.notify_all()

    def wait(self, match: Match, timeout: float, since: int = 0) -> Packet | None:
        """The first packet from number *since* on that matches, within *timeout* seconds."""
        deadline = time.monotonic() + timeout
        with self.news:
            while True:
                while since < len(self.heard):
                    if match(self.heard[since]):
                        return self.heard[since]
                    since += 1
                left = deadline - time.monotonic()
                if left <= 0 or (not self.news.wait(left) and since >= len(self.heard)):
                    return None

    def carried(self, mark: bytes, since: int = 0) -> bool:
        """Whether a frame with *mark* was heard, from number *since* on."""
        with self.news:
            return any(mark in packet.raw for packet in self.heard[since:])

    def wait_for(self, mark: bytes, timeout: float, since: int = 0) -> bool:
        return self.wait(lambda packet: mark in packet.raw, timeout, since) is not None

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.eventfd_write(self.bell, 1)
        self.thread.join()
        os.close(self.bell)


class Station(Listener):
    """One guest: a MAC, at most one address of each family, and the manners of a host (it answers
    ARP, ND and echo for its own addresses)."""

    def __init__(self, tap: Tap, mac: str, ip: str, ip6: str, name: str):
        super().__init__(tap, self.be_polite)
        self.tap, self.mac, self.ip, self.ip6, self.name = tap, mac, ip, ip6, name
        self.local = frames.link_local(mac)
        self.neighbours: dict[str, str] = {}
        self.duid, self.iaid = b"\0\3\0\1" + frames.mac(mac), 7
        """As what it asks DHCPv6 (RFC 8415, 11 and 12)."""
        self.borrowed = False

    def stand_for(self, duid: bytes, iaid: int) -> None:
        """Ask DHCPv6 as the guest that has a lease still: the server gives its address to nobody else."""
        self.duid, self.iaid, self.borrowed = duid, iaid, True

    def __enter__(self) -> Self:
        super().__enter__()
        groups = [frames.solicited_node(a) for a in (self.local, self.ip6) if a]
        self.send_ip(frames.group_report(self.local, groups), frames.multicast_mac("ff02::16"))
        return self

    # -- sending ---------------------------------------------------------------------------------

    def send(self, frame: bytes) -> None:
        self.tap.send(frame)

    def send_ip(self, packet: bytes, mac: str) -> None:
        self.send(frames.ether(mac, self.mac, frames.family(packet), packet))

    def ask(self, frame: bytes, match: Match, patience: float = PATIENCE) -> Packet | None:
        """The first packet after *frame* that matches; the frame is sent again meanwhile."""
        since, deadline = len(self.heard), time.monotonic() + patience
        while (left := deadline - time.monotonic()) > 0:
            self.send(frame)
            if answer := self.wait(match, min(AGAIN, left), since):
                return answer
        return None

    def resolve(self, address: str, patience: float = PATIENCE) -> str:
        """MAC of a neighbour by ARP or ND; '' when nobody answers."""
        if address not in self.neighbours:
            found = self.resolve4(address, patience) if ":" not in address else self.resolve6(address, patience)
            if not found:
                return ""
            self.neighbours[address] = found
        return self.neighbours[address]

    def resolve4(self, address: str, patience: float) -> str:
        question = frames.arp(1, (self.mac, self.ip or "0.0.0.0"), (NOBODY, address))
        answer = self.ask(frames.ether(BROADCAST, self.mac, ARP, question),
                          lambda p: p.kind == ARP and p.protocol == 2 and p.src == address, patience)
        return answer.body[8:14].hex(":") if answer else ""

    def resolve6(self, address: str, patience: float) -> str:
        question = frames.solicitation(self.address_for(address), self.mac, address)
        answer = self.ask(
            frames.ether(frames.multicast_mac(frames.solicited_node(address)), self.mac, IP6, question),
            lambda p: p.kind == IP6 and p.icmp == 136 and p.body[8:24] == frames.ip(address), patience)
        return answer.mac_src if answer else ""

    def address_for(self, target: str) -> str:
        """The address to speak to *target* with; '' for none."""
        if ":" not in target:
            return self.ip
        return self.local if target.startswith("fe80:") else self.ip6 or self.local

    # -- manners ---------------------------------------------------------------------------------

    def be_polite(self, packet: Packet) -> None:
        """Answer what every host answers."""
        if packet.kind == ARP:
            if packet.protocol == 1 and packet.dst == self.ip and packet.src != "0.0.0.0":
                asker = packet.body[8:14].hex(":")
                self.send(frames.ether(asker, self.mac, ARP,
                                       frames.arp(2, (self.mac, self.ip), (asker, packet.src))))
        elif packet.icmp == 135 and len(packet.body) >= 24 and packet.kind == IP6:
            self.answer_solicitation(packet)
        elif packet.mac_dst == self.mac and packet.dst in (self.ip, self.ip6, self.local) and (
                (packet.kind, packet.icmp) in ((IP4, 8), (IP6, 128))):
            self.send_ip(frames.echo_reply(packet), packet.mac_src)

    def answer_solicitation(self, packet: Packet) -> None:
        wanted = packet.body[8:24]
        own = next((a for a in (self.ip6, self.local) if a and frames.ip(a) == wanted), "")
        if own and packet.src != "::":
            self.send_ip(frames.advertisement(own, packet.src, own, self.mac), packet.mac_src)


def is_error(packet: Packet) -> bool:
    """An ICMP message that says why a packet did not get through."""
    return (packet.kind, packet.icmp) in {(IP4, 3), (IP4, 11), (IP6, 1), (IP6, 2), (IP6, 3)}
