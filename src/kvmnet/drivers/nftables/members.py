"""Memberships, limits and address sets as elements of the guard's table, and nft's listing in the same words. No I/O.

What is said once of a NIC stands in several sets, each keyed as one rule needs it, so a NIC cannot be read back from
them: what was loaded is remembered in a file, and holds as long as the sets contain exactly what follows from it.
"""
from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network, summarize_address_range
from itertools import repeat
from typing import Any, TypeAlias

from kvmnet.drivers.nftables import limits
from kvmnet.drivers.nftables.resources import AddressSet, NicGroups, NicLimits
from kvmnet.drivers.nftables.tables import FILLED, ROUTED
from kvmnet.policy.marks import GUEST, LONE
from kvmnet.spec.bounds import MOST_GROUPS

SLOTS = range(1, MOST_GROUPS + 1)
PLACED = frozenset({*(f"{name}{v}" for v in (4, 6) for name in ("nic", "tenant", "end", "logged")),
                    *(f"in{v}_{n}" for v in (4, 6) for n in SLOTS)})
"""Sets of the table ``ROUTED`` that are keyed by bridge and address."""
NAMES = frozenset({"ids", "ctzone", "tenant", "grouped", "lone", "logged", "answered", "rejecting",
                   *(f"{way}{n}" for way in ("in", "out", "ask", "tell") for n in SLOTS), *limits.NAMES, *PLACED})
FAMILIES = ("g_", "h_", "e_", "m4_", "m6_", "d4_", "d6_", "n_", "a4_", "a6_", "r4_", "r6_")
"""Sets of these names are ours too, one for each group, tenant or address set."""
SHARED = ("m4_", "m6_", "d4_", "d6_", "e_", "rejecting", "ask", limits.STATIONS)
"""Sets in which two NICs may have the same element."""

Member: TypeAlias = NicGroups | NicLimits | AddressSet
Pair: TypeAlias = tuple[str, str]
"""``TABLE SET``, and an element of it as nft reads it."""


@lru_cache(maxsize=50_000)
def by_table(item: Member) -> tuple[tuple[str, tuple[Pair, ...]], ...]:
    """Each table in which *item* has elements, with the (``TABLE SET``, element) pairs. Asked several times by a command."""
    return ((item.table or "", tuple((f"{item.table} {name}", text) for name, text in _elements(item))),
            (ROUTED, tuple((f"{ROUTED} {name}", text) for name, text in _routed(item))))


def elements(item: Member) -> Iterator[Pair]:
    """The (``TABLE SET``, element) pairs that make *item*."""
    return (pair for _, pairs in by_table(item) for pair in pairs)


def _elements(item: Member) -> Iterator[tuple[str, str]]:
    if isinstance(item, NicLimits):
        yield from limits.elements(item)
        return
    if isinstance(item, AddressSet):
        for prefix in item.prefixes or ():
            yield f"a{ip_network(prefix).version}_{item.name}", prefix
        return
    nic, number, zone = f'"{item.name}"', item.number or 0, item.zone or 0
    yield "ids", f"{nic} : {GUEST | (LONE if item.isolated else 0) | number:#010x}"
    yield "ctzone", f"{nic} : {zone}"
    if item.isolated:
        yield "lone", nic
    if item.tenant:
        yield "tenant", f"{nic} : jump t_{item.tenant}"
        yield f"n_{item.tenant}", f"{number:#010x}"
    if item.groups:
        yield "grouped", nic
    if item.groups and "log" in (item.traits or ()):
        yield "logged", nic
    if item.groups and "reject" in (item.traits or ()):
        yield "answered", nic
        for mac in item.macs or ():
            yield "rejecting", f"{zone} . {mac}"
            yield from ((f"ask{n}", f"{zone} . {mac} : jump ask_{group}") for n, group in zip(SLOTS, item.groups, strict=False))
        yield from ((f"tell{n}", f"{nic} : jump tell_{group}") for n, group in zip(SLOTS, item.groups, strict=False))
    for n, group in zip(SLOTS, item.groups or (), strict=False):
        yield f"in{n}", f"{nic} : jump in_{group}"
        yield f"out{n}", f"{nic} : jump out_{group}"
        yield f"g_{group}", f"{number:#010x}"
        yield f"h_{group}", nic
        yield from ((f"e_{group}", f"{zone} . {mac}") for mac in item.macs or ())
        for address in item.addresses or ():
            version = ip_address(address).version
            yield (f"d{version}_{group}", f"{item.routed} . {address}") if item.routed else (f"m{version}_{group}", address)


def _routed(item: Member) -> Iterator[tuple[str, str]]:
    """What judges packets that the host routes or sends to a guest."""
    if isinstance(item, AddressSet):
        yield from ((f"a{ip_network(prefix).version}_{item.name}", prefix) for prefix in item.prefixes or ())
    if not isinstance(item, NicGroups):
        return
    number = item.number or 0
    yield from ((f"g_{group}", f"{number:#010x}") for group in item.groups or ())
    if item.tenant:
        yield f"n_{item.tenant}", f"{number:#010x}"
    for place in item.places or ():
        bridge, address = place.split()
        v, key = ip_address(address).version, f'"{bridge}" . {address}'
        yield f"nic{v}", f"{key} : {number}"
        if item.tenant:
            yield f"tenant{v}", f"{key} : jump t_{item.tenant}"
        yield f"end{v}", f"{key} : {'jump unheard' if item.groups else 'accept'}"
        if item.groups and "log" in (item.traits or ()):
            yield f"logged{v}", key
        for n, group in zip(SLOTS, item.groups or (), strict=False):
            yield f"in{v}_{n}", f"{key} : jump in_{group}"
            yield f"r{v}_{group}", key


def lines(verb: str, pairs: Iterable[tuple[str, str]]) -> list[str]:
    """One nft command per set. ``verb``: add or delete."""
    found: dict[str, dict[str, None]] = {}
    for name, text in pairs:
        found.setdefault(name, {})[key_of(text) if verb == "delete" else text] = None
    return [f"{verb} element {name} {{ {', '.join(texts)} }}" for name, texts in found.items()]


def key_of(text: str) -> str:
    """An element without the value, or the limit, that it bears."""
    return text.partition(" : ")[0].partition(limits.BEARS)[0].partition(limits.COUNTS)[0]


def within(tables: Collection[str], items: Iterable[Member]) -> Iterator[Pair]:
    """The pairs of *items* that lie in *tables*."""
    return (pair for item in items for table, pairs in by_table(item) if table in tables for pair in pairs)


def expected(tables: Collection[str], items: Iterable[Member]) -> dict[str, set[Pair]]:
    """All pairs of *items*, by their tables."""
    found: dict[str, set[Pair]] = {table: set() for table in tables}
    for item in items:
        for table, pairs in by_table(item):
            if pairs and table in found:
                found[table].update(pairs)
    return found


def change(before: Iterable[Member], after: Iterable[Member], unchanged: Iterable[Member] = (),
           tables: Collection[str] = FILLED) -> list[str]:
    """Commands that put *after* in the place of *before* in *tables*. What *unchanged* share with them stays."""
    old, new = set(within(tables, before)), set(within(tables, after))
    gone = old - new
    if any(bare(name).startswith(SHARED) for name, _ in gone):
        gone -= {pair for item in unchanged for pair in elements(item)}
    return lines("delete", sorted(gone)) + lines("add", sorted(new - old))


def bare(name: str) -> str:
    """A set's name without its table."""
    return name.rpartition(" ")[2]


def listed(table: str, sets: Mapping[str, Iterable[Any]]) -> set[Pair]:
    """The (``TABLE SET``, element) pairs of *table*'s JSON listing, in the words of ``elements``."""
    found: set[Pair] = set()
    for name, content in sets.items():
        if name in NAMES or name.startswith(FAMILIES):
            found.update(zip(repeat(f"{table} {name}"), said(name, content)))
    return found


def said(name: str, content: Iterable[Any]) -> Iterable[str]:
    """The elements of one set."""
    if name in limits.NAMES:
        return map(limits.said, content)
    if name.startswith(("m4_", "m6_")):
        return content
    if name.startswith(("a4_", "a6_")):
        return (text for element in content for text in prefixes(element))
    key = place if name in PLACED or name.startswith(("r4_", "r6_")) else words
    value = marked if name == "ids" else plain
    return (f"{key(element[0])} : {value(element[1])}" if type(element) is list else key(element) for element in content)


def marked(value: int) -> str:
    return f"{value:#010x}"


def plain(value: Any) -> str:
    return verdict(value) if type(value) is dict else str(value)


def verdict(value: Mapping[str, Any]) -> str:
    (word, to), = value.items()
    return f"{word} {to['target']}" if to else str(word)


def words(key: Any) -> str:
    if type(key) is dict:
        return " . ".join(map(str, key["concat"]))
    return f'"{key}"' if type(key) is str else marked(key)


def place(key: Any) -> str:
    bridge, address = key["concat"]
    return f'"{bridge}" . {address}'


def prefixes(element: Any) -> Iterator[str]:
    """One interval: an address, a prefix, or a range that nft made of neighbours."""
    if isinstance(element, str):
        yield element
    elif "prefix" in element:
        yield f"{element['prefix']['addr']}/{element['prefix']['len']}"
    else:
        first, last = map(ip_address, element["range"])
        for net in summarize_address_range(first, last):
            yield str(net.network_address) if net.prefixlen == net.max_prefixlen else str(net)
