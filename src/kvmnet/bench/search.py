"""The highest rate that arrives without loss, in the manner of RFC 2544 (26.1). Pure: the caller sends.

RFC 2544 halves the distance for 60 seconds a trial; a host that shares its processors cannot hold that still. Trials here
are short, and a rate that loses is tried once more before it counts as too high.
"""
from __future__ import annotations

from collections.abc import Callable
from math import sqrt

from kvmnet.records import dataclass

RESOLUTION = 0.08
"""Width of the last bracket, as a part of the rate."""
MOST_TRIALS = 30


@dataclass(frozen=True, slots=True)
class Trial:
    """What was sent at one rate, and what arrived."""

    wanted: float
    """Packets per second that were to be sent."""
    sent: int
    received: int
    seconds: float

    @property
    def rate(self) -> float:
        """Packets per second that were sent."""
        return self.sent / self.seconds if self.seconds else 0.0

    @property
    def loss(self) -> float:
        """Share that did not arrive."""
        return 1 - self.received / self.sent if self.sent else 1.0

    @property
    def kept_up(self) -> bool:
        """Whether the sender reached the rate that was wanted."""
        return self.rate >= 0.9 * self.wanted


@dataclass(frozen=True, slots=True)
class Found:
    rate: float
    """Packets per second that all arrived; 0 when even the least rate lost some."""
    by_sender: bool
    """The sender could send no faster: what is behind it may carry more."""
    trials: tuple[Trial, ...]


def search(send: Callable[[float], Trial], least: float, most: float, first: float, tolerance: float = 0.0) -> Found:
    """The highest rate with a loss of *tolerance* or less, between *least* and *most*, looked for from *first* on."""
    trials: list[Trial] = []

    def passes(rate: float) -> Trial | None:
        for _ in range(2):
            trials.append(send(rate))
            if trials[-1].loss <= tolerance + 1e-9:
                return trials[-1]
        return None

    best: Trial | None = None
    low, high, rate = least, most, min(max(first, least), most)
    while len(trials) + 1 < MOST_TRIALS and (high - low) > RESOLUTION * high:
        done = passes(rate)
        if done is None:
            high = rate
            if high <= least:
                break
            arrived = trials[-1].received / trials[-1].seconds if trials[-1].seconds else 0.0
            rate = sqrt(low * high) if best else max(least, min(rate / 2, arrived))
            continue
        best = done if best is None or done.rate > best.rate else best
        if not done.kept_up:
            return Found(best.rate, True, tuple(trials))
        low = rate
        rate = min(most, rate * 2) if high == most and rate < most else sqrt(low * high)
        if low >= most:
            break
    return Found(best.rate if best else 0.0, False, tuple(trials))
