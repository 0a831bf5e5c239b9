"""Copies of frames by ``tc``: the hooks of all devices by one dump, their classifiers by one batch.

Classifiers hang on a device's clsact. It bears no mark, and others (rates) use it as well: it is made where there is none,
and taken away with the last classifier on it, whoever made it empty before.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from socket import if_indextoname
from typing import Any

from kvmnet.drivers.linux.batch import batch_text, run_batch
from kvmnet.drivers.linux.driver import ip_json
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.mirror.resources import SIDES, Copy, Shut
from kvmnet.drivers.mirror.wire import Counts, lines_of, opening, parse, parse_counts
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Delete, Step
from kvmnet.engine.resource import Key, Wanted
from kvmnet.host import netlink
from kvmnet.host.run import ToolFailed, missing, run
from kvmnet.records import replace

Filters = list[Mapping[str, Any]]


class MirrorDriver:
    kinds = frozenset({Copy.kind, Shut.kind})

    def __init__(self) -> None:
        self.hooks: dict[str, str] = {}
        """Device -> what it has for a hook, when we last looked."""

    def unavailable(self) -> str | None:
        return missing("tc")

    def observe(self, intent: Wanted) -> Seen:
        seen = Seen()
        self.hooks = hooks()
        for dev, side, filters in classifiers([d for d, kind in self.hooks.items() if kind == "clsact"]):
            for thing in parse(dev, side, filters):
                seen.state[thing.key] = thing
                seen.ours.add(thing.key)
        if shut := [thing for thing in seen.state.values() if isinstance(thing, Shut)]:
            going = {link["ifname"] for link in ip_json("link", "show", "up") if "ifname" in link}
            seen.state |= {thing.key: replace(thing, up=thing.name in going) for thing in shut}
        return seen

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        self.hooks = hooks()
        run_batch(self.lines(steps), "tc")
        run_batch([line for step in steps for line in opening(step)])
        self.clear({device_of(s.key) for s in steps if isinstance(s, Delete)})
        progress(len(steps))

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        told = (("tc", self.lines(steps)), ("ip", [line for step in steps for line in opening(step)]))
        return [Command((tool, "-batch", "-"), batch_text(lines), tuple(line.key for line in lines)) for tool, lines in told if lines]

    def lines(self, steps: Sequence[Step]) -> list[Line]:
        """Raises StepFailed for a device whose hook is somebody else's."""
        found: list[Line] = []
        made: set[str] = set()
        for step in steps:
            dev = device_of(step.key)
            if not isinstance(step, Delete) and dev not in made:
                made.add(dev)
                if self.hooks.get(dev) == "ingress":
                    raise StepFailed(step.key, f"{dev} has an ingress qdisc of somebody else's, beside which there can be no clsact",
                                     f"take it away with: tc qdisc del dev {dev} ingress")
                if dev not in self.hooks:
                    found.append(Line(("qdisc", "add", "dev", dev, "clsact"), step.key))
            found += lines_of(step)
        return found

    def clear(self, devices: set[str]) -> None:
        """Take the hook of each of *devices* away when nothing hangs on it any more."""
        there = [d for d in devices if self.hooks.get(d) == "clsact"]
        used = {dev for dev, _, filters in classifiers(there) if filters}
        run_batch([Line(("qdisc", "del", "dev", dev, "clsact"), Key(Shut.kind, dev), gone=True) for dev in there if dev not in used],
                  "tc")

    def counts(self) -> dict[str, Counts]:
        """Name of each copy -> what it did."""
        with_hook = [d for d, kind in hooks().items() if kind == "clsact"]
        return dict(pair for dev, side, filters in classifiers(with_hook, "-statistics")
                    for pair in parse_counts(dev, side, filters))


def device_of(key: Key) -> str:
    return key.name.rsplit(" ", 2)[0] if key.kind == Copy.kind else key.name


def hooks() -> dict[str, str]:
    """Device -> clsact or ingress, where it has one of them."""
    found = {}
    for index, kinds in netlink.disciplines().items():
        if hook := kinds & {"clsact", "ingress"}:
            with suppress(OSError):    # it went away meanwhile
                found[if_indextoname(index)] = hook.pop()
    return found


def classifiers(devices: Sequence[str], *flags: str) -> Iterator[tuple[str, str, Filters]]:
    """(device, side, its classifiers) for both sides of each of *devices*. One that went away meanwhile has none."""
    asked = [(dev, side) for dev in devices for side in SIDES]
    listed = shown(asked, flags)
    if len(listed) != len(asked):
        listed = [next(iter(shown([place], flags)), []) for place in asked]
    for (dev, side), filters in zip(asked, listed, strict=True):
        yield dev, side, filters


def shown(places: Sequence[tuple[str, str]], flags: Sequence[str]) -> list[Filters]:
    if not places:
        return []
    with suppress(ToolFailed):
        text = run(("tc", "-json", *flags, "-force", "-batch", "-"),
                   stdin="".join(f"filter show dev {dev} {side}\n" for dev, side in places))
        found: list[Filters] = []
        decoder, at = json.JSONDecoder(), 0
        while (at := text.find("[", at)) >= 0:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        return found
    return []
