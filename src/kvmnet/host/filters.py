"""Programs of the kernel's classic packet filter, for sockets that must not be woken by a busy device's traffic. Pure.

Instructions and the negative offsets of what is known of a packet: linux/filter.h, Documentation/networking/filter.rst.
Transmitted frames may carry their VLAN tag in the frame or beside it, so each place is looked at with and without.
"""
from __future__ import annotations

import struct
from collections.abc import Sequence

LOAD_WORD, LOAD_HALF, LOAD_BYTE, EQUAL, RETURN = 0x20, 0x28, 0x30, 0x15, 0x06
DIRECTION = 0xFFFFF000 + 4
"""Offset that stands for the packet's type (SKF_AD_OFF + SKF_AD_PKTTYPE)."""
OUTGOING = 4
"""PACKET_OUTGOING of linux/if_packet.h."""
WHOLE = 0x40000
TAG = 4
"""Bytes of a VLAN tag."""

Test = tuple[int, int, int]
"""(load instruction, offset in bytes, value that must be there)."""


def program(alternatives: Sequence[Sequence[Test]]) -> bytes:
    """Takes a packet that passes all tests of one of *alternatives*, as an array of struct sock_filter.

    A load beyond the packet's end refuses it: alternatives that look at more bytes come later.
    """
    out: list[tuple[int, int, int, int]] = []
    for tests in alternatives:
        for place, (load, offset, value) in enumerate(tests):
            beyond = 2 * (len(tests) - place - 1) + 1  # past the tests that are left and the return
            out += [(load, 0, 0, offset), (EQUAL, 0, beyond, value)]
        out.append((RETURN, 0, 0, WHOLE))
    out.append((RETURN, 0, 0, 0))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in out)


def announcements() -> bytes:
    """ARP messages and IPv6 neighbour advertisements that leave by the device."""
    sent = (LOAD_WORD, DIRECTION, OUTGOING)
    found: list[list[Test]] = [[sent, (LOAD_HALF, 12, 0x0806)]]
    found += [[sent, (LOAD_HALF, 12, kind), (LOAD_HALF, 12 + TAG, 0x0806)] for kind in (0x8100, 0x88A8)]
    for extra in (0, TAG):
        found.append([sent, (LOAD_HALF, 12 + extra, 0x86DD), (LOAD_BYTE, 20 + extra, 58), (LOAD_BYTE, 54 + extra, 136)])
    return program(found)


def arp_answers(address: int) -> bytes:
    """ARP replies from an IPv4 address, given as a number."""
    return program([[(LOAD_HALF, 12, 0x0806), (LOAD_HALF, 20, 2), (LOAD_WORD, 28, address)]])


def marked(mark: int) -> bytes:
    """UDP and ICMP packets, received and sent, whose data begin with the four bytes of *mark*."""
    return program([[test] for test in marks(mark)])


def marked_sent(mark: int) -> bytes:
    """As ``marked``, those that leave by the device."""
    return program([[(LOAD_WORD, DIRECTION, OUTGOING), test] for test in marks(mark)])


def marks(mark: int) -> list[Test]:
    header, ipv4, ipv6 = 14 + 8, 20, 40
    return [(LOAD_WORD, header + size + extra, mark) for size in (ipv4, ipv6) for extra in (0, TAG)]
