"""Addresses as the kernel tells them -> what ``ip -json address`` prints of them, as far as it is read. Pure.

Sources: rtnetlink(7), linux/if_addr.h, print_addrinfo() in iproute2's ip/ipaddress.c.
"""
from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any

from kvmnet.host.netlink import attributes

ADDRESS, LOCAL, LABEL, BROADCAST, CACHEINFO, FLAGS = 1, 2, 3, 4, 6, 8
"""IFA_*. The address without an IFA_LOCAL is the host's own, beside one the other end's."""
SCOPES = {0: "global", 200: "site", 253: "link", 254: "host", 255: "nowhere"}
SET = {0x02: "nodad", 0x04: "optimistic", 0x08: "dadfailed", 0x10: "home", 0x20: "deprecated", 0x40: "tentative", 0x100: "mngtmpaddr",
       0x200: "noprefixroute", 0x400: "autojoin", 0x800: "stable-privacy"}
SECONDARY, PERMANENT = 0x01, 0x80
"""Of IPv6 the first says that the address is temporary."""


def told(messages: Iterable[bytes], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Links that have addresses, in the order of *names* (index -> name), with these. One that came between the two dumps is seen
    the next time."""
    found: dict[int, list[dict[str, Any]]] = {}
    for message in messages:
        family, length, flags, scope, index = struct.unpack_from("=BBBBI", message)
        if family in (AF_INET, AF_INET6):
            found.setdefault(index, []).append(info(family, length, scope, flags, dict(attributes(message[8:]))))
    return [{"ifname": name, "addr_info": found[index]} for index, name in names.items() if index in found]


def info(family: int, length: int, scope: int, flags: int, values: Mapping[int, bytes]) -> dict[str, Any]:
    """One address. Lifetimes in seconds."""
    def text(kind: int) -> str:
        return inet_ntop(family, values[kind])
    shown: dict[str, Any] = {"family": "inet" if family == AF_INET else "inet6", "prefixlen": length, "scope": SCOPES.get(scope, str(scope))}
    own = LOCAL if LOCAL in values else ADDRESS
    if own in values:
        shown["local"] = text(own)
    if own == LOCAL and values.get(ADDRESS, values[LOCAL]) != values[LOCAL]:
        shown["address"] = text(ADDRESS)
    if BROADCAST in values:
        shown["broadcast"] = text(BROADCAST)
    if LABEL in values:
        shown["label"] = values[LABEL].rstrip(b"\0").decode(errors="replace")
    if FLAGS in values:
        flags, = struct.unpack("=I", values[FLAGS])
    if flags & SECONDARY:
        shown["secondary" if family == AF_INET else "temporary"] = True
    if not flags & PERMANENT:
        shown["dynamic"] = True
    shown.update((word, True) for bit, word in SET.items() if flags & bit)
    if CACHEINFO in values:
        shown["preferred_life_time"], shown["valid_life_time"] = struct.unpack_from("=II", values[CACHEINFO])
    return shown
