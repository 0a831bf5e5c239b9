"""The two ends of a path: what an operator types -> a port of this host, the host itself, or an address outside. Pure."""
from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network

from kvmnet.doctor.routing import Asked, look_up
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.view import Json
from kvmnet.errors import KvmnetError
from kvmnet.records import dataclass, replace

MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")
FAR = {4: "1.1.1.1", 6: "2606:4700:4700::1111"}
"""An address of the Internet for ``outside``: it is looked up, never asked unless the live proof is."""


PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
"""RFC 1918, RFC 6598, RFC 4193. (Python's ``is_private`` has the addresses of documents and benchmarks, too.)"""


def is_private(address: str) -> bool:
    """Whether the Internet has no route to an address, by its range."""
    return any(ip_address(address) in network for network in PRIVATE)


class Place(StrEnum):
    NIC = "nic"
    HOST = "host"
    OUTSIDE = "outside"


@dataclass(frozen=True, slots=True)
class End:
    """One end."""

    name: str
    """As it was typed."""
    place: Place
    ip: str
    dev: str = ""
    """Port of the host that it is behind; '' of the host, of outside, and of a guest that nobody has heard yet."""
    mac: str = ""
    """'' when it is not known."""
    segment: str = ""
    """Bridge or device that its address is on."""
    how: str = ""
    """How it was found, where that is a guess."""

    @property
    def title(self) -> str:
        return self.name if self.name == self.ip or not self.ip else f"{self.name} ({self.ip})"


def pair(scene: Scene, source: str, target: str, version: int) -> tuple[End, End]:
    """Both ends. Where VRFs have the same address, it is that of the other end's. Raises KvmnetError."""
    a, b = find(scene, source, version), find(scene, target, version)
    if is_address(target) and b.place is not Place.OUTSIDE:
        b = by_address(scene, b.ip, domain(scene, a))
    elif is_address(source) and a.place is not Place.OUTSIDE:
        a = by_address(scene, a.ip, domain(scene, b))
    return a, b


def domain(scene: Scene, end: End) -> str | None:
    """VRF that an end is in, '' for none; None of what is outside."""
    return None if end.place is Place.OUTSIDE else scene.domain_of(end.segment or end.dev)


def find(scene: Scene, word: str, version: int) -> End:
    """The end that *word* names: ``host``, ``outside``, a guest, guest/NIC, network, device, MAC or address;
    ``NAME@ADDRESS`` gives the address of a name. Raises KvmnetError."""
    name, _, given = word.partition("@")
    if given:
        address(given, version)
        found = find_name(scene, name, version)
        ip = str(ip_address(given))
        if ip in scene.own and found.place is Place.NIC:
            return replace(by_address(scene, ip), how=f"the host's own address: {name} has it by NAT at most")
        return replace(found, name=name, ip=ip, mac=found.mac or scene.mac_of(ip))
    if is_address(word):
        return by_address(scene, address(word, version))
    found = find_name(scene, name, version)
    if not found.ip:
        raise KvmnetError(f"the IPv{version} address of {word} is not known: nobody has heard it yet, and no lease names it",
                          f"give it with the name: {word}@{'192.0.2.5' if version == 4 else 'fd00::5'}, or ask with -6" if version == 4 else f"give it with the name: {word}@fd00::5")
    return found


def is_address(word: str) -> bool:
    try:
        ip_address(word)
    except ValueError:
        return False
    return True


def address(word: str, version: int) -> str:
    try:
        found = ip_address(word)
    except ValueError:
        raise KvmnetError(f"{word} is not an IP address") from None
    if found.version != version:
        raise KvmnetError(f"{word} is not an IPv{version} address", "both ends have the same IP version; IPv6 is asked with -6")
    return str(found)


def find_name(scene: Scene, name: str, version: int) -> End:
    if name == "host":
        return host(scene, version)
    if name == "outside":
        return End(name, Place.OUTSIDE, FAR[version])
    if MAC.fullmatch(name.lower()):
        return by_mac(scene, name.lower(), version)
    if (devices := ports_of(scene, name)):
        return at_port(scene, name, devices[0], version)
    if bridge := scene.network_of(name):
        own = [ip_interface(a) for a in scene.addresses_of(bridge, version)]
        if own:
            return End(name, Place.HOST, str(own[0].ip), mac=scene.mac(bridge), segment=bridge)
    for nic in vf_nics(scene):
        if name in (nic["vm"], f"{nic['vm']}/{nic['nic']}"):
            ip = nic.get("ip6" if version == 6 else "ip") or ""
            return End(name, Place.NIC, str(ip_address(ip)) if ip else ip_of(scene, nic["mac"], nic["tap"], version), "", nic["mac"], how=f"a VF of {scene.vfs[nic['mac']][0]}")
    known = sorted(set(names(scene)))
    near = get_close_matches(name, known, 3)
    raise KvmnetError(f"there is no guest, NIC, network or device {name} here",
                      f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known[:20]) or 'none'}; or give an address, host, or outside")


def names(scene: Scene) -> Iterator[str]:
    """What can be asked for by name."""
    yield from ("host", "outside")
    for nic in scene.nics:
        yield from (nic["vm"], f"{nic['vm']}/{nic['nic']}", nic["network"])
    yield from (n["vm"] for n in vf_nics(scene))
    yield from (g["name"] for g in scene.part("guests") if g.get("name"))
    yield from (p["name"] for p in scene.logical)
    yield from scene.links


def vf_nics(scene: Scene) -> list[Json]:
    """NICs of documents that are VFs: the host has no device for them."""
    return [n for n in scene.part("nics") if n["tap"] not in scene.links and n.get("mac") in scene.vfs]


def ports_of(scene: Scene, name: str) -> list[str]:
    """Devices of a guest, a NIC of it, or a device by its name."""
    vm, _, nic = name.partition("/")
    found = [n["tap"] for n in scene.nics if n["vm"] == vm and nic in ("", n["nic"])]
    if not found:
        taps = [list(g["taps"].values()) for g in scene.part("guests") if g.get("name") == vm]
        every = [t for some in taps for t in some if t in scene.links]
        found = every if not nic else every[int(nic):int(nic) + 1] if nic.isdigit() else []
    if not found and name in scene.links and scene.kind(name) != "bridge":
        found = [name]
    if not found:
        found = [p["dev"] for p in scene.logical if p["name"] == name]
    return found


def host(scene: Scene, version: int) -> End:
    """The host itself, with the address of its default route's device if it has one."""
    device = next((r.get("dev", "") for r in scene.part(f"routes{version}") if r.get("dst") == "default" and r.get("dev")), "")
    for dev in (device, *scene.links):
        own = [ip_interface(a) for a in scene.addresses_of(dev, version)] if dev and dev != "lo" else []
        if own and (not own[0].ip.is_link_local):
            return End("host", Place.HOST, str(own[0].ip), mac=scene.mac(dev), segment=dev)
    raise KvmnetError(f"the host has no IPv{version} address")


def at_port(scene: Scene, name: str, dev: str, version: int) -> End:
    """What is behind a device. Where several MACs are, the one that has an address."""
    if dev in scene.links and scene.addresses_of(dev, version) and scene.kind(scene.master(dev)) in ("", "vrf") and (dev not in scene.switched or scene.switched[dev]["name"] == dev):
        own = ip_interface(scene.addresses_of(dev, version)[0])
        if not (own.ip.is_link_local and version == 4):
            return End(name, Place.HOST, str(own.ip), mac=scene.mac(dev), segment=dev)
    macs = [n["mac"] for n in scene.nics if n["tap"] == dev and n["mac"]] or card_macs(scene, dev) or ([scene.mac(dev)] if scene.kind(dev) in ("macvtap", "macvlan") else [p["mac"] for p in scene.logical if p["dev"] == dev] or scene.learned(dev))
    known = [(mac, ip) for mac in macs if (ip := ip_of(scene, mac, dev, version))]
    mac, ip = known[0] if known else (macs[0] if macs else "", "")
    return End(name, Place.NIC, ip, dev, mac, scene.bridge_of(dev))


def card_macs(scene: Scene, dev: str) -> list[str]:
    return [card.mac for card in scene.cards if card.tap == dev and card.mac]


def ip_of(scene: Scene, mac: str, dev: str, version: int) -> str:
    """Address of a MAC: the document's, a lease's, a neighbour's."""
    field = "ip6" if version == 6 else "ip"
    for nic in scene.nics:
        if nic["mac"] == mac and nic.get(field) and nic["tap"] == dev:
            return str(ip_address(nic[field]))
    rows = [ip for p in scene.logical if p["mac"] == mac for ip in p["ips"]] + [lease["ip"] for lease in scene.part("leases") if lease["mac"] == mac] + [
        dst for (_, dst), entry in scene.neighbours.items() if entry.get("lladdr") == mac]
    return next((ip for ip in rows if is_address(ip) and ip_address(ip).version == version and not ip_address(ip).is_link_local), "")


def by_mac(scene: Scene, mac: str, version: int) -> End:
    for (bridge, known, _), (port, _) in scene.fdb.items():
        if known == mac and port != bridge:
            return replace(at_port(scene, mac, port, version), mac=mac, ip=ip_of(scene, mac, port, version))
    raise KvmnetError(f"no port of this host has {mac} behind it", "it has not sent anything for a while, or is not on this host")


def by_address(scene: Scene, ip: str, domain: str | None = None) -> End:
    """Own, a guest's, or outside: by the document, neighbours and the bridge's forwarding table. ``domain``: the VRF that is
    asked in ('' for none), where several have the address."""
    version = ip_address(ip).version
    if dev := scene.owner(ip, domain):
        return End(ip, Place.HOST, ip, mac=scene.mac(dev), segment=dev)
    field = "ip6" if version == 6 else "ip"
    for nic in sorted(scene.nics, key=lambda n: scene.domain_of(scene.bridge_of(n["tap"])) != (domain or "")):
        if nic.get(field) and str(ip_address(nic[field])) == ip:
            return End(ip, Place.NIC, ip, nic["tap"], nic["mac"], scene.bridge_of(nic["tap"]))
    for bound in scene.logical:
        if ip in bound["ips"]:
            return End(ip, Place.NIC, ip, bound["dev"], bound["mac"], scene.bridge_of(bound["dev"]), how=f"by OVN: {bound['name']}")
    segment = scene.on_link(ip, domain) or led_to(scene, ip, domain) or next((dev for (dev, dst), n in scene.neighbours.items() if dst == ip and "lladdr" in n and scene.kind(dev) == "bridge"), "")
    for entry in candidates(scene, ip, segment):
        mac = entry.get("lladdr", entry.get("mac", ""))
        known = [(bridge, str(row["ifname"])) for (bridge, learned, _), (_, row) in scene.fdb.items() if learned == mac and not scene.is_own(row)]
        for bridge, port in sorted(known, key=lambda place: place[0] != scene.base(segment))[:1]:
            return End(ip, Place.NIC, ip, port, mac, bridge, how="by the neighbour table and the bridge's forwarding table")
        for switch in scene.part("switches"):
            if segment in (p["name"] for p in switch["ports"]) and (behind := next((str(r["port"]) for r in switch.get("learned", ()) if r["mac"] == mac and r["port"] in scene.links), "")):
                return End(ip, Place.NIC, ip, behind, mac, how="by the neighbour table, and what Open vSwitch has learned")
    segment = scene.base(segment)
    if segment and scene.kind(segment) == "bridge":
        quiet = [p for p in scene.members[segment] if not scene.learned(p) and scene.kind(p) in ("tun", "veth")]
        if len(quiet) == 1:
            return End(ip, Place.NIC, ip, quiet[0], scene.mac_of(ip), segment, how=f"a guess: {quiet[0]} is the only port of {segment} behind which nobody is seen")
        return End(ip, Place.NIC, ip, "", scene.mac_of(ip), segment, how="its address is on this bridge")
    return End(ip, Place.OUTSIDE, ip, segment=segment)


def led_to(scene: Scene, ip: str, domain: str | None) -> str:
    """Bridge that a route leads to without a gateway, where no own prefix holds the address; '' without."""
    way = look_up(scene, Asked(ip, oif=domain or ""))
    return way.dev if way.type == "unicast" and not way.via and scene.kind(scene.base(way.dev)) == "bridge" else ""


def candidates(scene: Scene, ip: str, segment: str) -> list[Json]:
    """What says which MAC an address has."""
    found = [scene.neighbours[segment, ip]] if (segment, ip) in scene.neighbours else []
    return found + [lease for lease in scene.part("leases") if lease["ip"] == ip]
