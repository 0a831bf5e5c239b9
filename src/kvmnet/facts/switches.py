"""Bridges of Open vSwitch, as its database and its switch tell. Only reads: one process for the database, two for each bridge, each with a deadline."""
from __future__ import annotations

import json
import re

from kvmnet.facts.ovn import BRIDGE, ovn
from kvmnet.facts.ovsdb import SECONDS, Json, Servers, several, value
from kvmnet.host import run as host
from kvmnet.records import dataclass

ASKED = {"bridge": "name,ports,fail_mode,datapath_type,controller", "port": "_uuid,name,interfaces,tag", "interface": "_uuid,name,type,ofport,error,options,external_ids",
         "controller": "_uuid,target", "open_vswitch": "external_ids", "ssl": "private_key,certificate,ca_cert"}
"""Table -> its columns. Of maps, which can hold passwords, only what is named below goes on."""
DATABASE = re.compile(r"(^|[:/])(db\.sock|conf\.db)$")
"""Of the words of an ovsdb-server: that it has the database of a switch, not OVN's."""
FLOWS = re.compile(r"flow_count=(\d+)")
LEARNED = re.compile(r"^\s*(\d+)\s+\d+\s+((?:[0-9a-f]{2}:){5}[0-9a-f]{2})\s", re.M)


@dataclass(frozen=True, slots=True)
class Database:
    bridges: list[Json]
    settings: dict[str, str]
    """``external_ids`` of the whole switch."""
    keys: dict[str, str]
    """Files of its TLS keys."""


def switches(servers: Servers) -> Json:
    """``switches``: of each bridge ``{name, fail_mode, datapath, controllers, ovn, state, flows, learned, ports}``, and ``ovn``, what OVN wants of this host; nothing where no switch
    runs in this network namespace. ``state`` is 'dead' when ovs-vswitchd does not run, 'silent' when it does not answer. ``flows`` is None where the switch did not tell."""
    told = Database([], {}, {})
    running = any(s["program"] == "ovs-vswitchd" for s in servers)
    if (running or any(s["program"] == "ovsdb-server" and any(map(DATABASE.search, s["argv"])) for s in servers)) and not host.missing("ovs-vsctl"):
        told = database()
        state = "" if running else "dead"
        for bridge in told.bridges:
            bridge |= {"state": state, "flows": None, "learned": []}
            if not state:
                bridge |= asked(bridge)
                state = bridge["state"]
    return {"switches": told.bridges, "ovn": ovn(told.settings, told.keys, told.bridges, servers)}


def database() -> Database:
    words = [word for table, columns in ASKED.items() for word in ("--", f"--columns={columns}", "list", table)]
    return parsed(host.run(("ovs-vsctl", f"--timeout={SECONDS:.0f}", "--no-wait", "--format=json", *words), timeout=2 * SECONDS))


def asked(bridge: Json) -> Json:
    """What the switch itself tells of a bridge: how many flows, and behind which ports it has learned which MACs."""
    if host.missing("ovs-ofctl", "ovs-appctl"):
        return {}
    limit = f"--timeout={SECONDS:.0f}"
    try:
        told = FLOWS.search(host.run(("ovs-ofctl", limit, "dump-aggregate", bridge["name"]), timeout=2 * SECONDS))
        found = "" if bridge["ovn"] else host.run(("ovs-appctl", limit, "fdb/show", bridge["name"]), timeout=2 * SECONDS)
    except host.ToolFailed as failed:
        return {"state": "silent"} if failed.code < 0 or "timeout" in failed.detail.lower() or "alarm" in failed.detail.lower() else {}
    numbers = {str(p["ofport"]): p["name"] for p in bridge["ports"]}
    return {"flows": int(told[1]) if told else None, "learned": [{"port": numbers[number], "mac": mac} for number, mac in LEARNED.findall(found) if number in numbers]}


def parsed(text: str) -> Database:
    """Bridges with their ports, of the tables that ovs-vsctl prints as JSON, one after the other (ovs-vsctl(8), RFC 7047)."""
    decoder, at, tables = json.JSONDecoder(), 0, []
    while at < len(text.rstrip()):
        table, at = decoder.raw_decode(text, at)
        tables.append([dict(zip(table["headings"], map(value, row), strict=True)) for row in table["data"]])
        at += len(text[at:]) - len(text[at:].lstrip())
    bridges, ports, interfaces, controllers, whole, keys = tables
    settings: dict[str, str] = next((row["external_ids"] for row in whole), {})
    named = {i["_uuid"]: i for i in interfaces}
    held = {p["_uuid"]: [named[i] for i in several(p["interfaces"]) if i in named] for p in ports}
    tags = {p["_uuid"]: p["tag"] for p in ports}
    targets = {c["_uuid"]: c["target"] for c in controllers}
    made = [{"name": b["name"], "fail_mode": b["fail_mode"] or "", "datapath": b["datapath_type"] or "system", "controllers": [targets[c] for c in several(b["controller"]) if c in targets],
             "ovn": "ovn-remote" in settings and b["name"] == settings.get("ovn-bridge", BRIDGE), "ports": [port(i) | {"tag": tags.get(p)} for p in several(b["ports"]) for i in held.get(p, ())]} for b in bridges]
    return Database(made, settings, next(iter(keys), {}))


def port(row: Json) -> Json:
    return {"name": row["name"], "type": row["type"], "ofport": row["ofport"], "error": row["error"] or "", "peer": row["options"].get("peer", ""), "iface_id": row["external_ids"].get("iface-id", "")}
