"""Frames of a device out of a ring that the kernel fills (packet(7), TPACKET_V3): no system call for each.

The kernel never waits for the reader: a frame that finds the ring full is counted and left out of the copy, and the
device's own traffic goes on. Times are the kernel's, in nanoseconds.
"""
from __future__ import annotations

import errno
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from kvmnet.errors import HostCannot
from kvmnet.host.watch import attach

SOL_PACKET = 263
RX_RING, STATISTICS, VERSION = 5, 6, 10
TPACKET_V3 = 2
ETH_P_ALL = 0x0003
BLOCK = 1 << 18
"""Bytes of one block: larger than the largest frame."""
MEMORY = 64 << 20
"""Bytes that all rings of a process take at most; at least two blocks each."""
DEEPEST = 64
"""Blocks of one ring at most."""
SLOT = 1 << 11
RETIRE = 50
"""Milliseconds after which a block that is not full is handed over."""
USER, LOSING = 1, 2
VLAN_VALID, TPID_VALID = 1 << 4, 1 << 6
"""Bits of a block's and a frame's status (linux/if_packet.h)."""
OUTGOING = 4
GIVEN = struct.Struct("=8xIII")
"""struct tpacket_block_desc: status, number of frames, offset of the first."""
HEAD = struct.Struct("=IIIIIIHxxxxxxIH")
"""struct tpacket3_hdr: next, seconds, nanoseconds, kept length, whole length, status, mac; VLAN tag, its type."""
TYPE_AT = 48 + 10
"""Where sockaddr_ll, which follows, has the packet's type."""


class Frame(NamedTuple):
    time: int
    """Nanoseconds since 1970."""
    length: int
    """Bytes on the device, of which ``data`` may have fewer."""
    data: bytes
    outgoing: bool
    """It leaves by the device, from the host's point of view."""


class Ring:
    """What a device of this network namespace receives and sends, from now on."""

    def __init__(self, device: str, program: bytes, blocks: int):
        """``program``: classic BPF that returns how many bytes of a frame are kept. Raises HostCannot."""
        self.device, self.block = device, 0
        self.received = self.lost = 0
        self.gone = False
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        try:
            self.socket.setsockopt(SOL_PACKET, VERSION, TPACKET_V3)
            attach(self.socket, program)
            self.socket.setsockopt(SOL_PACKET, RX_RING, struct.pack(
                "=7I", BLOCK, blocks, SLOT, blocks * BLOCK // SLOT, RETIRE, 0, 0))
            self.memory = mmap.mmap(self.socket.fileno(), blocks * BLOCK)
            self.socket.bind((device, ETH_P_ALL))
        except OSError as error:
            self.socket.close()
            raise HostCannot(f"cannot watch {device}: {error.strerror}",
                             "there is no such device" if error.errno == errno.ENODEV else "run it as root") from error
        self.blocks = blocks

    def drain(self) -> Iterator[Frame]:
        """Frames of every block that the kernel has handed over, which it then gets back."""
        for _ in range(self.blocks):
            start = self.block * BLOCK
            status, count, at = GIVEN.unpack_from(self.memory, start)
            if not status & USER:
                return
            at += start
            for _ in range(count):
                following, seconds, nanos, kept, length, status, mac, tag, kind = HEAD.unpack_from(self.memory, at)
                data = self.memory[at + mac:at + mac + kept]
                if status & VLAN_VALID:
                    data = data[:12] + struct.pack("!HH", kind if status & TPID_VALID else 0x8100, tag & 0xFFFF) + data[12:]
                    length += 4
                yield Frame(seconds * 1_000_000_000 + nanos, length, data, self.memory[at + TYPE_AT] == OUTGOING)
                at += following
            struct.pack_into("=I", self.memory, start + 8, 0)
            self.block = (self.block + 1) % self.blocks

    def count(self) -> None:
        """Brings ``received`` and ``lost`` up to date: frames that passed the filter, those among them without room."""
        found = self.socket.getsockopt(SOL_PACKET, STATISTICS, 12)
        packets, drops, _ = struct.unpack("=III", found)
        self.received += packets
        self.lost += drops

    def close(self) -> None:
        self.memory.close()
        self.socket.close()


def settle() -> None:
    """Long enough for the kernel to hand over every block that has a frame."""
    select.poll().poll(2 * RETIRE)


class Rings:
    """Rings of several devices, with what wakes their reader."""

    def __init__(self, programs: Mapping[str, bytes]):
        """``programs``: device -> its filter. Raises HostCannot."""
        blocks = max(2, min(DEEPEST, MEMORY // BLOCK // max(1, len(programs))))
        self.rings: dict[str, Ring] = {}
        self.poll = select.poll()
        self.wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.poll.register(self.wake[0], select.POLLIN)
        try:
            for device, program in programs.items():
                self.rings[device] = ring = Ring(device, program, blocks)
                self.poll.register(ring.socket.fileno(), select.POLLIN | select.POLLERR)
        except HostCannot:
            self.close()
            raise

    def wait(self, seconds: float | None) -> None:
        """Until there is something to drain, ``stop`` is called, or *seconds* are over (None: without end)."""
        by_fd = {ring.socket.fileno(): ring for ring in self.rings.values()}
        for fd, event in self.poll.poll(None if seconds is None else max(0.0, seconds) * 1000):
            if fd in by_fd and event & select.POLLERR:
                self.look_after(by_fd[fd])

    def look_after(self, ring: Ring) -> None:
        """The device went down, or away: of one that went down there may be more."""
        ring.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            socket.if_nametoindex(ring.device)
        except OSError:
            ring.gone = True
            self.poll.unregister(ring.socket.fileno())

    @property
    def watching(self) -> Iterable[Ring]:
        return [ring for ring in self.rings.values() if not ring.gone]

    def stop(self) -> None:
        """Wake the reader; fit for a signal handler."""
        os.write(self.wake[1], b"x")

    def close(self) -> None:
        for ring in self.rings.values():
            ring.close()
        for fd in self.wake:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
