"""Elements of our sets as the kernel holds them: single ones, or all of a table.

nft reads every element of a table to tell of one, and takes seven microseconds for each to write it down. What we loaded is known, so
the kernel's own bytes are compared with what they must be. Whatever is not as expected is no answer: nft has to be asked.

Sources: linux/netfilter/nf_tables.h; nft_get_set_elem(), nf_tables_fill_setelem() and nf_tables_fill_set() in
net/netfilter/nf_tables_api.c.
"""
from __future__ import annotations

import errno
import re
import socket
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from ipaddress import ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import TypeAlias

from kvmnet.drivers.nftables import limits
from kvmnet.drivers.nftables.members import FAMILIES as MANY
from kvmnet.drivers.nftables.members import NAMES, bare, key_of
from kvmnet.drivers.nftables.wire import MEMORY, PARTS
from kvmnet.host.netlink import (
    ELEMENTS,
    FAMILIES,
    GETELEMENT,
    GETSET,
    NETFILTER,
    NUL,
    OF_SET,
    OF_TABLE,
    REQUEST,
    ask,
    attribute,
    attributes,
    dump,
    nfgenmsg,
)

Told: TypeAlias = dict[tuple[str, str], str | None]
"""(``TABLE SET``, key) -> the element that was loaded; None for one that was taken away."""
Blob: TypeAlias = bytes | tuple[bytes, str]
"""What a set holds of one element: its attributes, or the key and the limit that it bears."""

MOST = 500
"""Elements that are asked for one by one; to read all of them is quicker then."""
NESTED = 0x8000
ELEMENT, KEY, DATA, ENDS, EXPRESSION, KEY_END, EXPRESSIONS, VALUE, VERDICT, CODE, CHAIN = 1, 1, 2, 3, 7, 10, 11, 1, 2, 1, 2
"""NFTA_LIST_ELEM, NFTA_SET_ELEM_*, NFTA_DATA_*, NFTA_VERDICT_*."""
SET_NAME = 2
"""NFTA_SET_NAME."""
EXPR_NAME, EXPR_DATA = 1, 2
RATE, UNIT, BURST, KIND, FLAGS = 1, 2, 3, 4, 5
"""NFTA_LIMIT_*."""
OVER = 1
"""NFT_LIMIT_F_INV, NFT_CONNLIMIT_F_INV."""
VERDICTS = {"accept": 1, "jump": 0xFFFFFFFD, "goto": 0xFFFFFFFC, "drop": 0}
IFNAMSIZ = 16
HEADERS: Mapping[str, tuple[int, ...]] = {"mac": (6,), "own4": (4,), "own6": (16,), "not4": (4,), "not6": (16,), "flow4": (8, 4), "flow6": (8, 16),
                                           "net4": (4,), "net6": (16,), "vlans": (2,)}
"""Set of guards -> octets of the header fields behind the name of a tap, as they stand in a packet."""
WIDTHS = {"ctzone": 2}
"""Map -> octets of its numbers, where these are not four."""
LINE = re.compile(r"(add|delete) element (\S+ \S+ \S+) \{ (.*) \}")
MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
RANGES, PREFIXES = ("net4", "net6"), ("a4_", "a6_")
UNASKED = (*RANGES, *PREFIXES, *MEMORY)
"""Sets whose elements are not asked for one by one: intervals, and what packets write."""
BEARING = frozenset(limits.SETS.values())
"""Sets whose elements bear a limit."""
OURS = (NAMES | {*PARTS, "flow4", "flow6"}) - {*MEMORY}
"""Sets whose elements follow from what is wanted; besides them those of ``members.FAMILIES``."""


def told(lines: Iterable[str]) -> Told | None:
    """What a script of nothing but elements leaves behind; None for one that says anything else, or what cannot be asked for."""
    found: Told = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if not match or bare(match[2]).startswith(UNASKED):
            return None
        for text in match[3].split(", "):
            found[match[2], key_of(text)] = text if match[1] == "add" else None
    return found


def hold(elements: Told) -> bool:
    """Whether the kernel has just these elements, and none of those that were taken away. False also where it does not tell."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as kernel:
        for sequence, ((name, key), text) in enumerate(elements.items(), 1):
            try:
                found = element(kernel, name, key, sequence)
            except OSError as refused:
                if refused.errno != errno.ENOENT or text is not None:
                    return False
            else:
                if text is None or found != blob(bare(name), text):
                    return False
    return True


def agree(tables: Collection[str], wanted: Mapping[str, Collection[str]]) -> bool:
    """Whether the sets of *tables* hold *wanted* (``TABLE SET`` -> elements) and nothing else. False also where that is not known."""
    found = 0
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER) as kernel:
            for table in tables:
                for own in sets(kernel, table):
                    if own not in OURS and not own.startswith(MANY):
                        continue
                    name = f"{table} {own}"
                    texts = wanted.get(name, ())
                    found += len(texts)
                    if blobs(kernel, table, own) - NOTHING != blobs_of(own, texts):
                        return False
    except OSError:
        return False
    return found == sum(map(len, wanted.values()))    # none lies in a set that is not there


def sets(kernel: socket.socket, table: str) -> list[str]:
    """Names of the sets of a table. Raises OSError."""
    family, own = table.split()
    found = dump(kernel, GETSET, nfgenmsg(number_of(family)) + attribute(OF_TABLE, own.encode() + NUL))[1]
    return [dict(attributes(message[4:]))[SET_NAME].rstrip(NUL).decode() for message in found]


def blobs(kernel: socket.socket, table: str, name: str) -> set[Blob]:
    """All elements of a set. Raises OSError."""
    found: set[Blob] = set()
    for message in dump(kernel, GETELEMENT, of_set(table, name))[1]:
        for kind, data in attributes(message[4:]):
            if kind == ELEMENTS:
                found.update(each(data, name in BEARING))
    return found


def each(data: bytes, bears: bool) -> Iterator[Blob]:
    """The elements of one list. ``bears``: a limit."""
    at, end = 0, len(data)
    while at < end:
        length = int.from_bytes(data[at:at + 2], sys.byteorder)
        one = data[at + 4:at + length]
        yield (key_in(one), ", ".join(limited(*found) for found in expressions(dict(attributes(one))))) if bears else one
        at += length + 3 & ~3


def key_in(element: bytes) -> bytes:
    return dict(attributes(dict(attributes(element))[KEY]))[VALUE]


def blobs_of(name: str, texts: Collection[str]) -> set[Blob]:
    """What the kernel holds of the elements of the set *name*."""
    if name.startswith(PREFIXES):
        return {*ends(texts)}
    return {blob(name, text) for text in texts}


def ends(prefixes: Collection[str]) -> Iterator[bytes]:
    """Beginnings of intervals, and what follows behind each (set_to_segtree() in nft's src/segtree.c)."""
    for net in map(ip_network, prefixes):
        yield keyed(net[0].packed)
        if int(net[-1]) + 1 < 1 << net.max_prefixlen:    # nft marks the last of all in a way of its own: it is asked then
            yield keyed((net[-1] + 1).packed) + BEHIND


def blob(name: str, text: str) -> Blob:
    """What the kernel holds of an element of the set *name*."""
    if name in BEARING:
        key = key_of(text)
        return octets(name, key), text.removeprefix(key)
    if name in RANGES:
        nic, _, span = text.partition(" . ")
        first, last = (octets(name, f"{nic} . {end}") for end in span.split("-"))
        return keyed(first) + attribute(KEY_END, attribute(VALUE, last))
    key, colon, says = text.partition(" : ")
    return keyed(octets(name, key)) + data_of(name, says) if colon else keyed(octets(name, key))


def padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4) if len(value) % 4 else value


def keyed(value: bytes) -> bytes:
    """The attribute of a key."""
    return head_of(len(value)) + padded(value)


@cache
def head_of(length: int) -> bytes:
    """What stands before a key of so many octets."""
    return attribute(KEY, attribute(VALUE, bytes(length)))[:8]


BEHIND = attribute(ENDS, (1).to_bytes(4, "big"))
"""NFT_SET_ELEM_INTERVAL_END."""
NOTHING = frozenset(keyed(bytes(size)) + BEHIND for size in (4, 16))
"""Says that no interval ends before the first, and matches nothing: nft puts it into a set only when it makes the set."""


@lru_cache(maxsize=10_000)
def data_of(name: str, text: str) -> bytes:
    """The attribute of what a key leads to."""
    word, _, chain = text.partition(" ")
    if word in VERDICTS:
        verdict = attribute(CODE, VERDICTS[word].to_bytes(4, "big")) + (attribute(CHAIN, chain.encode() + NUL) if chain else b"")
        return attribute(DATA, attribute(VERDICT, verdict))
    return attribute(DATA, attribute(VALUE, int(text, 0).to_bytes(WIDTHS.get(name, 4), sys.byteorder)))


def element(kernel: socket.socket, name: str, key: str, sequence: int) -> Blob:
    """One element. ``name``: ``TABLE SET``. Raises OSError: ENOENT when there is none."""
    table, _, own = name.rpartition(" ")
    wanted = nested(ELEMENTS, nested(ELEMENT, nested(KEY, attribute(VALUE, octets(own, key)))))
    _, (answer,) = ask(kernel, GETELEMENT, of_set(table, own) + wanted, REQUEST, sequence)
    return next(each(dict(attributes(answer[4:]))[ELEMENTS], own in BEARING))


def of_set(table: str, name: str) -> bytes:
    """The question for elements of a set."""
    family, own = table.split()
    return nfgenmsg(number_of(family)) + attribute(OF_TABLE, own.encode() + NUL) + attribute(OF_SET, name.encode() + NUL)


def number_of(family: str) -> int:
    return next(n for n, word in FAMILIES.items() if word == family)


def nested(kind: int, value: bytes) -> bytes:
    return attribute(NESTED | kind, value)


def octets(name: str, key: str) -> bytes:
    """A key as the kernel holds it: each part in registers of four octets. ``name``: of the set."""
    if " . " not in key:
        return part(key)
    first, *rest = key.split(" . ")
    if name in HEADERS:
        return padded(part(first)) + b"".join([padded(int(word, 0).to_bytes(size, "big")) for word, size in zip(rest, HEADERS[name], strict=True)])
    return b"".join([padded(part(word)) for word in (first, *rest)])


@lru_cache(maxsize=50_000)
def part(word: str) -> bytes:
    """One part of a key: a name of a device, a MAC, an address, or a number in the order of this machine."""
    if word.startswith('"'):
        return word.strip('"').encode().ljust(IFNAMSIZ, NUL)
    if MAC.fullmatch(word):
        return bytes.fromhex(word.replace(":", ""))
    if ":" in word:
        return inet_pton(AF_INET6, word)
    return inet_pton(AF_INET, word) if "." in word else int(word, 0).to_bytes(4, sys.byteorder)


def expressions(found: Mapping[int, bytes]) -> Iterator[tuple[str, Mapping[int, int]]]:
    """(name, numbers by attribute) of what an element counts or limits."""
    inside = [found[EXPRESSION]] if EXPRESSION in found else [data for _, data in attributes(found.get(EXPRESSIONS, b""))]
    for one in map(dict, map(attributes, inside)):
        yield one[EXPR_NAME].rstrip(NUL).decode(), {kind: int.from_bytes(data, "big") for kind, data in attributes(one.get(EXPR_DATA, b""))}


def limited(name: str, numbers: Mapping[int, int]) -> str:
    """A limit in the words of ``limits.words``; '' for another one."""
    if name == "connlimit" and numbers.get(2) == OVER:
        return f"{limits.COUNTS}{numbers[1]}"
    if name != "limit" or numbers.get(FLAGS) != OVER or numbers.get(UNIT) != 1:
        return ""
    if numbers.get(KIND):
        return f"{limits.BEARS}{numbers[RATE]} bytes/second burst {numbers[BURST]} bytes"
    return f"{limits.BEARS}{numbers[RATE]}/second burst {numbers[BURST]} packets"
