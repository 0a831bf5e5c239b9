"""netplan's YAML -> Layout. Pure.

Files are merged in the order given (netplan: by base name, and /run before /etc before /lib for the same one):
mappings are merged, lists joined, and a later value replaces an earlier one (netplan-generate(8)).
"""
from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from kvmnet.adopt import bonds
from kvmnet.adopt import verdicts as v
from kvmnet.adopt.keys import YamlFile, items, mapping, texts
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
from kvmnet.spec.tree import join

COMMON: dict[str, v.Verdict] = {
    "mtu": v.MTU, "macaddress": v.LINK, "wakeonlan": v.LINK, "optional": v.LINK, "optional-addresses": v.LINK,
    "critical": v.LINK, "renderer": v.RENDERER, "activation-mode": v.LINK, "ignore-carrier": v.LINK,
    "emit-lldp": v.LINK, "infiniband-mode": v.LINK, "networkmanager": v.RENDERER, "openvswitch": v.KIND,
    "receive-*": v.LINK, "transmit-*": v.LINK, "tcp-segmentation-offload": v.LINK, "tcp6-segmentation-offload": v.LINK,
    "generic-*": v.LINK, "large-receive-offload": v.LINK, "auth": v.UNKNOWN,
    "addresses": v.HOST_ADDRESS, "gateway4": v.ROUTE, "gateway6": v.ROUTE, "routes": v.ROUTE,
    **dict.fromkeys(("dhcp4", "dhcp6", "dhcp4-overrides", "dhcp6-overrides", "dhcp-identifier",
                     "nameservers", "routing-policy", "link-local", "accept-ra", "ipv6-mtu",
                     "ipv6-privacy", "ipv6-address-generation", "ipv6-address-token", "neigh-suppress", "ra-overrides"),
                    v.ADDRESS)}
"""Settings that every kind of device has."""
KINDS: dict[str, dict[str, v.Verdict]] = {
    "ethernets": {**COMMON, "match": v.DEVICE, "set-name": v.DEVICE},
    "bonds": {**COMMON, "interfaces": v.MEMBERS, "parameters": v.MODE, "macaddress": v.MAC},
    "vlans": {**COMMON, "id": v.VLAN, "link": v.CARRIER, "macaddress": v.MAC},
    "bridges": {**COMMON, "interfaces": v.PORTS, "parameters": v.BRIDGE},
}
"""Kind of device -> setting -> what becomes of it. Other kinds are not expressed."""
BOND_WORDS = {"mii_monitor_interval": "miimon", "transmit_hash_policy": "xmit_hash_policy", "up_delay": "updelay",
              "down_delay": "downdelay", "arp_ip_targets": "arp_ip_target", "fail_over_mac_policy": "fail_over_mac",
              "gratuitous_arp": "num_grat_arp", "gratuitious_arp": "num_grat_arp",
              "primary_reselect_policy": "primary_reselect", "learn_packet_interval": "lp_interval"}
"""netplan's word, with underscores -> the kernel's. The others are the kernel's own."""
TIMES = frozenset({"miimon", "updelay", "downdelay", "arp_interval"})
ROUTE_KEYS = frozenset({"to", "via", "metric", "scope", "type"})
"""Keys of a route that the document can have."""
TOP = {"version": v.RENDERER, "renderer": v.RENDERER}


def parse(sources: Sequence[Source]) -> Layout:
    """Everything of the files. Raises SpecError for text that is not YAML."""
    draft = Draft()
    merged: dict[str, Any] = {}
    origin: dict[str, Place] = {}
    files = [YamlFile(s) for s in sources]
    for file in files:
        for problem in file.places.repeated:
            v.Notes(draft).add(Place(file.path, problem.line), problem.path, "", v.Verdict(
                Outcome.UNSUPPORTED, "written twice: only the first is read"))
        for path, _ in file.leaves():
            origin[path] = file.place(path)
        for path in file.places.keys:
            origin[path] = file.place(path)
        merge(merged, file.data)
    network = mapping(merged.get("network"))
    build(draft, network, origin)
    names = device_names(network)
    for file in files:
        note(v.Notes(draft), file, merged, origin, names)
    return draft.layout()


def merge(into: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merge(old, value)
        elif isinstance(old, list) and isinstance(value, list):
            into[key] = [*old, *(x for x in value if x not in old)]
        else:
            into[key] = copied(value)


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: copied(inner) for k, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def device_names(network: dict[str, Any]) -> dict[tuple[str, str], str]:
    """(kind, id) -> name of the device; '' where the files do not tell it."""
    found = {}
    for kind in KINDS:
        for name, settings in mapping(network.get(kind)).items():
            found[kind, name] = device_name(name, mapping(settings)) if kind == "ethernets" else name
    return found


def device_name(id: str, settings: dict[str, Any]) -> str:
    """An id with a match is only a word: the device is that of set-name, or of a name without wildcards."""
    match = mapping(settings.get("match"))
    name = settings.get("set-name") or (match.get("name") if match else id)
    return name if isinstance(name, str) and not set(name) & set("*?[") else ""


# -- devices ---------------------------------------------------------------------------------------

def build(draft: Draft, network: dict[str, Any], origin: dict[str, Place]) -> None:
    names = device_names(network)
    real = {id: name for (_, id), name in names.items() if name}
    for (kind, id), name in names.items():
        if not name:
            continue
        settings = mapping(mapping(network.get(kind)).get(id))
        path = join(join("network", kind), id)
        said: dict[str, Any] = {"name": name, "mtu": v.whole(settings.get("mtu")),
                                "mac": str(settings.get("macaddress") or "").lower(),
                                "place": origin.get(path, Place())}
        inner = tuple(real.get(i, i) for i in texts(settings.get("interfaces")))
        match kind:
            case "ethernets":
                draft.nics[name] = Nic(**said)
            case "bonds":
                mode, options = bonds.described(bond_words(settings))
                draft.bonds[name] = Bond(**said, members=inner, mode=mode, options=options)
            case "vlans":
                parent = str(settings.get("link") or "")
                draft.vlans[name] = Vlan(**said, parent=real.get(parent, parent), id=v.whole(settings.get("id")) or 0)
            case "bridges":
                stp = mapping(settings.get("parameters")).get("stp")
                draft.bridges[name] = Bridge(**said, ports=tuple(sorted(inner)), stp=truth(stp))
        layer3(draft, name, settings)


def truth(value: Any) -> bool | None:
    """YAML's booleans in all their spellings, which netplan accepts."""
    if isinstance(value, bool):
        return value
    return {"true": True, "yes": True, "on": True, "y": True, "false": False, "no": False, "off": False,
            "n": False}.get(str(value).lower())


def bond_word(key: str) -> str:
    plain = bonds.canonical(key)
    return BOND_WORDS.get(plain, plain)


def bond_words(settings: dict[str, Any]) -> dict[str, Any]:
    """A bond's parameters by the kernel's words; times in milliseconds."""
    found = {bond_word(key): value for key, value in mapping(settings.get("parameters")).items()
             if not isinstance(value, dict)}
    return {word: v.milliseconds(value, 1) if word in TIMES else value for word, value in found.items()}


def layer3(draft: Draft, name: str, settings: dict[str, Any]) -> None:
    draft.addresses += (Address(dev=name, cidr=c) for item in items(settings.get("addresses"))
                        if isinstance(item, str) and (c := v.cidr(item)))
    for family in (4, 6):
        if truth(settings.get(f"dhcp{family}")):
            draft.dynamic.append(Dynamic(dev=name, family=family))
        if (via := settings.get(f"gateway{family}")) and v.is_address(via):
            draft.routes.append(Route(dev=name, dst=v.prefix("default", family) or "", via=str(via)))
    draft.routes += (r for item in items(settings.get("routes")) if (r := plain_route(name, item)))


def plain_route(dev: str, item: Any) -> Route | None:
    """A route that the document can have; None for any other."""
    route = mapping(item)
    via = str(route.get("via") or "")
    dst = v.prefix(route.get("to"), 6 if ":" in via else 4)
    metric = v.whole(route.get("metric"))
    if (not dst or set(route) - ROUTE_KEYS or route.get("type", "unicast") != "unicast" or (via and not v.is_address(via))
            or route.get("scope", "link") != ("global" if via and "scope" in route else "link")
            or (metric is None and route.get("metric") is not None)):
        return None
    return Route(dev=dev, dst=dst, via=via, metric=metric)


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, file: YamlFile, merged: dict[str, Any], origin: dict[str, Place],
         names: dict[tuple[str, str], str]) -> None:
    """One element for every key of *file*."""
    for path, value in file.leaves():
        place = file.place(path)
        steps = steps_to(file.data, path)
        device = names.get((steps[1], steps[2]), "") if len(steps) > 2 else ""
        settings = mapping(mapping(mapping(merged.get("network")).get(steps[1])).get(steps[2])) if len(steps) > 2 else {}
        verdict = verdict_of(steps, device, value)
        if origin.get(path, place) != place and not isinstance(value, list):
            verdict = v.Verdict(Outcome.KEPT, f"replaced by {origin[path]}")
        elif verdict is v.MODE:
            verdict = v.UNKNOWN if len(steps) != 5 else bonds.verdict(bond_word(steps[4]), value, {})
        elif verdict in CHECKS:
            own = mapping(mapping(mapping(file.data.get("network")).get(steps[1])).get(steps[2]))
            verdict = CHECKS[verdict](verdict, steps, path, value, own if steps[3] == "routes" else settings)
        notes.add(place, path, value, verdict, device)


def checked_mtu(verdict: v.Verdict, steps: list[str], path: str, value: Any, settings: dict[str, Any]) -> v.Verdict:
    return verdict if len(steps) == 4 and v.whole(value) is not None else v.BAD_VALUE


def checked_addresses(verdict: v.Verdict, steps: list[str], path: str, value: Any, settings: dict[str, Any]) -> v.Verdict:
    """A list of plain ones is one element; one with options of its own stays with the host."""
    if len(steps) > 4:
        return v.ADDRESS
    wrong = [x for x in items(value) if not (isinstance(x, str) and v.cidr(x))]
    return v.Verdict(Outcome.UNSUPPORTED, f"no address with its prefix length: {v.one_line(wrong)}") if wrong else verdict


def checked_route(verdict: v.Verdict, steps: list[str], path: str, value: Any, settings: dict[str, Any]) -> v.Verdict:
    if steps[3] != "routes":
        return verdict if len(steps) == 4 and v.is_address(value) else v.BAD_VALUE
    position = re.search(r"\.routes\[(\d+)\](\.[^.]*)?$", path)
    rows = items(settings.get("routes"))
    row = rows[int(position[1])] if position and int(position[1]) < len(rows) else None
    return v.ROUTE if plain_route("", row) else v.ODD_ROUTE


def checked_name(verdict: v.Verdict, steps: list[str], path: str, value: Any, settings: dict[str, Any]) -> v.Verdict:
    return verdict if len(steps) == 4 and not isinstance(value, (dict, list)) else v.BAD_VALUE


def checked_members(verdict: v.Verdict, steps: list[str], path: str, value: Any, settings: dict[str, Any]) -> v.Verdict:
    return verdict if len(steps) == 4 and len(texts(value)) == len(items(value)) and not isinstance(value, dict) else v.BAD_VALUE


CHECKS: dict[v.Verdict, Callable[[v.Verdict, list[str], str, Any, dict[str, Any]], v.Verdict]] = {
    v.MTU: checked_mtu, v.HOST_ADDRESS: checked_addresses, v.ROUTE: checked_route, v.VLAN: checked_mtu,
    v.CARRIER: checked_name, v.MAC: checked_name, v.MEMBERS: checked_members, v.PORTS: checked_members}
"""Verdict -> what looks at the value, too."""


def steps_to(data: Any, path: str) -> list[str]:
    """The keys on the way to *path*, list positions left out; keys may have dots."""
    if isinstance(data, list):
        for index, inner in enumerate(data):
            if path == f"[{index}]" or path.startswith(f"[{index}]"):
                return steps_to(inner, path[len(f"[{index}]"):].removeprefix("."))
        return []
    if isinstance(data, dict):
        for key, inner in data.items():
            if path == key:
                return [key]
            if path.startswith((f"{key}.", f"{key}[")):
                rest = steps_to(inner, path[len(key):].removeprefix("."))
                if rest or not isinstance(inner, (dict, list)) or re.fullmatch(r"\[\d+\]", path[len(key):]):
                    return [key, *rest]
    return []


def verdict_of(steps: list[str], device: str, value: Any) -> v.Verdict:
    if not steps or steps[0] != "network":
        return v.UNKNOWN
    if len(steps) < 3:
        return TOP.get(steps[1], v.KIND) if len(steps) == 2 else v.UNKNOWN
    kind = KINDS.get(steps[1])
    if kind is None:
        return TOP.get(steps[1], v.KIND)
    if not device:
        return v.NAMELESS
    if len(steps) == 3:
        return v.DEVICE if value in (None, {}) else v.UNKNOWN
    return v.judge(kind, steps[3])
