"""``kvmnet tune --prove``: each proposal measured against what is there now, and what is to be kept of it."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from kvmnet.bench.dials import Whose, whose
from kvmnet.bench.record import Record, read
from kvmnet.bench.results import notes, results, words
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.host.run import ToolFailed, run
from kvmnet.records import dataclass
from kvmnet.spec.knobs import Profile
from kvmnet.tune.proposals import Proposal, changed

LOADS: Mapping[Profile, str] = {Profile.THROUGHPUT: "tcp", Profile.LATENCY: "latency", Profile.DENSITY: "connections",
                                Profile.ROUTER: "udp-64,connect"}
LONGEST = 3600.0
"""Seconds that one run may take."""
TOGETHER = 6
"""Changes of one base in one run: their guests stand at once."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured of one change, for all NICs that are alike."""

    base: str
    change: str
    """NAME=VALUE."""
    kept: bool
    """Something became better beyond the noise, and nothing worse."""
    said: tuple[str, ...]
    """What was measured; of what could not be, why."""

    def to_json(self) -> dict[str, object]:
        return {"base": self.base, "change": self.change, "kept": self.kept, "measured": list(self.said)}


def prove(proposals: Iterable[Proposal], profile: Profile, rounds: int, say: Say, machine: bool = False) -> list[Proof]:
    """Measure every proposal that traffic can show, those of NICs that are alike once. *machine*: settings of the whole machine may be
    changed meanwhile. Raises KvmnetError."""
    every = [p for p in proposals if p.point and not p.lacking]
    groups: dict[str, list[str]] = {}
    for p in every:
        if not p.kernel and p.point not in groups.setdefault(p.base, []):
            groups[p.base].append(p.point)
    found, kernel = settings([p for p in every if p.kernel], machine)
    if kernel:
        base = " ".join((next(iter(groups), ""), *(f"{p.setting}={p.now.replace(' ', '/')}" for p in kernel))).strip()
        groups[base] = [p.point for p in kernel]
    for base, points in groups.items():
        for some in chunks(points):
            say(f"measuring {base or 'defaults'} against {', '.join(some)}")
            record = measured(base, some, profile, rounds, machine)
            found += judged(record, base, some)
            for note in notes(record, results(record)):
                say(f"note: {note}")
    return found


def settings(proposals: Iterable[Proposal], machine: bool) -> tuple[list[Proof], list[Proposal]]:
    """What is said of kernel settings that cannot be measured here, and those that can."""
    said, can = [], []
    for p in proposals:
        try:
            if whose(p.setting, p.proposed) is Whose.NAMESPACE or machine:
                can.append(p)
                continue
            reason = "of the whole machine: measured with --machine"
        except HostCannot as wrong:
            reason = f"{wrong}; {wrong.hint}"
        said.append(Proof("", p.point, False, (f"not measured: {reason}",)))
    return said, can


def chunks(points: Sequence[str]) -> Iterator[list[str]]:
    for start in range(0, len(points), TOGETHER):
        yield list(points[start:start + TOGETHER])


def measured(base: str, points: Sequence[str], profile: Profile, rounds: int, machine: bool) -> Record:
    """A run of ``kvmnet bench`` of its own: it takes its host along when it ends."""
    with TemporaryDirectory(prefix="kvmnet-tune-") as folder:
        path = Path(folder, "record.jsonl")
        try:
            run([sys.executable, "-m", "kvmnet.cli.main", "bench", "run", "--json", "--record", str(path), "--only", LOADS[profile],
                 "--rounds", str(rounds), *(["--machine"] if machine else []), "--point", base,
                 *(w for p in points for w in ("--point", changed(base, p)))], timeout=LONGEST)
        except ToolFailed as failed:
            if path.exists() and read(path).ended:    # an answer was not whole, which its notes say
                return read(path)
            raise KvmnetError(f"the measurement failed: {reason(failed)}", "kvmnet bench run shows more") from failed
        return read(path)


def reason(failed: ToolFailed) -> str:
    """What kvmnet said was wrong, without the hints below it."""
    lines = failed.detail.splitlines() or [str(failed)]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix("error: ")


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


def kept_options(proposals: Iterable[Proposal], proofs: Iterable[Proof]) -> dict[str, str]:
    """Options of NICs and guests that helped, by their paths -> value."""
    good = {(p.base, p.change) for p in proofs if p.kept}
    return {p.name: p.proposed for p in proposals if not p.kernel and (p.base, p.point) in good and not p.name.endswith(".offloads")}


def kept(proposals: Iterable[Proposal], proofs: Iterable[Proof]) -> dict[str, Proof]:
    """Kernel settings that helped -> what was measured."""
    good = {p.change: p for p in proofs if p.kept}
    return {p.setting: good[p.point] for p in proposals if p.kernel and p.point in good}
