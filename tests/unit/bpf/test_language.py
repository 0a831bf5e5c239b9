"""Expressions mean what tcpdump means by them: both programs over the same frames.

``tcpdump.json`` is what ``tcpdump -ddd -y EN10MB EXPRESSION`` (4.99.3, libpcap 1.10.3) printed.
"""
from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from kvmnet.bpf.code import MOST, packed, program
from kvmnet.bpf.language import parse
from kvmnet.bpf.tree import EVERYTHING, NOTHING, Any, Field, Is, untagged, vlan
from lib import bpf
from lib.frames import BROADCAST, arp, ether, icmp, ip4, ip6, tag, tcp, udp

THEIRS: dict[str, list[list[int]]] = json.loads((Path(__file__).parent / "tcpdump.json").read_text())
MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02", BROADCAST, "33:33:00:00:00:01", "01:00:5e:00:00:fb")
V4 = ("192.0.2.1", "192.0.2.200", "198.51.100.7", "10.1.2.3")
V6 = ("2001:db8::1", "2001:db8:0:1::2", "fe80::1")
PORTS = (22, 53, 80, 443, 5000, 8080, 65535)


def frames() -> list[bytes]:
    chance = random.Random(7)
    found = [b"", b"\x02" * 13, ether(*MACS[:2], 0x0800, b"\x45"), ether(*MACS[:2], 0x88CC, b"lldp" * 20)]
    for _ in range(600):
        dst, src = chance.choice(MACS), chance.choice(MACS[:2])
        a, b = (chance.sample(V4, 2), chance.sample(V6, 2))[chance.random() < 0.4]
        ports = chance.choice(PORTS), chance.choice(PORTS)
        number, payload = chance.choice((
            (6, tcp(a, b, *ports)), (17, udp(a, b, *ports, b"x" * chance.choice((1, 400, 1400)))),
            (1, icmp(8, 0, b"ping")), (58, icmp(128, 0, b"ping")), (132, udp(a, b, *ports)), (50, b"e" * 30)))
        if ":" in a:
            if chance.random() < 0.2:
                payload, number = bytes([number, 0, 0, 0, 0, 0, 0, 9]) + payload, 44
            found.append(ether(dst, src, 0x86DD, ip6(a, b, number, payload)))
        elif chance.random() < 0.2:
            found.append(ether(dst, src, 0x0806, arp(1, (src, a), (dst, b))))
        else:
            found.append(ether(dst, src, 0x0800, ip4(a, b, number, payload, frag=chance.choice((0, 0, 0x2000, 0x00B9)),
                                                      options=chance.choice((b"", b"\x01" * 8)))))
    return found


FRAMES = frames()


@pytest.mark.parametrize("text", THEIRS)
def test_the_same_frames_as_tcpdump(text: str) -> None:
    ours = program(parse(text), 262144)
    verdicts = [bool(bpf.run(ours, f)) for f in FRAMES]
    assert verdicts == [bool(bpf.run(THEIRS[text], f)) for f in FRAMES]
    assert 0 < sum(verdicts) < len(FRAMES), "the frames do not tell this expression from others"


@pytest.mark.parametrize(("text", "words"), [
    ("", "empty"), ("tcp port", "ends"), ("port http", "http is not a port"), ("tcp port 70000", "70000 is not a port"), ("icmp port 4", "icmp has no ports"),
    ("tcp[13] & 2 != 0", "'[13] & 2 != 0' is not understood"), ("host web1", "web1 is not an address"), ("(tcp", "ends"),
    ("tcp)", ") is not understood here"), ("net 192.0.2.1/24", "without host bits"), ("ip host 2001:db8::1", "no such address"),
    ("portrange 9-5", "not a range"), ("portrange 9", "not a range"), ("vlan 5000", "not a VLAN"), ("ether", "ether stands before"),
    ("nonsense", "nonsense is not understood"), ("not " * 60 + "tcp", "inside each other"), ("ether host 192.0.2.1", "is not a MAC"),
    ("tcp host 192.0.2.1", "write tcp and host 192.0.2.1"), ("less x", "not a number of bytes"), ("ip proto 300", "0 to 255"), ("src proto tcp", "proto stands alone"),
])
def test_what_is_not_understood_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        parse(text)
    assert words in str(refused.value)


def test_a_tag_beside_the_frame_and_in_it() -> None:
    plain = ether(*MACS[:2], 0x0800, ip4(*V4[:2], 6, tcp(*V4[:2], 5000, 80)))
    seven, any_tag, none = (program(n, 1) for n in (vlan(7), vlan(), untagged()))
    cases = {(plain, None): (0, 0, 1), (plain, 0x6007): (1, 1, 0), (plain, 8): (0, 1, 0), (tag(7, plain), None): (1, 1, 0),
             (tag(8, plain), None): (0, 1, 0), (tag(0, plain), None): (0, 1, 1), (plain, 0x6000): (0, 1, 1),
             (tag(7, plain), 8): (0, 1, 0)}
    for (frame, beside), verdicts in cases.items():
        assert tuple(bpf.run(p, frame, beside) for p in (seven, any_tag, none)) == verdicts, (frame[12:18], beside)
    web = program(parse("vlan 7 and tcp port 80"), 1)
    assert [bpf.run(web, plain, t) for t in (None, 7, 8)] == [0, 1, 0]


def test_everything_and_nothing() -> None:
    assert [bpf.run(program(node, 5, 3), b"") for node in (EVERYTHING, NOTHING)] == [5, 3]
    assert packed(program(EVERYTHING, 5)) == bytes.fromhex("0500000000000000 0600000005000000 0600000000000000")


def test_long_programs_jump_far() -> None:
    """300 comparisons and more between a condition and its end."""
    many = Any(tuple(Is(Field(0, 2), value) for value in range(1000)))
    made = program(many, 1)
    frame = [(value).to_bytes(2, "big") for value in (0, 1, 500, 998, 999, 1000, 65535)]
    assert [bpf.run(made, f) for f in frame] == [1, 1, 1, 1, 1, 0, 0]
    assert all(yes < 256 and no < 256 for _, yes, no, _ in made)
    with pytest.raises(ValueError, match=f"kernel takes {MOST}"):
        program(Any(tuple(Is(Field(0, 2), value) for value in range(2000))), 1)
