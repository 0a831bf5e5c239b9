"""nmstate's YAML (``nmstatectl show``, or a desired state) -> Layout. Pure. Format: nmstate.io, API specification."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    "bond": {**COMMON, "type": v.BOND, "link-aggregation": v.BOND},
    "vlan": {**COMMON, "type": v.VLAN, "vlan": v.VLAN},
}
"""Type of an interface -> key -> what becomes of it."""
TOP = {"routes": v.ADDRESS, "dns-resolver": v.ADDRESS, "route-rules": v.ADDRESS, "hostname": v.RENDERER,
       "description": v.RENDERER}
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
    notes.settle()
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
            members = texts(bond.get("port")) or texts(bond.get("ports")) or texts(bond.get("slaves"))
            draft.bonds[name] = Bond(**said, members=tuple(sorted(members)), mode=str(bond.get("mode") or ""))
        case "vlan":
            vlan = mapping(interface.get("vlan"))
            draft.vlans[name] = Vlan(**said, parent=str(vlan.get("base-iface") or ""), id=v.whole(vlan.get("id")) or 0)
        case _:
            draft.nics[name] = Nic(**said)
    for family in (4, 6):
        layer3(draft, name, family, mapping(interface.get(f"ipv{family}")))


def layer3(draft: Draft, name: str, family: int, settings: dict[str, Any]) -> None:
    if settings.get("enabled") is False:
        return
    if settings.get("dhcp") is True:
        draft.dynamic.append(Dynamic(dev=name, family=family))
    for item in items(settings.get("address")):
        address = mapping(item)
        if found := v.cidr(f"{address.get('ip')}/{address.get('prefix-length')}"):
            draft.addresses.append(Address(dev=name, cidr=found))


def routes(draft: Draft, settings: dict[str, Any]) -> None:
    for item in items(settings.get("config")):
        route = mapping(item)
        via = str(route.get("next-hop-address") or "")
        dst = v.prefix(route.get("destination"), 6 if ":" in via else 4)
        if dst and route.get("state") != "absent":
            draft.routes.append(Route(dev=str(route.get("next-hop-interface") or ""), dst=dst, via=via,
                                      metric=v.whole(route.get("metric"))))


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, file: YamlFile, interfaces: Sequence[Any]) -> None:
    for key, value in file.data.items():
        if key != "interfaces" or not isinstance(value, list):
            for path, leaf in leaves({key: value}, ""):
                notes.add(file.place(path), path, leaf, TOP.get(key, v.UNKNOWN))
    for index, item in enumerate(interfaces if isinstance(file.data.get("interfaces"), list) else ()):
        base = f"interfaces[{index}]"
        if not isinstance(item, dict):
            notes.add(file.place(base), base, item, v.UNKNOWN)
            continue
        for key, value in item.items():
            for path, leaf in leaves({key: value}, ""):
                verdict = verdict_of(item, key, path, leaf)
                notes.add(file.place(f"{base}.{path}"), f"{base}.{path}", leaf, verdict, str(item.get("name", "")))


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
    if verdict is v.BRIDGE and ".vlan." in path:
        return v.VLAN_FILTER
    return v.PORTS if verdict is v.BRIDGE and path.startswith("bridge.port[") and path.endswith("].name") else verdict
