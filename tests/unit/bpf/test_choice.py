"""Frames told apart by the MAC that they go to."""
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvmnet.bpf.choice import MOST, by_destination
from lib.bpf import run

MACS = st.sampled_from([f"{high}:{low}" for high in ("52:54", "02:00", "ff:ff") for low in ("00:00:00:00", "00:00:00:01", "ff:ff:ff:ff", "80:00:00:07", "7f:00:00:01")])


@given(st.dictionaries(MACS, st.integers(1, 2**32 - 2)), MACS)
def test_each_mac_has_its_number(numbers: dict[str, int], asked: str) -> None:
    frame = bytes.fromhex(asked.replace(":", "")) + bytes(54)
    assert run(by_destination(numbers), frame) == numbers.get(asked, 0)


def test_many_are_found_by_halving_and_fit_into_a_message() -> None:
    numbers = {f"52:54:00:{n % 251:02x}:{n % 13:02x}:{n:02x}": n + 1 for n in range(MOST)}
    program = by_destination(numbers)
    assert len(program) * 8 < 3000 and max(max(i.yes, i.no) for i in program) < 256
    assert all(run(program, bytes.fromhex(mac.replace(":", "")) + bytes(8)) == number for mac, number in numbers.items())
