"""Times in a histogram of high dynamic range: 128 steps per power of two, so every value is known to 0.8%. Pure.

The buckets are those of ``traffic/load.h``, which counts in them. After G. Tene's HdrHistogram.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil

from kvmnet.records import dataclass, field

STEPS = 128
BUCKETS = STEPS * 36


def bucket(value: int) -> int:
    """Number of the bucket that holds *value*."""
    if value < STEPS:
        return value
    shift = value.bit_length() - 8
    return min(STEPS * (shift + 1) + (value >> shift) - STEPS, BUCKETS - 1)


def bounds(number: int) -> tuple[int, int]:
    """Least and greatest value that fall into a bucket."""
    if number < 2 * STEPS:
        return number, number
    octave, step = divmod(number, STEPS)
    shift = octave - 1
    low = (STEPS + step) << shift
    return low, low + (1 << shift) - 1


@dataclass(frozen=True)
class Histogram:
    """Counts of values in nanoseconds, by bucket."""

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Iterable[int]) -> Histogram:
        return cls(Counter(map(bucket, values)))

    @classmethod
    def from_pairs(cls, pairs: Iterable[Sequence[int]]) -> Histogram:
        """What kvmnet-load prints: [[bucket, count], ...]. Raises ValueError for what is none."""
        counts: Counter[int] = Counter()
        for number, count in pairs:
            if not 0 <= number < BUCKETS or count < 1:
                raise ValueError(f"no bucket {number} with {count}")
            counts[number] += count
        return cls(counts)

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(Counter(self.counts) + Counter(other.counts))

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def percentile(self, percent: float) -> int:
        """Least value that *percent* of all do not exceed, as the middle of its bucket. Raises ValueError when empty."""
        if not self.counts:
            raise ValueError("no values")
        rank, found = max(1, ceil(self.total * percent / 100 - 1e-9)), 0
        for number in sorted(self.counts):
            found += self.counts[number]
            if found >= rank:
                break
        return sum(bounds(number)) // 2

    def cumulative(self) -> Iterator[tuple[int, float]]:
        """(value, share of all that do not exceed it), rising."""
        found, total = 0, self.total
        for number in sorted(self.counts):
            found += self.counts[number]
            yield bounds(number)[1], found / total

    def pairs(self) -> list[list[int]]:
        return [[number, self.counts[number]] for number in sorted(self.counts)]
