"""Counters and carriers of every link, read twice to tell rates."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from kvmnet.host.clock import wait_until
from kvmnet.host.run import run
from kvmnet.records import dataclass

SAMPLE = 0.3
"""Seconds between the two readings of a rate."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """One link: whether it has a carrier, and what passes. From the host: a tap's rx is what the guest sends."""

    carrier: bool
    rx_rate: float
    """Bits per second received by the host on this link."""
    tx_rate: float
    """Bits per second sent by the host on this link."""
    rx_dropped: int
    tx_dropped: int
    """Packets since the link was made."""


def traffic() -> dict[str, Traffic]:
    """Every link, by name. Takes SAMPLE seconds."""
    first, began = read(), time.monotonic()
    wait_until(lambda: time.monotonic() - began >= SAMPLE, SAMPLE * 4)
    second, span = read(), time.monotonic() - began
    return {name: of(first.get(name, now), now, span) for name, now in second.items()}


def read() -> dict[str, Mapping[str, Any]]:
    return {item["ifname"]: item for item in json.loads(run(["ip", "-j", "-s", "link"]) or "[]")}


def of(then: Mapping[str, Any], now: Mapping[str, Any], seconds: float) -> Traffic:
    def rate(way: str) -> float:
        return float(max(0, now["stats64"][way]["bytes"] - then["stats64"][way]["bytes"])) * 8 / seconds

    return Traffic(carrier="LOWER_UP" in now["flags"], rx_rate=rate("rx"), tx_rate=rate("tx"),
                   rx_dropped=now["stats64"]["rx"]["dropped"], tx_dropped=now["stats64"]["tx"]["dropped"])
