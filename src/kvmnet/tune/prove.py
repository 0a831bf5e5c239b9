"""``kvmnet tune --prove``: each proposal for NICs measured against what is there now, and what is to be kept of it."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.bench.record import Record, read
from kvmnet.bench.results import notes, results, words
from kvmnet.errors import KvmnetError
from kvmnet.host.run import ToolFailed, run
from kvmnet.spec.knobs import Profile
from kvmnet.tune.proposals import Proposal, changed

LOADS: Mapping[Profile, str] = {Profile.THROUGHPUT: "tcp", Profile.LATENCY: "latency", Profile.DENSITY: "connections",
                                Profile.ROUTER: "udp-64,connect"}
LONGEST = 3600.0
"""Seconds that one run may take."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured of one change, for all NICs that are alike."""

    base: str
    change: str
    """NAME=VALUE."""
    kept: bool
    """Something became better beyond the noise, and nothing worse."""
    said: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {"base": self.base, "change": self.change, "kept": self.kept, "measured": list(self.said)}


def prove(proposals: Iterable[Proposal], profile: Profile, rounds: int, say: Callable[[str], None]) -> list[Proof]:
    """Measure every proposal that traffic can show, those of NICs that are alike once. Raises KvmnetError."""
    groups: dict[str, list[str]] = {}
    for p in proposals:
        if p.point and not p.lacking and p.point not in groups.setdefault(p.base, []):
            groups[p.base].append(p.point)
    found: list[Proof] = []
    for base, points in groups.items():
        say(f"measuring {base or 'defaults'} against {', '.join(points)}")
        record = measured(base, points, profile, rounds)
        found += judged(record, base, points)
        for note in notes(record, results(record)):
            say(f"note: {note}")
    return found


def measured(base: str, points: Sequence[str], profile: Profile, rounds: int) -> Record:
    """A run of ``kvmnet bench`` of its own: it takes its host along when it ends."""
    with TemporaryDirectory(prefix="kvmnet-tune-") as folder:
        path = Path(folder, "record.jsonl")
        try:
            run([sys.executable, "-m", "kvmnet.cli.main", "bench", "run", "--json", "--record", str(path), "--only", LOADS[profile],
                 "--rounds", str(rounds), "--point", base, *(w for p in points for w in ("--point", changed(base, p)))],
                timeout=LONGEST)
        except ToolFailed as failed:
            if path.exists() and read(path).ended:    # an answer was not whole, which its notes say
                return read(path)
            raise KvmnetError(f"the measurement failed: {failed.detail.splitlines()[-1] if failed.detail else failed}",
                              "kvmnet bench run shows more") from failed
        return read(path)


def judged(record: Record, base: str, points: Sequence[str]) -> list[Proof]:
    names = [c.name for c in record.wish.configurations]
    main = [r for r in results(record) if r.quantity.main]
    found = []
    for point in points:
        name = changed(base, point) or "defaults"
        if name not in names:
            continue
        cells = [(r, r.cells[names.index(name)]) for r in main]
        goods = [c.good(r.quantity.better) for r, c in cells]
        found.append(Proof(base, point, True in goods and False not in goods,
                           tuple(f"{r.name}: {words(c, r.quantity)}" for r, c in cells)))
    return found


