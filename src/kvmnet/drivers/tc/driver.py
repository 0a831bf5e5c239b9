"""Rates and queues by ``tc``.

Read: every discipline by one dump, where there is any, classes and filters of the devices that have some of ours by one ``tc -batch`` each.
Written: one ``tc -batch`` per run of steps.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from kvmnet.drivers.linux.batch import batch_text, run_batch
from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.tc import wire
from kvmnet.drivers.tc.resources import (
    EGRESS,
    INGRESS,
    Detour,
    MacTable,
    Qdisc,
    Receiver,
    Sorter,
    TcClass,
    is_ours,
)
from kvmnet.drivers.tc.words import lines_of
from kvmnet.engine.driver import Command, Progress, Seen
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Wanted
from kvmnet.host import netlink
from kvmnet.host import run as host

GONE = ("Cannot find device", "Invalid handle", "No such file or directory", "Cannot find specified", "No such device",
        "doesn't exist", "not found", "Cannot delete qdisc with handle of zero")
TAKEN = "somebody else has set a queue on this device (tc qdisc show): take it away with tc qdisc del dev DEVICE root"
CURES = (
    ("Exclusivity flag on", TAKEN),
    ("NLM_F_REPLACE needed", TAKEN),
    ("Specified qdisc kind is unknown", "the kernel lacks this discipline: install the distribution's full kernel"),
    ("TC classifier not found", "the kernel lacks this classifier: install the distribution's full kernel"),
    ("Failed to load TC action module", "the kernel lacks this action: install the distribution's full kernel"),
    ("Operation not supported", "the device cannot do that: mq is for NICs with several transmit queues"),
    ("Operation not permitted", "run as root (CAP_NET_ADMIN in this network namespace)"),
)
"""Part of the tool's message -> what to do."""
SECONDS = 600.0


class TcDriver:
    kinds = frozenset({Qdisc.kind, TcClass.kind, Detour.kind, Sorter.kind, MacTable.kind, Receiver.kind})

    def unavailable(self) -> str | None:
        return host.missing("tc")

    def observe(self, intent: Wanted) -> Seen:
        seen = Seen()
        if not netlink.disciplines():
            return seen
        listed = tc_json("-raw", "qdisc", "show")
        for qdisc in wire.parse_qdiscs(listed):
            seen.state[qdisc.key] = qdisc
            if is_ours(qdisc.name.partition(" ")[2]):
                seen.ours.add(qdisc.key)
        trees = [q.name for q in seen.state.values() if isinstance(q, Qdisc) and q.discipline == "htb" and q.key in seen.ours]
        hooks = [item["dev"] for item in listed if item.get("kind") == "clsact"]
        for found in (*classes([name.partition(" ")[0] for name in trees]), *detours(hooks), *sorters(trees)):
            seen.state[found.key] = found
            seen.ours.add(found.key)
        return seen

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        run_batch([line for step in steps for line in lines_of(step)], "tc", GONE, CURES)
        progress(len(steps))

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        lines: list[Line] = [line for step in steps for line in lines_of(step)]
        return [Command(("tc", "-batch", "-"), batch_text(lines), tuple(line.key for line in lines))] if lines else []

    def queue_counts(self) -> tuple[dict[str, wire.Counts], dict[str, wire.Counts]]:
        """Device -> what our queue on it did; class -> what its queue did. One dump."""
        listed = tc_json("-statistics", "qdisc", "show")
        return wire.parse_counts(listed), wire.parse_leaf_counts(listed)


def tc_json(*words: str) -> list[dict[str, Any]]:
    text = host.run(("tc", "-json", *words), timeout=SECONDS)
    found: list[dict[str, Any]] = json.loads(text) if text.strip() else []
    return found


def classes(devices: Sequence[str]) -> Iterator[TcClass]:
    """Classes of each device: few have some, and what is printed does not name the device."""
    for device in devices:
        with suppress(host.ToolFailed):    # it went away meanwhile
            yield from wire.parse_classes(device, host.run(("tc", "-raw", "-details", "class", "show", "dev", device)))


def sorters(trees: Sequence[str]) -> Iterator[Sorter | MacTable | Receiver]:
    """What sorts frames into the classes of each htb (``DEV HANDLE``)."""
    for name, filters in zip(trees, listed([tree.replace(" ", " parent ") for tree in trees]), strict=True):
        yield from wire.parse_sorters(name, filters)
        yield from wire.parse_receivers(name, filters)


def detours(devices: Sequence[str]) -> Iterator[Detour]:
    places = [(device, side) for device in devices for side in (INGRESS, EGRESS)]
    for (device, side), filters in zip(places, listed([f"{device} {side}" for device, side in places]), strict=True):
        yield from wire.parse_filters(device, filters, side)


def listed(places: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Filters at each of *places* (``DEV SIDE`` or ``DEV parent HANDLE``); none of one that went away meanwhile."""
    found = shown(places)
    return found if len(found) == len(places) else [next(iter(shown([place])), []) for place in places]


def shown(places: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Filters at each of *places*, by one batch."""
    if not places:
        return []
    with suppress(host.ToolFailed):
        text = host.run(("tc", "-json", "-force", "-batch", "-"), timeout=SECONDS,
                        stdin="".join(f"filter show dev {place}\n" for place in places))
        found, decoder, at = [], json.JSONDecoder(object_pairs_hook=wire.with_matches), 0
        while (at := text.find("[", at)) >= 0:
            value, at = decoder.raw_decode(text, at)
            found.append(value)
        return found
    return []
