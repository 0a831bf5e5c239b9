"""Mirrors, packet by packet: whatever passes at a source while the rest is proved must leave by the receiver once, unchanged.

The traffic is that of the other claims and of the guests. Two rings at each end hear it: those at the sources have the mirror's
own program for a filter, and the kernel's times say what was early enough to be expected.
"""
from __future__ import annotations

import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from time import time_ns

from kvmnet.bpf.code import EQUAL, LOADS, RETURN, Instruction, packed, program
from kvmnet.bpf.tree import ANCILLARY, EVERYTHING
from kvmnet.check.model import Claim, Finding, failed, passed, skipped
from kvmnet.check.station import Listener
from kvmnet.drivers.mirror.resources import Copy
from kvmnet.drivers.recorder.process import Recording, Tail
from kvmnet.errors import HostCannot
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Tap
from kvmnet.host.ring import Frame, Ring, settle
from kvmnet.host.run import ToolFailed
from kvmnet.records import dataclass, field

OUTGOING = 4
BLOCKS = 8
ROUND = 0.05
"""Seconds between two looks at the rings."""
PATIENCE = 5.0
"""Seconds until a frame must be in a file."""
LONGEST = 1600
"""Bytes of a frame that is compared; a larger one may leave in segments."""
WHOLE = program(EVERYTHING, 0x40000)
SUMS = {6: 16, 17: 6, 1: 2, 58: 2}
"""Protocol -> where its checksum is: the kernel fills it in when the frame really leaves."""


@dataclass(slots=True)
class Ear:
    """One side of a device, and what was heard there."""

    ring: Ring
    heard: list[Frame] = field(default_factory=list)


@dataclass(slots=True)
class Comparison:
    """All mirrors, under way."""

    copies: Sequence[Copy]
    sources: dict[str, Ear]
    """Copy -> its side of the source."""
    receivers: dict[str, Ear]
    tails: dict[str, Tail | None] = field(default_factory=dict)
    """Device whose copies are kept in files -> what is written there from now on; None when nobody writes."""
    started: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        while not self.ended.wait(ROUND):
            self.drain()

    def drain(self) -> None:
        for ear in (*self.sources.values(), *self.receivers.values()):
            ear.heard += ear.ring.drain()

    def claims(self) -> list[Claim]:
        """One for each mirror. What came in the last moment is not expected yet."""
        until = time_ns()
        settle()
        self.ended.set()
        self.drain()
        due = {name: Counter(key(f.data) for f in ear.heard if self.started <= f.time <= until and f.length <= LONGEST)
               for name, ear in self.sources.items()}
        came = {device: Counter(key(f.data) for f in ear.heard if f.length <= LONGEST) for device, ear in self.receivers.items()}
        found = []
        for mirror in dict.fromkeys(c.mirror or "" for c in self.copies):
            here = [c for c in self.copies if c.mirror == mirror]
            receiver = here[0].receiver or ""
            others = [c for c in self.copies if c.receiver == receiver]
            finding = self.judge(here, others, due, came.get(receiver))
            found.append(Claim(f"mirror {mirror}", "host", "copies", finding.verdict, finding.evidence))
            if receiver in self.tails:
                finding = self.kept(self.tails[receiver], sum((due[c.name] for c in here if c.name in due), Counter()))
                found.append(Claim(f"mirror {mirror}", "host", "files", finding.verdict, finding.evidence))
        return found

    def kept(self, tail: Tail | None, due: Counter[bytes]) -> Finding:
        """Each frame that passed at the sources is in the files of the mirror."""
        if tail is None:
            return failed("nobody writes; kvmnet apply starts the process")
        if not due:
            return skipped("nothing that it copies passed meanwhile")
        there: Counter[bytes] = Counter()

        def every() -> bool:
            there.update(key(data) for time, length, data in tail.frames() if time >= self.started and length <= LONGEST)
            return not due - there
        with suppress(TimeoutError):    # what is missing is said
            wait_until(every, PATIENCE)
        if missing := (due - there).total():
            return failed(f"{missing} of {due.total()} frames are not in {tail.file.name} or those before")
        return passed(f"{due.total()} frames, each in {tail.file.name} or those before, byte by byte")

    def judge(self, here: Sequence[Copy], others: Sequence[Copy], due: dict[str, Counter[bytes]],
              came: Counter[bytes] | None) -> Finding:
        """Where two mirrors copy the same frame to one receiver, a copy that is missing counts for both."""
        lacking = [c.dev for c in here if c.name not in self.sources]
        if came is None or lacking:
            return failed(f"there is no device {here[0].receiver if came is None else lacking[0]}; kvmnet apply makes it")
        wanted: Counter[bytes] = sum((due[c.name] for c in others if c.name in due), Counter())
        own: Counter[bytes] = sum((due[c.name] for c in here), Counter())
        if not own:
            return skipped(f"nothing that it copies passed at {len(here)} places meanwhile")
        ears = (self.receivers[here[0].receiver or ""], *(self.sources[c.name] for c in others if c.name in self.sources))
        for ear in ears:
            ear.ring.count()
        if lost := sum(ear.ring.lost for ear in ears):
            return skipped(f"{lost} frames passed too fast to be compared")
        missing = sum((frame in own) * number for frame, number in (wanted - came).items())
        total = own.total()
        if missing:
            return failed(f"{missing} of {total} frames at {len(here)} places were not copied to {here[0].receiver}")
        return passed(f"{total} frames at {len(here)} places, each copied to {here[0].receiver}, byte by byte")


def key(data: bytes) -> bytes:
    """*data* without its checksum of TCP, UDP or ICMP."""
    with suppress(struct.error, IndexError):
        kind = data[12] << 8 | data[13]
        number, at = (data[23], 14 + (data[14] & 15) * 4) if kind == 0x0800 else (data[20], 54) if kind == 0x86DD else (0, 0)
        if number in SUMS and at:
            place = at + SUMS[number]
            return data[:place] + data[place + 2:]
    return data


def side_program(copy: Copy) -> bytes:
    """The copy's own program, for frames of its side of the device alone."""
    leaving = copy.side == "egress"
    first = (Instruction(LOADS[4], 0, 0, ANCILLARY + 4), Instruction(EQUAL, leaving, not leaving, OUTGOING), Instruction(RETURN, 0, 0, 0))
    told = tuple(Instruction(*map(int, line.split())) for line in (copy.program or "").split(","))
    return packed((*first, *told))


@contextmanager
def compared(copies: Sequence[Copy], recorders: Mapping[str, Recording]) -> Iterator[Comparison]:
    """Listens at both ends of all mirrors while the body runs. A tap that nobody has open is opened: without a carrier it
    takes nothing."""
    with ExitStack() as stack:
        receivers = dict.fromkeys(c.receiver or "" for c in copies)
        for device in receivers:
            with suppress(ToolFailed, HostCannot):
                stack.enter_context(Listener(stack.enter_context(Tap.hold(device))))
        made = Comparison(copies, {}, {}, {device: Tail.of(recording) for device, recording in recorders.items()})
        for device in receivers:
            listen(stack, made.receivers, device, device, packed(WHOLE))
        for copy in copies:
            listen(stack, made.sources, copy.name, copy.dev or "", side_program(copy))
        made.started = time_ns()
        thread = threading.Thread(target=made.listen, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(made.ended.set)
        yield made


def listen(stack: ExitStack, ears: dict[str, Ear], name: str, device: str, rules: bytes) -> None:
    with suppress(HostCannot):    # there is no such device, which is said later
        ears[name] = Ear(Ring(device, rules, BLOCKS))
        stack.callback(ears[name].ring.close)

