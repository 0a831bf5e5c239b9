"""A capture as the walk of a packet asks it: by names of devices, addresses and MACs. Pure."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any

from kvmnet.doctor.hooks import Rules
from kvmnet.doctor.ruleset import Ruleset, parse
from kvmnet.doctor.view import Json, View
from kvmnet.doctor.xtables import with_xtables
from kvmnet.errors import KvmnetError

FORMAT = 1
"""Newest format that is understood here."""


class Scene(View):
    """One host. ``read`` makes it, and refuses what is none."""

    def part(self, name: str) -> Any:
        """A list of the capture; empty where the host could not tell."""
        return self.rows(name)

    # -- links -----------------------------------------------------------------------------------

    @cached_property
    def members(self) -> dict[str, list[str]]:
        """Bridge -> its ports."""
        found: dict[str, list[str]] = {name: [] for name in self.links if self.kind(name) == "bridge"}
        for name, link in self.links.items():
            if link.get("master") in found:
                found[link["master"]].append(name)
        return found

    def kind(self, dev: str) -> str:
        """bridge, tun, veth, vlan, bond, macvtap ...; '' for hardware."""
        return str(self.links.get(dev, {}).get("linkinfo", {}).get("info_kind", ""))

    def data(self, dev: str) -> Json:
        return self.links.get(dev, {}).get("linkinfo", {}).get("info_data", {}) or {}

    def port(self, dev: str) -> Json:
        """Settings of a port of a bridge or bond."""
        return self.links.get(dev, {}).get("linkinfo", {}).get("info_slave_data", {}) or {}

    def master(self, dev: str) -> str:
        return str(self.links.get(dev, {}).get("master", ""))

    def bridge_of(self, dev: str) -> str:
        """The bridge that a port is in; '' for none."""
        master = self.master(dev)
        return master if self.kind(master) == "bridge" else ""

    def domain_of(self, dev: str) -> str:
        """The VRF that a device belongs to, or is; '' for none."""
        return next((d for d in (dev, self.master(dev), self.master(self.master(dev))) if self.kind(d) == "vrf"), "")

    def flags(self, dev: str) -> tuple[str, ...]:
        return tuple(self.links.get(dev, {}).get("flags", ()))

    def up(self, dev: str) -> bool:
        return "UP" in self.flags(dev)

    def carrier(self, dev: str) -> bool:
        return "LOWER_UP" in self.flags(dev) and "NO-CARRIER" not in self.flags(dev)

    def mac(self, dev: str) -> str:
        return str(self.links.get(dev, {}).get("address", ""))

    def mtu(self, dev: str) -> int:
        return int(self.links.get(dev, {}).get("mtu", 0))

    def alias(self, dev: str) -> str:
        return str(self.links.get(dev, {}).get("ifalias", ""))

    def drops(self, dev: str) -> str:
        stats = self.links.get(dev, {}).get("stats64", {})
        return f"rx dropped {stats.get('rx', {}).get('dropped', 0)}, tx dropped {stats.get('tx', {}).get('dropped', 0)}"

    @cached_property
    def vfs(self) -> dict[str, tuple[str, Json]]:
        """MAC of a VF -> (its PF, what the PF says of it)."""
        return {str(row["mac"]).lower(): (name, row) for name, link in self.links.items() for row in link.get("vfinfo_list", ()) if row.get("mac", "00:00:00:00:00:00") != "00:00:00:00:00:00"}

    # -- bridges ---------------------------------------------------------------------------------

    @cached_property
    def fdb(self) -> dict[tuple[str, str, int], tuple[str, Json]]:
        """(bridge, MAC, VLAN) -> (port, entry); VLAN 0 where the bridge does not go by them. What is local, the MACs of
        the bridge and its ports and what somebody wrote as permanent, has the bridge as port: it goes up to the host (BR_FDB_LOCAL)."""
        found: dict[tuple[str, str, int], tuple[str, Json]] = {}
        for entry in self.part("fdb"):
            dev, mac = entry.get("ifname", ""), entry.get("mac", "")
            if "self" in entry.get("flags", ()) and "master" not in entry:
                continue
            bridge = entry.get("master") or dev
            if self.kind(bridge) == "bridge":
                found[bridge, mac, int(entry.get("vlan", 0))] = (bridge if entry.get("state") == "permanent" else dev, entry)
        return found

    def found_at(self, bridge: str, mac: str, vlan: int) -> tuple[str, Json] | None:
        """Where the bridge sends frames for *mac*; None: it floods them."""
        if mac == self.mac(bridge):
            return bridge, {}
        return self.fdb.get((bridge, mac, vlan))

    def routed(self, dev: str) -> bool:
        """Whether a route leads to a device itself, that the kernel has not made by itself: containers and guests behind a device of their own, with proxy ARP."""
        return any(r.get("dev") == dev and not str(r.get("dst", "")).startswith(("fe80", "ff00", "multicast")) and r.get("table", "main") != "local" for version in (4, 6) for r in self.part(f"routes{version}"))

    def learned(self, dev: str) -> list[str]:
        """MACs that a port's bridge has behind it, the static ones first."""
        rows = [(e.get("state") != "static", mac) for (_, mac, _), (_, e) in self.fdb.items() if e.get("ifname") == dev and not self.is_own(e)]
        return [mac for _, mac in sorted(rows)] or [row["mac"] for row in (self.switched.get(dev) or {}).get("learned", ()) if row["port"] == dev]

    def is_own(self, entry: Json) -> bool:
        """Whether an entry of a forwarding table stands for a MAC of the host's: of the port that it names, or of a bridge."""
        return entry.get("state") == "permanent" and (self.kind(str(entry.get("ifname"))) == "bridge" or entry.get("mac") in self.macs)

    def macs_at(self, bridge: str) -> frozenset[str]:
        """MACs by which the host itself is on a segment: of the bridge, its ports, and devices on it (VLANs, macvlans)."""
        return frozenset(str(link.get("address", "")) for name, link in self.links.items() if bridge and bridge in (name, link.get("master"), link.get("link")))

    @cached_property
    def macs(self) -> frozenset[str]:
        """MACs of the devices of the host."""
        return frozenset(str(link.get("address", "")) for link in self.links.values())

    @cached_property
    def vlans(self) -> dict[str, dict[int, tuple[str, ...]]]:
        """Port or bridge -> VLAN -> its flags."""
        found: dict[str, dict[int, tuple[str, ...]]] = {}
        for entry in self.part("vlans"):
            for vlan in entry.get("vlans", ()):
                for number in range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1):
                    found.setdefault(entry["ifname"], {})[number] = tuple(vlan.get("flags", ()))
        return found

    def filters_vlans(self, bridge: str) -> bool:
        return bool(self.data(bridge).get("vlan_filtering"))

    def pvid(self, dev: str) -> int:
        """VLAN of untagged frames on a port; 0 for none."""
        return next((v for v, flags in self.vlans.get(dev, {}).items() if "PVID" in flags), 0)

    def base(self, dev: str) -> str:
        """The bridge below a VLAN device on one; any other device itself."""
        below = str(self.links.get(dev, {}).get("link", ""))
        return below if self.kind(dev) == "vlan" and self.kind(below) == "bridge" else dev

    def face(self, bridge: str, port: str) -> str:
        """The device by which the host's IP sees what comes untagged by a port: the bridge, or where it goes by VLANs a VLAN device on it; '' where the host is not in that VLAN."""
        if not port or not self.filters_vlans(bridge):
            return bridge
        vlan = self.pvid(port)
        flags = self.vlans.get(bridge, {}).get(vlan)
        if flags is None:
            return ""
        return bridge if "Egress Untagged" in flags else next((n for n in self.links if self.base(n) == bridge and n != bridge and self.data(n).get("id") == vlan), "")

    # -- addresses and neighbours -----------------------------------------------------------------

    @cached_property
    def own(self) -> dict[str, list[tuple[str, int]]]:
        """Own address -> (device, length of its prefix); several, where VRFs have the same one."""
        found: dict[str, list[tuple[str, int]]] = {}
        for name, link in self.links.items():
            for a in link.get("addr_info", ()):
                if "local" in a:
                    found.setdefault(str(ip_address(a["local"])), []).append((name, a["prefixlen"]))
        return found

    def owner(self, address: str, domain: str | None = None) -> str:
        """Device with an own address; '' where none has it. ``domain``: the VRF that asks, which knows its own and those of none; None: any."""
        devices = [dev for dev, _ in self.own.get(address, ())]
        known = devices if domain is None else [d for d in devices if self.domain_of(d) in (domain, "")]
        return min(known, key=lambda d: self.domain_of(d) != (domain or ""), default="")

    def addresses_of(self, dev: str, version: int) -> list[str]:
        """``address/length``, of global scope first."""
        found = [a for a in self.links.get(dev, {}).get("addr_info", ()) if a.get("family") == ("inet6" if version == 6 else "inet") and "local" in a]
        return [f"{a['local']}/{a['prefixlen']}" for a in sorted(found, key=lambda a: a.get("scope") != "global")]

    def on_link(self, address: str, domain: str | None = None) -> str:
        """Device whose own prefix holds an address; '' for none. ``domain``: of this VRF, '' of none, first of all."""
        wanted = ip_address(address)
        best: tuple[bool, int, str] = (False, -1, "")
        for network, devices in self.prefixes:
            if wanted.version == network.version and wanted in network and network.prefixlen < wanted.max_prefixlen:
                for dev in devices:
                    order = (domain is not None and self.domain_of(dev) == domain, network.prefixlen, dev)
                    if order[:2] > best[:2]:
                        best = order
        return best[2]

    @cached_property
    def prefixes(self) -> list[tuple[IPv4Network | IPv6Network, list[str]]]:
        """Prefixes of the own addresses, and the devices with each."""
        found: dict[IPv4Network | IPv6Network, list[str]] = {}
        for own, places in self.own.items():
            for dev, length in places:
                found.setdefault(ip_network(f"{own}/{length}", strict=False), []).append(dev)
        return list(found.items())

    @cached_property
    def neighbours(self) -> dict[tuple[str, str], Json]:
        """(device, address) -> entry."""
        return {(n.get("dev", ""), n.get("dst", "")): n for n in self.part("neighbours")}

    def mac_of(self, address: str) -> str:
        """MAC of an address by the neighbour table; '' when it is not known."""
        return next((n["lladdr"] for (_, dst), n in self.neighbours.items() if dst == address and "lladdr" in n), "")

    # -- settings --------------------------------------------------------------------------------

    @cached_property
    def netconf(self) -> dict[tuple[int, str], Json]:
        return {(6 if row.get("family") == "inet6" else 4, row.get("interface", "")): row for row in self.part("netconf")}

    def routes_from(self, dev: str, version: int) -> bool:
        """Whether packets that come by a device are forwarded (ip_forward(), ip6_forward())."""
        if version == 6:
            return bool(self.netconf.get((6, "all"), {}).get("forwarding")) or self.sysctl(f"net/ipv6/conf/{dev}/force_forwarding") == "1"
        return bool(self.netconf.get((4, dev), {}).get("forwarding"))

    def reverse_path(self, dev: str) -> int:
        """0 off, 1 strict, 2 loose: the larger one of the device's and that of ``all`` (IN_DEV_RPFILTER)."""
        words = {"off": 0, "strict": 1, "loose": 2}
        return max(words.get(str(self.netconf.get((4, d), {}).get("rp_filter", "off")), 0) for d in ("all", dev))

    # -- rules -----------------------------------------------------------------------------------

    @cached_property
    def ruleset(self) -> Ruleset:
        return with_xtables(parse(self.part("nft"), str(self.facts.get("nft_text") or "")), self.facts.get("xtables") or {})

    @cached_property
    def rules(self) -> Rules:
        def bridged(setting: str, option: str, bridge: str) -> bool:
            return self.sysctl(f"net/bridge/{setting}") == "1" or bool(self.data(bridge).get(option))

        netfilter = {bridge: frozenset(version for version, setting, option in (
            (4, "bridge-nf-call-iptables", "nf_call_iptables"), (6, "bridge-nf-call-ip6tables", "nf_call_ip6tables"))
            if bridged(setting, option, bridge)) for bridge in self.members}
        return Rules(self.ruleset, netfilter, self.sysctl("net/bridge/bridge-nf-filter-vlan-tagged") == "1")

    # -- guests ----------------------------------------------------------------------------------

    @cached_property
    def nics(self) -> list[Json]:
        """NICs that kvmnet knows and that are there."""
        return [nic for nic in self.part("nics") if nic["tap"] in self.links]

    def network_of(self, name: str) -> str:
        """Bridge of a network of the document; '' for none."""
        return next((dev for dev in self.links if self.alias(dev).split(" | ")[0] == f"kvmnet network {name}" and self.kind(dev) == "bridge"), "")


def within(address: str, network: str) -> bool:
    wanted, prefix = ip_address(address), ip_network(network, strict=False)
    return wanted.version == prefix.version and wanted in prefix


def read(facts: Any) -> Scene:
    """Raises KvmnetError for what is no capture, or one of a newer kvmnet."""
    if not isinstance(facts, Mapping) or not isinstance(facts.get("format"), int) or not isinstance(facts.get("links"), list):
        raise KvmnetError("this is no capture of a host", "make one with: kvmnet facts > host.json")
    if facts["format"] > FORMAT:
        raise KvmnetError(f"this capture has format {facts['format']}, made by kvmnet {facts.get('kvmnet', '?')}; here is format {FORMAT}",
                          "use the kvmnet that made it, or a newer one")
    return Scene(facts)
