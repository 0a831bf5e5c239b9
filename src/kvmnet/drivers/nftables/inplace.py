"""One text of a table turned into another while it stands: chains that differ get other rules, everything else stays. Pure.

A table that is replaced loses packets: a packet that is in the midst of the old rules when the new generation begins no longer
finds the elements of the old table's maps (they are inactive from then on, ``nft_map_deactivate`` in net/netfilter/nf_tables_api.c),
and hooks go and come. Rules that are flushed and added in one transaction are exchanged by a pointer instead: a packet sees the
old ones to their end or the new ones, its sets and maps stay, and so do the counters of the chains that do not differ.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from kvmnet.policy.flows import HEAD

Blocks: TypeAlias = Mapping[tuple[str, str], str]
"""(chain, set or map; its name) -> the declaration with its rules."""
OPENING = re.compile(r"(chain|set|map) (\S+) \{")
HOOKED = re.compile(r"type \w+ hook [^;]*;[^;]*;")
ELEMENTS = re.compile(r"elements = \{ ([^{}]*) \};? ?")


@dataclass(frozen=True, slots=True)
class Edit:
    """Commands that change a standing table, around those that change its elements."""

    first: tuple[str, ...]
    """New sets, and other rules: elements may lead to chains that are new."""
    last: tuple[str, ...]
    """What goes: elements led to it before."""


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
    fresh = [key for key in new if key not in old]
    gone = [key for key in old if key not in new]
    chains = [name for kind, name in gone if kind == "chain"]
    return Edit(
        (*(f"flush chain {table} {name}" for _, name in changed),
         *((f"table {table} {{", *(new[key] for key in (*fresh, *changed)), "}") if fresh or changed else ()),
         *(line for key in kept if key[0] != "chain" for line in element_lines(f"{table} {key[1]}", old[key], new[key]))),
        (*(f"flush chain {table} {name}" for name in chains), *(f"delete chain {table} {name}" for name in chains),
         *(f"delete {kind} {table} {name}" for kind, name in gone if kind != "chain")))


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
