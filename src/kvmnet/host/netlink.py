"""Dumps of the kernel itself, for questions that a tool would answer only after it has asked for every link.

Standard library alone. Sources: netlink(7), rtnetlink(7), linux/neighbour.h, linux/pkt_sched.h.
"""
from __future__ import annotations

import errno
import os
import socket
import struct

NOOP, ERROR, DONE = 1, 2, 3
REQUEST, DUMP, INTERRUPTED = 0x1, 0x300, 0x10
TRIES = 10
"""Dumps that something changed meanwhile are asked for again this often."""
GETNEIGH, GETQDISC = 30, 38
PROXY, PERMANENT = 0x08, 0x80
"""NTF_PROXY, NUD_PERMANENT."""
KIND = 1
"""TCA_KIND, the first attribute of a queueing discipline (tc_fill_qdisc() in net/sched/sch_api.c)."""


def dump(kernel: socket.socket, kind: int, body: bytes) -> list[bytes]:
    """What follows the header of each message of one dump, all of one moment. Raises OSError."""
    for sequence in range(1, TRIES + 1):
        kernel.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | DUMP, sequence, 0) + body)
        whole, found = answers(kernel, sequence)
        if whole:
            return found
    raise OSError(errno.EAGAIN, "what the kernel was asked for changes all the time")


def answers(kernel: socket.socket, sequence: int) -> tuple[bool, list[bytes]]:
    """Whether nothing changed meanwhile, and the messages."""
    whole = True
    found: list[bytes] = []
    while True:
        data = kernel.recv(1 << 18)
        at = 0
        while at + 16 <= len(data):
            length, kind, flags, number, _ = struct.unpack_from("=IHHII", data, at)
            payload, at = data[at + 16:at + length], at + (length + 3 & ~3)
            if number != sequence or kind == NOOP:
                continue
            whole = whole and not flags & INTERRUPTED
            if kind == ERROR or (kind == DONE and len(payload) >= 4):
                refused = -struct.unpack_from("=i", payload)[0]
                if refused > 0:
                    raise OSError(refused, os.strerror(refused))
            if kind in (ERROR, DONE):
                return whole, found
            found.append(payload)


def routing(kind: int, body: bytes) -> list[bytes]:
    """A dump of rtnetlink. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        return dump(kernel, kind, body)


def proxied() -> bool:
    """Whether the host answers for anybody as a proxy. Raises OSError."""
    return bool(routing(GETNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, PROXY, 0)))


def settled() -> bool:
    """Whether there is a neighbour for good. Raises OSError."""
    return any(struct.unpack_from("=H", found, 8)[0] & PERMANENT for found in routing(GETNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0)))


def disciplines() -> dict[int, set[str]]:
    """Index of each link -> the queueing disciplines that somebody has set on it; the kernel's own have no handle. Raises OSError."""
    found: dict[int, set[str]] = {}
    for message in routing(GETQDISC, struct.pack("=BxxxiIII", 0, 0, 0, 0, 0)):
        index, handle = struct.unpack_from("=iI", message, 4)
        length, kind = struct.unpack_from("=HH", message, 20)
        if handle and kind == KIND:
            found.setdefault(index, set()).add(message[24:20 + length].rstrip(b"\0").decode())
    return found
