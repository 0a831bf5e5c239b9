"""What ``tc`` prints -> resources, and counters. Pure: no process, no file.

``-raw`` makes tbf show its burst in ticks and its limit in bytes, and classes theirs; without it they are rounded for
people. Classes have no JSON in iproute2 6.1. A rate is printed in the largest unit that is whole, or loses digits beyond
a million of a unit: ours are whole Mbit/s from 1 Gbit/s on.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from kvmnet.drivers.tc.resources import (
    ALL,
    INGRESS,
    LEAVES,
    PREF,
    RECEIVERS,
    SORTERS,
    Detour,
    MacTable,
    Qdisc,
    Receiver,
    Sorter,
    TcClass,
    burst_of,
    detour,
    is_ours,
)

Json = Mapping[str, Any]
BUILT_IN = frozenset({"ingress", "clsact"})
"""No queues: places for filters."""
UNITS = {"bit": 0.001, "Kbit": 1, "Mbit": 1000, "Gbit": 1_000_000, "Tbit": 1_000_000_000}
CLASS = re.compile(r"class htb (?P<id>[0-9a-f]+:[0-9a-f]+) (?:root|parent (?P<parent>[0-9a-f]+:[0-9a-f]*)) .*?"
                   r"(?:prio (?P<prio>\d+) )?(?:quantum (?P<quantum>\d+) )?rate (?P<rate>\d+)(?P<unit>\w+) "
                   r"ceil (?P<ceil>\d+)(?P<cunit>\w+) .*?buffer \[(?P<buffer>[0-9a-f]+)\] cbuffer \[(?P<cbuffer>[0-9a-f]+)\]")


MATCHES = "matches"
"""Key for all of several that are called match."""


class Counts(NamedTuple):
    """What one queue did since it was made."""

    sent: int
    """Bytes that left it."""
    dropped: int
    """Packets that found it full, or that were dropped to keep it short."""
    backlog: int
    """Bytes that wait in it."""
    delayed: int
    """Packets that had to wait."""


def parse_qdiscs(items: Iterable[Json]) -> Iterator[Qdisc]:
    """Disciplines of ``tc -raw -json qdisc`` that somebody has set: the kernel's own have no handle."""
    items = list(items)
    trees = {item.get("dev") for item in items if item.get("kind") == "htb"}
    for item in items:
        handle, dev = item.get("handle", "0:"), item.get("dev", "")
        if handle == "0:" or item.get("kind") in BUILT_IN or not dev:
            continue
        parent = "root" if item.get("root") else item.get("parent", "")
        if not is_ours(handle):
            yield Qdisc(name=f"{dev} {handle}", dev=dev, parent=parent, discipline=item["kind"])
            continue
        yield own_qdisc(item, f"{dev} {parent}" if dev in trees and parent != "root" else "")


def own_qdisc(item: Json, of: str) -> Qdisc:
    """One of ours with its settings. ``of``: the class that it is the queue of."""
    options, kind, dev = item.get("options", {}), item["kind"], item["dev"]
    parent = "root" if item.get("root") else item.get("parent", "")
    below = "" if parent == "root" else f"{dev} {parent.partition(':')[0]}:"
    found: dict[str, Any] = {"dev": dev, "parent": parent, "below": below, "of": of, "discipline": kind}
    if kind == "tbf":
        rate = options.get("rate", 0) // 125
        ticks = int(str(options.get("burst_raw", "0")).strip("[]"), 16)
        found |= {"rate": rate, "burst": burst_of(rate, ticks), "limit": options.get("limit", 0)}
    elif kind == "htb":
        found["default"] = int(str(options.get("default", "0")), 16)
    elif kind == "bfifo":
        found["limit"] = options.get("limit")
    elif kind == "fq_codel":
        found |= {"packets": options.get("limit"), "flows": options.get("flows")}
    return Qdisc(name=f"{dev} {item['handle']}", **found)


def parse_classes(dev: str, text: str) -> Iterator[TcClass]:
    """Classes of our htb on *dev*, of ``tc -raw -details class show``."""
    for line in text.splitlines():
        if (found := CLASS.match(line)) is None or not is_ours(found["id"]):
            continue
        rate, ceil = (int(found[n]) * UNITS[found[u]] for n, u in (("rate", "unit"), ("ceil", "cunit")))
        parent = found["parent"] or ""
        yield TcClass(name=f"{dev} {found['id']}", qdisc=f"{dev} {found['id'].partition(':')[0]}:",
                      parent=f"{dev} {parent}" if parent and not parent.endswith(":") else "",
                      rate=int(rate), ceil=int(ceil), burst=burst_of(int(rate), int(found["buffer"], 16)),
                      cburst=burst_of(int(ceil), int(found["cbuffer"], 16)), priority=int(found["prio"]) if found["prio"] else None,
                      quantum=int(found["quantum"]) if found["quantum"] else None)


def parse_filters(dev: str, items: Iterable[Json], side: str = INGRESS) -> Iterator[Detour]:
    """The detour of *dev*: our filter at that side of it. One that does something else leads nowhere."""
    for item in items:
        if item.get("pref") != PREF or "options" not in item or "actions" not in item["options"]:
            continue
        options = item["options"]
        actions = options["actions"]
        into = str(actions[0].get("priority", "")) if actions and actions[0].get("kind") == "skbedit" else ""
        whole = takes_all(options) and len(actions) == 1 + bool(into)
        first = actions[-1] if actions else {}
        redirected = first.get("kind") == "mirred" and first.get("mirred_action") == "redirect" and first.get("direction") == "egress"
        to = first.get("to_dev", "") if whole and redirected else ""
        yield detour(dev, "" if to == "*" else to, side, into)  # *: a device that is gone
        return


def parse_sorters(qdisc: str, items: Iterable[Json]) -> Iterator[Sorter]:
    """What sorts the frames of *qdisc* (``DEV HANDLE``) into classes."""
    dev = qdisc.partition(" ")[0]
    for item in items:
        options = item.get("options", {})
        if item.get("kind") == "bpf" and item.get("pref") in SORTERS and "bytecode" in options:
            yield Sorter(name=f"{dev} {item['pref']}", qdisc=qdisc, program="" if options.get("direct-action") else program_of(options),
                         into=f"{dev} {options.get('flowid', '')}")


def parse_receivers(qdisc: str, items: Iterable[Json]) -> Iterator[MacTable | Receiver]:
    """The table of MACs of *qdisc* (``DEV HANDLE``) and what is in it; nothing of one that is not as it was made."""
    dev = qdisc.partition(" ")[0]
    nodes = [options for item in items if item.get("kind") == "u32" and item.get("pref") == RECEIVERS and (options := item.get("options"))]
    if not any(o.get("fh") == "1:" and o.get("ht_divisor") == 256 for o in nodes) or not any(
            (o.get("link"), o.get("hash_mask"), o.get("hash_off")) == ("1:", "ff", -12) for o in nodes):
        return
    yield MacTable(name=dev, qdisc=qdisc)
    for options in nodes:
        told = {m.get("off"): m for m in options.get(MATCHES, ())}
        if {off: m.get("mask") for off, m in told.items()} == {-12: "ffffffff", -16: "ffff"}:
            octets = f"{int(told[-16]['value'], 16):04x}{int(told[-12]['value'], 16):08x}"
            mac = ":".join(octets[i:i + 2] for i in range(0, 12, 2))
            bucket, _, number = str(options.get("fh", "")).partition(":")[2].partition(":")
            yield Receiver(name=f"{dev} {mac}", table=dev, node=f"{bucket or '0'}:{number}", into=f"{dev} {options.get('flowid', '')}")


def with_matches(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of tc's JSON, in which a key may stand more than once."""
    found = dict(pairs)
    if len(matches := [value for key, value in pairs if key == "match"]) > 1:
        found[MATCHES] = matches
    return found


def takes_all(options: Json) -> bool:
    """Whether a filter takes every frame, in one of our two ways."""
    return options.get("match", {}).get("mask") == "0" or (program_of(options) == ALL and not options.get("direct-action"))


def program_of(options: Json) -> str:
    """The classic BPF of a filter, as tc is told it."""
    return ",".join(f"{i['code']} {i['jt']} {i['jf']} {i['k']}" for i in options.get("bytecode", {}).get("insns", ()))


def parse_counts(items: Iterable[Json]) -> dict[str, Counts]:
    """Device -> what our root discipline on it did, of ``tc -statistics -json qdisc``."""
    return {item["dev"]: counts_of(item) for item in items if item.get("root") and is_ours(item.get("handle", "0:"))}


def parse_leaf_counts(items: Iterable[Json]) -> dict[str, Counts]:
    """Class (``DEV CLASSID``) -> what the queue that we gave it did. Classes count themselves what finds their queue full, but not what the
    queue drops to stay short."""
    return {f"{item['dev']} {item['parent']}": counts_of(item) for item in items
            if "parent" in item and int(item.get("handle", "0:").partition(":")[0] or "0", 16) in LEAVES}


def counts_of(item: Json) -> Counts:
    return Counts(item.get("bytes", 0), item.get("drops", 0), item.get("backlog", 0), item.get("overlimits", 0))
