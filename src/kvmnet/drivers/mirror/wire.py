"""Copies and shut links as ``tc`` prints them and is told. Pure."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kvmnet.drivers.linux.words import Line
from kvmnet.drivers.mirror.resources import FIRST, LAST, SHUT, Copy, Shut, copy_name
from kvmnet.engine.plan import Delete, Step

COOKIE = b"kvmnet".hex()
DROP = "6 0 0 2"
"""ret TC_ACT_SHOT (linux/pkt_cls.h)."""
GONE = "*"
"""What tc shows of a copy whose receiver is no more."""


class Counts(NamedTuple):
    """What one copy did since it was made or last changed."""

    frames: int
    octets: int
    refused: int
    """Frames among them that the receiver did not take: it was down, or without a carrier."""


def lines_of(step: Step) -> Iterator[Line]:
    """What *step* tells ``tc``; the hook of a device comes before its first classifier, see driver.py."""
    key = step.key
    if key.kind == Shut.kind:
        place = ("dev", key.name, "ingress", "protocol", "all", "pref", str(SHUT))
        if isinstance(step, Delete):
            yield Line(("filter", "del", *place), key, gone=True)
        else:
            yield Line(("filter", "replace", *place, "handle", "1", "bpf", "da", "bytecode", f"1,{DROP}"), key)
        return
    dev, side, number = key.name.rsplit(" ", 2)
    place = ("dev", dev, side, "protocol", "all", "pref", number)
    if isinstance(step, Delete):
        yield Line(("filter", "del", *place), key, gone=True)
        return
    copy = step.after
    assert isinstance(copy, Copy)
    program, to = copy.program or "", copy.receiver or ""
    yield Line(("filter", "replace", *place, "handle", "1", "bpf", "bytecode", f"{program.count(',') + 1},{program}",
                "action", "mirred", "egress", "mirror", "dev", to, "continue", "cookie", COOKIE), key)


def opening(step: Step) -> Iterator[Line]:
    """What *step* tells ``ip`` after that."""
    if not isinstance(step, Delete) and isinstance(step.after, Shut) and step.after.up is not None:
        yield Line(("link", "set", "dev", step.key.name, "up" if step.after.up else "down"), step.key)


def parse(dev: str, side: str, filters: Iterable[Mapping[str, Any]]) -> Iterator[Copy | Shut]:
    """Those of ours among the classifiers of one side of *dev*."""
    for one in filters:
        options, number = one.get("options"), one.get("pref", 0)
        if one.get("kind") != "bpf" or options is None:
            continue
        if number == SHUT and side == "ingress" and options.get("direct-action") and not options.get("actions"):
            yield Shut(name=dev, dev=dev, whole=program_of(options) == DROP)
        elif FIRST <= number <= LAST and (action := our_action(options)) is not None:
            to = action.get("to_dev", GONE)
            fits = whole(options, action)
            yield Copy(name=copy_name(dev, side, number), dev=dev, side=side, receiver="" if to == GONE else to,
                       program=program_of(options) if fits else "")


def our_action(options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((action for action in options.get("actions", ()) if action.get("cookie") == COOKIE), None)


def whole(options: Mapping[str, Any], action: Mapping[str, Any]) -> bool:
    """Whether a copy is as we make it: nothing else is done to the frame, which goes on to the next classifier."""
    return (len(options["actions"]) == 1 and not options.get("direct-action") and action.get("kind") == "mirred"
            and action.get("mirred_action") == "mirror" and action.get("direction") == "egress"
            and action.get("control_action", {}).get("type") == "continue")


def program_of(options: Mapping[str, Any]) -> str:
    return ",".join(f"{i['code']} {i['jt']} {i['jf']} {i['k']}" for i in options.get("bytecode", {}).get("insns", ()))


def parse_counts(dev: str, side: str, filters: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Counts]]:
    """(name of the copy, its counts)."""
    for one in filters:
        options = one.get("options") or {}
        if FIRST <= one.get("pref", 0) <= LAST and (action := our_action(options)) is not None:
            stats = action.get("stats", {})
            yield copy_name(dev, side, one["pref"]), Counts(stats.get("packets", 0), stats.get("bytes", 0),
                                                            stats.get("overlimits", 0))
