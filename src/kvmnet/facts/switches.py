"""Bridges of Open vSwitch, as its database and its switch tell. Only reads, one process for the database and one for each bridge."""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from kvmnet.host import run as host

Json = dict[str, Any]
SECONDS = 3.0
"""Longest that a tool may wait for a switch that does not answer; left to themselves they wait for ever."""
ASKED = (("--columns=name,ports,fail_mode,datapath_type", "list", "bridge"), ("--columns=_uuid,name,interfaces", "list", "port"),
         ("--columns=_uuid,name,type,ofport,error", "list", "interface"))
FLOWS = re.compile(r"flow_count=(\d+)")


def switches(servers: Iterable[Mapping[str, Any]]) -> list[Json]:
    """``{name, fail_mode, datapath, flows, ports}``; nothing where no switch runs in this network namespace. ``flows`` is None where the switch did not tell."""
    if all(s["program"] != "ovs-vswitchd" for s in servers) or host.missing("ovs-vsctl"):
        return []
    words = [word for table in ASKED for word in ("--", *table)]
    text = host.run(("ovs-vsctl", f"--timeout={SECONDS:.0f}", "--no-wait", "--format=json", *words), timeout=2 * SECONDS)
    return [bridge | {"flows": flows(bridge["name"])} for bridge in parsed(text)]


def flows(bridge: str) -> int | None:
    if host.missing("ovs-ofctl"):
        return None
    try:
        told = FLOWS.search(host.run(("ovs-ofctl", f"--timeout={SECONDS:.0f}", "dump-aggregate", bridge), timeout=2 * SECONDS))
    except host.ToolFailed:
        return None
    return int(told[1]) if told else None


def parsed(text: str) -> list[Json]:
    """Bridges with their ports, of three tables that ovs-vsctl prints as JSON, one after the other (ovs-vsctl(8), RFC 7047)."""
    decoder, at, tables = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        table, at = decoder.raw_decode(text, at)
        tables.append([dict(zip(table["headings"], map(value, row), strict=True)) for row in table["data"]])
        at += len(text[at:]) - len(text[at:].lstrip())
    bridges, ports, interfaces = tables
    named = {i["_uuid"]: i for i in interfaces}
    held = {p["_uuid"]: [named[i] for i in several(p["interfaces"]) if i in named] for p in ports}
    return [{"name": b["name"], "fail_mode": b["fail_mode"] or "", "datapath": b["datapath_type"] or "system",
             "ports": [{"name": i["name"], "type": i["type"], "ofport": i["ofport"], "error": i["error"] or ""} for p in several(b["ports"]) for i in held.get(p, ())]} for b in bridges]


def value(told: Any) -> Any:
    """A value of the database: a set of none is None, of several a list; a UUID is its text."""
    if isinstance(told, list) and told[0] == "set":
        return [value(one) for one in told[1]] or None
    return told[1] if isinstance(told, list) else told


def several(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found] if found else []
