"""A probe beside the measurement: asks every few milliseconds, hears answers, and sees what members announce."""
from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv6Address
from time import monotonic

from kvmnet.bench.failover.timeline import Timeline
from kvmnet.check.frames import ARP, BROADCAST, IP6, read
from kvmnet.host.askers import Asker
from kvmnet.host.clock import wait_until
from kvmnet.host.filters import announcements
from kvmnet.host.side import begun
from kvmnet.host.watch import Watch
from kvmnet.records import dataclass, field

SOLICITED = 0x40
"""Flag of a neighbour advertisement that answers a question (RFC 4861, 4.4)."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """A gratuitous ARP or an unsolicited neighbour advertisement that a member sent."""

    when: float
    member: str
    kind: str
    """ARP or NA."""
    address: str


@dataclass
class Probe:
    """What is asked and heard while it runs. Read from another thread."""

    asker: Asker
    watches: Sequence[Watch]
    interval: float
    """Seconds between two questions."""
    timeline: Timeline = field(default_factory=Timeline)
    announced: list[Announcement] = field(default_factory=list)
    stopping: bool = False

    def run(self) -> None:
        """Until ``stopping``."""
        waiting = select.poll()
        for fd in (self.asker.fd, *(w.fd for w in self.watches)):
            waiting.register(fd, select.POLLIN)
        due = monotonic()
        while not self.stopping:
            if (now := monotonic()) >= due:
                self.asker.ask(self.timeline.ask(now))
                due = max(due + self.interval, now)    # a late one is not made up for by a burst
            for fd, _ in waiting.poll(max(0.0, due - monotonic()) * 1000):
                self.hear(fd)

    def hear(self, fd: int) -> None:
        if fd == self.asker.fd:
            while (number := self.asker.heard()) is not None:
                self.timeline.hear(number, monotonic())
            return
        watch = next(w for w in self.watches if w.fd == fd)
        while (got := watch.receive()) is not None:
            if told := announcement(got[1], watch.device, monotonic()):
                self.announced.append(told)

    def calm_within(self, seconds: float, patience: float, since: float = 0.0) -> bool:
        """Whether every probe sent after *since* is answered for *seconds*, waiting *patience* seconds for it."""
        with suppress(TimeoutError):
            return wait_until(lambda: self.timeline.calm(monotonic(), since) >= seconds, patience)
        return False


@contextmanager
def probing(make: Callable[[], Asker], members: Sequence[str], interval: float) -> Iterator[Probe]:
    """A probe that runs for the body. Raises HostCannot."""
    with ExitStack() as stack:
        asker = make()
        stack.callback(asker.close)
        watches = [stack.enter_context(Watch(member, announcements())) for member in members]
        probe = Probe(asker, watches, interval)
        with begun(probe.run):
            try:
                yield probe
            finally:
                probe.stopping = True


def announcement(frame: bytes, member: str, when: float) -> Announcement | None:
    """What a frame announces; None for the answers and questions of every day."""
    if frame[12:14] in (b"\x81\x00", b"\x88\xa8"):
        frame = frame[:12] + frame[16:]
    packet = read(frame)
    if packet is None:
        return None
    if packet.kind == ARP and packet.src == packet.dst and packet.mac_dst == BROADCAST and packet.src != "0.0.0.0":
        return Announcement(when, member, "ARP", packet.src)
    if packet.kind == IP6 and packet.icmp == 136 and not packet.body[4] & SOLICITED:
        return Announcement(when, member, "NA", str(IPv6Address(packet.body[8:24])))
    return None
