"""The process of a spanning tree, when the kernel does not tell what it knows."""
from __future__ import annotations

import socket
import time

import pytest

from kvmnet.drivers.stp.daemon import GLANCE, Speaker
from kvmnet.drivers.stp.netlink import Look
from kvmnet.stp.bridge import Bridge
from kvmnet.stp.node import BridgeConfig
from kvmnet.stp.port import PortConfig


class Kernel:
    """Says nothing by itself; *losing* loses its carrier at the second look."""

    def __init__(self, losing: str):
        self.heard, self.there = socket.socketpair()
        self.losing = losing
        self.looks: list[str] = []

    def look(self, name: str) -> Look:
        self.looks.append(name)
        return Look(2, "02:00:00:00:00:01", 1, True, name != self.losing or self.looks.count(name) < 2, 3)


@pytest.fixture
def speaker() -> Speaker:
    """With ports a and b, and nothing to do for a minute."""
    made = object.__new__(Speaker)
    made.wirings, made.look_at = {}, time.monotonic() + 60
    made.renew_at = made.look_at
    made.core = core = Bridge(BridgeConfig("02:00:00:00:00:01"), time.monotonic())
    for number, name in enumerate(("a", "b", "down"), 1):
        core.add_port(PortConfig(name, number), time.monotonic())
        if name != "down":
            core.port_up(name, time.monotonic())
    core.deadline = lambda: None    # type: ignore[method-assign]
    return made


def test_a_lost_carrier_is_seen_though_nobody_tells(speaker: Speaker) -> None:
    speaker.kernel = kernel = Kernel("b")    # type: ignore[assignment]
    speaker.wait()
    assert kernel.looks == ["a", "b", "a", "b"], "both ports, twice; not the one that has no carrier anyway"
    kernel.there.close()
    kernel.heard.close()


def test_what_is_told_ends_the_wait_before_any_look(speaker: Speaker) -> None:
    speaker.kernel = kernel = Kernel("b")    # type: ignore[assignment]
    kernel.there.send(b"!")
    speaker.wait()
    assert kernel.looks == [] and GLANCE < 1, "linkwatch may take a second"
    kernel.there.close()
    kernel.heard.close()
