"""Probes over time: which were answered, and how long none were. Pure."""
from __future__ import annotations

from kvmnet.records import dataclass, field

LATE = 1.0
"""Seconds after which an answer is of no use: its probe counts as lost."""
STALE = 0.3
"""Seconds without an answer that end a calm."""
EARLY = 0.05
"""Seconds before a disturbance at which a probe may have been sent that it still hits."""


@dataclass(frozen=True, slots=True)
class Outage:
    """What became of the probes around a disturbance."""

    lost: int
    began: float | None
    """When the first lost probe was sent; None when none was lost."""
    seconds: float | None
    """From the first lost probe to the first answered one after the last lost one; None while none was answered."""
    exact: float = 0.0
    """Seconds between each of these two and the probe before it: the outage may have begun or ended in between."""

    @property
    def over(self) -> bool:
        return self.lost == 0 or self.seconds is not None

    @property
    def gap_ms(self) -> float:
        """Milliseconds; 0 when nothing was lost. Only of an outage that is over."""
        return 1000 * (self.seconds or 0.0)


@dataclass
class Timeline:
    """Times are seconds of one monotonic clock."""

    sent: list[float] = field(default_factory=list)
    answered: list[float | None] = field(default_factory=list)
    newest: int = -1
    """Newest probe that was answered."""
    unbroken: float = 0.0
    """When the first probe was sent of those that were all answered up to the newest."""

    def ask(self, now: float) -> int:
        """Note a probe that is sent now; its number."""
        self.sent.append(now)
        self.answered.append(None)
        return len(self.sent) - 1

    def hear(self, number: int, now: float) -> None:
        """Note an answer. One that does not say what it answers (*number* is negative) counts for the last probe but
        one if that has none yet, else for the last."""
        if number < 0:
            number = len(self.sent) - 1
            number -= number > 0 and self.answered[number - 1] is None
        if not 0 <= number < len(self.sent) or self.answered[number] is not None:
            return
        self.answered[number] = now
        if number != self.newest + 1 or self.newest < 0 or now - self.sent[number] > LATE:
            self.unbroken = max(self.unbroken, self.sent[number])
        self.newest = max(self.newest, number)

    def calm(self, now: float, since: float = 0.0) -> float:
        """Seconds for which every probe has been answered, of those that were sent after *since*."""
        if self.newest < 0 or now - self.sent[self.newest] > STALE:
            return 0.0
        return max(0.0, self.sent[self.newest] - max(self.unbroken, since))

    def outage(self, since: float, until: float) -> Outage:
        """What was lost of the probes between two times. The last ones, whose answers may still be on their way, count
        only when nothing has been answered after a loss."""
        span = [i for i, t in enumerate(self.sent) if since - EARLY <= t <= until]
        good = [i for i in span if self.in_time(i)]
        last_good = good[-1] if good else -1
        lost = [i for i in span if not self.in_time(i)]
        before = [i for i in lost if i < last_good]
        if good and until - self.sent[last_good] <= STALE:
            lost = before
        if not lost:
            return Outage(0, None, None)
        first, back = lost[0], next((i for i in good if i > lost[-1]), None)
        if back is None:
            return Outage(len(lost), self.sent[first], None)
        return Outage(len(lost), self.sent[first], self.sent[back] - self.sent[first],
                      max(self.step(first), self.step(back)))

    def in_time(self, number: int) -> bool:
        answered = self.answered[number]
        return answered is not None and answered - self.sent[number] <= LATE

    def step(self, number: int) -> float:
        """Seconds between a probe and the one before it."""
        return self.sent[number] - self.sent[number - 1] if number else 0.0
