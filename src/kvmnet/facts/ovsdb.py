"""Databases of Open vSwitch and OVN (RFC 7047), asked by their client. Only reads."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kvmnet.host import run as host

Json = dict[str, Any]
Servers = Sequence[Mapping[str, Any]]
SECONDS = 3.0
"""Longest that a tool may wait for a switch or database that does not answer; left to themselves they wait for ever."""
Table = tuple[str, tuple[str, ...]]
"""A table and the columns that are read of it."""


def select(remote: str, database: str, tables: Sequence[Table], keys: Mapping[str, Any] = {}) -> list[list[Json]]:
    """Rows of *tables*, in one transaction; ``keys`` are files of TLS. Raises ToolFailed; ValueError, when the database has no such column."""
    secured = [f"--{option}={file}" for option, column in (("private-key", "private_key"), ("certificate", "certificate"), ("ca-cert", "ca_cert")) if (file := keys.get(column))] if "ssl:" in remote else []
    asked = [database, *({"op": "select", "table": table, "where": [], "columns": list(columns)} for table, columns in tables)]
    answer = json.loads(host.run(("ovsdb-client", f"--timeout={SECONDS:.0f}", "--no-leader-only", *secured, "query", remote, json.dumps(asked)), timeout=2 * SECONDS))
    if refused := next((a for a in answer if a and "error" in a), None):
        raise ValueError(f"{remote}: {refused['error']}: {refused.get('details', '')}")
    return [[{column: value(told) for column, told in row.items()} for row in a["rows"]] for a in answer]


def value(told: Any) -> Any:
    """A value of the database: a set of none is None, of several a list; a map a dictionary; a UUID is its text."""
    if isinstance(told, list) and told[0] == "set":
        return [value(one) for one in told[1]] or None
    if isinstance(told, list) and told[0] == "map":
        return {value(name): value(one) for name, one in told[1]}
    return told[1] if isinstance(told, list) else told


def several(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found] if found else []
