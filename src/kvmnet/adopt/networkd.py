"""systemd-networkd's .network and .netdev files -> Layout. Pure.

Format: systemd.syntax(7), systemd.network(5), systemd.netdev(5), systemd.link(5). Of several .network files the
first by base name that matches a device counts. Drop-ins (NAME.network.d/*.conf) belong to their file.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import Any

from kvmnet.adopt import bonds
from kvmnet.adopt import verdicts as v
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
from kvmnet.records import dataclass, replace

YES = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
JOINED = {"Bridge": v.PORTS, "Bond": v.MEMBERS, "VLAN": v.CARRIER, "MACVLAN": v.KIND, "MACVTAP": v.KIND, "VXLAN": v.KIND,
          "Tunnel": v.KIND, "IPVLAN": v.KIND, "VRF": v.KIND, "BatmanAdvanced": v.KIND, "IPoIB": v.KIND, "Xfrm": v.KIND,
          "IPVTAP": v.KIND, "MACsec": v.KIND}
L3 = ("DNS", "Domains", "DHCP", "DHCPServer", "LinkLocalAddressing", "IPv6AcceptRA", "NTP",
      "IPForward", "IPv4Forwarding", "IPv6Forwarding", "IPMasquerade", "IPv6PrivacyExtensions", "IPv6SendRA",
      "LLMNR", "MulticastDNS", "DNSSEC", "DNSOverTLS", "DNSDefaultRoute", "ConfigureWithoutCarrier", "LLDP", "EmitLLDP",
      "KeepConfiguration", "DefaultRouteOnDevice", "IPv6LinkLocalAddressGenerationMode", "IgnoreCarrierLoss",
      "IPv6DuplicateAddressDetection", "IPv4ProxyARP", "IPv6ProxyNDP", "IPv6MTUBytes", "BindCarrier",
      "Description")
NETWORK: dict[str, dict[str, v.Verdict]] = {
    "Match": {"Name": v.DEVICE, "*": v.DEVICE},
    "Link": {"MTUBytes": v.MTU, "Unmanaged": v.RENDERER, **dict.fromkeys(
        ("MACAddress", "RequiredForOnline", "RequiredFamilyForOnline", "ARP", "Multicast", "AllMulticast", "Promiscuous",
         "ActivationPolicy", "Group"), v.LINK)},
    "Network": {"Address": v.HOST_ADDRESS, "Gateway": v.ROUTE, "PrimarySlave": v.uplink("options.primary"),
                "ActiveSlave": bonds.NO_WORDS, **dict.fromkeys(L3, v.ADDRESS), **JOINED},
    "Address": {"*": v.HOST_ADDRESS}, "Route": {"*": v.ROUTE},
    **{s: {"*": v.ADDRESS} for s in ("RoutingPolicyRule", "NextHop", "Neighbor", "IPv6AddressLabel",
                                     "DHCPv4", "DHCPv6", "DHCP", "DHCPServer", "IPv6AcceptRA", "IPv6SendRA", "IPv6Prefix",
                                     "DHCPPrefixDelegation", "DHCPServerStaticLease", "IPv6RoutePrefix", "LLDP")},
    "Bridge": {"*": v.BRIDGE}, "BridgeFDB": {"*": v.BRIDGE}, "BridgeMDB": {"*": v.BRIDGE},
    "BridgeVLAN": {"*": v.VLAN_FILTER},
}
"""Section of a .network file -> key -> what becomes of it."""
OF_MADE = {"Name": v.DEVICE, "Kind": v.DEVICE, "MTUBytes": v.MTU, "MACAddress": v.MAC, "Description": v.RENDERER}
BOND_WORDS = {
    "Mode": "mode", "TransmitHashPolicy": "xmit_hash_policy", "LACPTransmitRate": "lacp_rate", "MIIMonitorSec": "miimon",
    "UpDelaySec": "updelay", "DownDelaySec": "downdelay", "LearnPacketIntervalSec": "lp_interval", "AdSelect": "ad_select",
    "AdActorSystemPriority": "ad_actor_sys_prio", "AdUserPortKey": "ad_user_port_key", "AdActorSystem": "ad_actor_system",
    "FailOverMACPolicy": "fail_over_mac", "ARPValidate": "arp_validate", "ARPIntervalSec": "arp_interval",
    "ARPIPTargets": "arp_ip_target", "ARPAllTargets": "arp_all_targets", "PrimaryReselectPolicy": "primary_reselect",
    "ResendIGMP": "resend_igmp", "PacketsPerSlave": "packets_per_slave", "GratuitousARP": "num_grat_arp",
    "AllSlavesActive": "all_slaves_active", "DynamicTransmitLoadBalancing": "tlb_dynamic_lb", "MinLinks": "min_links",
    "ARPMissedMax": "arp_missed_max"}
"""Key of [Bond] -> the kernel's word."""
TIMES = frozenset({"miimon", "updelay", "downdelay", "arp_interval"})
PROTOCOLS = {"": "802.1Q", "802.1q": "802.1Q", "802.1ad": "802.1ad"}
ADDRESS_KEYS, ROUTE_KEYS = frozenset({"Address"}), frozenset({"Gateway", "Destination", "Metric"})
"""Keys of [Address] and [Route] that the document can have."""
ONCE = {"Link", "NetDev", "Bond", "VLAN", "Bridge"}
"""Sections whose keys have one value: the last."""
NETDEV: dict[str, dict[str, dict[str, v.Verdict]]] = {
    "bridge": {"NetDev": {"Name": v.DEVICE, "Kind": v.DEVICE, "MTUBytes": v.MTU, "MACAddress": v.BRIDGE,
                          "Description": v.RENDERER},
               "Bridge": {"VLANFiltering": v.VLAN_FILTER, "DefaultPVID": v.VLAN_FILTER, "VLANProtocol": v.VLAN_FILTER,
                          "*": v.BRIDGE}, "Match": {"*": v.RENDERER}},
    "bond": {"NetDev": OF_MADE, "Bond": {"*": v.MODE}, "Match": {"*": v.RENDERER}},
    "vlan": {"NetDev": OF_MADE, "VLAN": {"Id": v.VLAN, "Protocol": v.PROTOCOL}, "Match": {"*": v.RENDERER}},
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


@dataclass(frozen=True)
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

    def blocks(self, section: str) -> dict[int, dict[str, str]]:
        """Sections of one name, each by itself."""
        return self.sections.get(section, {})

    @cached_property
    def sections(self) -> dict[str, dict[int, dict[str, str]]]:
        found: dict[str, dict[int, dict[str, str]]] = {}
        for e in self.entries:
            found.setdefault(e.section, {}).setdefault(e.block, {})[e.key] = e.value
        return found

    @cached_property
    def replaced(self) -> dict[int, Place]:
        """Position of an entry -> the later one that takes its place: an empty value forgets those before it, and of
        a key with one value the last counts (systemd.syntax(7))."""
        found, later = dict[int, Place](), dict[tuple[str, str], Place]()
        for position, e in reversed(list(enumerate(self.entries))):
            key = e.section, e.key
            if e.section not in ONCE and e.section != "Network":
                continue
            if key in later:
                found[position] = later[key]
            elif not e.value or e.section in ONCE or e.key in ("Bond", "Bridge", "DHCP", "PrimarySlave"):
                later[key] = e.place
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
            mode, options = bonds.described({w: bond_value(w, unit.last("Bond", key)) for key, w in BOND_WORDS.items()})
            draft.bonds[name] = Bond(**said, mode=mode, options=options)
        case "vlan":
            draft.vlans[name] = Vlan(**said, id=v.whole(unit.last("VLAN", "Id")) or 0,
                                     protocol=PROTOCOLS.get(unit.last("VLAN", "Protocol").lower(), "802.1Q"))


def bond_value(word: str, text: str) -> object:
    """A value of [Bond] as the kernel has it: times in milliseconds, switches as 0 and 1."""
    if word in TIMES:
        return v.milliseconds(text, 1000)
    return {"yes": "1", "true": "1", "no": "0", "false": "0"}.get(text.lower(), text)


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
        primary = {"primary": name} if YES.get(unit.last("Network", "PrimarySlave").lower()) else {}
        draft.bonds[bond.name] = replace(bond, members=tuple(sorted({*bond.members, name})),
                                         options={**bond.options, **primary})
    for vlan in unit.all("Network", "VLAN"):
        if vlan in draft.vlans:
            draft.vlans[vlan] = replace(draft.vlans[vlan], parent=name)
    layer3(draft, unit, name)


def layer3(draft: Draft, unit: Unit, name: str) -> None:
    plain = [b["Address"] for b in unit.blocks("Address").values() if set(b) == ADDRESS_KEYS]
    draft.addresses += (Address(dev=name, cidr=c) for value in (*unit.all("Network", "Address"), *plain)
                        if (c := v.cidr(value)) and "/" in value)
    draft.routes += (Route(dev=name, dst=v.prefix("default", 6 if ":" in via else 4) or "", via=via)
                     for via in unit.all("Network", "Gateway") if v.is_address(via))
    draft.routes += (r for block in unit.blocks("Route").values() if (r := plain_route(name, block)))
    asks = unit.last("Network", "DHCP").lower()
    for family in (4, 6):
        if YES.get(asks) or asks == f"ipv{family}":
            draft.dynamic.append(Dynamic(dev=name, family=family))


def plain_route(dev: str, block: dict[str, str]) -> Route | None:
    """A route that the document can have; None for any other."""
    via, metric = block.get("Gateway", ""), v.whole(block.get("Metric", ""))
    dst = v.prefix(block.get("Destination", "default"), 6 if ":" in via else 4)
    wrong = (via and not v.is_address(via)) or (metric is None and "Metric" in block) or not (via or "Destination" in block)
    return None if not dst or wrong or set(block) - ROUTE_KEYS else Route(dev=dev, dst=dst, via=via, metric=metric)


# -- elements --------------------------------------------------------------------------------------

def note(notes: v.Notes, unit: Unit, names: Sequence[str]) -> None:
    kind = unit.last("NetDev", "Kind")
    tables = NETDEV.get(kind) if unit.suffix == "netdev" else NETWORK if unit.suffix == "network" else {}
    loopback = unit.all("Match", "Name") == ["lo"]
    for position, e in enumerate(unit.entries):
        verdict = v.judge((tables or {}).get(e.section, {}), e.key) if tables is not None else v.KIND
        if unit.suffix == "link":
            verdict = v.LINK
        elif unit.suffix == "network" and loopback:
            verdict = v.LOOPBACK
        elif unit.suffix == "network" and not names and verdict is not v.UNKNOWN:
            verdict = v.NAMELESS
        elif later := unit.replaced.get(position):
            verdict = v.Verdict(Outcome.KEPT, f"replaced by {later}")
        elif verdict in CHECKS:
            verdict = CHECKS[verdict](unit, e)
        for owner in owners(unit, e, verdict, names):
            notes.add(e.place, f"[{e.section}] {e.key}", e.value, verdict, owner)


def owners(unit: Unit, entry: Entry, verdict: v.Verdict, names: Sequence[str]) -> list[str]:
    """The devices that an entry is about: the bond that a member joins, the VLAN that its carrier names."""
    if unit.suffix == "netdev":
        return [unit.last("NetDev", "Name")]
    if verdict in (v.MEMBERS, v.CARRIER):
        return [entry.value]
    if entry.key == "PrimarySlave":
        return [unit.last("Network", "Bond")]
    several = verdict in (v.MTU, v.HOST_ADDRESS, v.ROUTE)
    return list(names) if names and (several or len(names) == 1) else [""]


def checked_mtu(unit: Unit, entry: Entry) -> v.Verdict:
    return v.MTU if size(entry.value) is not None else v.BAD_VALUE


def checked_id(unit: Unit, entry: Entry) -> v.Verdict:
    return v.VLAN if v.whole(entry.value) is not None else v.BAD_VALUE


def checked_protocol(unit: Unit, entry: Entry) -> v.Verdict:
    return v.PROTOCOL if entry.value.lower() in PROTOCOLS else v.BAD_VALUE


def checked_mac(unit: Unit, entry: Entry) -> v.Verdict:
    return v.LINK if entry.value.lower() in ("", "none") else v.MAC


def checked_bond(unit: Unit, entry: Entry) -> v.Verdict:
    word = BOND_WORDS.get(entry.key)
    return bonds.verdict(word, bond_value(word, entry.value), {}) if word else v.UNKNOWN


def checked_address(unit: Unit, entry: Entry) -> v.Verdict:
    if entry.section == "Address" and set(unit.blocks("Address")[entry.block]) != ADDRESS_KEYS:
        return v.ADDRESS
    return v.HOST_ADDRESS if "/" in entry.value and v.cidr(entry.value) else v.ADDRESS if not entry.value else v.BAD_VALUE


def checked_route(unit: Unit, entry: Entry) -> v.Verdict:
    if entry.section == "Network":
        return v.ROUTE if v.is_address(entry.value) else v.ADDRESS
    return v.ROUTE if plain_route("", unit.blocks("Route")[entry.block]) else v.ODD_ROUTE


CHECKS: dict[v.Verdict, Callable[[Unit, Entry], v.Verdict]] = {
    v.MTU: checked_mtu, v.VLAN: checked_id, v.PROTOCOL: checked_protocol, v.MAC: checked_mac, v.MODE: checked_bond,
    v.HOST_ADDRESS: checked_address, v.ROUTE: checked_route}
"""Verdict -> what looks at the value, too."""
