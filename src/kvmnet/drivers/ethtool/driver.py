"""Hardware settings of NICs by ethtool. Only NICs that a document names, or that are lent, are looked at."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from kvmnet.drivers.ethtool import steering, wire
from kvmnet.drivers.ethtool.resources import OPTIONS, STEERING, NicFeature, NicTuning
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Wanted
from kvmnet.host import run as host

CURES = (
    ("not supported", "this NIC or its driver does not have this setting: see ethtool -g, -l, -c, -a or -k of the device"),
    ("unsupported", "this NIC or its driver does not have this setting: see ethtool -c of the device"),
    ("Invalid argument", "the driver takes other values only: see ethtool -g, -l or -c of the device"),
    ("exceeds maximum", "write at most the maximum that ethtool -g or -l shows"),
    ("Could not change any", "the feature is fixed, or needs another one that is off: see ethtool -k of the device"),
    ("Input/output error", "the interrupt's CPUs are the driver's choice (managed), or none of those is online: see /proc/irq/*/effective_affinity_list"),
    ("Value too large", "this machine has no CPU of that number: see lscpu"),
    ("Read-only file system", "/sys and /proc must be writable: not in a container"),
    ("No such device", "the NIC went away while kvmnet was working: run plan again"),
    ("Operation not permitted", "run as root (CAP_NET_ADMIN in this network namespace)"),
)
"""Part of the tool's message -> what to do."""


class EthtoolDriver:
    kinds = frozenset({NicTuning.kind, NicFeature.kind})
    sees_without_tool = True
    """Reading needs no tool."""

    def unavailable(self) -> str | None:
        return host.missing("ethtool")

    def observe(self, intent: Wanted) -> Seen:
        features: dict[str, set[str]] = {}
        devices: dict[str, None] = {}
        for key in intent:
            if key.kind in self.kinds:
                dev, _, feature = key.name.partition(" ")
                devices[dev] = None
                if feature:
                    features.setdefault(dev, set()).add(feature)
        found = wire.read(devices, {dev: frozenset(names) for dev, names in features.items()})
        return Seen({r.key: r for r in found if r.key in intent})

    def look_up(self, asked: Wanted, seen: Seen) -> Seen:
        """See ``observe``: nothing else is looked at."""
        return self.observe(asked)

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for argv, keys in lines(steps):
            try:
                host.run(argv)
            except host.ToolFailed as failed:
                raise StepFailed(keys[0], f"{said(failed.detail)} ({' '.join(argv)})", cure(failed.detail)) from failed
        progress(len(steps))


    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        return [Command(argv, keys=keys) for argv, keys in lines(steps)]


def said(detail: str) -> str:
    """ethtool's message in one line: the kernel's own words first."""
    parts = [line.removeprefix("netlink error: ").strip() for line in detail.splitlines() if line.strip()]
    return "; ".join(dict.fromkeys(parts)) or "ethtool failed and said nothing"


def cure(detail: str) -> str:
    return next((hint for text, hint in CURES if text in detail), "")


def lines(steps: Sequence[Step]) -> Iterator[tuple[tuple[str, ...], tuple[Key, ...]]]:
    """Each command with what it is for: one for each option of a NIC, one for all features of a NIC that
    follow each other."""
    for (kind, dev), run in groupby(steps, key=lambda s: (s.key.kind, s.key.name.partition(" ")[0])):
        told = [s for s in run if not isinstance(s, Delete)]
        if kind == NicFeature.kind:
            yield from feature_lines(dev, told)
        else:
            for step in told:
                yield from tuning_lines(step)


def feature_lines(dev: str, steps: Iterable[Step]) -> Iterator[tuple[tuple[str, ...], tuple[Key, ...]]]:
    words, keys = [], []
    for step in steps:
        claim = step.after if isinstance(step, Create | Update) else None
        if isinstance(claim, NicFeature) and claim.on is not None:
            words += [claim.name.partition(" ")[2], "on" if claim.on else "off"]
            keys.append(claim.key)
    if words:
        yield ("ethtool", "-K", dev, *words), tuple(keys)


def tuning_lines(step: Step) -> Iterator[tuple[tuple[str, ...], tuple[Key, ...]]]:
    assert isinstance(step, Create | Update)
    claim = step.after
    changed = set(step.changes) if isinstance(step, Update) else None
    for flag, settings in OPTIONS.items():
        names = [n for n in settings if getattr(claim, n) is not None and (changed is None or n in changed)]
        words = [w for n in names for w in (settings[n], told(getattr(claim, n)))]
        if words:
            yield ("ethtool", flag, claim.name, *words), (claim.key,)
    cpus = {n: getattr(claim, n) for n in STEERING if getattr(claim, n) is not None and (changed is None or n in changed)}
    if text := steering.script(claim.name, cpus):
        yield ("sh", "-c", text), (claim.key,)


def told(value: int | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
