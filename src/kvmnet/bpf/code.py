"""Conditions as instructions of classic BPF. Pure.

Jumps go forward only, and those of a comparison 255 instructions at most (linux/filter.h): a longer one goes by an
unconditional jump, whose reach is not limited.
"""
from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from kvmnet.bpf.tree import All, Any, Field, Is, Length, Node, Not
from kvmnet.records import dataclass, field

LOADS = {1: 0x30, 2: 0x28, 4: 0x20}
"""Bytes -> BPF_LD with BPF_ABS."""
INDIRECT = 0x20
"""What BPF_IND adds to BPF_ABS."""
LOAD_LENGTH, HEADER_LENGTH, AND, ALWAYS, RETURN = 0x80, 0xB1, 0x54, 0x05, 0x06
EQUAL, GREATER, AT_LEAST = 0x15, 0x25, 0x35
IPV4_START = 14
REACH = 255
MOST = 4096
"""Instructions of one program (BPF_MAXINSNS)."""


class Instruction(NamedTuple):
    code: int
    yes: int
    no: int
    value: int


Program = tuple[Instruction, ...]


@dataclass(slots=True)
class Jump:
    """A comparison whose targets are labels."""

    code: int
    value: int
    yes: int
    no: int


@dataclass(slots=True)
class Writer:
    """Writes a tree; labels are numbers that get their places at the end."""

    out: list[Instruction | Jump | int] = field(default_factory=list)
    """An int is a label: the place of what follows."""
    labels: int = 0

    def label(self) -> int:
        self.labels += 1
        return self.labels - 1

    def write(self, node: Node, yes: int, no: int) -> None:
        match node:
            case Not(item):
                self.write(item, no, yes)
            case All(items):
                self.chain(items, through=yes, out=no, wanted=True)
            case Any(items):
                self.chain(items, through=no, out=yes, wanted=False)
            case Is():
                self.test(node, yes, no)

    def chain(self, items: Sequence[Node], through: int, out: int, *, wanted: bool) -> None:
        """All of *items* being as *wanted* leads to *through*, the first that is not to *out*."""
        if not items:
            self.out.append(Jump(ALWAYS, 0, through, through))
            return
        for item in items[:-1]:
            following = self.label()
            self.write(item, following if wanted else out, out if wanted else following)
            self.out.append(following)
        self.write(items[-1], through if wanted else out, out if wanted else through)

    def test(self, test: Is, yes: int, no: int) -> None:
        self.load(test.field)
        if test.last is None:
            self.out.append(Jump(EQUAL, test.value, yes, no))
            return
        upper = self.label()
        self.out += [Jump(AT_LEAST, test.value, upper, no), upper, Jump(GREATER, test.last, no, yes)]

    def load(self, place: Field | Length) -> None:
        if isinstance(place, Length):
            self.out.append(Instruction(LOAD_LENGTH, 0, 0, 0))
            return
        if place.transport:
            self.out.append(Instruction(HEADER_LENGTH, 0, 0, IPV4_START))
        self.out.append(Instruction(LOADS[place.size] + (INDIRECT if place.transport else 0), 0, 0, place.offset))
        if place.mask:
            self.out.append(Instruction(AND, 0, 0, place.mask))


def program(node: Node, found: int, other: int = 0) -> Program:
    """Instructions that return *found* for the frames that *node* means and *other* for all others.

    Raises ValueError when they are more than the kernel takes.
    """
    writer = Writer()
    yes, no = writer.label(), writer.label()
    writer.write(node, yes, no)
    writer.out += [yes, Instruction(RETURN, 0, 0, found), no, Instruction(RETURN, 0, 0, other)]
    far: set[int] = set()
    while True:
        places, start = place(writer.out, far)
        beyond = {i for i, item in enumerate(writer.out) if isinstance(item, Jump) and item.code != ALWAYS and i not in far
                  and max(places[item.yes], places[item.no]) - start[i] - 1 > REACH}
        if not beyond:
            break
        far |= beyond
    made = tuple(one for i, item in enumerate(writer.out) for one in instructions(item, places, start[i], i in far))
    if len(made) > MOST:
        raise ValueError(f"{len(made)} instructions, and the kernel takes {MOST}: ask for less at once")
    return made


def place(out: Sequence[Instruction | Jump | int], far: set[int]) -> tuple[dict[int, int], list[int]]:
    """Where each label and each item lies."""
    places, start, here = {}, [], 0
    for i, item in enumerate(out):
        start.append(here)
        if isinstance(item, int):
            places[item] = here
        else:
            here += 3 if i in far else 1
    return places, start


def instructions(item: Instruction | Jump | int, places: dict[int, int], at: int, far: bool) -> Sequence[Instruction]:
    if isinstance(item, int):
        return ()
    if isinstance(item, Instruction):
        return (item,)
    yes, no = places[item.yes], places[item.no]
    if item.code == ALWAYS:
        return (Instruction(ALWAYS, 0, 0, yes - at - 1),)
    if far:
        return (Instruction(item.code, 0, 1, item.value), Instruction(ALWAYS, 0, 0, yes - at - 2),
                Instruction(ALWAYS, 0, 0, no - at - 3))
    return (Instruction(item.code, yes - at - 1, no - at - 1, item.value),)


def packed(made: Program) -> bytes:
    """As an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *one) for one in made)


def as_text(made: Program) -> str:
    """As ``tc`` is told, without the number of instructions."""
    return ",".join(f"{code} {yes} {no} {value}" for code, yes, no, value in made)
