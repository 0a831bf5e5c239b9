"""The loads of ``kvmnet bench run``, and which quantities each gives. Pure.

A scenario is one line of a table: what kvmnet-load is told, and what is read from its answer.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any

from kvmnet.bench.histogram import Histogram
from kvmnet.bench.statistics import fairness, imbalance
from kvmnet.errors import KvmnetError
from kvmnet.records import dataclass

Answer = Mapping[str, Any]
"""What kvmnet-load printed, with ``busy_host``: seconds of processor time that QEMU took on the host."""


class Better(StrEnum):
    HIGH = "high"
    LOW = "low"


class Place(StrEnum):
    """Between whom. The first guest asks; the other end answers."""

    HOST = "guest-host"
    GUEST = "guest-guest"
    OUTSIDE = "guest-outside"


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number of an answer."""

    name: str
    unit: str
    better: Better
    read: Callable[[Answer], float]
    main: bool = True
    """Whether a verdict is passed on it; others explain."""


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    words: str
    load: str
    """First word for kvmnet-load."""
    options: Mapping[str, int | str]
    """Its options; ``ms`` is the length of one turn."""
    quantities: tuple[Quantity, ...]
    whole: Callable[[Answer], str] = lambda answer: ""
    """What is wrong with an answer, '' for nothing: 999 of 1,000 connections are no result."""
    times: bool = False
    """Its answers carry a histogram of times."""
    rate: int = 0
    """Packets per second at which a search for the highest rate without loss begins; 0 for no search."""
    places: tuple[Place, ...] = tuple(Place)
    loses: bool = False
    """Meanwhile one of the uplink's two ways is lost."""


def gbit(answer: Answer) -> float:
    return float(sum(answer["bytes"]) * 8 / answer["seconds"] / 1e9)


def per_gbit(name: str) -> Callable[[Answer], float]:
    """Milliseconds of processor time that a gigabit took."""
    return lambda a: float(a[name]) * 1000 / (sum(a["bytes"]) * 8 / 1e9) if sum(a["bytes"]) else 0.0


def per_packet(name: str) -> Callable[[Answer], float]:
    """Microseconds of processor time that a packet took that was sent, over all trials of a search."""
    return lambda a: float(a[name]) * 1e6 / a["sent"] if a["sent"] else 0.0


def at(percent: float) -> Callable[[Answer], float]:
    return lambda a: Histogram.from_pairs(a["times"]).percentile(percent) / 1000


def answered(wanted: int) -> Callable[[Answer], str]:
    return lambda a: "" if a["answered"] == wanted else f"only {a['answered']} of {wanted} connections answered"


TCP = (
    Quantity("throughput", "Gbit/s", Better.HIGH, gbit),
    Quantity("QEMU's processor time", "ms/Gbit", Better.LOW, per_gbit("busy_host")),
    Quantity("guest's processor time", "ms/Gbit", Better.LOW, per_gbit("busy_here"), main=False),
)
SHARED = (
    *TCP,
    Quantity("fairness", "Jain", Better.HIGH, lambda a: fairness(a["bytes"]), main=False),
    Quantity("largest flow above even", "%", Better.LOW, lambda a: imbalance(a["bytes"]), main=False),
)
PACKETS = (
    Quantity("rate without loss", "kpps", Better.HIGH, lambda a: float(a["rate"]) / 1000),
    Quantity("QEMU's processor time", "us/packet", Better.LOW, per_packet("busy_host"), main=False),
    Quantity("guest's processor time", "us/packet", Better.LOW, per_packet("busy_here"), main=False),
)
TIMES = (
    Quantity("median", "us", Better.LOW, at(50)),
    Quantity("p99", "us", Better.LOW, at(99)),
    Quantity("p99.9", "us", Better.LOW, at(99.9), main=False),
)


def gap_over(a: Answer) -> str:
    return "" if a["over"] else f"nothing took over within {a['seconds'] - a['after']:.1f} s"


def lost(a: Answer) -> str:
    return f"{a['lost']} requests were not answered" if a.get("lost") else ""


SCENARIOS: Mapping[str, Scenario] = {s.name: s for s in (
    Scenario("tcp-up", "TCP, one stream, guest sends", "tcp", {"ms": 700, "way": "up"}, TCP),
    Scenario("tcp-down", "TCP, one stream, guest receives", "tcp", {"ms": 700, "way": "down"}, TCP),
    Scenario("streams-up", "TCP, 8 streams, guest sends", "tcp", {"ms": 1000, "way": "up", "streams": 8}, SHARED),
    Scenario("streams-down", "TCP, 8 streams, guest receives", "tcp", {"ms": 1000, "way": "down", "streams": 8}, SHARED),
    Scenario("udp-64", "UDP, frames of 64 bytes", "udp", {"ms": 200, "size": 64}, PACKETS, rate=8000),
    Scenario("udp-512", "UDP, frames of 512 bytes", "udp", {"ms": 200, "size": 512}, PACKETS, rate=8000),
    Scenario("udp-1518", "UDP, frames of 1518 bytes", "udp", {"ms": 200, "size": 1518}, PACKETS, rate=8000),
    Scenario("latency-udp", "UDP request and answer, 64 bytes", "turns", {"count": 1700, "size": 64, "by": "udp"}, TIMES,
             whole=lost, times=True),
    Scenario("latency-tcp", "TCP request and answer, 64 bytes", "turns", {"count": 1700, "size": 64, "by": "tcp"}, TIMES,
             times=True),
    Scenario("connect", "TCP connections, 8 at a time", "connect", {"ms": 500, "streams": 8}, (
        Quantity("rate", "1/s", Better.HIGH, lambda a: a["made"] / a["seconds"]),
        Quantity("median time", "us", Better.LOW, at(50), main=False)),
        whole=lambda a: f"{a['failed']} connections failed" if a["failed"] else "", times=True),
    Scenario("hold", "1,000 TCP connections at once", "hold", {"count": 1000}, (
        Quantity("until all answer", "ms", Better.LOW, lambda a: a["seconds"] * 1000),), whole=answered(1000)),
    Scenario("file", "a file of 64 MiB, compared at the end", "file", {"bytes": 64 << 20}, (
        Quantity("rate", "MB/s", Better.HIGH, lambda a: a["bytes"] / a["seconds"] / 1e6),),
        whole=lambda a: "" if a["same"] else "the file arrived damaged"),
    Scenario("multicast", "multicast to the host and a guest, frames of 512 bytes", "udp", {"ms": 200, "size": 512}, (
        Quantity("rate without loss", "kpps", Better.HIGH, lambda a: float(a["rate"]) / 1000),),
        rate=4000, places=(Place.GUEST,)),
    Scenario("failover", "one of two ways of the uplink is lost", "steady", {"ms": 4000, "us": 1000}, (
        Quantity("gap", "ms", Better.LOW, lambda a: a["gap"] * 1000),
        Quantity("requests lost", "", Better.LOW, lambda a: float(a["lost"]), main=False)),
        whole=gap_over, places=(Place.OUTSIDE,), loses=True),
)}

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "quick": ("tcp-up", "tcp-down", "latency-udp", "udp-64", "connect"),
    "tcp": ("tcp-up", "tcp-down"), "streams": ("streams-up", "streams-down"),
    "udp": ("udp-64", "udp-512", "udp-1518"), "latency": ("latency-udp", "latency-tcp"),
    "connections": ("connect", "hold"), "all": tuple(n for n, s in SCENARIOS.items() if not s.loses),
}


def chosen(names: Sequence[str]) -> list[str]:
    """Scenarios by their names or families, in the table's order. Raises KvmnetError."""
    found: set[str] = set()
    for name in names:
        if name not in FAMILIES and name not in SCENARIOS:
            raise KvmnetError(f"no scenario {name!r}", f"there are {', '.join([*FAMILIES, *SCENARIOS])}")
        found.update(FAMILIES.get(name, (name,)))
    return [name for name in SCENARIOS if name in found]


def arguments(scenario: Scenario, to: str, asked: Sequence[str] = (), rate: int = 0) -> list[str]:
    """What kvmnet-load is told. *asked*: who is asked what arrived, where that is not *to*."""
    words = {**scenario.options, "to": to, **({"rate": rate} if rate else {}), **({"ask": ",".join(asked)} if asked else {})}
    return [scenario.load, *(f"{k}={v}" for k, v in words.items())]
