"""An echo goes by its own answer: what still comes of an earlier one is not taken for it."""
from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from kvmnet.check import frames
from kvmnet.check.echo import ping
from kvmnet.check.frames import IP4, Packet
from kvmnet.check.station import Station

MAC, PEER = "02:00:00:00:00:01", "02:00:00:00:00:02"
OWN, THERE = "10.0.0.1", "10.0.0.2"
MORE, LAST = 0x2000, 0x00B9
"""Flags and offset of IPv4: more fragments come; the part from byte 1,480 on."""


@dataclass
class Wire:
    """Instead of a tap: whoever answers stands at its other end."""

    fd: int
    far: socket.socket
    answers: Callable[[Packet], list[bytes]] = field(default=lambda asked: [])

    def send(self, frame: bytes) -> None:
        asked = frames.read(frame)
        if asked and asked.icmp == 8:
            for answer in self.answers(asked):
                self.far.send(frames.ether(MAC, PEER, IP4, answer))

    def receive(self) -> bytes:
        return os.read(self.fd, 2048)


def part(payload: bytes, flags: int) -> bytes:
    return frames.ip4(THERE, OWN, 1, payload, flags=flags)


@pytest.fixture
def wire() -> Iterator[Wire]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        yield Wire(near.fileno(), far)


def exchange(wire: Wire, answers: Callable[[Packet], list[bytes]]) -> tuple[bool, bool]:
    wire.answers = answers
    with Station(wire, MAC, OWN, "", "guest") as station:  # type: ignore[arg-type]
        station.neighbours[THERE] = PEER
        found = ping(station, THERE, size=1500, patience=1.0)
    return found.answered, found.whole


def test_a_late_part_of_an_earlier_answer_is_not_its_own(wire: Wire) -> None:
    assert exchange(wire, lambda asked: [part(b"x", LAST), frames.echo_reply(asked)]) == (True, True)


@pytest.mark.parametrize("turned", [False, True], ids=["in order", "last part first"])
def test_an_answer_in_parts_is_told(wire: Wire, turned: bool) -> None:
    def parts(asked: Packet) -> list[bytes]:
        whole = frames.echo_reply(asked)[20:]
        made = [part(whole[:1480], MORE), part(whole[1480:] or b"x", LAST)]
        return made[::-1] if turned else made
    assert exchange(wire, parts) == (True, False)


def test_parts_of_others_alone_are_no_answer(wire: Wire) -> None:
    assert exchange(wire, lambda asked: [part(b"x", LAST)]) == (False, False)
