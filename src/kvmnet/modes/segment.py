"""One network with everything settled: names, addresses, MTU and the NICs on it. Pure."""
from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, NamedTuple

from kvmnet.engine.resource import Absent, Key, Resource
from kvmnet.records import dataclass, field

if TYPE_CHECKING:
    from kvmnet.modes.model import NicOnNetwork
    from kvmnet.spec.networks import Network


@dataclass(frozen=True, slots=True)
class Overlay:
    """How a network stretches to other hosts."""

    port: str
    """Its port on the bridge."""
    device: str
    """Device that its packets take; '' where the host's routes say it."""
    local: str
    """Address that they come from; '' for any."""
    header: int
    """Bytes that a packet between the hosts is longer than the guest's."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A network as the compiler sees it: every default decided."""

    name: str
    network: Network
    bridge: str
    """Device of the bridge, ours or adopted."""
    mtu: int
    address: str
    """The host's IPv4 address on the network, without prefix; '' for none."""
    address6: str
    way_out: str
    """Device that routed packets leave by: the uplink, or the bridge that took it; '' for none."""
    nics: Sequence[NicOnNetwork]
    parent: str = ""
    """mode macvtap: device that the macvtaps lie on; then ``bridge`` is the host's macvlan."""
    vlan: int = 0
    """VLAN inside a bridge that goes by them; 0 when the bridge is the network's alone."""
    outside: tuple[str, ...] = ()
    """The host's addresses on its uplink that the document claims; known for networks in a routing domain."""
    vrf: str = ""
    """Device of the routing domain that it is in; '' for the host's own."""
    overlay: Overlay | None = None
    """How it stretches to other hosts; None when it does not."""
    port: str = ""
    """Device by which what its guests send leaves, where it can wait there: its own port to the outside, the uplink, or the only one of an
    existing bridge; '' for none."""
    wire: str = ""
    """mode bridge on a VLAN with a device of its own: device that its frames leave by with their tag."""
    joined: tuple[str, ...] = ()
    """IPv4 prefixes of the networks that it reaches through the host, sorted."""

    @property
    def guarded(self) -> bool:
        """Whether the host's tables have anything to guard: VFs pass none, and a bridge of the host's own without a NIC
        of the document is left alone."""
        network = self.network
        return bool(self.floor and (self.nics or not network.bridge or network.allow or network.peers or network.metadata))

    @property
    def with_host(self) -> bool:
        """Whether frames reach the host there: of a shared bridge it is on the untagged VLAN alone, and among
        macvtaps where it has one of its own."""
        return not (self.vlan and self.network.vlan) and (not self.parent or bool(self.address or self.address6))

    @property
    def domain(self) -> str:
        """The layer-2 segment: a bridge, one VLAN of it, or the parent of macvtaps."""
        if self.parent:
            return f"macvtap {self.parent}"
        return f"{self.bridge} {self.vlan}" if self.vlan else self.bridge

    @property
    def identity(self) -> str:
        """What the host's MACs on it are made from: on a segment of several hosts each has its own."""
        return f"{self.name} {self.overlay.local}" if self.overlay else self.name

    @property
    def floor(self) -> str:
        """The device that the network stands on: its bridge, or the parent of its macvtaps."""
        return self.parent or self.bridge

    @property
    def meeting(self) -> bool:
        """Whether guests of the network reach each other on this host."""
        return not self.network.isolated_ports and self.network.macvtap in (None, "bridge")

    @property
    def apart(self) -> bool:
        """Whether guests of the network are promised not to reach each other."""
        return self.network.isolated_ports or self.network.macvtap == "private"

    def isolates(self, nic: NicOnNetwork) -> bool:
        """Whether *nic* does not reach others that are isolated as well."""
        return self.network.isolated_ports if nic.declared.isolated is None else nic.declared.isolated

    @property
    def alone(self) -> bool:
        """Whether one NIC has the whole uplink: nothing else has room beside it."""
        return self.network.macvtap == "passthru"

    @property
    def cidr(self) -> str:
        """The host's IPv4 address with its prefix length, or ''."""
        return with_prefix(self.address, self.network.subnet)

    @property
    def cidr6(self) -> str:
        return with_prefix(self.address6, self.network.subnet6)


def with_prefix(address: str, subnet: str | None) -> str:
    if not address or not subnet:
        return ""
    return str(ip_interface(f"{address}/{ip_network(subnet).prefixlen}"))


class Listening(NamedTuple):
    """Who may send packets of an overlay to the host."""

    port: int
    """UDP port."""
    vni: int
    version: int
    """IP version."""
    device: str
    """Device that they come in by; '' for any."""
    peers: tuple[str, ...]
    """Addresses that they come from; empty for any."""


@dataclass(slots=True)
class HostPolicy:
    """What the host's own table lets pass for one network. Merged over all networks into one table."""

    reach: set[tuple[str, str]] = field(default_factory=set)
    """(input device, output device) between which new connections may start."""
    bridged: set[str] = field(default_factory=set)
    """Bridges whose own frames pass the IP hooks where the host has bridge netfilter switched on
    for all bridges; their sources were judged by the guard."""
    routers: set[tuple[str, str]] = field(default_factory=set)
    """(bridge, its MAC): frames that the host would route, not bridge."""
    inward: set[str] = field(default_factory=set)
    """Devices from which forwarded ports may be used."""
    apart: set[str] = field(default_factory=set)
    """Bridges with guests that are isolated from each other: a forwarded port leads none of them back to another."""
    hosted: set[str] = field(default_factory=set)
    """Bridges with guests alone on them: not those that took an uplink, by which the world comes in."""
    sources: set[tuple[str, str]] = field(default_factory=set)
    """(bridge, prefix): what may be forwarded from guests of a hosted bridge."""
    services: set[tuple[str, str, int]] = field(default_factory=set)
    """(bridge, protocol, port) of the host that guests may reach."""
    allowed: set[tuple[str, str, int]] = field(default_factory=set)
    """The same on whatever address the host has: what the document allows."""
    outer: set[str] = field(default_factory=set)
    """Bridges of ours that took an uplink: the host's own traffic and others' pass there too."""
    inside: set[str] = field(default_factory=set)
    """Prefixes of the networks that the host is on: no other device may bring packets from them."""
    lent: set[tuple[str, int]] = field(default_factory=set)
    """(device, IP version): ways out that forward because of us, on a host that is no router itself."""
    masquerade: set[tuple[str, str]] = field(default_factory=set)
    """(output device, source prefix)."""
    forwards: set[tuple[str, str, int, str, int, str]] = field(default_factory=set)
    """(host address or '', protocol, port, guest address, guest port, bridge)."""
    metadata: set[tuple[str, str, int, str, int]] = field(default_factory=set)
    """(bridge, asked address, asked port, host address, host port)."""
    overlays: set[Listening] = field(default_factory=set)
    """Segments stretched to other hosts, and who may speak on them."""
    tunnels: set[tuple[int, str]] = field(default_factory=set)
    """(UDP port, device): encrypted tunnels, and the only device that their packets come in by."""
    vrf_members: set[tuple[str, str]] = field(default_factory=set)
    """(device of a routing domain, a device in it)."""
    vrf_zones: set[tuple[str, int]] = field(default_factory=set)
    """(routing domain or device in one, conntrack zone)."""
    vrf_inside: set[tuple[str, str]] = field(default_factory=set)
    """(bridge, prefix): ``inside`` of networks in a domain, where it holds for the domain alone."""
    vrf_forwards: set[tuple[str, str, str, int, str, int, str]] = field(default_factory=set)
    """(uplink, host address, protocol, port, guest address, guest port, bridge): ``forwards`` in a domain."""
    vrf_hairpin: set[tuple[str, str]] = field(default_factory=set)
    """(bridge, prefix): guests that may use forwarded ports of their own network."""
    vrf_served: set[tuple[str, str]] = field(default_factory=set)
    """(bridge, address or prefix): where guests of a network in a domain find DHCP and DNS."""
    own: set[str] = field(default_factory=set)
    """The host's addresses on guest networks."""

    def merge(self, other: HostPolicy) -> None:
        for name in self.__slots__:
            getattr(self, name).update(getattr(other, name))


@dataclass(slots=True)
class Part:
    """What a mode makes of a network."""

    resources: list[Resource | Absent] = field(default_factory=list)
    borrowed: set[Key] = field(default_factory=set)
    policy: HostPolicy = field(default_factory=HostPolicy)
    notes: list[str] = field(default_factory=list)
