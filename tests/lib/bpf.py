"""Classic BPF, carried out as the kernel does (Documentation/networking/filter.rst): what a program says of a frame."""
from __future__ import annotations

from collections.abc import Sequence

TAG, TAGGED = 0xFFFF_F000 + 44, 0xFFFF_F000 + 48
SIZES = {0x30: 1, 0x28: 2, 0x20: 4, 0x50: 1, 0x48: 2, 0x40: 4}


def run(program: Sequence[Sequence[int]], frame: bytes, tag: int | None = None) -> int:
    """What *program* returns. ``tag``: VLAN tag beside the frame, None for none."""
    accumulator = index = here = 0
    while True:
        code, yes, no, value = program[here]
        here += 1
        if code in SIZES:
            if value in (TAG, TAGGED):
                accumulator = (tag or 0) if value == TAG else int(tag is not None)
                continue
            at = value + (index if code & 0x40 else 0)
            if at + SIZES[code] > len(frame):
                return 0
            accumulator = int.from_bytes(frame[at:at + SIZES[code]], "big")
        elif code == 0xB1:
            if value >= len(frame):
                return 0
            index = (frame[value] & 0xF) * 4
        elif code == 0x80:
            accumulator = len(frame)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x45:
            here += yes if accumulator & value else no
        elif code in (0x15, 0x25, 0x35):
            true = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[code]
            here += yes if true else no
        elif code == 0x05:
            here += value
        elif code == 0x06:
            return value
        else:
            raise ValueError(f"instruction {code:#x}")
