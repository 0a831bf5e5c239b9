"""Identifiers, priority vectors and timers of spanning trees. Pure.

A vector is better the smaller it is (802.1Q-2018, 13.10). A tree of an instance (MSTI) has no root outside the region and no
cost to it: these two parts are 0 there, so one comparison does for all trees.
"""
from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple

CIST = 0
"""Number of the common tree."""
ADDRESS = (1 << 48) - 1
PORT_NUMBER = 0xFFF


class Protocol(IntEnum):
    """Version of the protocol; what a bridge speaks is this and everything older."""

    STP = 0
    RSTP = 2
    MSTP = 3


class Role(StrEnum):
    DISABLED = "disabled"
    ROOT = "root"
    DESIGNATED = "designated"
    ALTERNATE = "alternate"
    BACKUP = "backup"
    MASTER = "master"


class State(StrEnum):
    DISCARDING = "discarding"
    LEARNING = "learning"
    FORWARDING = "forwarding"


class Vector(NamedTuple):
    """Root, cost to it outside of the region, root of the region, cost to that, and who says so by which port."""

    root: int
    external: int
    regional: int
    internal: int
    bridge: int
    port: int
    receiver: int = 0
    """Identifier of the port that heard it, the last tie-breaker."""

    def same_origin(self, other: Vector) -> bool:
        """Whether both come from one port of one bridge, priorities aside."""
        return (self.bridge & ADDRESS, self.port & PORT_NUMBER) == (other.bridge & ADDRESS, other.port & PORT_NUMBER)


class Times(NamedTuple):
    """Timers that the root announces, in seconds, and how far the announcement has come."""

    age: float = 0
    max_age: float = 20
    hello: float = 2
    forward_delay: float = 15
    hops: int = 20
    """Bridges of the region that it may still pass."""


def bridge_id(priority: int, mac: str, tree: int = CIST) -> int:
    """Identifier of a bridge: its priority (a multiple of 4096), the number of the tree, its address (802.1Q-2018, 13.26.3)."""
    return (priority | tree) << 48 | int(mac.replace(":", ""), 16)


def port_id(priority: int, number: int) -> int:
    """Identifier of a port: its priority (a multiple of 16, at most 240) and its number (1 to 4095)."""
    return (priority >> 4) << 12 | number


def id_text(identifier: int) -> str:
    """A bridge's identifier for people: ``32768.02:00:00:00:00:01``, the number of the tree left out."""
    return f"{identifier >> 48 & 0xF000}.{(identifier & ADDRESS).to_bytes(6, 'big').hex(':')}"


COSTS = 20_000_000
"""Megabits a second that cost 1 (802.1Q-2018, table 13-4)."""


def path_cost(megabits: int) -> int:
    """Cost of a port by its speed in Mbit/s; that of 10 Gbit/s where it is not known (0)."""
    return max(1, min(200_000_000, COSTS // megabits)) if megabits > 0 else 2000
