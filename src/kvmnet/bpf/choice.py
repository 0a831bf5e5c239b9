"""A program that tells frames apart by where they go: destination MAC -> a number, by halving. Pure."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvmnet.bpf.code import ALWAYS, AT_LEAST, EQUAL, LOADS, RETURN, Instruction, Program

LOW, HIGH = Instruction(LOADS[4], 0, 0, 2), Instruction(LOADS[2], 0, 0, 0)
"""Loads the last four bytes of the destination, and its first two."""
MOST = 48
"""MACs of one program: seven instructions for each, and a filter must fit into the first message of the kernel's list of them, which has
4 KiB (NLMSG_GOODSIZE, netlink_dump() in net/netlink/af_netlink.c): it is not listed at all otherwise."""


def by_destination(numbers: Mapping[str, int]) -> Program:
    """Instructions that return the number of the MAC that a frame goes to; 0 for all others."""
    known: dict[int, list[tuple[int, int]]] = {}
    for mac, number in numbers.items():
        octets = bytes.fromhex(mac.replace(":", ""))
        known.setdefault(int.from_bytes(octets[2:], "big"), []).append((int.from_bytes(octets[:2], "big"), number))
    return (LOW, *halved(sorted(known.items())))


def halved(items: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> Program:
    """``items``: last four bytes of a MAC -> its first two and the number, sorted."""
    if not items:
        return (Instruction(RETURN, 0, 0, 0),)
    if len(items) == 1:
        low, rest = items[0]
        told = [one for high, number in rest for one in (Instruction(EQUAL, 0, 1, high), Instruction(RETURN, 0, 0, number))]
        return (Instruction(EQUAL, 0, 1 + len(told), low), HIGH, *told, Instruction(RETURN, 0, 0, 0))
    middle = len(items) // 2
    below, above = halved(items[:middle]), halved(items[middle:])
    return (Instruction(AT_LEAST, 0, 1, items[middle][0]), Instruction(ALWAYS, 0, 0, len(below)), *below, *above)
