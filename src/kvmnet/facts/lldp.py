"""Who is at the other end of the host's NICs, as a running lldpd has heard it (IEEE 802.1AB).

Nothing is needed of it: where there is no lldpd, or it does not answer, nobody is known.
"""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kvmnet.facts.model import LinkNeighbour
from kvmnet.host import run as host
from kvmnet.host.paths import Paths

MACHINE = Path("/run/kvmnet")
SOCKET = Path("/run/lldpd.socket")
"""Where the machine's own lldpd listens (lldpcli(8)). A host with a run directory of its own has its lldpd's
socket there: that of the machine would name NICs of another network namespace."""
SECONDS = 2.0


def socket_of(paths: Paths) -> Path:
    return SOCKET if paths.run == MACHINE else paths.run / SOCKET.name


def link_neighbours(paths: Paths) -> dict[str, tuple[LinkNeighbour, ...]]:
    """NIC -> its neighbours; empty without lldpd."""
    place = socket_of(paths)
    if not place.exists() or host.missing("lldpcli"):
        return {}
    try:
        text = host.run(("lldpcli", "-u", str(place), "-f", "json0", "show", "neighbors"), timeout=SECONDS)
        data = json.loads(text or "{}")
    except (host.ToolFailed, ValueError):
        return {}
    found: dict[str, tuple[LinkNeighbour, ...]] = {}
    for device, neighbour in parse(data):
        found[device] = (*found.get(device, ()), neighbour)
    return found


def parse(data: Mapping[str, Any]) -> Iterator[tuple[str, LinkNeighbour]]:
    """(NIC, neighbour) of lldpcli's json0, where every element is a list. What a neighbour does not tell is ''."""
    for item in items(data, "lldp"):
        for interface in items(item, "interface"):
            chassis, port = first(interface, "chassis"), first(interface, "port")
            yield str(interface.get("name", "")), LinkNeighbour(
                name=text(chassis, "name") or text(chassis, "id"), description=text(chassis, "descr"),
                address=text(chassis, "mgmt-ip"), port=text(port, "descr") or text(port, "id"), port_id=text(port, "id"),
                vlans=tuple(sorted({int(v["vlan-id"]) for v in items(interface, "vlan") if str(v.get("vlan-id", "")).isdigit()})),
                native=next((int(v["vlan-id"]) for v in items(interface, "vlan") if v.get("pvid") in (True, "yes")
                             and str(v.get("vlan-id", "")).isdigit()), 0))


def items(data: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    found = data.get(name)
    for item in found if isinstance(found, list) else ():
        if isinstance(item, Mapping):
            yield item


def first(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(items(data, name), {})


def text(data: Mapping[str, Any], name: str) -> str:
    """One line of plain text: it comes from another machine, and is printed on a terminal."""
    value = str(first(data, name).get("value", ""))
    return "".join(c if c.isprintable() else " " for c in value).strip()[:255]
