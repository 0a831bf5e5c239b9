"""The numbers of a host a second time, to tell what grows and what moves. Only reads."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kvmnet.facts.capture import COUNTERS, SECONDS, read
from kvmnet.facts.machine import here, interrupts, netlink_drops, processors
from kvmnet.host import run as host
from kvmnet.host.clock import wait_until

Json = dict[str, Any]
SPAN = 1.0
"""Seconds between the two looks of ``doctor``."""


def later(facts: Mapping[str, Any], span: float = SPAN) -> Json:
    """What has become of *facts* after *span* seconds: counters of links, processors and interrupts, and who is where."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began >= span, span * 4 + 1)
    links = facts.get("links") or []
    devices = {link["ifname"]: Path("/sys/class/net", link["ifname"]) for link in links if here(Path("/sys"), link)}
    return {"seconds": round(time.monotonic() - began, 3),
            "links": {link["ifname"]: link["stats64"] for link in rows("ip", "-j", "-s", "link", "show") if "stats64" in link},
            "fdb": rows("bridge", "-j", "fdb", "show"), "neighbours": rows("ip", "-j", "neigh", "show"),
            "counters": {name: text for name in COUNTERS if (text := read(Path("/proc/net", name)))},
            "stat": processors(), "interrupts": interrupts(devices), "netlink_drops": netlink_drops(Path("/proc"))}


def rows(*argv: str) -> list[Json]:
    try:
        return [row for row in json.loads(host.run(argv, timeout=SECONDS) or "[]") if row]
    except host.ToolFailed:
        return []
