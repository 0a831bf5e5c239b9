"""What OVN wants of this host and what has come of it: its southbound database, its controller here, the flows of each port; where the northbound database runs here, the routers that translate.

Only reads: one query for each database, one question to the controller, two tables of flows, however many ports there are. What cannot be had is None, with the reason.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from kvmnet.errors import HostCannot
from kvmnet.facts.ovsdb import SECONDS, Json, Servers, Table, select, several
from kvmnet.host import run as host
from kvmnet.host.side import together

BRIDGE = "br-int"
"""Bridge that OVN writes its flows into, where no other is named (ovn-controller(8))."""
SOUTH: tuple[Table, ...] = (
    ("Chassis", ("_uuid", "name", "other_config")),
    ("Port_Binding", ("_uuid", "logical_port", "type", "datapath", "chassis", "up", "mac", "options")))
NORTH: tuple[Table, ...] = (
    ("Logical_Router", ("name", "nat", "ports", "options")), ("NAT", ("_uuid", "type", "external_ip", "logical_ip")),
    ("Logical_Router_Port", ("_uuid", "name", "networks", "gateway_chassis", "ha_chassis_group")))
SHARED = ("localnet", "patch", "chassisredirect", "l3gateway")
"""Types of ports that say how networks hang together; of the others those of this host are kept."""
ENTERS, LEAVES = 0, 65
"""Tables that each port of a host has a flow in: where its frames enter the pipeline, and where they leave (OFTABLE_PHY_TO_LOG, OFTABLE_LOG_TO_PHY in OVN's controller/lflow.h). Its cookie is the
beginning of the port's UUID."""
COOKIE = re.compile(r"cookie=0x([0-9a-f]+)")
NORTHBOUND = re.compile(r"punix:(\S*nb\S*\.sock)$")


def ovn(ids: Mapping[str, str], keys: Mapping[str, str], bridges: list[Json], servers: Servers) -> Json | None:
    """None where nothing of OVN is here. ``{chassis, remote, bridge, mappings, controller, ports, routers, chassis_mapped, reasons}``; ``controller`` is what it says of its connection, '' where it does not run, None where it could not be asked.
    ``ports``: ``{name, type, datapath, here, mac, network, peer, of, enters, leaves}``, ``enters`` and ``leaves`` being numbers of flows."""
    north = next((f"unix:{found[1]}" for s in servers if s["program"] == "ovsdb-server" for w in s["argv"] if (found := NORTHBOUND.search(w))), "")
    chassis = ids.get("system-id", "")
    remote = setting(ids, "ovn-remote")
    if not north and not remote:
        return None
    made: Json = {"chassis": chassis if remote else "", "remote": remote, "bridge": setting(ids, "ovn-bridge") or BRIDGE, "mappings": mappings(setting(ids, "ovn-bridge-mappings")), "controller": "", "ports": None, "routers": [], "mapped": [], "reasons": []}
    jobs = [lambda: southbound(made, remote, keys, bridges), lambda: controller(made, servers)] if remote else []
    for reason in together([*jobs, *([lambda: northbound(made, north)] if north else [])]):
        made["reasons"] += [reason] if reason else []
    return made


def setting(ids: Mapping[str, str], name: str) -> str:
    """One of the switch's settings: that of this chassis before that of all on the machine (ovn-controller(8))."""
    return ids.get(f"{name}-{ids.get('system-id', '')}") or ids.get(name, "")


def mappings(text: str) -> dict[str, str]:
    """``physnet:br-ex,other:br2``."""
    return {name.strip(): bridge.strip() for name, colon, bridge in (word.partition(":") for word in text.split(",")) if colon}


def controller(made: Json, servers: Servers) -> str:
    if all(s["program"] != "ovn-controller" for s in servers):
        return ""
    try:
        made["controller"] = host.run(("ovn-appctl", f"--timeout={SECONDS:.0f}", "-t", "ovn-controller", "connection-status"), timeout=2 * SECONDS).strip()
    except (host.ToolFailed, HostCannot) as failed:
        made["controller"] = "silent" if isinstance(failed, host.ToolFailed) and failed.code < 0 else None     # killed by its deadline; any other reason says nothing of the controller
        return str(failed)
    return ""


def southbound(made: Json, remote: str, keys: Mapping[str, str], bridges: list[Json]) -> str:
    try:
        chassis, bindings = select(remote, "OVN_Southbound", SOUTH, keys)
        counts = flows(made["bridge"]) if any(b["name"] == made["bridge"] and not b["state"] for b in bridges) else None
    except (host.ToolFailed, HostCannot, ValueError) as failed:
        return str(failed)
    own = next((c["_uuid"] for c in chassis if c["name"] == made["chassis"]), None)
    local = {p["iface_id"] for b in bridges if b["name"] == made["bridge"] for p in b["ports"] if p["iface_id"]}
    made["mapped"] = [c["name"] for c in chassis if c["other_config"].get("ovn-bridge-mappings")]
    made["ports"] = [binding(row, own, counts) for row in bindings if row["type"] in SHARED or row["logical_port"] in local]
    return ""


def binding(row: Json, own: str | None, counts: tuple[Counter[str], Counter[str]] | None) -> Json:
    options, cookie = row["options"], row["_uuid"][:8].lstrip("0")
    return {"name": row["logical_port"], "type": row["type"], "datapath": row["datapath"], "here": own is not None and row["chassis"] == own and row["up"] is True, "mac": several(row["mac"]), "network": options.get("network_name", ""),
            "peer": options.get("peer", ""), "of": options.get("distributed-port", ""), "enters": counts[0][cookie] if counts else None, "leaves": counts[1][cookie] if counts else None}


def flows(bridge: str) -> tuple[Counter[str], Counter[str]]:
    """Cookies of the flows by which frames enter OVN's pipeline, and of those by which they leave it. Raises ToolFailed."""
    def of(table: int) -> Counter[str]:
        return Counter(COOKIE.findall(host.run(("ovs-ofctl", f"--timeout={SECONDS:.0f}", "dump-flows", bridge, f"table={table}"), timeout=2 * SECONDS)))
    return of(ENTERS), of(LEAVES)


def northbound(made: Json, remote: str) -> str:
    try:
        routers, nats, ports = select(remote, "OVN_Northbound", NORTH)
    except (host.ToolFailed, HostCannot, ValueError) as failed:
        return str(failed)
    made["routers"] = list(translating(routers, {n["_uuid"]: n for n in nats}, {p["_uuid"]: p for p in ports}))
    return ""


def translating(routers: Iterable[Json], nats: Mapping[str, Json], ports: Mapping[str, Json]) -> Iterable[Json]:
    """Routers with rules of NAT."""
    for router in routers:
        if router["nat"]:
            yield {"name": router["name"], "chassis": router["options"].get("chassis", ""), "nat": [{"type": nats[n]["type"], "external": nats[n]["external_ip"], "inner": nats[n]["logical_ip"]} for n in several(router["nat"]) if n in nats],
                   "ports": [{"name": p["name"], "networks": several(p["networks"]), "gateway": bool(p["gateway_chassis"] or p["ha_chassis_group"])} for p in map(ports.get, several(router["ports"])) if p]}
