"""A frame as one line."""
from __future__ import annotations

import pytest

from kvmnet.capture.line import line
from lib.frames import BROADCAST, arp, ether, icmp, ip4, ip6, llc, tag, tcp, udp

A, B = "02:00:00:00:00:01", "02:00:00:00:00:02"
FOUR, SIX = ("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")
FRAMES = {
    "192.0.2.1.5000 > 192.0.2.2.80 TCP S": ether(B, A, 0x0800, ip4(*FOUR, 6, tcp(*FOUR, 5000, 80))),
    "VLAN 7 192.0.2.1.53 > 192.0.2.2.53 UDP": tag(7, ether(B, A, 0x0800, ip4(*FOUR, 17, udp(*FOUR, 53, 53)))),
    "192.0.2.1 > 192.0.2.2 ICMP echo request": ether(B, A, 0x0800, ip4(*FOUR, 1, icmp(8, 0, b"abcd"))),
    "192.0.2.1 > 192.0.2.2 UDP fragment at 1480": ether(B, A, 0x0800, ip4(*FOUR, 17, b"rest", frag=185)),
    "2001:db8::1 > 2001:db8::2 ICMPv6 echo request": ether(B, A, 0x86DD, ip6(*SIX, 0, bytes([58, 0, 5, 2, 0, 0, 1, 0]) + icmp(128, 0, b""))),
    "2001:db8::1.1 > 2001:db8::2.2 TCP SA": ether(B, A, 0x86DD, ip6(*SIX, 6, tcp(*SIX, 1, 2, 18))),
    "ARP who has 192.0.2.2? tell 192.0.2.1": ether(BROADCAST, A, 0x0806, arp(1, (A, FOUR[0]), (B, FOUR[1]))),
    f"ARP 192.0.2.1 is at {A}": ether(B, A, 0x0806, arp(2, (A, FOUR[0]), (B, FOUR[1]))),
    f"{A} > 01:80:c2:00:00:00 STP": llc("01:80:c2:00:00:00", A, b"BB\x03" + bytes(40)),
    f"{A} > {B} LLDP": ether(B, A, 0x88CC, bytes(30)), f"{A} > {B} type 0x1234": ether(B, A, 0x1234, bytes(30)),
    "cut short": b"\x02" * 13,
}


@pytest.mark.parametrize("words", FRAMES)
def test_lines(words: str) -> None:
    frame = FRAMES[words]
    made = line(1_000_000_005, "web/nic0", "in", len(frame), frame)
    assert made.endswith(f".000000005 web/nic0 in {words}, {len(frame)} bytes")


@pytest.mark.parametrize("words", FRAMES)
def test_frames_that_are_cut_anywhere_are_lines_too(words: str) -> None:
    for size in range(len(FRAMES[words])):
        assert line(0, "a", "in", size, FRAMES[words][:size]).endswith(f"{size} bytes")
