"""A capture of a host with names for what rules ask of it. Pure; each thing is sorted once."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from itertools import pairwise
from typing import Any

from kvmnet.records import dataclass, field

Json = Mapping[str, Any]
OWN_PREFIXES = ("kvb-", "kvt-", "kvm-")
"""Names of links that kvmnet makes: what a document says of them, a plan mends."""
VIRTUAL = ("tun", "veth", "bridge", "vxlan", "geneve", "gretap", "ip6gretap", "dummy", "ifb", "macvlan", "macvtap", "wireguard", "vrf")


@dataclass(frozen=True)
class Card:
    """A card of a running QEMU, as its command line says."""

    guest: str
    pid: int
    model: str
    backend: str
    """tap, user, bridge, vhost-user ...; '' for a device without one."""
    mac: str
    """'' when the command line names none: QEMU then gives 52:54:00:12:34:56 to the first."""
    tap: str
    queues: int
    vhost: bool
    options: Mapping[str, str]
    """Of the device."""


@dataclass(frozen=True)
class Inner:
    """A card as its guest sees it."""

    guest: str
    inside: Json
    """What the guest told of itself (facts/inside.py)."""
    link: Json
    """Its link of this card."""
    tap: str
    """Port of the host that the card is behind."""
    nic: Json
    """What QEMU says of the card."""
    given: Json
    """What documents gave it: ``ip``, ``ip6``; empty where nothing did."""
    cpus: int = 1

    @property
    def title(self) -> str:
        return f"{self.guest} {self.link['name']}"

    def addresses(self, version: int = 0) -> list[IPv4Interface | IPv6Interface]:
        """Of global scope; of one IP version or of both."""
        found = [ip_interface(f"{a['local']}/{a['prefixlen']}") for a in self.link.get("addresses", ())]
        return [a for a in found if not a.ip.is_link_local and version in (0, a.version)]

    def neighbour(self, address: str) -> Json:
        return next((n for n in self.inside.get("neighbours", ()) if (n["ip"], n["dev"]) == (address, self.link["name"])), {})


@dataclass(frozen=True)
class View:
    """``facts`` as ``kvmnet facts`` prints them; a part that is missing is empty here."""

    facts: Json
    cached: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def rows(self, part: str) -> list[Any]:
        return self.facts.get(part) or []

    # -- links -----------------------------------------------------------------------------------

    @cached_property
    def links(self) -> dict[str, Json]:
        return {link["ifname"]: link for link in self.rows("links") if "ifname" in link}

    @cached_property
    def ports(self) -> dict[str, list[Json]]:
        """Device -> links that have it as their master."""
        found: dict[str, list[Json]] = defaultdict(list)
        for link in self.links.values():
            if link.get("master"):
                found[link["master"]].append(link)
        return found

    @cached_property
    def bridges(self) -> list[Json]:
        return [link for link in self.links.values() if kind(link) == "bridge"]

    @cached_property
    def switched(self) -> dict[str, Json]:
        """Port -> its bridge of Open vSwitch. Those of a datapath in user space have no master."""
        return {port["name"]: switch for switch in self.rows("switches") for port in switch["ports"]}

    @cached_property
    def logical(self) -> list[Json]:
        """Ports of OVN that are at devices here: ``{dev, name, datapath, mac, ips}``."""
        bound = {p["name"]: p for p in (self.facts.get("ovn") or {}).get("ports") or () if p["type"] == ""}
        at = [(port["name"], bound[port["iface_id"]]) for switch in self.rows("switches") for port in switch["ports"] if port.get("iface_id") in bound and port["name"] in self.links]
        return [{"dev": dev, "name": p["name"], "datapath": p["datapath"], "mac": words[0], "ips": words[1:]} for dev, p in at for words in (m.split() for m in p["mac"]) if words and ":" in words[0]]

    @cached_property
    def wires(self) -> list[tuple[Json, Json]]:
        """Pairs of veth of which both ends are here."""
        found = []
        for link in self.links.values():
            peer = self.links.get(link.get("link", ""))
            if kind(link) == "veth" and peer and peer.get("link") == link["ifname"] and link["ifindex"] < peer["ifindex"]:
                found.append((link, peer))
        return found

    def addresses(self, link: Json, family: str = "") -> list[IPv4Interface | IPv6Interface]:
        """Addresses that others reach, without link-local ones."""
        return [ip_interface(f"{a['local']}/{a['prefixlen']}") for a in link.get("addr_info", ())
                if "local" in a and a.get("scope") == "global" and (not family or a["family"] == family)]

    def guest_ports(self, bridge: str) -> list[Json]:
        """Ports of a bridge behind which guests or containers are."""
        return [p for p in self.ports.get(bridge, ()) if kind(p) in ("tun", "veth", "macvtap")]

    @cached_property
    def routes(self) -> list[Json]:
        return [*self.rows("routes4"), *self.rows("routes6")]

    @cached_property
    def ways_out(self) -> list[Json]:
        """Default routes of all tables, of both families."""
        return [r for r in self.routes if r.get("dst") == "default" and r.get("type", "unicast") == "unicast" and (r.get("dev") or r.get("nexthops"))]

    # -- numbers ---------------------------------------------------------------------------------

    def sysctl(self, name: str) -> str:
        """A setting under /proc/sys; '' when this namespace does not show it."""
        return str((self.facts.get("sysctls") or {}).get(name, ""))

    def number(self, name: str) -> int | None:
        text = self.sysctl(name)
        return int(text) if text.lstrip("-").isdigit() else None

    @cached_property
    def routers(self) -> dict[tuple[str, str], bool]:
        """(inet or inet6, device) -> whether what comes in by it is forwarded: each device has its own switch, and the one of the whole
        host sets them all (ip-sysctl.rst)."""
        return {(row["family"], row["interface"]): bool(row.get("forwarding")) for row in self.rows("netconf") if "interface" in row}

    def forwards(self, dev: str) -> bool:
        """Whether IPv4 packets that come in by *dev* are forwarded."""
        return self.routers.get(("inet", dev), self.number("net/ipv4/ip_forward") == 1)

    def lacks(self, feature: str) -> str:
        """Why this host has no *feature*; '' when it has it, or was not asked."""
        return str((self.facts.get("features") or {}).get(feature, ""))

    @property
    def machine(self) -> Json:
        return self.facts.get("machine") or {}

    @property
    def later(self) -> Json:
        """The same numbers read again, ``seconds`` later; empty in a capture of one moment."""
        return self.facts.get("later") or {}

    @cached_property
    def counters(self) -> dict[str, int]:
        """``TcpExt.IPReversePathFilter`` -> count, of /proc/net/snmp and netstat."""
        return counters(self.facts.get("counters") or {})

    def softnet(self, text: str) -> list[list[int]]:
        """Per CPU: processed, dropped, time_squeeze (net/core/net-procfs.c)."""
        return [[int(word, 16) for word in line.split()[:3]] for line in text.splitlines() if len(line.split()) > 2]

    # -- guests ----------------------------------------------------------------------------------

    @cached_property
    def cards(self) -> list[Card]:
        return [card for guest in self.rows("guests") for card in cards(guest)]

    @cached_property
    def vcpus(self) -> dict[int, int]:
        """Pid of QEMU -> processors of its guest."""
        found = {}
        for guest in self.rows("guests"):
            text = options(guest["argv"]).get("smp", ["1"])[-1]
            told = settings(text, "cpus")
            count = told.get("cpus") or told.get("maxcpus") or "1"
            found[guest["pid"]] = int(count) if count.isdigit() else 1
        return found

    @cached_property
    def homes(self) -> dict[str, str]:
        """MAC of a guest -> its tap, for guests of which both are known."""
        found = {c.mac: c.tap for c in self.cards if c.mac and c.tap}
        return found | {n["mac"]: n["tap"] for n in self.rows("nics") if n.get("mac") and n.get("tap") in self.links}

    @cached_property
    def inners(self) -> list[Inner]:
        """Cards of the guests that told of themselves, as far as both sides know them by the same MAC."""
        given = {n["tap"]: n for n in self.rows("nics")}
        found = []
        for guest in self.rows("guests"):
            inside = guest.get("inside") or {}
            nics = {n["mac"]: n for n in guest.get("nics", ()) if n.get("mac") and n.get("tap") in self.links}
            found += [Inner(str(guest["name"]), inside, link, nics[link["mac"]]["tap"], nics[link["mac"]], given.get(nics[link["mac"]]["tap"], {}), self.vcpus.get(guest["pid"], 1))
                      for link in inside.get("links", ()) if link.get("mac") in nics and link.get("hardware", True)]
        return found

    def holder(self, tap: str) -> str:
        """``qemu-system-x86_64, pid 812``: who has a tap open; '' when nobody does as far as one can see."""
        held = (self.facts.get("taps") or {}).get(tap)
        return f"{held['program']}, pid {held['pid']}" if held else ""


def kind(link: Json) -> str:
    return str((link.get("linkinfo") or {}).get("info_kind", ""))


def data(link: Json) -> Json:
    return (link.get("linkinfo") or {}).get("info_data") or {}


def port_data(link: Json) -> Json:
    return (link.get("linkinfo") or {}).get("info_slave_data") or {}


def up(link: Json) -> bool:
    return "UP" in link.get("flags", ())


def carrier(link: Json) -> bool:
    return "LOWER_UP" in link.get("flags", ())


def physical(link: Json) -> bool:
    """Whether a link leads out of the host by itself: hardware, or what a hypervisor below shows as such."""
    return not kind(link) and link.get("link_type") == "ether"


def owned(name: str) -> bool:
    return name.startswith(OWN_PREFIXES)


def counters(texts: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in ("snmp", "netstat"):
        for head, values in pairwise((texts.get(name) or "").splitlines()):
            group, _, names = head.partition(": ")
            if values.startswith(f"{group}: "):
                numbers = values.partition(": ")[2].split()
                found |= {f"{group}.{n}": int(v) for n, v in zip(names.split(), numbers, strict=False) if v.lstrip("-").isdigit() and not n.isdigit()}
    return found


# -- command lines of QEMU -------------------------------------------------------------------------

def options(argv: list[str]) -> dict[str, list[str]]:
    """Option of QEMU -> its values, in order (qemu(1): one or two dashes)."""
    found: dict[str, list[str]] = defaultdict(list)
    for word, value in pairwise([*argv, "-"]):
        if word.startswith("-"):
            found[word.lstrip("-")].append("" if value.startswith("-") else value)
    return found


def settings(text: str, first: str) -> dict[str, str]:
    """``tap,id=n0,vhost=on`` -> settings; what has no name is *first*."""
    found = {}
    for number, word in enumerate(text.split(",")):
        name, equal, value = word.partition("=")
        found.update({name: value} if equal else {first: word} if number == 0 else {word: "on"})
    return found


NETWORK_MODELS = ("virtio-net", "e1000", "rtl8139", "pcnet", "ne2k", "vmxnet3", "tulip", "i8255", "usb-net", "igb")


def cards(guest: Json) -> Iterator[Card]:
    given = options(list(guest["argv"]))
    backends = {s.get("id", ""): s for s in (netdev(text) for text in given.get("netdev", ()))}
    for text in given.get("device", ()):
        device = json_settings(text) or settings(text, "driver")
        if (model := device.get("driver", "")).startswith(NETWORK_MODELS):
            yield card(guest, model, backends.get(device.get("netdev", ""), {}), device)
    for text in given.get("nic", ()):
        both = settings(text, "type")
        if both.get("type") != "none":
            yield card(guest, both.get("model", "e1000"), both, both)


def netdev(text: str) -> dict[str, str]:
    return json_settings(text) or settings(text, "type")


def json_settings(text: str) -> dict[str, str]:
    """libvirt writes devices as JSON since QEMU 6.2."""
    if not text.startswith("{"):
        return {}
    import json
    try:
        return {name: {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
                for name, value in json.loads(text).items()}
    except ValueError:
        return {}


def card(guest: Json, model: str, backend: Mapping[str, str], device: Mapping[str, str]) -> Card:
    taps = guest.get("taps") or {}
    descriptors = [fd for fd in (backend.get("fds") or backend.get("fd") or "").split(":") if fd]
    tap = backend.get("ifname", "") or next((taps[fd] for fd in descriptors if fd in taps), "")
    return Card(guest=guest.get("name") or f"pid {guest['pid']}", pid=guest["pid"], model=model, backend=backend.get("type", ""),
                mac=device.get("mac", device.get("macaddr", "")).lower(), tap=tap,
                queues=int(backend.get("queues", "0") or 0) or max(1, len(descriptors)),
                vhost=backend.get("vhost") == "on" or "vhostfd" in backend or "vhostfds" in backend, options=device)
