"""One text of a table turned into another while it stands: chains that differ get other rules, everything else stays. Pure.

A table that is replaced loses packets: a packet that is in the midst of the old rules when the new generation begins no longer
finds the elements of the old table's maps (they are inactive from then on, ``nft_map_deactivate`` in net/netfilter/nf_tables_api.c),
and hooks go and come. Rules that are flushed and added in one transaction are exchanged by a pointer instead: a packet sees the
old ones to their end or the new ones, its sets and maps stay, and so do the counters of the chains that do not differ.

Sets are not exchanged with the rules: elements of intervals that come in the transaction can be found microseconds after the new
rules ask for them (``nft_set_commit_update`` behind the change of ``gencursor`` in ``nf_tables_commit``, Linux 6.18: 97 changes
lost 18 packets at 25,000 a second), and what goes cannot be found by a packet in the midst of the old rules. So a set that is new is
filled in a transaction of its own before, and one that goes has one behind.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from kvmnet.policy.flows import HEAD
from kvmnet.records import dataclass

Blocks: TypeAlias = Mapping[tuple[str, str], str]
"""(chain, set or map; its name) -> the declaration with its rules."""
OPENING = re.compile(r"(chain|set|map) (\S+) \{")
HOOKED = re.compile(r"type \w+ hook [^;]*;[^;]*;")
ELEMENTS = re.compile(r"elements = \{ ([^{}]*) \};? ?")


@dataclass(frozen=True, slots=True)
class Edit:
    """Commands that change a standing table, around those that change its elements."""

    fresh: tuple[str, ...] = ()
    """``TABLE SET`` of sets that no rule and no chain of the old text knows."""
    before: tuple[str, ...] = ()
    """These sets, in a transaction before: nobody asks them yet."""
    first: tuple[str, ...] = ()
    """Other rules, new chains and maps: elements may lead there."""
    last: tuple[str, ...] = ()
    """Chains and maps that go: elements led there before."""
    gone: tuple[str, ...] = ()
    """``TABLE SET`` of sets that go, with whatever is in them."""
    behind: tuple[str, ...] = ()
    """Their end, in a transaction behind: nobody asks them any more."""


@lru_cache(maxsize=8)
def edit(table: str, before: str, after: str) -> Edit | None:
    """How *before* becomes *after* in *table*; None when the table must be replaced: a set or a hook becomes another,
    or one of the texts is none of ours."""
    old, new = blocks(before), blocks(after)
    if old is None or new is None:
        return None
    kept = [key for key in new if key in old and new[key] != old[key]]
    if any(key[0] != "chain" and bare(old[key]) != bare(new[key]) for key in kept) or \
            any(hooks(old[key]) != hooks(new[key]) for key in kept):
        return None
    changed = [key for key in kept if key[0] == "chain"]
    sets = [key for key in new if key not in old and key[0] == "set"]
    others = [key for key in new if key not in old and key[0] != "set"]
    gone = [key for key in old if key not in new]
    chains, dead, maps = ([name for kind, name in gone if kind == wanted] for wanted in ("chain", "set", "map"))
    return Edit(
        fresh=tuple(f"{table} {name}" for _, name in sets),
        before=tuple(declared(table, [new[key] for key in sets])),
        first=(*(f"flush chain {table} {name}" for _, name in changed), *declared(table, [new[key] for key in (*others, *changed)]),
               *(line for key in kept if key[0] != "chain" for line in element_lines(f"{table} {key[1]}", old[key], new[key]))),
        last=(*(f"flush chain {table} {name}" for name in chains), *(f"delete chain {table} {name}" for name in chains),
              *(f"delete map {table} {name}" for name in maps)),
        gone=tuple(f"{table} {name}" for name in dead),
        behind=tuple(f"delete set {table} {name}" for name in dead))


def declared(table: str, found: Sequence[str]) -> Sequence[str]:
    return (f"table {table} {{", *found, "}") if found else ()


def blocks(text: str) -> Blocks | None:
    """The declarations of a text, in its order; None for what is not written as we write."""
    found: dict[tuple[str, str], str] = {}
    for block in pieces(text):
        opening = OPENING.match(block)
        if not opening or not block.endswith("}") or (key := (opening[1], opening[2])) in found:
            return None
        found[key] = block
    return found


def pieces(text: str) -> Iterator[str]:
    """Each declaration as one string: a line with both braces, or as far as the brace that begins a line."""
    lines: list[str] = []
    for line in text.splitlines():
        if not lines and (not line or line.startswith(HEAD)):
            continue
        lines.append(line)
        if line == "}" or (len(lines) == 1 and not line.endswith("{")):
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def bare(block: str) -> str:
    """A set without its elements."""
    return ELEMENTS.sub("", block)


def hooks(block: str) -> list[str]:
    return HOOKED.findall(block)


def element_lines(name: str, before: str, after: str) -> Iterator[str]:
    """Commands that make the elements of one declaration those of another."""
    old, new = members(before), members(after)
    for verb, texts in (("delete", old - new), ("add", new - old)):
        if texts:
            yield f"{verb} element {name} {{ {', '.join(sorted(texts))} }}"


def members(block: str) -> set[str]:
    return {item.strip() for match in ELEMENTS.finditer(block) for item in match[1].split(",")}
