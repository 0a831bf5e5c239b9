"""Limits of NICs as set elements that bear a limit of their own, and nft's listing in the same words. No I/O.

A lookup of a set whose element bears ``limit rate over N`` succeeds when the element is there *and* the rate is exceeded
(nft_set_elem_update_expr() in net/netfilter/nft_lookup.c, Linux 5.7), so a thousand limited NICs cost one lookup each.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvmnet.drivers.nftables.resources import NicLimits

SETS = {name: f"l_{name}" for name in (
    "packets", "bytes", "connections", "concurrent", "broadcast", "multicast", "unknown", "neighbours",
    "receive_packets", "receive_bytes", "syn")}
"""Limit -> its set."""
OCTETS = frozenset({"bytes", "receive_bytes"})
STATIONS, WATCHED = "l_stations", "l_watched"
"""(network, MAC) of all that a network has; NICs whose frames to other MACs are limited."""
NAMES = frozenset({*SETS.values(), STATIONS, WATCHED})
BEARS, COUNTS = " limit rate over ", " ct count over "
ROOM = 2 * 65536
"""Bytes that may come at once at least: two packets of the largest size, else one would never pass."""
UNITS = {"bytes": 1, "kbytes": 2**10, "mbytes": 2**20}
"""nft prints bytes in the largest unit that divides them."""


def elements(item: NicLimits) -> Iterator[tuple[str, str]]:
    """The (set, element) pairs that make *item*."""
    nic = f'"{item.name}"'
    for name, found in SETS.items():
        if (value := getattr(item, name)) and (name != "concurrent" or item.counted == "bridge"):
            yield found, nic + words(name, value, item.burst or 1)
    if item.unknown:
        yield WATCHED, nic
    for mac in item.stations or ():
        yield STATIONS, f"{item.zone or 0:#010x} . {mac}"


def words(name: str, value: int, seconds: int) -> str:
    """What an element bears: it matches what is *over* the limit. Bytes: the kernel's bucket is the rate of a second and the
    burst (nft_limit_init() in net/netfilter/nft_limit.c)."""
    if name == "concurrent":
        return f"{COUNTS}{value}"
    if name in OCTETS:
        return f"{BEARS}{value} bytes/second burst {max(value * seconds, ROOM) - value or 1} bytes"
    return f"{BEARS}{value}/second burst {value * seconds} packets"


def said(element: Any) -> str:
    """An element of a JSON listing in the words of ``elements``."""
    if isinstance(element, str):
        return f'"{element}"'
    if "concat" in element:
        zone, mac = element["concat"]
        return f"{zone:#010x} . {mac}"
    entry = element["elem"]
    nic = f'"{entry["val"]}"'
    if count := entry.get("ct count"):
        return f"{nic}{COUNTS}{count['val']}"
    limit = entry.get("limit", {})
    rate, burst = limit.get("rate", 0), limit.get("burst", 0)
    if "rate_unit" in limit:
        return (f"{nic}{BEARS}{rate * UNITS[limit['rate_unit']]} bytes/second "
                f"burst {burst * UNITS[limit['burst_unit']]} bytes")
    return f"{nic}{BEARS}{rate}/second burst {burst} packets"
