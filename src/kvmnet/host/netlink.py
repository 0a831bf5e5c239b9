"""Short questions to the kernel itself, which a tool would answer only after it has asked for every link, or every rule.

Standard library alone. Sources: netlink(7), rtnetlink(7), linux/neighbour.h, linux/pkt_sched.h, linux/netfilter/nf_tables.h.
"""
from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple, TypeAlias

from kvmnet.host.process import boot_id

NOOP, ERROR, DONE = 1, 2, 3
REQUEST, DUMP, INTERRUPTED = 0x1, 0x300, 0x10
TRIES = 10
"""Dumps that something changed meanwhile are asked for again this often."""
GETLINK, GETADDR, GETROUTE, GETNEIGH, GETRULE, GETQDISC = 18, 22, 26, 30, 34, 38
PROXY, PERMANENT = 0x08, 0x80
"""NTF_PROXY, NUD_PERMANENT."""
NETFILTER = 12
NF_TABLES = 10 << 8
GETTABLE, GETCHAIN, GETSET, GETELEMENT, GETGEN = (NF_TABLES | n for n in (1, 4, 10, 13, 16))
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
FAMILY_NETDEV = 5
TABLE_NAME, NUL = 1, b"\0"
"""NFTA_TABLE_NAME."""
OF_TABLE, OF_SET, ELEMENTS = 1, 2, 3
"""NFTA_SET_ELEM_LIST_*."""
LINKINFO, EXT_MASK, INFO_KIND = 18, 29, 1
"""IFLA_*."""
VLANS_IN_RANGES, SKIP_STATS = 4, 8
"""RTEXT_FILTER_BRVLAN_COMPRESSED, RTEXT_FILTER_SKIP_STATS."""
GETVLAN = 114
VLAN_DUMP, OF_BRIDGES = 1, 2
"""BRIDGE_VLANDB_DUMP_FLAGS, BRIDGE_VLANDB_DUMPF_GLOBAL (linux/if_bridge.h)."""
AF_BRIDGE = 7
GENERATION = 1
"""NFTA_GEN_ID, the first attribute of a generation (nf_tables_fill_gen_info() in net/netfilter/nf_tables_api.c)."""
SO_NETNS_COOKIE = 71
"""asm-generic/socket.h; Linux 5.14."""
DEVICES = frozenset({3, 17})
"""FRA_IIFNAME, FRA_OIFNAME (linux/fib_rules.h)."""
KIND = 1
"""TCA_KIND, the first attribute of a queueing discipline (tc_fill_qdisc() in net/sched/sch_api.c)."""


def dump(kernel: socket.socket, kind: int, body: bytes) -> tuple[bool, list[bytes]]:
    """What follows the header of each message of one dump, and whether it is all of one moment: on a host that changes all the time it
    may not be, as with the tools. Raises OSError."""
    found: list[bytes] = []
    for sequence in range(1, TRIES + 1):
        whole, found = ask(kernel, kind, body, REQUEST | DUMP, sequence)
        if whole:
            return True, found
    return False, found


def ask(kernel: socket.socket, kind: int, body: bytes, flags: int, sequence: int) -> tuple[bool, list[bytes]]:
    """Whether nothing changed meanwhile, and the answers: of a dump all, else one. Raises OSError."""
    kernel.send(struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body)
    several = flags & DUMP
    whole = True
    found: list[bytes] = []
    while True:
        data = kernel.recv(1 << 18)
        at = 0
        while at + 16 <= len(data):
            length, kind, flags, number, _ = struct.unpack_from("=IHHII", data, at)
            payload, at = data[at + 16:at + length], at + (length + 3 & ~3)
            if number != sequence or kind == NOOP:
                continue
            whole = whole and not flags & INTERRUPTED
            if kind == ERROR or (kind == DONE and len(payload) >= 4):
                refused = -struct.unpack_from("=i", payload)[0]
                if refused > 0:
                    raise OSError(refused, os.strerror(refused))
            if kind in (ERROR, DONE):
                return whole, found
            found.append(payload)
            if not several:
                return whole, found


def routing(kind: int, body: bytes) -> list[bytes]:
    """A dump of rtnetlink. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as kernel:
        return dump(kernel, kind, body)[1]


def links() -> list[bytes]:
    """All links without their statistics, each as an ifinfomsg with its attributes (linux/if_link.h). Raises OSError."""
    return routing(GETLINK, bytes(16) + attribute(EXT_MASK, struct.pack("=I", SKIP_STATS)))


def port_vlans() -> list[bytes]:
    """VLANs of ports and of bridges themselves, each as an ifinfomsg with its attributes. Raises OSError."""
    return routing(GETLINK, struct.pack("=B15x", AF_BRIDGE) + attribute(EXT_MASK, struct.pack("=I", VLANS_IN_RANGES)))


def bridge_vlans() -> list[bytes]:
    """What bridges do on each VLAN, each as a br_vlan_msg with its attributes; Linux 5.15. Raises OSError."""
    return routing(GETVLAN, struct.pack("=B7x", AF_BRIDGE) + attribute(VLAN_DUMP, struct.pack("=I", OF_BRIDGES)))


def addresses() -> list[bytes]:
    """All addresses, each as an ifaddrmsg with its attributes (linux/if_addr.h). Raises OSError."""
    return routing(GETADDR, bytes(8))


def routes(family: int) -> list[bytes]:
    """All routes of AF_INET or AF_INET6, each as an rtmsg with its attributes (linux/rtnetlink.h). Raises OSError."""
    return routing(GETROUTE, struct.pack("=B11x", family))


def rules_name_devices() -> bool:
    """Whether a policy rule of either family asks for a device. Raises OSError."""
    return any(DEVICES & {kind for kind, _ in attributes(found[12:])} for found in routing(GETRULE, bytes(12)))


def has_links(kind: str) -> bool:
    """Whether there is a link of a kind that the kernel knows; of another one it tells of any. Raises OSError."""
    return bool(routing(GETLINK, bytes(16) + attribute(LINKINFO, attribute(INFO_KIND, kind.encode()))))


def proxied() -> bool:
    """Whether the host answers for anybody as a proxy. Raises OSError."""
    return bool(routing(GETNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, PROXY, 0)))


def settled() -> bool:
    """Whether there is a neighbour for good. Raises OSError."""
    return any(struct.unpack_from("=H", found, 8)[0] & PERMANENT for found in routing(GETNEIGH, struct.pack("=BxxxiHBB", 0, 0, 0, 0, 0)))


def disciplines() -> dict[int, set[str]]:
    """Index of each link -> the queueing disciplines that somebody has set on it; the kernel's own have no handle. Raises OSError."""
    found: dict[int, set[str]] = {}
    for message in routing(GETQDISC, struct.pack("=BxxxiIII", 0, 0, 0, 0, 0)):
        index, handle = struct.unpack_from("=iI", message, 4)
        length, kind = struct.unpack_from("=HH", message, 20)
        if handle and kind == KIND:
            found.setdefault(index, set()).add(message[24:20 + length].rstrip(b"\0").decode())
    return found


class Generation(NamedTuple):
    """What is the same as long as no rule, chain, set or element of nftables is made or goes in this network namespace.

    The kernel counts transactions (nf_tables_commit()). Two things change without one, and are looked at besides: tables, which go
    with the process that owns them (nft_rcv_nl_event()), and chains on devices, which go with these (nf_tables_netdev_event()). What
    packets write into sets, and what time takes out of them, does not count. Numbers of namespaces are given again, cookies are not.
    """

    number: int
    """Transactions so far, in 32 bits."""
    rest: str
    """Digest of all else."""

    def after(self, transactions: int) -> Generation:
        """The one behind so many transactions that make no table and no chain."""
        return Generation(self.number + transactions & 0xFFFFFFFF, self.rest)


def generation() -> Generation | None:
    """That of now; None where the kernel does not tell."""
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as kernel:
        _, (count,) = ask(kernel, GETGEN, nfgenmsg(0), REQUEST, 1)
        (calm, tables), (still, chains) = dump(kernel, GETTABLE, nfgenmsg(0)), dump(kernel, GETCHAIN, nfgenmsg(FAMILY_NETDEV))
        if not (calm and still):
            return None
        parts = [boot_id().encode(), kernel.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8),
                 *(message[:1] + message[4:] for message in (*tables, *chains))]    # without the count, which each names
        rest = blake2b(b"".join(len(part).to_bytes(4, "big") + part for part in parts), digest_size=16).hexdigest()
        return Generation(int.from_bytes(generation_of(count), "big"), rest)
    return None


def tables() -> set[str]:
    """``FAMILY NAME`` of each table of nftables. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as kernel:
        found = dump(kernel, GETTABLE, nfgenmsg(0))[1]
    return {f"{FAMILIES.get(table[0], table[0])} {dict(attributes(table[4:]))[TABLE_NAME].rstrip(NUL).decode()}" for table in found}


def has_elements(table: str, name: str) -> bool:
    """Whether a set of nftables holds something. ``table``: ``FAMILY NAME``. Raises OSError, also when there is none."""
    family, own = table.split()
    number = next(n for n, word in FAMILIES.items() if word == family)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as kernel:
        found = dump(kernel, GETELEMENT, nfgenmsg(number) + attribute(OF_TABLE, own.encode() + NUL) + attribute(OF_SET, name.encode() + NUL))[1]
    return any(dict(attributes(message[4:])).get(ELEMENTS) for message in found)


def transactions() -> int | None:
    """How many transactions of nftables this network namespace has seen, in 32 bits; None where the kernel does not tell."""
    with suppress(OSError), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as kernel:
        _, (count,) = ask(kernel, GETGEN, nfgenmsg(0), REQUEST, 1)
        return int.from_bytes(generation_of(count), "big")
    return None


def generation_of(message: bytes) -> bytes:
    """The number in an answer, which also names who asked. Raises OSError for another answer."""
    length, kind = struct.unpack_from("=HH", message, 4) if len(message) >= 12 else (0, 0)
    if kind != GENERATION or length != 8:
        raise OSError(errno.EPROTO, "no generation")
    return message[8:12]


def nfgenmsg(family: int) -> bytes:
    return struct.pack("=BBH", family, 0, 0)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each attribute, the flags of its type left out; up to the first that is none."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if not 4 <= length <= len(data):
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[length + 3 & ~3:]


Places: TypeAlias = dict[int, slice]
"""Type of an attribute, without flags -> where its value lies."""


class Layouts:
    """Where attributes lie in data. What is told of many links differs in values, and seldom in what is told: data of a length that was met
    is compared with that header by header, in one step."""

    def __init__(self) -> None:
        self.met: dict[int, list[tuple[struct.Struct, tuple[int, ...], Places]]] = {}

    def of(self, data: bytes) -> Places:
        """As ``attributes``; of a type that comes twice the last."""
        for headers, told, known in self.met.get(len(data), ()):
            if headers.unpack(data) == told:
                return known
        places: Places = {}
        form, at = ["="], 0
        while len(data) - at >= 4:
            length, kind = struct.unpack_from("=HH", data, at)
            if not 4 <= length <= len(data) - at:
                return places
            places[kind & 0x3FFF] = slice(at + 4, at + length)
            following = min(at + (length + 3 & ~3), len(data))
            form.append(f"HH{following - at - 4}x")
            at = following
        headers = struct.Struct("".join((*form, f"{len(data) - at}x")))
        self.met.setdefault(len(data), []).append((headers, headers.unpack(data), places))
        return places
