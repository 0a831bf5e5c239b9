"""Ports of bridges by rtnetlink: what they are, which state they and their VLANs are in, and to put them into another.

Standard library alone: the process of a spanning tree needs nothing else. Sources: rtnetlink(7), linux/if_link.h,
linux/if_bridge.h.
"""
from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kvmnet.host.netlink import attributes

NEWLINK, GETLINK, SETLINK, NEWVLAN, GETVLAN = 16, 18, 19, 112, 114
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP = 1, 4, 0x300
AF_BRIDGE = 7
NESTED = 0x8000
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MASTER, IFLA_PROTINFO, IFLA_LINKINFO, IFLA_EXT_MASK = 1, 3, 10, 12, 18, 29
INFO_SLAVE_DATA = 5
BRPORT_STATE, BRPORT_FLUSH = 1, 18
VLAN_ENTRY, ENTRY_INFO, ENTRY_RANGE, ENTRY_STATE = 1, 1, 2, 3
PVID, ONLY_OPTIONS = 2, 64
UP, LOWER_UP = 0x1, 0x10000
GROUP_LINK = 1
DISABLED, LISTENING, LEARNING, FORWARDING, BLOCKING = range(5)
"""States of a port (linux/if_bridge.h). LISTENING is how a port stays shut where the kernel speaks no spanning tree itself:
BLOCKING it would open at once (br_make_forwarding() in net/bridge/br_stp.c)."""


class Look(NamedTuple):
    """A link as it is."""

    number: int
    """Its ifindex."""
    mac: str
    master: int
    """Index of the bridge; 0 for none."""
    up: bool
    running: bool
    """It is up and has a carrier."""
    state: int
    """State of the port; -1 when it is none."""


class Span(NamedTuple):
    """VLANs of a port, from one to another, that are in one state."""

    first: int
    last: int
    untagged: bool
    """Frames without a tag that come in belong to it."""
    state: int


class Refused(Exception):
    """The kernel refused. ``number``: its errno."""

    def __init__(self, number: int, what: str):
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


class Kernel:
    """A way to ask and tell, and one to hear of changes."""

    def __init__(self) -> None:
        self.asked = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self.heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self.heard.bind((0, GROUP_LINK))
        self.sequence = 0

    def close(self) -> None:
        self.asked.close()
        self.heard.close()

    def drain(self) -> None:
        """Take the notices that have come; one that was lost is one, too."""
        while True:
            try:
                self.heard.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def look(self, name: str) -> Look | None:
        """A link by its name; None when there is none."""
        body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name.encode() + b"\0") + attribute(IFLA_EXT_MASK, bytes(4))
        try:
            kind, payload = self.ask(GETLINK, body, f"look at {name}", 0)
        except Refused as refused:
            if refused.number == errno.ENODEV:
                return None
            raise
        if kind != NEWLINK:
            return None
        index, flags = struct.unpack_from("=4xiI", payload)
        found = dict(attributes(payload[16:]))
        info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
        data = dict(attributes(info.get(INFO_SLAVE_DATA, b""))) if IFLA_MASTER in found else {}
        state = data[BRPORT_STATE][0] if BRPORT_STATE in data and len(data[BRPORT_STATE]) == 1 else -1
        master = struct.unpack("=i", found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0
        return Look(index, found.get(IFLA_ADDRESS, b"").hex(":"), master, bool(flags & UP), flags & (UP | LOWER_UP) == UP | LOWER_UP, state)

    def set_state(self, index: int, state: int) -> None:
        """Raises Refused: ENETDOWN for a port without a carrier, EBUSY where the kernel speaks a spanning tree."""
        self.tell_port(index, attribute(BRPORT_STATE, bytes((state,))), f"set port {index} to state {state}")

    def vlans(self, index: int) -> list[Span]:
        """VLANs of a port. Raises Refused: EOPNOTSUPP where the kernel has none (before Linux 5.6, or built without)."""
        body = struct.pack("=BxHI", AF_BRIDGE, 0, index)
        return [span for payload in self.ask_all(GETVLAN, body, f"list VLANs of port {index}") for kind, entry in attributes(payload[8:])
                if kind == VLAN_ENTRY for span in span_of(dict(attributes(entry)))]

    def set_vlans(self, index: int, span: Span) -> None:
        """Put VLANs of a port, all of which it has, into a state. Raises Refused: ENOENT when it has not."""
        entry = (attribute(ENTRY_INFO, struct.pack("=HH", ONLY_OPTIONS, span.first)) + attribute(ENTRY_STATE, bytes((span.state,)))
                 + (attribute(ENTRY_RANGE, struct.pack("=H", span.last)) if span.last > span.first else b""))
        body = struct.pack("=BxHI", AF_BRIDGE, 0, index) + attribute(VLAN_ENTRY | NESTED, entry)
        self.ask(NEWVLAN, body, f"set VLANs {span.first}-{span.last} of port {index} to state {span.state}", ACK)

    def flush(self, index: int) -> None:
        """Forget what was learned at a port."""
        self.tell_port(index, attribute(BRPORT_FLUSH, b""), f"flush port {index}")

    def tell_port(self, index: int, settings: bytes, what: str) -> None:
        body = struct.pack("=BxHiII", AF_BRIDGE, 0, index, 0, 0) + attribute(IFLA_PROTINFO | NESTED, settings)
        self.ask(SETLINK, body, what, ACK)

    def ask(self, kind: int, body: bytes, what: str, flags: int) -> tuple[int, bytes]:
        """The kernel's answer: its kind, and what follows the header."""
        self.send(kind, body, flags)
        return next(self.answers(what))

    def ask_all(self, kind: int, body: bytes, what: str) -> Iterator[bytes]:
        """What follows the header in each of the kernel's answers."""
        self.send(kind, body, DUMP)
        for answer, payload in self.answers(what):
            if answer == DONE:
                return
            yield payload

    def send(self, kind: int, body: bytes, flags: int) -> None:
        self.sequence += 1
        self.asked.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, self.sequence, 0) + body)

    def answers(self, what: str) -> Iterator[tuple[int, bytes]]:
        """(kind, what follows the header) of what the kernel says to the last question."""
        while True:
            data = self.asked.recv(1 << 17)
            while len(data) >= 16:
                length, answer, _, sequence, _ = struct.unpack_from("=IHHII", data)
                payload, data = data[16:length], data[length + 3 & ~3:]
                if sequence != self.sequence:
                    continue
                if answer in (ERROR, DONE) and len(payload) >= 4 and (number := -struct.unpack_from("=i", payload)[0]) > 0:
                    raise Refused(number, what)
                yield answer, payload


def span_of(found: Mapping[int, bytes]) -> Iterator[Span]:
    """VLANs by one entry of the kernel's list; an entry without a state, as of a kernel before 5.6, is none."""
    if ENTRY_INFO in found and ENTRY_STATE in found:
        flags, first = struct.unpack_from("=HH", found[ENTRY_INFO])
        last = struct.unpack_from("=H", found[ENTRY_RANGE])[0] if ENTRY_RANGE in found else first
        yield Span(first, last, bool(flags & PVID), found[ENTRY_STATE][0])


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
