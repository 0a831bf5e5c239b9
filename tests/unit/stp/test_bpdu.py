"""BPDUs as bytes: what others send is understood, what makes no sense is not."""
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.stp.bpdu import Bpdu, Flags, Message, Region, decode, digest, encode, frame, payload_of
from kvmnet.stp.vectors import Protocol, Role, Times, Vector, bridge_id, id_text, path_cost, port_id

ROOT, MAC = bridge_id(4096, "02:00:00:00:00:01"), "02:00:00:00:00:02"
OWN = bridge_id(32768, MAC)
SECONDS = Times(1, 20, 2, 15)
RAPID = bytes.fromhex("0000 02 02 7c 1000020000000001 00004e20 8000020000000002 8001 0100 1400 0200 0f00 00".replace(" ", ""))
"""Of a designated port that learns, forwards, proposes no more and has agreed, as 802.1Q-2018, 14.4, lays it out."""


def test_an_rst_bpdu_is_laid_out_as_the_standard_says() -> None:
    said = Bpdu(Protocol.RSTP, common=Message(Flags(Role.DESIGNATED, learning=True, forwarding=True, agreement=True),
                                              Vector(ROOT, 20000, OWN, 0, OWN, port_id(128, 1)), SECONDS))
    assert encode(said) == RAPID
    assert decode(RAPID) == said


def test_a_configuration_bpdu_and_a_notification() -> None:
    config = bytes.fromhex("0000 00 00 81 1000020000000001 00000000 1000020000000001 8003 0000 1400 0200 0f00".replace(" ", ""))
    found = decode(config)
    assert found is not None and found.version is Protocol.STP and found.common is not None
    assert (found.common.flags.tc, found.common.flags.last, found.common.flags.role) == (True, True, Role.DESIGNATED)
    assert found.common.vector == Vector(ROOT, 0, ROOT, 0, ROOT, 0x8003) and encode(found) == config
    assert decode(bytes.fromhex("00000080")) == Bpdu(Protocol.STP, notification=True)
    assert encode(Bpdu(Protocol.STP, notification=True)) == bytes.fromhex("00000080")


def test_an_mst_bpdu_comes_back_as_it_was() -> None:
    region = Region("lab", 7, digest({10: 1, 20: 2}))
    inner = Vector(ROOT, 0, ROOT, 200, OWN, 0x8001)
    flags = Flags(Role.ROOT, agreement=True, forwarding=True, learning=True)
    trees = {n: Message(flags, Vector(0, 0, bridge_id(0, MAC, n), 5, bridge_id(8192, MAC, n), 0x8001), SECONDS._replace(hops=19)) for n in (1, 2)}
    said = Bpdu(Protocol.MSTP, common=Message(flags, inner._replace(internal=0, bridge=ROOT), SECONDS), region=region,
                inner=Message(flags, inner, SECONDS._replace(hops=18)), instances=trees)
    assert decode(encode(said)) == said


@pytest.mark.parametrize(("vlans", "expected"), [
    ({}, "ac36177f50283cd4b83821d8ab26de62"),                                        # 802.1Q-2018, table 13-2
    (dict.fromkeys(range(1, 4095), 1), "e13a80f11ed0856acd4ee3476941c73b"),
    ({vid: vid % 32 + 1 for vid in range(1, 4095)}, "9d145c267dbe9fb5d893441be3ba08ce"),
])
def test_the_digest_is_that_of_the_standard(vlans: dict[int, int], expected: str) -> None:
    assert digest(vlans).hex() == expected


@pytest.mark.parametrize("data", [b"", b"\0\0", RAPID[:20], b"\1" + RAPID[1:], RAPID[:3] + b"\7" + RAPID[4:],
                                  RAPID[:4] + b"\x30" + RAPID[5:],                           # a role that there is not
                                  RAPID[:2] + b"\0\0" + RAPID[4:27] + b"\x15\0" + RAPID[29:]],   # older than it may become
                         ids=["empty", "two bytes", "cut", "protocol", "kind", "role", "age"])
def test_what_makes_no_sense_is_not_one(data: bytes) -> None:
    assert decode(data) is None


@given(st.binary(max_size=200))
@settings(max_examples=200, derandomize=True, database=None, deadline=None)
def test_nothing_that_comes_in_does_harm(data: bytes) -> None:
    decode(data)
    decode(RAPID[:2] + b"\3" + RAPID[3:] + data)
    payload_of(data)


def test_a_frame_is_found_again() -> None:
    said = decode(RAPID)
    assert said is not None
    whole = frame(MAC, said)
    assert len(whole) == 60 and payload_of(whole) == RAPID
    assert payload_of(b"\xff" * 6 + whole[6:]) is None and payload_of(whole[:14] + b"\xaa\xaa\x03" + whole[17:]) is None


def test_names_and_costs() -> None:
    assert id_text(bridge_id(4096, MAC, 7)) == "4096.02:00:00:00:00:02"
    assert [path_cost(m) for m in (0, 100, 1000, 10000, 400000)] == [2000, 200000, 20000, 2000, 50]
