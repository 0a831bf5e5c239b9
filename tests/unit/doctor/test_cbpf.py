"""Programs of classic BPF: what they return is what the kernel says that they return."""
from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.doctor.cbpf import carried_out
from kvmnet.doctor.packet import Packet
from kvmnet.policy.egress import PROGRAM
from kvmnet.policy.marks import GUEST

Insn = tuple[int, int, int, int]
ATTACH_FILTER = 26
RET_A, AND = 0x16, 0x54
FRAME = bytes.fromhex("525400000002 525400000001 0800".replace(" ", "")) + bytes(range(186))


def rows(program: Sequence[Insn]) -> list[dict[str, int]]:
    return [dict(zip(("code", "jt", "jf", "k"), one, strict=True)) for one in program]


def by_kernel(program: Sequence[Insn], frame: bytes) -> int | None:
    """Bytes that a socket keeps of *frame*, which is the program's result; None for a program that the kernel refuses."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
        try:
            far.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
        except OSError:
            return None
        far.setblocking(False)
        near.send(frame)
        try:
            return len(far.recv(4096))
        except BlockingIOError:
            return 0


NUMBER = st.one_of(st.integers(0, 220), st.integers(0, 0xFFFFFFFF), st.sampled_from((0xFFFFFFF0, 31, 32)))
LOADS = st.tuples(st.sampled_from((0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x80, 0x81, 0x00, 0x01, 0xB1)), st.just(0), st.just(0), NUMBER)
MEMORY = st.tuples(st.sampled_from((0x60, 0x61, 0x02, 0x03)), st.just(0), st.just(0), st.integers(0, 3))
ALU = st.tuples(st.sampled_from([op | src | 4 for op in range(0, 0xB0, 0x10) for src in (0, 8)]), st.just(0), st.just(0), NUMBER)
JUMPS = st.tuples(st.sampled_from([op | src | 5 for op in (0x10, 0x20, 0x30, 0x40) for src in (0, 8)]), st.integers(0, 2), st.integers(0, 2), NUMBER)
JUMP = st.tuples(st.just(5), st.just(0), st.just(0), st.integers(0, 2))
MOVES = st.tuples(st.sampled_from((0x07, 0x87)), st.just(0), st.just(0), st.just(0))
ENDS: list[Insn] = [(AND, 0, 0, 0xFF), (AND, 0, 0, 0xFF), (AND, 0, 0, 0xFF), (RET_A, 0, 0, 0)]
PREPARED: list[Insn] = [(2, 0, 0, n) for n in range(4)]
"""The kernel refuses to load from memory that nothing was stored in."""


def ours(program: Sequence[Insn], frame: bytes) -> int | None:
    found = carried_out(rows(program), Packet(frame), None)
    return None if found is None else min(found, len(frame))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(LOADS, MEMORY, ALU, JUMPS, JUMP, MOVES), max_size=14))
def test_random_programs(middle: list[Insn]) -> None:
    program = [*PREPARED, *middle, *ENDS]
    kernel, mine = by_kernel(program, FRAME), ours(program, FRAME)
    assert kernel is None or mine is None or kernel == mine, program


@pytest.mark.parametrize(("program", "result"), [
    ([(0x30, 0, 0, 14), (RET_A, 0, 0, 0)], 0), ([(0x30, 0, 0, 20), (RET_A, 0, 0, 0)], 6), ([(0x30, 0, 0, 200), (6, 0, 0, 9)], 0),
    ([(0x28, 0, 0, 12), (0x15, 0, 1, 0x0800), (6, 0, 0, 7), (6, 0, 0, 0)], 7), ([(0x28, 0, 0, 12), (0x15, 0, 1, 0x86DD), (6, 0, 0, 7), (6, 0, 0, 3)], 3),
    ([(0xB1, 0, 0, 35), (0x87, 0, 0, 0), (RET_A, 0, 0, 0)], 20), ([(0x00, 0, 0, 5), (0x1C, 0, 0, 0), (RET_A, 0, 0, 0)], 5),
    ([(0x00, 0, 0, 5), (0x3C, 0, 0, 0), (6, 0, 0, 9)], 0), ([(0x80, 0, 0, 0), (RET_A, 0, 0, 0)], 200)])
def test_what_the_kernel_and_the_model_both_say(program: list[Insn], result: int) -> None:
    assert by_kernel(program, FRAME) == ours(program, FRAME) == result


def test_what_is_known_beside_the_bytes() -> None:
    gate = [tuple(map(int, one.split())) for one in PROGRAM.split(",")]
    assert [carried_out(rows(gate), Packet(FRAME), mark) for mark in (GUEST | 3, 3, None)] == [0xFFFFFFFF, 2, None]  # type: ignore[arg-type]
    assert carried_out(rows([(0x28, 0, 0, 0xFFFFF000), (RET_A, 0, 0, 0)]), Packet(FRAME), None) == 0x0800
    assert carried_out(rows([(0x30, 0, 0, 0xFFF00009), (RET_A, 0, 0, 0)]), Packet(FRAME), None) == FRAME[23]
    assert carried_out(rows([(0x20, 0, 0, 0xFFFFF008), (6, 0, 0, 1)]), Packet(FRAME), 0) is None, "the number of the device"
    assert carried_out(rows([(6, 0, 0, 1)]), Packet(FRAME[:12] + bytes.fromhex("81000005") + FRAME[12:]), 0) is None
    for damaged in ([], [{"code": 5, "jt": 0, "jf": 0, "k": 9}], [{"code": 0xFF}]):
        assert carried_out(damaged, Packet(FRAME), 0) is None
