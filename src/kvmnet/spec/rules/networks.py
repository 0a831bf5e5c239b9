"""Networks: what each mode needs and takes, and that their prefixes do not overlap. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from kvmnet.errors import Problem
from kvmnet.spec import domains, pools, ways
from kvmnet.spec.nearest import nearest
from kvmnet.spec.networks import CLOSED, Mode, Network
from kvmnet.spec.pools import Family, Span
from kvmnet.spec.rules.subject import RESERVED, Subject, wrong
from kvmnet.spec.values import shown

ONLY_IN = {
    # option: (modes that have it, why, what to do)
    "bridge": ((Mode.BRIDGE,), "uses an existing bridge of the host", "remove it, or write mode: bridge"),
    "forwards": ((Mode.NAT,), "are for guests behind the host's address",
                 "remove them; in the other modes guests are reached at their own addresses"),
    "macvtap": ((Mode.MACVTAP,), "says how macvtaps reach each other", "remove it, or write mode: macvtap"),
    "vlan": ((Mode.BRIDGE, Mode.MACVTAP, Mode.SRIOV), "is a VLAN of the uplink that guests are on",
             "remove it; to route over a VLAN make an uplink of it: {vlan: ID, on: UPLINK}"),
    "proxy": ((Mode.ROUTED,), "answers for guests on the uplink", "remove it"),
    "uplink": ((Mode.NAT, Mode.ROUTED, Mode.BRIDGE, Mode.MACVTAP, Mode.VXLAN, Mode.SRIOV), "is a way out",
               "remove it, or write mode: nat"),
    "gateway6": ((Mode.BRIDGE, Mode.MACVTAP, Mode.SRIOV), "is the router of the outer segment",
                 "remove it; guests learn the host's own address by router advertisements"),
}
"""Options that not every mode has."""
NEEDS_HOST = {
    "metadata": ("the metadata service is reached at the host's IPv4 address", (Family.IPV4,)),
    "allow": ("a service of the host is reached at the host's address", tuple(Family)),
}
"""Options that need an address of the host on the network."""
DHCP_OPTIONS = frozenset(["netmask", "time-offset", "router", "dns-server", "log-server", "lpr-server", "boot-file-size", "domain-name", "swap-server", "root-path", "extension-path", "ip-forward-enable", "non-local-source-routing", "policy-filter", "max-datagram-reassembly", "default-ttl", "mtu", "all-subnets-local", "router-discovery", "router-solicitation", "static-route", "trailer-encapsulation", "arp-timeout", "ethernet-encap", "tcp-ttl", "tcp-keepalive", "nis-domain", "nis-server", "ntp-server", "netbios-ns", "netbios-dd", "netbios-nodetype", "netbios-scope", "x-windows-fs", "x-windows-dm", "T1", "T2", "vendor-class", "nis+-domain", "nis+-server", "tftp-server", "bootfile-name", "mobile-ip-home", "smtp-server", "pop3-server", "nntp-server", "irc-server", "user-class", "rapid-commit", "client-arch", "client-interface-id", "client-machine-id", "posix-timezone", "tzdb-timezone", "ipv6-only", "domain-search", "sip-server", "classless-static-route", "vendor-id-encap", "tftp-server-address", "server-ip-address"])
"""Names of DHCPv4 options (dnsmasq --help dhcp, 2.90); with an unknown one dnsmasq would not start."""


def mode_rules(subject: Subject) -> Iterator[Problem]:
    """What each mode needs and what it does not take."""
    for name, network in subject.spec.networks.items():
        path = f"networks.{name}"
        if network.mode is Mode.SRIOV:
            continue  # what it takes is in rules/sriov.py
        for option, (modes, why, hint) in ONLY_IN.items():
            if getattr(network, option) and network.mode not in modes:
                listed = " and ".join(mode.value for mode in modes) if len(modes) < 3 else "the other modes"
                yield wrong(f"{path}.{option}", f"{option} {why}; it is for {listed}, not for {network.mode}", hint)
        for option, (what, families) in NEEDS_HOST.items():
            if getattr(network, option) and not any(subject.hosted(network, family) for family in families):
                yield wrong(f"{path}.{option}", f"{what} on {name}, which it has not",
                            "give the network a subnet and an address")
        yield from _dhcp_options(f"{path}.dhcp.options", network)
        yield from FORMS.get(network.mode, _routed)(path, network)


def _macvtap(path: str, network: Network) -> Iterator[Problem]:
    if not network.uplink:
        yield wrong(path, "mode macvtap needs an uplink", "add uplink: NAME")


def _dhcp_options(path: str, network: Network) -> Iterator[Problem]:
    for option in network.dhcp.options:
        if option.isascii() and option.isdigit():
            if not 1 <= int(option) <= 254:
                yield wrong(f"{path}.{option}", f"DHCP options have numbers from 1 to 254, not {option}")
        elif ":" not in option and option not in DHCP_OPTIONS:
            near = nearest(option, tuple(sorted(DHCP_OPTIONS)))
            yield wrong(f"{path}.{option}", f"{shown(option)} is no name of a DHCP option",
                        f"did you mean {near}?" if near else "write its number, or a name from dnsmasq --help dhcp")


def _bridge(path: str, network: Network) -> Iterator[Problem]:
    if network.uplink and network.bridge:
        yield wrong(f"{path}.bridge", "uplink and bridge exclude each other",
                    "bridge: uses an existing bridge as it is; uplink: makes one around a NIC")
    if not network.uplink and not network.bridge:
        yield wrong(path, "mode bridge needs an uplink or an existing bridge", "add uplink: NAME or bridge: DEVICE")
    if network.bridge and network.vlan:
        yield wrong(f"{path}.vlan", "an existing bridge is used as it is: its VLANs are not changed",
                    "remove vlan, or write uplink: instead of bridge:")
    if network.bridge and network.stp:
        yield wrong(f"{path}.stp", "an existing bridge is used as it is: its spanning tree is not changed",
                    "remove stp")
    if network.bridge and any(pools.host_address(network, family) for family in Family):
        option = "address" if network.address not in (None, "none") else "address6"
        yield wrong(f"{path}.{option}", "an existing bridge is used as it is: it gets no address",
                    f"remove {option}, or give the bridge its address yourself")


def _routed(path: str, network: Network) -> Iterator[Problem]:
    if network.mode not in CLOSED:
        if not network.uplink:
            yield wrong(path, f"mode {network.mode} needs an uplink", "add uplink: NAME, or write mode: isolated")
        if not network.subnet and not network.subnet6:
            yield wrong(path, f"mode {network.mode} needs a prefix", "add subnet: 192.168.100.0/24 or subnet6:")
        elif not any(pools.host_address(network, family) for family in Family):
            yield wrong(path, f"in mode {network.mode} the host is the guests' router; it needs an address",
                        "remove address: none, or write mode: isolated")


FORMS = {Mode.BRIDGE: _bridge, Mode.MACVTAP: _macvtap}


def shared_uplinks(subject: Subject) -> Iterator[Problem]:
    """Two networks that are the same segment of an uplink."""
    seen: dict[tuple[str, int], str] = {}
    for name, network in subject.spec.networks.items():
        if network.mode.on_segment and network.uplink and not network.bridge:
            first = seen.setdefault((network.uplink, network.vlan or 0), name)
            if first != name and not network.vlan:
                taken, why = (("bridged by", "a NIC can be in one bridge only")
                              if subject.spec.networks[first].mode is network.mode is Mode.BRIDGE
                              else ("taken by", "a NIC is in one bridge, or carries macvtaps of one network"))
                yield wrong(f"networks.{name}.uplink", f"{network.uplink} is {taken} network {first} already; {why}",
                            f"put its guests on {first}, or give one of them a vlan:")
            elif first != name:
                yield wrong(f"networks.{name}.vlan", f"VLAN {network.vlan} of {network.uplink} is network {first} "
                            "already", f"put its guests on {first}, or use another id")


def duplicate_forwards(subject: Subject) -> Iterator[Problem]:
    """One port of one address handed to two guests."""
    seen: dict[tuple[str, str, int], list[tuple[str, str]]] = {}
    for name, network in subject.spec.networks.items():
        for position, forward in enumerate(network.forwards):
            path = f"networks.{name}.forwards[{position}]"
            others = seen.setdefault((network.uplink or "", forward.protocol, forward.port), [])
            asked = forward.address or ""
            clash = next((at for at, address in others if address == asked or not address or not asked), "")
            if clash:
                yield wrong(path, f"{forward.protocol} port {forward.port} is forwarded by {clash} already",
                            "use another port, or different address: for each")
            others.append((path, asked))


def prefixes(subject: Subject) -> Iterator[Problem]:
    """Addresses of a network that lie outside its prefix or have none, and prefixes of a useless size."""
    for name, network in subject.spec.networks.items():
        for family in Family:
            yield from _prefix(f"networks.{name}", network, family)
        if network.dhcp and network.subnet:
            low, high = pools.span(network.subnet, Family.IPV4)
            for position, route in enumerate(network.dhcp.routes):
                if not low <= pools.number(route.via) <= high:
                    yield wrong(f"networks.{name}.dhcp.routes[{position}].via",
                                f"{route.via} is not in {network.subnet}: guests could not reach it", "")


def _prefix(path: str, network: Network, family: Family) -> Iterator[Problem]:
    six = "6" if family is Family.IPV6 else ""
    subnet = pools.subnet_of(network, family)
    host = getattr(network, f"address{six}")
    values = {f"{option}{six}": value for option in ("address", "gateway", "pool")
              if (value := getattr(network, f"{option}{six}")) and value != "none"}
    for option, value in values.items():
        if not subnet:
            if option != "gateway6":
                yield wrong(f"{path}.{option}", f"{option} without a prefix", f"add subnet{six}:")
        elif option != "gateway6" or not value.startswith("fe80:"):
            low, high = pools.span(subnet, family)
            first, last = pools.span(value, family)
            if first < low or last > high:
                yield wrong(f"{path}.{option}", f"{value} is not in subnet{six} {subnet}")
    if subnet:
        yield from _host(path, network, family, subnet, host)
        yield from _length(path, network, family, subnet)


def _host(path: str, network: Network, family: Family, subnet: str, host: str | None) -> Iterator[Problem]:
    option = "address6" if family is Family.IPV6 else "address"
    low, high = pools.span(subnet, family)
    if host and host != "none" and high - low > 1:
        value = pools.number(host)
        if value == low:
            yield wrong(f"{path}.{option}", f"{host} is the prefix itself and no host's address",
                        f"write {pools.address(low + 1, family)}")
        elif value == high and family is Family.IPV4:
            yield wrong(f"{path}.{option}", f"{host} is the broadcast address of {subnet}",
                        f"write {pools.address(low + 1, family)}")


def _length(path: str, network: Network, family: Family, subnet: str) -> Iterator[Problem]:
    length = int(subnet.partition("/")[2])
    option = "subnet6" if family is Family.IPV6 else "subnet"
    if not pools.host_address(network, family):
        return
    if length > (30 if family is Family.IPV4 else 126):
        yield wrong(f"{path}.{option}", f"{subnet} has no room for the host and a guest",
                    "write a shorter prefix length")
    elif family is Family.IPV4 and length < 8:
        yield wrong(f"{path}.{option}", f"{subnet} takes a large part of the Internet", "write a longer prefix length")
    elif family is Family.IPV6 and network.ra == "autoconf" and length != 64:
        yield wrong(f"{path}.{option}", f"autoconfiguration needs a /64 (RFC 4862, 5.5.3), not {subnet}",
                    "write a /64, or ra: managed")
    elif family is Family.IPV6 and length < 64 and (network.dhcp.enabled or network.ra != "off"):
        yield wrong(f"{path}.{option}", f"{subnet} is too wide: dnsmasq serves prefixes of /64 and longer",
                    f"write {subnet.partition('/')[0]}/64")


class Claimed(NamedTuple):
    """A prefix of one of the host's routing domains and who has it."""

    span: Span
    text: str
    owner: str
    domain: str = ""
    """Device of the domain; '' for the host's own. Its addresses answer in every domain, since the kernel asks the table
    local first: so only two domains that both are not the host's may have the same."""

    def meets(self, other: Claimed) -> bool:
        return self.domain == other.domain or not (self.domain and other.domain)


def overlaps(subject: Subject) -> Iterator[Problem]:
    """Prefixes that the host routes for and that overlap: among networks, and with the host's own."""
    for family in Family:
        option = "subnet6" if family is Family.IPV6 else "subnet"
        own = [Claimed(pools.span(subnet, family), subnet, name)
               for name, network in subject.spec.networks.items()
               if (subnet := pools.subnet_of(network, family)) and subject.hosted(network, family)]
        own = [c._replace(domain=domains.device(subject.spec.networks[c.owner].vrf)) for c in own]
        reported: set[str] = set()
        for domain in sorted({c.domain for c in own}, key=bool):
            yield from _among([c for c in own if c.meets(Claimed((0, 0), "", "", domain))], option, reported)
        foreign = [*_host_addresses(subject, family), *_host_routes(subject, family)]
        for here in own:
            yield from _foreign(subject, here, option, foreign)


def _among(own: list[Claimed], option: str, reported: set[str]) -> Iterator[Problem]:
    """Overlaps among the networks that one domain sees. ``reported``: those that were told already."""
    widest: Claimed | None = None
    for here in sorted(own):
        if widest and here.span[0] <= widest.span[1] and here.meets(widest) and here.owner not in reported:
            reported.add(here.owner)
            why = ("the host would not know where to send packets" if here.domain == widest.domain else
                   "one of them is in no VRF, and the host's own addresses answer in every VRF")
            yield wrong(f"networks.{here.owner}.{option}",
                        f"{here.text} overlaps {widest.text} of network {widest.owner}; {why}",
                        "use another prefix, or address: none on one of them")
        if widest is None or here.span[1] > widest.span[1]:
            widest = here


def _foreign(subject: Subject, here: Claimed, option: str, foreign: list[Claimed]) -> Iterator[Problem]:
    mine = subject.outer_devices(here.owner)
    for other in foreign:
        if other.owner in mine or not here.meets(other) or other.span[1] < here.span[0] or other.span[0] > here.span[1]:
            continue
        yield wrong(f"networks.{here.owner}.{option}",
                    f"{here.text} overlaps {other.text} of the host's own {other.owner}",
                    "use another prefix; ip route shows those in use")
        return


def _host_addresses(subject: Subject, family: Family) -> Iterator[Claimed]:
    """Prefixes that the host is on by itself. What is on a bridge of ours is the document's own, except
    where the bridge took an uplink and its addresses."""
    bridged = {device for device, name in subject.own_bridges.items()
               if subject.spec.networks[name].mode is Mode.BRIDGE}
    bridged |= {link.master for link in subject.links.values() if link.master and not link.name.startswith(RESERVED)}
    for item in subject.addresses:
        device = item.dev or item.name.partition(" ")[0]
        text = item.name.rpartition(" ")[2]
        if (":" in text) != (family is Family.IPV6) or device == "lo" or text.startswith("fe80:"):
            continue
        if device.startswith(RESERVED) and device not in bridged:
            continue
        address, _, length = text.partition("/")
        bits = (128 if family is Family.IPV6 else 32) - int(length or (128 if family is Family.IPV6 else 32))
        first = pools.number(address) >> bits << bits
        yield Claimed((first, first + (1 << bits) - 1), text, device, _domain(subject, device))


def _host_routes(subject: Subject, family: Family) -> Iterator[Claimed]:
    """Routes of the host's own that a network would cut: those without a gateway (the prefix is on a
    link), and through the host's gateways those inside the network. A wider route by a gateway stays
    as it is: the longer prefix wins, as everywhere in routing."""
    own = [pools.span(subnet, family) for network in subject.spec.networks.values()
           if (subnet := pools.subnet_of(network, family))]
    for route in subject.routes:
        dst, device = route.dst or "", route.dev or ""
        if (dst in ("", "default") or route.table not in (None, "main") or route.proto in ("87", "kernel")
                or device.startswith(RESERVED) or device == "lo" or route.family != family
                or dst.startswith(("fe80:", "ff00:"))):
            continue
        low, high = pools.span(dst, family)
        if route.via and any((low < first and high >= last) or (low <= first and high > last) for first, last in own):
            continue
        yield Claimed((low, high), dst, device, _domain(subject, device))


def _domain(subject: Subject, device: str) -> str:
    """Device of the routing domain that a device of the host is in, or is to be."""
    spec = subject.spec
    declared = next((domains.device(u.vrf) for n, u in spec.uplinks.items() if u.vrf and ways.device(n, spec) == device), "")
    link = subject.links.get(device)
    return declared or (link.vrf or "" if link else "")


RULES = (mode_rules, shared_uplinks, duplicate_forwards, prefixes, overlaps)
