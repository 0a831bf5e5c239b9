"""Routes as the kernel tells them -> what ``ip -Numeric -json -details route`` prints of them, as far as it is read. Pure.

What the kernel makes by itself is left out, as ``wire.parse_routes`` does. Of anything but a plain route to a device or by one gateway
nothing is said, and ``ip`` is asked. Sources: rtnetlink(7), linux/rtnetlink.h, print_route() in iproute2's ip/iproute.c.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from socket import inet_ntop
from typing import Any

from kvmnet.host.netlink import attributes

DST, OIF, GATEWAY, PRIORITY, PREFSRC, METRICS, CACHEINFO, TABLE, PREF = 1, 4, 5, 6, 7, 8, 12, 15, 20
"""RTA_*."""
PLAIN = frozenset({DST, OIF, GATEWAY, PRIORITY, PREFSRC, METRICS, CACHEINFO, TABLE, PREF})
HINTS = {2: "mtu", 10: "hoplimit"}
"""RTAX_*: what routers advertise."""
LOCAL, KERNEL, UNICAST, LAST_TYPE = 255, 2, 1, 5
"""RT_TABLE_LOCAL, RTPROT_KERNEL, RTN_UNICAST; up to RTN_MULTICAST the other types are the kernel's own."""
ONLINK, STATES = 0x4, 0x1 | 0x10
"""RTNH_F_ONLINK; that the route is dead, that its link is down (RTNH_F_DEAD, RTNH_F_LINKDOWN)."""
HZ = 100
"""Of times that the kernel tells (USER_HZ)."""
PREFERENCES = {0: "medium", 1: "high", 3: "low"}
"""RFC 4191, section 2.1."""


def told(messages: Iterable[bytes], names: Mapping[int, str]) -> list[dict[str, Any]] | None:
    """The routes that others than the kernel made, or that run out; None when ``ip`` has to be asked. ``names``: index -> name of links."""
    found = []
    for message in messages:
        family, length, source, tos, table, proto, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", message)
        if table == LOCAL or UNICAST < kind <= LAST_TYPE:
            continue
        values = dict(attributes(message[12:]))
        hints = dict(attributes(values.get(METRICS, b"")))
        expires = struct.unpack_from("=i", values[CACHEINFO], 8)[0] if CACHEINFO in values else 0
        if proto == KERNEL and not expires:
            continue
        dev = names.get(struct.unpack("=I", values[OIF])[0]) if OIF in values else None
        plain = values.keys() <= PLAIN and hints.keys() <= HINTS.keys() and kind == UNICAST and not (source or tos or flags & ~(ONLINK | STATES))
        if not plain or dev is None:
            return None
        item = shown(family, length, values)
        item |= {"dev": dev, "protocol": str(proto), "scope": str(scope), "type": str(kind), "flags": ["onlink"] if flags & ONLINK else []}
        item["table"] = str(struct.unpack("=I", values[TABLE])[0] if TABLE in values else table)
        if expires:
            item["expires"] = expires // HZ
        if hints:
            item["metrics"] = [{HINTS[n]: struct.unpack("=I", value)[0] for n, value in hints.items()}]
        found.append(item)
    return found


def shown(family: int, length: int, values: Mapping[int, bytes]) -> dict[str, Any]:
    """What the attributes of a route say."""
    item: dict[str, Any] = {"dst": "default"}
    if DST in values:
        address = inet_ntop(family, values[DST])
        item["dst"] = address if length == len(values[DST]) * 8 else f"{address}/{length}"
    if GATEWAY in values:
        item["gateway"] = inet_ntop(family, values[GATEWAY])
    if PREFSRC in values:
        item["prefsrc"] = inet_ntop(family, values[PREFSRC])
    if PRIORITY in values:
        item["metric"] = struct.unpack("=I", values[PRIORITY])[0]
    if PREF in values:
        item["pref"] = PREFERENCES.get(values[PREF][0], str(values[PREF][0]))
    return item
