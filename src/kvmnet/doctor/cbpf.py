"""Programs of classic BPF, as filters of tc bear them, carried out for one packet (net/core/filter.c, bpf_convert_filter()). Pure."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import add, and_, mul, or_, sub, xor

from kvmnet.doctor.packet import Packet
from kvmnet.doctor.view import Json

WORD = 0xFFFF_FFFF
LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)
IMM, ABS, IND, MEM, LEN, MSH = range(0, 0xC0, 0x20)
SIZES = {0: 4, 8: 2, 0x10: 1}
BY_X = 8
ANCILLARY, NETWORK, LINK = 0xFFFF_F000, 0xFFF0_0000, 0xFFE0_0000
"""SKF_AD_OFF, SKF_NET_OFF, SKF_LL_OFF (linux/filter.h): what the kernel knows beside the bytes; from the network header; from the link layer's."""
PROTOCOL, MARK, TAG, TAGGED = 0, 20, 44, 48
"""SKF_AD_PROTOCOL, _MARK, _VLAN_TAG and _VLAN_TAG_PRESENT; others cannot be told of a packet that is not there yet."""
ARITHMETIC: Mapping[int, Callable[[int, int], int]] = {0x00: add, 0x10: sub, 0x20: mul, 0x40: or_, 0x50: and_, 0xA0: xor, 0x60: lambda a, b: a << b, 0x70: lambda a, b: a >> b}
DIVIDE, NEGATE, MODULO = 0x30, 0x80, 0x90
TESTS: Mapping[int, Callable[[int, int], bool]] = {0x10: lambda a, b: a == b, 0x20: lambda a, b: a > b, 0x30: lambda a, b: a >= b, 0x40: lambda a, b: bool(a & b)}


class Unknown(Exception):
    """It asks for what nobody can tell from here."""


class Over(Exception):
    """It read beyond the packet, or divided by zero: the kernel ends it with 0."""


def carried_out(program: Sequence[Json], packet: Packet, mark: int | None) -> int | None:
    """What a program returns for *packet*, seen from its link layer on. ``program``: instructions as ``tc -json`` lists them, with code, jt, jf
    and k. None where it cannot be told: of what *mark* does not say, of tagged frames, whose tag may lie beside them."""
    if packet.tagged:
        return None
    try:
        return run([(int(i["code"]), int(i["jt"]), int(i["jf"]), int(i["k"]) & WORD) for i in program], packet, mark)
    except Over:
        return 0
    except (Unknown, KeyError, IndexError, TypeError, ValueError):
        return None


def run(program: Sequence[tuple[int, int, int, int]], packet: Packet, mark: int | None) -> int:
    a, x, at, memory = 0, 0, 0, [0] * 16
    while True:
        code, jt, jf, k = program[at]
        at, kind, other = at + 1, code & 7, x if code & BY_X else k
        if kind in (LD, LDX):
            value = loaded(code, k, x, memory, packet, mark)
            a, x = (value, x) if kind == LD else (a, value)
        elif kind in (ST, STX):
            memory[k] = a if kind == ST else x
        elif kind == ALU:
            a = calculated(code & 0xF0, a, other)
        elif kind == JMP:
            at += k if code & 0xF0 == 0 else jt if TESTS[code & 0xF0](a, other) else jf
        elif kind == RET:
            return a if code & 0x18 == 0x10 else k
        else:
            a, x = (a, a) if code & 0xF8 == 0 else (x, x)


def calculated(operation: int, a: int, b: int) -> int:
    if operation in (DIVIDE, MODULO):
        if b == 0:
            raise Over
        return a // b if operation == DIVIDE else a % b
    if operation == NEGATE:
        return -a & WORD
    if operation in (0x60, 0x70) and b > 31:
        raise Unknown
    return ARITHMETIC[operation](a, b) & WORD


def loaded(code: int, k: int, x: int, memory: Sequence[int], packet: Packet, mark: int | None) -> int:
    mode, size = code & 0xE0, SIZES.get(code & 0x18, 4)
    if mode == IMM:
        return k
    if mode == MEM:
        return memory[k]
    if mode == LEN:
        return len(packet.frame)
    if mode == MSH:
        return (read(packet.frame, k, 1) & 15) * 4
    if mode == ABS and k >= ANCILLARY:
        return beside(k - ANCILLARY, packet, mark)
    if mode not in (ABS, IND):
        raise Unknown
    place = k + (x if mode == IND else 0) & WORD
    start = packet.network + place - NETWORK if NETWORK <= place < ANCILLARY else place - LINK if LINK <= place < NETWORK else place
    return read(packet.frame, start, size)


def read(frame: bytes, at: int, size: int) -> int:
    if at < 0 or at + size > len(frame):
        raise Over
    return int.from_bytes(frame[at:at + size], "big")


def beside(what: int, packet: Packet, mark: int | None) -> int:
    known = {PROTOCOL: packet.protocol, MARK: mark, TAG: 0, TAGGED: 0}.get(what)
    if known is None:
        raise Unknown
    return known
