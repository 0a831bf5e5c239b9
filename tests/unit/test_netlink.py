"""A dump of netlink: pieces put together, one that changed meanwhile asked for again, refusals told."""
from __future__ import annotations

import errno
import struct
from socket import socket
from typing import cast

import pytest

from kvmnet.host.netlink import DONE, ERROR, INTERRUPTED, TRIES, dump


class Kernel:
    """Answers with what lies ready: for each question the packets that come."""

    def __init__(self, *answers: list[list[tuple[int, int, bytes]]]):
        self.answers, self.asked = list(answers), 0
        self.waiting: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.asked, = struct.unpack_from("=I", data, 8)
        self.waiting = [b"".join(message(kind, flags, body, self.asked) for kind, flags, body in packet) for packet in self.answers.pop(0)]

    def recv(self, size: int) -> bytes:
        return self.waiting.pop(0)


def message(kind: int, flags: int, body: bytes, sequence: int) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + bytes(-len(body) % 4)


def ask(kernel: Kernel) -> tuple[bool, list[bytes]]:
    return dump(cast(socket, kernel), 30, b"")


END = (DONE, 2, bytes(4))


def test_a_dump_comes_in_pieces_of_any_length() -> None:
    assert ask(Kernel([[(28, 2, b"one"), (28, 2, b"second")], [(28, 2, b"3"), END]])) == (True, [b"one", b"second", b"3"])


def test_what_changed_meanwhile_is_asked_for_again() -> None:
    torn = [[(28, 2 | INTERRUPTED, b"half")], [END]]
    kernel = Kernel(torn, torn, [[(28, 2, b"whole"), END]])
    assert ask(kernel) == (True, [b"whole"]) and kernel.asked == 3
    assert ask(Kernel(*[torn] * TRIES)) == (False, [b"half"])    # it changes all the time


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_a_refusal_is_told(kind: int) -> None:
    with pytest.raises(PermissionError):
        ask(Kernel([[(kind, 0, struct.pack("=i", -errno.EPERM))]]))
