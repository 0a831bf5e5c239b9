"""The rules of nftables as JSON, also where nft prints it wrong. Only reads.

nft 1.0.6 (Debian 12) prints the flags of a table (owner, dormant) from memory that it has freed: the value is that of some other string, or ends
the whole output there. So flags are taken from the text, and what cannot be parsed is read once more, by chains and sets where a table has flags.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kvmnet.facts.secrets import scrubbed
from kvmnet.host import run as host

Json = dict[str, Any]
TABLE = re.compile(r"^table (?P<family>\w+) (?P<name>\S+) \{.*$")
FLAGS = re.compile(r"^\tflags (?P<flags>.+)$")
MEMBER = re.compile(r"^\t(?P<kind>chain|set|map) (?P<name>\S+) \{")
Tables = Mapping[tuple[str, str], Sequence[str]]


def rules(timeout: float) -> list[Json]:
    """Every table with what is in it (libnftables-json(5)). Raises ToolFailed, HostCannot, ValueError."""
    try:
        return decoded(host.run(("nft", "-j", "list", "ruleset"), timeout=timeout))
    except (ValueError, host.ToolFailed):
        return by_parts(timeout)


def by_parts(timeout: float) -> list[Json]:
    text = host.run(("nft", "-t", "list", "ruleset"), timeout=timeout)
    found: list[Json] = [{"table": {"family": family, "name": name, "flags": list(flags)}} for (family, name), flags in flags_of(text).items() if flags]
    for command in commands(text):
        for line in host.run(("nft", "-j", command), timeout=timeout).splitlines():
            found += [row for row in decoded(line) if "metainfo" not in row]
    return found


def commands(text: str) -> Iterator[str]:
    """What to ask for instead of everything: tables, and of those with flags what is in them. Each by itself: nft reads only what one command names."""
    flagged = flags_of(text)
    members: dict[tuple[str, str], list[str]] = {}
    table = ("", "")
    for line in text.splitlines():
        if head := TABLE.match(line):
            table = head["family"], head["name"]
            members[table] = []
        elif member := MEMBER.match(line):
            members[table].append(f"list {member['kind']} {' '.join(table)} {member['name']}")
    for (family, name), parts in members.items():
        if not flagged[family, name]:
            yield f"list table {family} {name}"
        else:
            yield from parts


def flags_of(text: str) -> dict[tuple[str, str], list[str]]:
    """(family, table) -> its flags, of nft's text."""
    found: dict[tuple[str, str], list[str]] = {}
    current: list[str] = []
    inside = False
    for line in text.splitlines():
        if head := TABLE.match(line):
            current = found[head["family"], head["name"]] = []
            inside = False
        elif MEMBER.match(line):
            inside = True
        elif not inside and (told := FLAGS.match(line)):
            current += told["flags"].replace(",", " ").split()
    return found


def with_flags(rows: list[Json], text: str) -> list[Json]:
    """*rows* with the flags of tables as the text has them."""
    known = flags_of(text)
    for row in rows:
        table = row.get("table")
        if table and (table.get("family"), table.get("name")) in known:
            table.pop("flags", None)
            if flags := known[table["family"], table["name"]]:
                table["flags"] = flags
    return rows


def decoded(text: str) -> list[Json]:
    found: list[Json] = json.loads(scrubbed(text) or "{}").get("nftables", [])
    return found
