"""nmstate's YAML (``nmstatectl show``, or a desired state) -> Layout. Pure. Format: nmstate.io, API specification."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from kvmnet.adopt import bonds
from kvmnet.adopt import verdicts as v
from kvmnet.adopt.keys import YamlFile, items, leaves, mapping, texts
from kvmnet.adopt.model import (
    Address,
    Bond,
    Bridge,
    Draft,
    Dynamic,
    Layout,
    Nic,
    Outcome,
    Place,
    Route,
    Source,
    Vlan,
)

COMMON: dict[str, v.Verdict] = {
    "name": v.DEVICE, "type": v.DEVICE, "state": v.DEVICE, "mtu": v.MTU, "ipv4": v.ADDRESS, "ipv6": v.ADDRESS,
    **dict.fromkeys(("mac-address", "permanent-mac-address", "max-mtu", "min-mtu", "profile-name", "description",
                     "accept-all-mac-addresses", "ethtool", "lldp", "identifier", "wait-ip", "copy-mac-from", "driver",
                     "mptcp", "alt-names", "dispatch"), v.LINK)}
KINDS: dict[str, dict[str, v.Verdict]] = {
    "ethernet": {**COMMON, "ethernet": v.LINK},
    "veth": {**COMMON, "veth": v.LINK},
    "linux-bridge": {**COMMON, "bridge": v.BRIDGE},
    "bond": {**COMMON, "link-aggregation": v.MODE, "mac-address": v.MAC},
    "vlan": {**COMMON, "vlan": v.VLAN, "mac-address": v.MAC},
}
"""Type of an interface -> key -> what becomes of it."""
TOP = {"routes": v.ADDRESS, "dns-resolver": v.ADDRESS, "route-rules": v.ADDRESS, "hostname": v.RENDERER,
       "description": v.RENDERER}
MEMBERS = ("port", "ports", "slaves")
PROTOCOLS = {"802.1q": "802.1Q", "802.1Q": "802.1Q", "802.1ad": "802.1ad"}
VLAN_USUAL = {"reorder-headers": True, "loose-binding": False, "registration-protocol": "none"}
ROUTE_KEYS = frozenset({"destination", "next-hop-address", "next-hop-interface", "metric", "table-id"})
"""Keys of a route that the document can have."""
ABSENT_ROUTE = v.Verdict(Outcome.UNSUPPORTED, "asks for a removal: import takes over what exists")
ABSENT = v.Verdict(Outcome.UNSUPPORTED, "asks for a removal: import takes over what exists")
IGNORED = v.Verdict(Outcome.KEPT, "state: ignore leaves the device to others")


def parse(sources: Sequence[Source]) -> Layout:
    """Everything of the files, each read by itself. Raises SpecError for text that is not YAML."""
    draft = Draft()
    notes = v.Notes(draft)
    for file in [YamlFile(s) for s in sources]:
        for problem in file.places.repeated:
            notes.add(Place(file.path, problem.line), problem.path, "",
                      v.Verdict(Outcome.UNSUPPORTED, "written twice: only the first is read"))
        interfaces = items(file.data.get("interfaces"))
        for index, interface in enumerate(interfaces):
            build(draft, mapping(interface), file.place(f"interfaces[{index}]"))
        routes(draft, mapping(file.data.get("routes")))
        note(notes, file, interfaces)
    return draft.layout()


def handled(interface: Mapping[str, Any]) -> bool:
    return (interface.get("type") in KINDS and interface.get("state", "up") in ("up", "down")
            and isinstance(interface.get("name"), str))


def build(draft: Draft, interface: dict[str, Any], place: Place) -> None:
    if not handled(interface):
        return
    name = interface["name"]
    said: dict[str, Any] = {"name": name, "mtu": v.whole(interface.get("mtu")), "place": place,
                            "mac": str(interface.get("mac-address") or "").lower()}
    match interface["type"]:
        case "linux-bridge":
            bridge = mapping(interface.get("bridge"))
            ports = sorted(str(p["name"]) for p in items(bridge.get("port")) if mapping(p).get("name"))
            stp = mapping(mapping(bridge.get("options")).get("stp")).get("enabled")
            draft.bridges[name] = Bridge(**said, ports=tuple(ports), stp=stp if isinstance(stp, bool) else None)
        case "bond":
            bond = mapping(interface.get("link-aggregation"))
            members = next((m for key in MEMBERS if (m := texts(bond.get(key)))), ())
            mode, options = bonds.described({bonds.canonical(k): w for k, w in mapping(bond.get("options")).items()
                                             if not isinstance(w, dict)} | {"mode": bond.get("mode")})
            draft.bonds[name] = Bond(**said, members=members, mode=mode, options=options)
        case "vlan":
            vlan = mapping(interface.get("vlan"))
            draft.vlans[name] = Vlan(**said, parent=str(vlan.get("base-iface") or ""), id=v.whole(vlan.get("id")) or 0,
                                     protocol=PROTOCOLS.get(str(vlan.get("protocol")), "802.1Q"))
        case _:
            draft.nics[name] = Nic(**said)
    for family in (4, 6):
        layer3(draft, name, family, mapping(interface.get(f"ipv{family}")))


def layer3(draft: Draft, name: str, family: int, settings: dict[str, Any]) -> None:
    if settings.get("enabled") is False:
        return
    if settings.get("dhcp") is True:
        draft.dynamic.append(Dynamic(dev=name, family=family))
    draft.addresses += (Address(dev=name, cidr=c) for item in items(settings.get("address"))
                        if (c := plain_address(family, item)))


def plain_address(family: int, item: Any) -> str | None:
    """An address without more than its prefix length. Those of fe80::/10 the kernel makes by itself."""
    address = mapping(item)
    found = v.cidr(f"{address.get('ip')}/{address.get('prefix-length')}")
    own = not set(address) - {"ip", "prefix-length"} and found and (":" in found) == (family == 6)
    return found if own and not str(found).startswith("fe80:") else None


def plain_route(item: Any) -> Route | None:
    route = mapping(item)
    via, dev = str(route.get("next-hop-address") or ""), route.get("next-hop-interface")
    dst, metric = v.prefix(route.get("destination"), 6 if ":" in via else 4), v.whole(route.get("metric"))
    table = route.get("table-id", 254)
    if (not dst or not isinstance(dev, str) or set(route) - ROUTE_KEYS or table not in (0, 254)
            or (via and not v.is_address(via)) or (metric is None and route.get("metric") is not None)):
        return None
    return Route(dev=dev, dst=dst, via=via, metric=None if metric == -1 else metric)


def routes(draft: Draft, settings: dict[str, Any]) -> None:
    draft.routes += (r for item in items(settings.get("config")) if (r := plain_route(item)))


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, file: YamlFile, interfaces: Sequence[Any]) -> None:
    for key, value in file.data.items():
        if key == "routes" and isinstance(value, dict):
            note_routes(notes, file, value)
        elif key != "interfaces" or not isinstance(value, list) or not value:
            for path, leaf in leaves({key: value}, ""):
                notes.add(file.place(path), path, leaf, TOP.get(key, v.UNKNOWN))
    for index, item in enumerate(interfaces if isinstance(file.data.get("interfaces"), list) else ()):
        base = f"interfaces[{index}]"
        if not isinstance(item, dict) or not item:
            notes.add(file.place(base), base, item, v.UNKNOWN)
            continue
        for key, value in item.items():
            for path, leaf in leaves({key: value}, ""):
                verdict = verdict_of(item, key, path, leaf)
                notes.add(file.place(f"{base}.{path}"), f"{base}.{path}", leaf, verdict, str(item.get("name", "")))


def note_routes(notes: v.Notes, file: YamlFile, settings: dict[str, Any]) -> None:
    """What runs (``running``) is what was told (``config``) and what others made."""
    rows = items(settings.get("config"))
    for path, leaf in leaves({"routes": settings}, ""):
        found = re.match(r"routes\.config\[(\d+)\]", path)
        route = plain_route(rows[int(found[1])]) if found and rows else None
        verdict = v.ROUTE if route else ABSENT_ROUTE if found and mapping(rows[int(found[1])]).get("state") == "absent" \
            else v.ODD_ROUTE if found else v.ADDRESS
        notes.add(file.place(path), path, leaf, verdict, route.dev if route else "")


def verdict_of(interface: Mapping[str, Any], key: str, path: str, value: Any) -> v.Verdict:
    if interface.get("name") == "lo":
        return v.LOOPBACK
    if interface.get("state") == "absent":
        return ABSENT
    if interface.get("state") == "ignore":
        return IGNORED
    if not handled(interface):
        return v.KIND
    verdict = v.judge(KINDS[interface["type"]], key)
    if verdict is v.MTU and v.whole(value) is None:
        return v.BAD_VALUE
    if key in ("ipv4", "ipv6"):
        found = re.match(r"ipv[46]\.address\[(\d+)\]", path)
        on = mapping(interface[key]).get("enabled") is not False
        rows = items(mapping(interface[key]).get("address"))
        return v.HOST_ADDRESS if found and on and plain_address(int(key[3]), rows[int(found[1])]) else v.ADDRESS
    if verdict is v.BRIDGE:
        if ".vlan." in path:
            return v.VLAN_FILTER
        return v.PORTS if path.startswith("bridge.port[") and path.endswith("].name") else verdict
    if verdict is v.MODE:
        return bond_verdict(mapping(interface[key]), path, value)
    if verdict is v.VLAN:
        return vlan_verdict(path, value)
    return v.BAD_VALUE if verdict is v.MAC and isinstance(value, (dict, list)) else verdict


def bond_verdict(bond: Mapping[str, Any], path: str, value: Any) -> v.Verdict:
    inner = path.partition(".")[2]
    if inner in MEMBERS:
        return v.MEMBERS if isinstance(value, list) and len(texts(value)) == len(value) else v.BAD_VALUE
    if inner == "mode":
        return v.MODE
    if inner.startswith("options.") and isinstance(bond.get("options"), dict) and not isinstance(value, dict):
        return bonds.verdict(bonds.canonical(inner.removeprefix("options.")), value, {})
    return v.UNKNOWN


def vlan_verdict(path: str, value: Any) -> v.Verdict:
    inner = path.partition(".")[2]
    if inner == "protocol":
        return v.PROTOCOL if str(value) in PROTOCOLS else v.BAD_VALUE
    if inner in VLAN_USUAL:
        return v.Verdict(Outcome.MAPPED, "the kernel's default") if value == VLAN_USUAL[inner] else v.UNKNOWN
    verdict = {"base-iface": v.CARRIER, "id": v.VLAN}.get(inner, v.UNKNOWN)
    return v.BAD_VALUE if isinstance(value, (dict, list)) or (verdict is v.VLAN and v.whole(value) is None) else verdict
