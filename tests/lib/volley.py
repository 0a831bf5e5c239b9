"""Many frames under many rules in one tight loop, on whichever kernel this runs: everything to send is made beforehand.

All ends are taps, the wire behind the uplink too; the host sends by raw sockets and hears by packet sockets on its
bridges, which show what has passed the bridge's own hooks.
"""
from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from time import monotonic

from kvmnet.host.clock import wait_until
from lib.netns import new_netns, sh
from lib.tap import Tap

MARK = b"kvmnet-volley:"
"""In front of a frame's number, which is four bytes; the last one in a frame counts: errors quote another."""
HOST = "host"
DRAINED_EVERY = 150
"""Frames sent between two looks: a tap holds 500 of them."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The links of the host, as a shell script makes them, before and after the taps are open."""

    before: str
    after: str
    taps: tuple[str, ...]
    bridges: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shot:
    """A frame, or an IP packet of the host's; sent by a tap or by the host, several for the parts of one packet."""

    sender: str
    parts: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Round:
    """An nft script, and what is sent once it is loaded."""

    script: str
    shots: Sequence[Shot]


def fire(ground: Ground, rounds: Sequence[Round]) -> tuple[list[dict[int, tuple[str, ...]]], dict[str, float]]:
    """For each round: number of a frame -> where it came out. And the seconds that loading and sending took."""
    spent = {"loading": 0.0, "sending": 0.0}
    with new_netns(), ExitStack() as stack:
        sh(ground.before)
        taps = {name: stack.enter_context(Tap(name)) for name in ground.taps}
        sh(ground.after)
        wait_until(lambda: sh("bridge link").count("state forwarding") >= len(taps) - 1, 20)
        ears = [stack.enter_context(ear(bridge)) for bridge in ground.bridges]
        raw = {4: stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)),
               6: stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW))}
        found = []
        for one in rounds:
            began = monotonic()
            subprocess.run(["nft", "-f", "-"], input=one.script, text=True, check=True)
            loaded = monotonic()
            arrived: dict[int, tuple[str, ...]] = {}
            for start in range(0, len(one.shots), DRAINED_EVERY):
                for shot in one.shots[start:start + DRAINED_EVERY]:
                    for part in shot.parts:
                        if shot.sender == HOST:
                            send(raw, part)
                        else:
                            os.write(taps[shot.sender].fd, part)
                hear(taps, ears, arrived)
            found.append(arrived)
            spent["loading"] += loaded - began
            spent["sending"] += monotonic() - loaded
    return found, spent


def ear(bridge: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    made.bind((bridge, 0))
    return made


def send(raw: dict[int, socket.socket], packet: bytes) -> None:
    """Give *packet* to the host's stack, which says so if rules drop it at once."""
    with suppress(PermissionError):
        if packet[0] >> 4 == 4:
            raw[4].sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))
        else:
            raw[6].sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))


def hear(taps: dict[str, Tap], ears: Sequence[socket.socket], arrived: dict[int, tuple[str, ...]]) -> None:
    """Note all that came out; frames are delivered before the write that sent them returns."""
    def note(frame: bytes, where: str) -> None:
        at = frame.rfind(MARK)
        if at >= 0:
            number = int.from_bytes(frame[at + len(MARK):at + len(MARK) + 4], "big")
            arrived[number] = (*arrived.get(number, ()), where)
    for name, tap in taps.items():
        for frame in tap.drain():
            note(frame, name)
        tap.seen.clear()
    for one in ears:
        while True:
            try:
                frame, address = one.recvfrom(3000, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            if address[2] != socket.PACKET_OUTGOING:
                note(frame, HOST)
