"""Tunnels: what one needs and takes, who is behind which address, and what can use it as a way out. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from itertools import chain

from kvmnet.drivers.wireguard.resources import tunnel_of
from kvmnet.errors import Problem
from kvmnet.spec import tunnels, ways
from kvmnet.spec.networks import Mode, Network
from kvmnet.spec.rules.subject import Subject, wrong
from kvmnet.spec.uplinks import Uplink
from kvmnet.spec.wireguard import Wireguard

ELSEWHERE = {
    "members": "a bond and a tunnel over it are two uplinks", "bond": "bond is for NICs", "options": "options are those of a bond",
    "vlan": "a VLAN is on Ethernet, and a tunnel carries IP packets", "vlans": "a tunnel carries no VLANs",
    "protocol": "protocol is the kind of a VLAN's tag", "vfs": "a tunnel has no VFs", "ethtool": "a tunnel has no hardware",
    "mac": "a tunnel carries IP packets, which bear no MAC", "gateway": "nobody in a tunnel is a next hop: peers get what is allowed to them",
    "gateway6": "nobody in a tunnel is a next hop: peers get what is allowed to them",
}
"""Options of an uplink that a tunnel does not take -> why."""
ETHERNET = frozenset({Mode.BRIDGE, Mode.MACVTAP, Mode.SRIOV})
"""Modes that need an uplink which carries Ethernet frames."""


def forms(subject: Subject) -> Iterator[Problem]:
    """What a tunnel needs, and what only others take."""
    ports: dict[int, str] = {}
    for name, uplink in subject.spec.uplinks.items():
        path = f"uplinks.{name}"
        wireguard = uplink.wireguard
        if wireguard is None:
            if (below := subject.spec.uplinks.get(uplink.on or "")) and ways.is_tunnel(below):
                yield wrong(f"{path}.on", f"{uplink.on} is a tunnel, which carries IP packets and no VLANs", "name a NIC's or a bond's uplink")
            continue
        for option, why in ELSEWHERE.items():
            if option in uplink.model_fields_set:
                yield wrong(f"{path}.{option}", why, f"remove {option}")
        if not uplink.on:
            yield wrong(path, "a tunnel needs an uplink that its packets take", "add on: UPLINK")
        first = ports.setdefault(wireguard.port, path)
        if first != path:
            yield wrong(f"{path}.wireguard.port", f"{wireguard.port} is the port of {first} too", "give one of them another")
        yield from _peers(path, wireguard)
        yield from _routes(path, uplink, wireguard)
        yield from _size(subject, name, uplink)


def _peers(path: str, wireguard: Wireguard) -> Iterator[Problem]:
    keys: dict[str, str] = {}
    prefixes: dict[str, str] = {}
    for name, peer in wireguard.peers.items():
        here = f"{path}.wireguard.peers.{name}"
        first = keys.setdefault(peer.key, name)
        if first != name:
            yield wrong(f"{here}.key", f"it is the key of {first}, too", "every host has a key of its own")
        if not peer.allowed:
            yield wrong(here, "nothing would be sent to it: no address leads there", "add allowed: [ADDRESS]")
        for position, prefix in enumerate(peer.allowed):
            first = prefixes.setdefault(prefix, name)
            if first != name:
                yield wrong(f"{here}.allowed[{position}]", f"{prefix} leads to {first} already", "a prefix leads to one peer")


def _routes(path: str, uplink: Uplink, wireguard: Wireguard) -> Iterator[Problem]:
    """Routes into the tunnel that nobody is behind, and those that would take the tunnel's own packets."""
    allowed = [ip_network(p) for p in chain.from_iterable(p.allowed for p in wireguard.peers.values())]
    led = [(f"{path}.addresses[{i}]", str(ip_interface(a).network)) for i, a in enumerate(uplink.addresses)]
    for position, route in enumerate(uplink.routes):
        place = f"{path}.routes[{position}]"
        led.append((f"{place}.to", route.to))
        if route.via:
            yield wrong(f"{place}.via", "nobody in a tunnel is a next hop: peers get what is allowed to them", "remove via")
        to = ip_network(route.to)
        if not any(to.version == a.version and to.overlaps(a) for a in allowed):
            yield wrong(f"{place}.to", f"{route.to} is allowed to none of the peers: what goes there would be dropped",
                        "add it to allowed of the peer that it leads to")
    for place, prefix in led if not uplink.vrf else ():    # the packets around them find their way outside of it
        for name, peer in wireguard.peers.items():
            if peer.endpoint and _within(tunnels.endpoint_address(peer.endpoint), prefix):
                yield wrong(place, f"{prefix} takes the endpoint of {name}, {peer.endpoint}, into the tunnel itself",
                            "leave the address of the endpoint to the uplink below")


def _within(address: str, prefix: str) -> bool:
    net = ip_network(prefix)
    return ip_address(address).version == net.version and ip_address(address) in net


def _size(subject: Subject, name: str, uplink: Uplink) -> Iterator[Problem]:
    below = uplink.on
    outer = ways.mtu(below, subject.spec, subject.facts.state) if below in subject.spec.uplinks and below != name else None
    header = ways.tunnel_header(uplink)
    if uplink.mtu and outer and uplink.mtu + header > outer:
        yield wrong(f"uplinks.{name}.mtu", f"{uplink.mtu} and {header} bytes around each packet are more than the {outer} of {below}",
                    f"write at most {outer - header}, or remove mtu")


def users(subject: Subject) -> Iterator[Problem]:
    """Networks that a tunnel cannot be the way out of."""
    for name, network in subject.spec.networks.items():
        uplink = subject.spec.uplinks.get(network.uplink or "")
        if uplink is None or uplink.wireguard is None:
            continue
        path = f"networks.{name}"
        if network.mode in ETHERNET:
            yield wrong(f"{path}.uplink", f"{network.uplink} is a tunnel, which carries IP packets; mode {network.mode} needs Ethernet",
                        "write mode: vxlan for a segment over several hosts, or mode: routed")
        if network.proxy:
            yield wrong(f"{path}.proxy", "nobody asks by ARP in a tunnel", "remove proxy; allowed: at the other ends leads guests' addresses here")
        yield from _overlay(path, network, uplink.wireguard)


def _overlay(path: str, network: Network, wireguard: Wireguard) -> Iterator[Problem]:
    vxlan = network.vxlan
    if vxlan is None or network.mode is not Mode.VXLAN:
        return
    if vxlan.group:
        yield wrong(f"{path}.vxlan.group", "a tunnel carries no multicast", "name the hosts: peers: [ADDRESS]")
    allowed = [*chain.from_iterable(p.allowed for p in wireguard.peers.values())]
    for position, peer in enumerate(vxlan.peers):
        if not any(_within(peer, prefix) for prefix in allowed):
            yield wrong(f"{path}.vxlan.peers[{position}]", f"{peer} is allowed to none of the tunnel's peers",
                        f"add it to allowed of a peer of uplinks.{network.uplink}.wireguard")


def on_this_host(subject: Subject) -> Iterator[Problem]:
    """Kernels without WireGuard, files without a key, and peers that are this host itself."""
    own = {a.name.split()[1].partition("/")[0] for a in subject.addresses}
    for name, uplink in subject.spec.uplinks.items():
        if uplink.wireguard is None:
            continue
        path = f"uplinks.{name}.wireguard"
        if reason := subject.facts.features.get(ways.TUNNEL, ""):
            yield wrong(path, f"this host has no WireGuard: {reason}", "install the distribution's full kernel")
        for option, file in tunnels.secrets(uplink.wireguard):
            if reason := subject.facts.secrets.get(file, ""):
                yield wrong(f"{path}.{option}", f"{file}: {reason}", "umask 077; wg genkey > FILE, or wg genpsk > FILE for a shared one")
        seen = tunnel_of(subject.facts.state, ways.device(name, subject.spec))
        for peer_name, peer in uplink.wireguard.peers.items():
            if seen and seen.public == peer.key:
                yield wrong(f"{path}.peers.{peer_name}.key", "it is this host's own key", "write the key of the other host")
            if peer.endpoint and tunnels.endpoint_address(peer.endpoint) in own:
                yield wrong(f"{path}.peers.{peer_name}.endpoint", f"{peer.endpoint} is this host itself", "write the address of the other host")


RULES = (forms, users)
HOST_RULES = (on_this_host,)
