"""Blocks of a pcapng file (draft-ietf-opsawg-pcapng, sections 4.1 to 4.6), in the byte order of this machine. Pure.

A section header, a description of each interface, packets, and at the end what each interface saw and lost: a file
that begins with the first two and holds whole blocks only can be read at any moment.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

from kvmnet.records import dataclass

SECTION, INTERFACE, STATISTICS, PACKET = 0x0A0D0D0A, 1, 5, 6
ORDER = 0x1A2B3C4D
ETHERNET = 1
COMMENT, HARDWARE, SYSTEM, PROGRAM = 1, 2, 3, 4
NAME, DESCRIPTION, MAC, RESOLUTION, FILTER = 2, 3, 6, 9, 11
START, END, RECEIVED, LOST, ACCEPTED = 2, 3, 4, 5, 6
FLAGS, INBOUND, OUTBOUND = 2, 1, 2
NANOSECONDS = 9
"""if_tsresol: times are in units of 10^-9 s."""
PACKET_HEAD = struct.Struct("=IIIIIII")
PACKET_TAIL = struct.Struct("=HHIHHI")
OVERHEAD = PACKET_HEAD.size + PACKET_TAIL.size
"""Bytes of a packet's block besides the packet."""
RESERVE = 120
"""Bytes that an interface's statistics take at the end of a file, rounded up."""
PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")


@dataclass(frozen=True, slots=True)
class Interface:
    """One of the places that a file has packets from."""

    name: str
    about: str
    filter: str = ""


def header(interfaces: Iterable[Interface], program: str, system: str, snap: int, comment: str) -> bytes:
    """What a file begins with."""
    options = option(COMMENT, comment.encode()) + option(SYSTEM, system.encode()) + option(PROGRAM, program.encode())
    section = block(SECTION, struct.pack("=IHHq", ORDER, 1, 0, -1), options)
    return section + b"".join(describe(one, snap) for one in interfaces)


def describe(one: Interface, snap: int) -> bytes:
    options = option(NAME, one.name.encode()) + option(DESCRIPTION, one.about.encode())
    options += option(RESOLUTION, bytes([NANOSECONDS]))
    if one.filter:
        options += option(FILTER, b"\0" + one.filter.encode())
    return block(INTERFACE, struct.pack("=HHI", ETHERNET, 0, snap), options)


def packet(interface: int, time: int, length: int, data: bytes, *, outgoing: bool | None = None) -> bytes:
    """``time``: nanoseconds since 1970. ``length``: bytes of the whole frame, of which *data* may be the beginning. ``outgoing``: None
    where that is not known."""
    kept = len(data)
    padding = PADDING[kept & 3]
    size = OVERHEAD + kept + len(padding)
    return b"".join((PACKET_HEAD.pack(PACKET, size, interface, time >> 32, time & 0xFFFF_FFFF, kept, length), data, padding,
                     PACKET_TAIL.pack(FLAGS, 4, 0 if outgoing is None else OUTBOUND if outgoing else INBOUND, 0, 0, size)))


def whole(data: bytes) -> bytes:
    """The whole blocks that *data* begins with: of a file that is just written the last one may be half there."""
    end = 0
    while len(data) - end >= 12:
        size = struct.unpack_from("=II", data, end)[1]
        if size < 12 or end + size > len(data):
            break
        end += size
    return data[:end]


def packets(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(time, length, bytes kept) of every packet in whole blocks. Raises ValueError for half a block."""
    for kind, body in blocks(data):
        if kind == PACKET:
            _, high, low, kept, length = struct.unpack_from("=IIIII", body)
            yield high << 32 | low, length, body[20:20 + kept]


def statistics(interface: int, started: int, ended: int, received: int, lost: int) -> bytes:
    """What an interface saw from *started* to *ended* (nanoseconds since 1970): frames that the filter took, and how many
    of them were lost for want of room."""
    options = option(START, moment(started)) + option(END, moment(ended))
    options += option(RECEIVED, struct.pack("=Q", received)) + option(LOST, struct.pack("=Q", lost))
    options += option(ACCEPTED, struct.pack("=Q", received))
    return block(STATISTICS, struct.pack("=I", interface) + moment(ended), options)


def moment(time: int) -> bytes:
    return struct.pack("=II", time >> 32, time & 0xFFFF_FFFF)


def block(kind: int, body: bytes, options: bytes = b"") -> bytes:
    if options:
        options += struct.pack("=HH", 0, 0)
    size = 12 + len(body) + len(options)
    return struct.pack("=II", kind, size) + body + options + struct.pack("=I", size)


def option(code: int, value: bytes) -> bytes:
    value = value[:0xFFFC]
    return struct.pack("=HH", code, len(value)) + value + PADDING[len(value) & 3]


def blocks(data: bytes) -> Sequence[tuple[int, bytes]]:
    """(kind, body with options) of every block of a file of this byte order. Raises ValueError for half a block."""
    found, at = [], 0
    while at < len(data):
        if at + 12 > len(data):
            raise ValueError(f"half a block at {at}")
        kind, size = struct.unpack_from("=II", data, at)
        if size < 12 or size % 4 or at + size > len(data) or data[at + size - 4:at + size] != data[at + 4:at + 8]:
            raise ValueError(f"half a block at {at}")
        found.append((kind, data[at + 8:at + size - 4]))
        at += size
    return found
