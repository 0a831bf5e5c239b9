"""systemd-networkd's .network and .netdev files -> Layout. Pure.

Format: systemd.syntax(7), systemd.network(5), systemd.netdev(5), systemd.link(5). Of several .network files the
first by base name that matches a device counts. Drop-ins (NAME.network.d/*.conf) belong to their file.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from kvmnet.adopt import verdicts as v
from kvmnet.adopt.model import Address, Bond, Bridge, Draft, Dynamic, Layout, Nic, Place, Route, Source, Vlan

YES = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
JOINED = {"Bridge": v.PORTS, "Bond": v.BOND, "VLAN": v.VLAN, "MACVLAN": v.KIND, "MACVTAP": v.KIND, "VXLAN": v.KIND,
          "Tunnel": v.KIND, "IPVLAN": v.KIND, "VRF": v.KIND, "BatmanAdvanced": v.KIND, "IPoIB": v.KIND, "Xfrm": v.KIND,
          "IPVTAP": v.KIND, "MACsec": v.KIND}
L3 = ("Address", "Gateway", "DNS", "Domains", "DHCP", "DHCPServer", "LinkLocalAddressing", "IPv6AcceptRA", "NTP",
      "IPForward", "IPv4Forwarding", "IPv6Forwarding", "IPMasquerade", "IPv6PrivacyExtensions", "IPv6SendRA",
      "LLMNR", "MulticastDNS", "DNSSEC", "DNSOverTLS", "DNSDefaultRoute", "ConfigureWithoutCarrier", "LLDP", "EmitLLDP",
      "KeepConfiguration", "DefaultRouteOnDevice", "IPv6LinkLocalAddressGenerationMode", "IgnoreCarrierLoss",
      "IPv6DuplicateAddressDetection", "IPv4ProxyARP", "IPv6ProxyNDP", "IPv6MTUBytes", "PrimarySlave", "ActiveSlave",
      "BindCarrier", "Description")
NETWORK: dict[str, dict[str, v.Verdict]] = {
    "Match": {"Name": v.DEVICE, "*": v.DEVICE},
    "Link": {"MTUBytes": v.MTU, "Unmanaged": v.RENDERER, **dict.fromkeys(
        ("MACAddress", "RequiredForOnline", "RequiredFamilyForOnline", "ARP", "Multicast", "AllMulticast", "Promiscuous",
         "ActivationPolicy", "Group"), v.LINK)},
    "Network": {**dict.fromkeys(L3, v.ADDRESS), **JOINED},
    **{s: {"*": v.ADDRESS} for s in ("Address", "Route", "RoutingPolicyRule", "NextHop", "Neighbor", "IPv6AddressLabel",
                                     "DHCPv4", "DHCPv6", "DHCP", "DHCPServer", "IPv6AcceptRA", "IPv6SendRA", "IPv6Prefix",
                                     "DHCPPrefixDelegation", "DHCPServerStaticLease", "IPv6RoutePrefix", "LLDP")},
    "Bridge": {"*": v.BRIDGE}, "BridgeFDB": {"*": v.BRIDGE}, "BridgeMDB": {"*": v.BRIDGE},
    "BridgeVLAN": {"*": v.VLAN_FILTER},
}
"""Section of a .network file -> key -> what becomes of it."""
NETDEV: dict[str, dict[str, dict[str, v.Verdict]]] = {
    "bridge": {"NetDev": {"Name": v.DEVICE, "Kind": v.DEVICE, "MTUBytes": v.MTU, "MACAddress": v.BRIDGE,
                          "Description": v.RENDERER},
               "Bridge": {"VLANFiltering": v.VLAN_FILTER, "DefaultPVID": v.VLAN_FILTER, "VLANProtocol": v.VLAN_FILTER,
                          "*": v.BRIDGE}, "Match": {"*": v.RENDERER}},
    "bond": {"NetDev": {"MTUBytes": v.MTU, "*": v.BOND}, "Bond": {"*": v.BOND}, "Match": {"*": v.RENDERER}},
    "vlan": {"NetDev": {"MTUBytes": v.MTU, "*": v.VLAN}, "VLAN": {"*": v.VLAN}, "Match": {"*": v.RENDERER}},
}
"""Kind of a .netdev -> section -> key."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``Key=Value``. ``block`` numbers the sections: two [Address] are two things."""

    section: str
    key: str
    value: str
    place: Place
    block: int


@dataclass(frozen=True, slots=True)
class Unit:
    """One file with its drop-ins."""

    name: str
    suffix: str
    entries: tuple[Entry, ...]

    def all(self, section: str, key: str) -> list[str]:
        """Every value; an empty one forgets those before it (systemd.syntax(7))."""
        found: list[str] = []
        for e in self.entries:
            if (e.section, e.key) == (section, key):
                found = [*found, e.value] if e.value else []
        return found

    def last(self, section: str, key: str) -> str:
        return next(reversed(self.all(section, key)), "")


def parse(sources: Sequence[Source]) -> Layout:
    draft = Draft()
    notes = v.Notes(draft)
    units = [read(name, of) for name, of in grouped(sources).items()]
    for unit in units:
        if unit.suffix == "netdev":
            netdev(draft, unit)
    taken: set[str] = set()
    names = {}
    for unit in units:
        if unit.suffix == "network":
            names[unit.name] = [n for n in matched(unit) if n not in taken]
            taken |= set(names[unit.name])
            for name in names[unit.name]:
                network(draft, unit, name)
    for unit in units:
        note(notes, unit, names.get(unit.name, []))
    notes.settle()
    return draft.layout()


def grouped(sources: Sequence[Source]) -> dict[str, list[Source]]:
    """Unit name -> its file and drop-ins, sorted by name. A file that is there twice: the first given counts."""
    found: dict[str, list[Source]] = {}
    for source in sources:
        path = PurePath(source.path)
        name = path.parent.name.removesuffix(".d") if path.suffix == ".conf" else path.name
        if path.suffix == ".conf" or not any(PurePath(s.path).name == name for s in found.get(name, ())):
            found.setdefault(name, []).append(source)
    for files in found.values():
        files.sort(key=lambda s: (s.path.endswith(".conf"), PurePath(s.path).name))
    return dict(sorted(found.items()))


def read(name: str, sources: Sequence[Source]) -> Unit:
    entries: list[Entry] = []
    block = 0
    for source in sources:
        section = ""
        for text, place in lines(source):
            if text.startswith("[") and text.endswith("]"):
                section, block = text[1:-1], block + 1
            else:
                key, equals, value = text.partition("=")
                entries.append(Entry(section, key.strip(), value.strip() if equals else "", place, block))
    return Unit(name, name.rpartition(".")[2], tuple(entries))


def lines(source: Source) -> Iterator[tuple[str, Place]]:
    """Lines without comments, joined where they end with a backslash."""
    held, began = "", 0
    for number, raw in enumerate(source.text.splitlines(), 1):
        text = raw.strip()
        if text.startswith(("#", ";")) or not (text or held):
            continue
        began = began or number
        if text.endswith("\\"):
            held += text[:-1] + " "
            continue
        yield held + text, Place(source.path, began)
        held, began = "", 0
    if held:
        yield held.strip(), Place(source.path, began)


def matched(unit: Unit) -> list[str]:
    """Devices that the file names outright."""
    return [n for value in unit.all("Match", "Name") for n in value.split() if not set(n) & set("*?[!")]


def size(text: str) -> int | None:
    """MTUBytes=: bytes, with K, M or G to the base of 1024 (systemd.network(5))."""
    found = re.fullmatch(r"(\d{1,9})([KMG]?)", text)
    return int(found[1]) * 1024 ** " KMG".index(found[2] or " ") if found else None


# -- devices ---------------------------------------------------------------------------------------

def netdev(draft: Draft, unit: Unit) -> None:
    name, kind = unit.last("NetDev", "Name"), unit.last("NetDev", "Kind")
    place = unit.entries[0].place if unit.entries else Place(unit.name)
    said: dict[str, Any] = {"name": name, "mtu": size(unit.last("NetDev", "MTUBytes")), "place": place,
                            "mac": unit.last("NetDev", "MACAddress").lower().replace("none", "")}
    if not name:
        return
    match kind:
        case "bridge":
            draft.bridges[name] = Bridge(**said, stp=YES.get(unit.last("Bridge", "STP").lower()))
        case "bond":
            draft.bonds[name] = Bond(**said, mode=unit.last("Bond", "Mode"))
        case "vlan":
            draft.vlans[name] = Vlan(**said, id=v.whole(unit.last("VLAN", "Id")) or 0)


def network(draft: Draft, unit: Unit, name: str) -> None:
    if name == "lo":
        return
    mtu, mac = size(unit.last("Link", "MTUBytes")), unit.last("Link", "MACAddress").lower()
    kinds: tuple[dict[str, Any], ...] = (draft.bridges, draft.bonds, draft.vlans)
    of = next((devices for devices in kinds if name in devices), None)
    if of is None:
        draft.nics[name] = Nic(name=name, mtu=mtu, mac=mac, place=unit.entries[0].place)
    else:
        of[name] = replace(of[name], mtu=mtu or of[name].mtu, mac=mac or of[name].mac)
    if bridge := draft.bridges.get(unit.last("Network", "Bridge")):
        draft.bridges[bridge.name] = replace(bridge, ports=tuple(sorted({*bridge.ports, name})))
    if bond := draft.bonds.get(unit.last("Network", "Bond")):
        draft.bonds[bond.name] = replace(bond, members=tuple(sorted({*bond.members, name})))
    for vlan in unit.all("Network", "VLAN"):
        if vlan in draft.vlans:
            draft.vlans[vlan] = replace(draft.vlans[vlan], parent=name)
    layer3(draft, unit, name)


def layer3(draft: Draft, unit: Unit, name: str) -> None:
    for value in (*unit.all("Network", "Address"), *unit.all("Address", "Address")):
        if found := v.cidr(value):
            draft.addresses.append(Address(dev=name, cidr=found))
    for via in unit.all("Network", "Gateway"):
        draft.routes.append(Route(dev=name, dst=v.prefix("default", 6 if ":" in via else 4) or "", via=via))
    blocks: dict[int, dict[str, str]] = {}
    for e in unit.entries:
        if e.section == "Route":
            blocks.setdefault(e.block, {})[e.key] = e.value
    for block in blocks.values():
        via = block.get("Gateway", "")
        if dst := v.prefix(block.get("Destination", "default"), 6 if ":" in via else 4):
            draft.routes.append(Route(dev=name, dst=dst, via=via, metric=v.whole(block.get("Metric", ""))))
    asks = unit.last("Network", "DHCP").lower()
    for family in (4, 6):
        if YES.get(asks) or asks == f"ipv{family}":
            draft.dynamic.append(Dynamic(dev=name, family=family))


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, unit: Unit, names: Sequence[str]) -> None:
    kind = unit.last("NetDev", "Kind")
    tables = NETDEV.get(kind) if unit.suffix == "netdev" else NETWORK if unit.suffix == "network" else {}
    device = unit.last("NetDev", "Name") if unit.suffix == "netdev" else names[0] if len(names) == 1 else ""
    for e in unit.entries:
        verdict = v.judge((tables or {}).get(e.section, {}), e.key) if tables is not None else v.KIND
        if unit.suffix == "link":
            verdict = v.LINK
        elif unit.suffix == "network" and unit.all("Match", "Name") == ["lo"]:
            verdict = v.LOOPBACK
        elif unit.suffix == "network" and not names and verdict is not v.UNKNOWN:
            verdict = v.NAMELESS
        elif verdict is v.MTU and size(e.value) is None:
            verdict = v.BAD_VALUE
        owners = names if verdict is v.MTU and len(names) > 1 else [device]
        for owner in owners:
            notes.add(e.place, f"[{e.section}] {e.key}", e.value, verdict, owner)
