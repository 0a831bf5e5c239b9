"""Single elements of our sets, asked of the kernel itself.

nft reads every element of a table to tell of one. Here the key is written as the kernel holds it, and the answer is compared with
what was loaded. Whatever is not known here (intervals, elements that age) is not answered, and nft has to be asked.

Sources: linux/netfilter/nf_tables.h; nft_get_set_elem() and nf_tables_fill_setelem() in net/netfilter/nf_tables_api.c.
"""
from __future__ import annotations

import errno
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from socket import AF_INET, AF_INET6, inet_pton
from typing import TypeAlias

from kvmnet.drivers.nftables import limits
from kvmnet.drivers.nftables.members import bare, key_of
from kvmnet.host.netlink import (
    ELEMENTS,
    FAMILIES,
    GETELEMENT,
    NETFILTER,
    NUL,
    OF_SET,
    OF_TABLE,
    REQUEST,
    ask,
    attribute,
    attributes,
    nfgenmsg,
)

Told: TypeAlias = dict[tuple[str, str], str | None]
"""(``TABLE SET``, key) -> the element that was loaded; None for one that was taken away."""

MOST = 500
"""Elements that are asked for one by one; to list all of them is quicker then."""
NESTED = 0x8000
ELEMENT, KEY, DATA, EXPRESSION, EXPRESSIONS, VALUE, VERDICT, CODE, CHAIN = 1, 1, 2, 7, 11, 1, 2, 1, 2
"""NFTA_LIST_ELEM, NFTA_SET_ELEM_*, NFTA_DATA_*, NFTA_VERDICT_*."""
EXPR_NAME, EXPR_DATA = 1, 2
RATE, UNIT, BURST, KIND, FLAGS = 1, 2, 3, 4, 5
"""NFTA_LIMIT_*."""
OVER = 1
"""NFT_LIMIT_F_INV, NFT_CONNLIMIT_F_INV."""
VERDICTS = {1: "accept", 0xFFFFFFFD: "jump", 0xFFFFFFFC: "goto", 0: "drop"}
IFNAMSIZ = 16
HEADERS: Mapping[str, tuple[int, ...]] = {"mac": (6,), "own4": (4,), "own6": (16,), "not4": (4,), "not6": (16,), "flow4": (8, 4), "flow6": (8, 16)}
"""Set of guards -> octets of the header fields behind the name of a tap, as they stand in a packet."""
LINE = re.compile(r"(add|delete) element (\S+ \S+ \S+) \{ (.*) \}")
MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
INTERVALS = ("net4", "net6", "a4_", "a6_", "vlans", "learned", "claimed")


def told(lines: Iterable[str]) -> Told | None:
    """What a script of nothing but elements leaves behind; None for one that says anything else, or what cannot be asked for."""
    found: Told = {}
    for line in lines:
        match = LINE.fullmatch(line)
        if not match or bare(match[2]).startswith(INTERVALS):
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
                if text is None or not says(found, text.removeprefix(key)):
                    return False
    return True


def element(kernel: socket.socket, name: str, key: str, sequence: int) -> dict[int, bytes]:
    """The attributes of one element. ``name``: ``TABLE SET``. Raises OSError: ENOENT when there is none."""
    family, table, own = name.split()
    number = next(n for n, word in FAMILIES.items() if word == family)
    wanted = nested(ELEMENTS, nested(ELEMENT, nested(KEY, attribute(VALUE, octets(own, key)))))
    body = nfgenmsg(number) + attribute(OF_TABLE, table.encode() + NUL) + attribute(OF_SET, own.encode() + NUL) + wanted
    _, (answer,) = ask(kernel, GETELEMENT, body, REQUEST, sequence)
    listed = dict(attributes(dict(attributes(answer[4:]))[ELEMENTS]))
    return dict(attributes(listed[ELEMENT]))


def nested(kind: int, value: bytes) -> bytes:
    return attribute(NESTED | kind, value)


def octets(name: str, key: str) -> bytes:
    """A key as the kernel holds it: each part in registers of four octets. ``name``: of the set."""
    first, *rest = key.split(" . ")
    if name in HEADERS:
        return padded(part(first)) + b"".join(padded(int(word, 0).to_bytes(size, "big")) for word, size in zip(rest, HEADERS[name], strict=True))
    return b"".join(padded(part(word)) for word in (first, *rest)) if rest else part(first)


def padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)


def part(word: str) -> bytes:
    """One part of a key: a name of a device, a MAC, an address, or a number in the order of this machine."""
    if word.startswith('"'):
        return word.strip('"').encode().ljust(IFNAMSIZ, NUL)
    if MAC.fullmatch(word):
        return bytes.fromhex(word.replace(":", ""))
    if ":" in word:
        return inet_pton(AF_INET6, word)
    return inet_pton(AF_INET, word) if "." in word else int(word, 0).to_bytes(4, sys.byteorder)


def says(found: Mapping[int, bytes], rest: str) -> bool:
    """Whether an element bears what stands behind its key: nothing, a value, a verdict or a limit."""
    limits_of = [*expressions(found)]
    if not rest:
        return DATA not in found and not limits_of
    if rest.startswith(" : "):
        return not limits_of and DATA in found and value(found[DATA], rest[3:])
    return DATA not in found and len(limits_of) == 1 and limited(*limits_of[0]) == rest


def value(data: bytes, text: str) -> bool:
    """Whether the data of an element are *text*: a number, or a verdict."""
    inside = dict(attributes(data))
    if VERDICT not in inside:
        return not text.startswith(("jump", "goto", "accept", "drop")) and int.from_bytes(inside[VALUE], sys.byteorder) == int(text, 0)
    verdict = dict(attributes(inside[VERDICT]))
    words = [VERDICTS.get(int.from_bytes(verdict[CODE], "big"), "?")]
    if CHAIN in verdict:
        words.append(verdict[CHAIN].rstrip(NUL).decode())
    return " ".join(words) == text


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
