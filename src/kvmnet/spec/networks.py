"""Networks, as the operator writes them: their mode, addresses, services, and who may reach what."""
from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.limits import Limits
from kvmnet.spec.part import Part
from kvmnet.spec.rates import NetworkRate, TrafficClass
from kvmnet.spec.types import (
    Address,
    Address4,
    Address6,
    Domain,
    Duration,
    Group,
    IfName,
    Line,
    Name,
    Network4,
    Network6,
    PortNumber,
    Range4,
    Range6,
    VlanId,
    VlanRanges,
)


class Mode(StrEnum):
    NAT = "nat"
    ROUTED = "routed"
    ISOLATED = "isolated"
    BRIDGE = "bridge"
    VXLAN = "vxlan"
    MACVTAP = "macvtap"
    SRIOV = "sriov"

    @property
    def on_segment(self) -> bool:
        """Whether guests are on the uplink's own segment, beside others that kvmnet knows nothing of."""
        return self in (Mode.BRIDGE, Mode.MACVTAP)


SHARED = frozenset({Mode.BRIDGE, Mode.MACVTAP, Mode.VXLAN, Mode.SRIOV})
"""Modes of a segment that other machines are on, too: it is not this host's to give addresses away."""
CLOSED = frozenset({Mode.ISOLATED, Mode.VXLAN})
"""Modes in which the host leads guests nowhere outside."""


class MacvtapMode(StrEnum):
    BRIDGE = "bridge"
    PRIVATE = "private"
    VEPA = "vepa"
    PASSTHRU = "passthru"


class DhcpRoute(Part):
    """A classless static route handed to guests (DHCP option 121)."""

    to: Network4
    """Destination prefix."""
    via: Address4
    """Next hop."""


class Pxe(Part):
    """Network boot for guests."""

    file: Line
    """Boot file name, e.g. pxelinux.0 or an HTTP URL."""
    server: Address4 | None = None
    """TFTP server; the network's own address when not given."""
    tftp_root: Line | None = None
    """Directory that this host serves by TFTP; nothing is served when not given."""


class Dhcp(Part):
    """DHCP for IPv4 and IPv6, by dnsmasq."""

    enabled: bool = True
    """Serve DHCP on this network."""
    lease: Duration = 43200
    """Lease time, e.g. 12h, 30m or infinite."""
    dynamic: bool = False
    """Also serve guests that are not declared, from the pool's free addresses. Their frames pass
    only on NICs whose guard allows the address."""
    routes: tuple[DhcpRoute, ...] = ()
    """Classless static routes handed to guests."""
    ntp: tuple[Address, ...] = ()
    """Time servers handed to guests."""
    pxe: Pxe | None = None
    """Network boot."""
    options: dict[Line, Line] = Field(default_factory=dict)
    """Further DHCPv4 options by number or dnsmasq's name, e.g. {"42": "192.0.2.1"}."""


class Dns(Part):
    """DNS for guests, by dnsmasq."""

    enabled: bool = True
    """Serve DNS on this network."""
    domain: Domain | None = None
    """Domain of the guests' names; the network's name when not given."""
    upstream: tuple[Address, ...] | None = None
    """Servers asked for everything else; [] for none. When not given: the host's own (resolv.conf), in mode
    isolated none. With enabled: false, servers that guests are told to ask."""
    hosts: dict[Domain, tuple[Address, ...]] = Field(default_factory=dict)
    """Further names: name -> addresses."""


class Forward(Part):
    """A port of the host's uplink address handed to a guest (DNAT, with hairpin)."""

    protocol: Literal["tcp", "udp"] = "tcp"
    """Protocol."""
    port: PortNumber
    """Port on the uplink's address."""
    to: Line
    """Guest or guest/nic that gets the packets, e.g. web1 or web1/eth1."""
    to_port: PortNumber | None = None
    """Port on the guest; the same port when not given."""
    address: Address4 | None = None
    """Only for packets to this address of the host; every address of the uplink when not given."""


class Allow(Part):
    """A service of the host that guests of the network may reach."""

    protocol: Literal["tcp", "udp"] = "tcp"
    """Protocol."""
    port: PortNumber
    """Port on the host."""


class Metadata(Part):
    """A metadata service for guests at a fixed address, handed to a port of the host."""

    address: Address4 = "169.254.169.254"
    """Address that guests ask."""
    port: PortNumber = 80
    """Port that guests ask."""
    to_port: PortNumber
    """TCP port of the host on the network's own address where the service listens."""


class Vxlan(Part):
    """A segment stretched over several hosts: its frames travel in UDP packets (RFC 7348) between them."""

    vni: Annotated[int, Field(ge=1, le=16777215)]
    """Number of the segment, the same on every host."""
    local: Address | None = None
    """Address of this host that the packets come from; the first of the uplink when not given."""
    peers: tuple[Address, ...] = ()
    """Addresses of the other hosts. Frames of the segment are taken from these alone."""
    group: Group | None = None
    """Multicast group of the hosts, in place of peers that are sent to one by one. With peers as well,
    these alone are listened to; without, everybody who can send to the uplink takes part."""
    port: PortNumber = 4789
    """UDP port, the same on every host."""
    ttl: Annotated[int, Field(ge=1, le=255)] = 64
    """Hops that the packets may take; a multicast group often needs few."""
    learning: bool = True
    """Learn from the frames that come in behind which host a MAC is; without, every frame goes to
    all peers."""
    df: Literal["set", "unset", "inherit"] = "set"
    """May routers between the hosts fragment IPv4 packets? set: no, what is too large is answered to
    the guest (path MTU discovery); unset: yes; inherit: as the guest's packet says."""


class StpOptions(Part):
    """Settings of a bridge's spanning tree. The timers count where this bridge is the root (802.1D-1998, 8.10.2)."""

    priority: Annotated[int, Field(ge=0, le=61440, multiple_of=4096)] = 32768
    """Bridge priority in steps of 4096; the smallest becomes the root."""
    forward_delay: Annotated[int, Field(ge=4, le=30)] = 15
    """Seconds that a port listens, and that it then learns."""
    hello: Annotated[int, Field(ge=1, le=10)] = 2
    """Seconds between messages."""
    max_age: Annotated[int, Field(ge=6, le=40)] = 20
    """Seconds that a message of the root counts."""
    region: Region | None = None
    """stp: mstp: the region, and which VLANs go by which tree."""


class Instance(Part):
    """A tree of its own for some VLANs (MSTP)."""

    vlans: Annotated[VlanRanges, Field(min_length=1)]
    """VLANs that go by it, e.g. [100-199, 250]; also those that this host has no network on: all bridges of the region must
    have the same."""
    priority: Annotated[int, Field(ge=0, le=61440, multiple_of=4096)] = 32768
    """Priority of this host's bridge in it, in steps of 4096; the smallest becomes its root."""


class Region(Part):
    """What all bridges of a region of MSTP must have the same, but for the priorities (802.1Q-2018, 13.8). VLANs of no
    instance go by the common tree."""

    name: Annotated[str, Field(pattern="^[!-~]{1,32}$")]
    """Name of the region: at most 32 characters of ASCII, no space."""
    revision: Annotated[int, Field(ge=0, le=65535)] = 0
    """Revision of the mapping."""
    instances: dict[Annotated[int, Field(ge=1, le=4094)], Instance] = Field(min_length=1, max_length=64)
    """Trees, by number."""
    untagged: VlanId = 1
    """VLAN that the switches take frames without a tag for (the native one of their ports): these go by its tree."""


class Vrf(Part):
    """A routing domain of its own (VRF): networks and uplinks in it see no route and no address of any other, so that two
    tenants can use the same prefixes on one host."""

    table: Annotated[int, Field(ge=1, le=4294967295)] | None = None
    """Number of its routing table; one that follows from its name when not given."""


class Network(Part):
    """One layer-2 segment and how it reaches the rest of the world."""

    mode: Mode
    """nat: behind the host's address; routed: without NAT; isolated: no way out;
    bridge: on the uplink's own segment; macvtap: the same without a bridge; vxlan: stretched over
    several hosts, by the uplink; sriov: each NIC is a virtual function of the uplink's NIC, which the guest
    drives itself."""
    uplink: Name | None = None
    """Uplink that the network leaves by. Required for nat, routed, macvtap, sriov and bridge (unless the bridge
    exists already). mode vxlan: the uplink that the packets between the hosts take."""
    vrf: Name | None = None
    """modes nat, routed and isolated: routing domain that the network is in; its uplink is in the same. DHCP, router
    advertisements and DNS are served in it, and DNS asks nobody else unless dns.upstream says whom."""
    vxlan: Vxlan | None = None
    """mode vxlan: the segment's number and the other hosts."""
    macvtap: MacvtapMode | None = None
    """mode macvtap, how guests of the network reach each other: bridge (when not given) directly; private not
    on this host; vepa by the switch, which must send back (802.1Qbg); passthru has the uplink for one NIC alone."""
    vlan: VlanId | None = None
    """modes bridge, macvtap and sriov: VLAN of the uplink that the network is; the untagged one when not given. In
    mode bridge networks of one uplink share a VLAN-aware bridge; where the kernel has none, and where the host
    has an address, the network gets a bridge of its own on a VLAN sub-interface. macvtaps are always on one. In mode
    sriov the NIC puts its guests' frames on the VLAN and takes them off again; without it guests send what tags they like."""
    qos: Annotated[int, Field(ge=0, le=7)] = 0
    """mode sriov: priority (PCP) in the tag of the VLAN."""
    protocol: Literal["802.1Q", "802.1ad"] = "802.1Q"
    """mode sriov: kind of the tag; with 802.1ad guests can have VLANs of their own inside it."""
    bridge: IfName | None = None
    """mode bridge: an existing bridge of the host to use as it is. Nothing of it is changed."""
    subnet: Network4 | None = None
    """IPv4 prefix, e.g. 192.168.1.0/24."""
    subnet6: Network6 | None = None
    """IPv6 prefix, e.g. fd00:1::/64."""
    address: Address4 | Literal["none"] | None = None
    """The host's IPv4 address on the network; the first of the prefix when not given,
    none for no address. In the modes bridge and macvtap (the host keeps its own) and vxlan not given means none.
    mode macvtap: guests and the host reach each other only when it is given; the host gets a macvlan with it."""
    address6: Address6 | Literal["none"] | None = None
    """The host's IPv6 address on the network; the first of the prefix when not given."""
    gateway: Address4 | None = None
    """IPv4 router announced to guests; the host's address when not given. modes bridge and macvtap:
    the router of the outer segment."""
    gateway6: Address6 | None = None
    """modes bridge and macvtap: IPv6 router of the outer segment, kept from being claimed by a guest."""
    pool: Range4 | None = None
    """IPv4 addresses for NICs without one of their own, FIRST-LAST; the whole prefix when not given."""
    pool6: Range6 | None = None
    """IPv6 addresses for NICs without one of their own, FIRST-LAST."""
    ra: Literal["managed", "autoconf", "off"] = "managed"
    """Router advertisements: managed sends guests to DHCPv6; autoconf lets them form their own
    addresses (each NIC then needs a prefix of its own in extra.addresses)."""
    mtu: Annotated[int, Field(ge=68, le=65521)] | None = None
    """MTU in bytes, told to guests; the uplink's (or 1500) when not given, in mode vxlan less what its
    headers take (50 bytes over IPv4, 70 over IPv6)."""
    dhcp: Dhcp = Dhcp()
    """DHCP. In the modes bridge, macvtap and vxlan it is served only where the host has an address on the
    network."""
    dns: Dns = Dns()
    """DNS."""
    forwards: tuple[Forward, ...] = ()
    """mode nat: ports handed to guests."""
    allow: tuple[Allow, ...] = ()
    """Services of the host that guests may reach, beyond DHCP, DNS, ND and echo."""
    peers: tuple[Name, ...] = ()
    """Networks of this document that may be reached through the host, in both directions."""
    metadata: Metadata | None = None
    """A metadata service."""
    proxy: bool = False
    """mode routed: answer ARP and ND on the uplink for the guests' addresses."""
    limits: Limits = Limits()
    """What its NICs may cause at most, each; a NIC's own limits go before."""
    isolated_ports: bool = False
    """Guests reach the host and the uplink, but not each other."""
    stp: bool | Literal["rstp", "mstp"] = False
    """Spanning tree on the network's bridge. true: STP, by the kernel. rstp: RSTP, by a process of kvmnet's own; in mode bridge,
    where the uplink leads to other bridges. mstp: MSTP, in the same way, on the VLAN-aware bridge of an uplink: VLANs go by different
    links. A guest's port never leads to the root."""
    stp_options: StpOptions = StpOptions()
    """Further settings of the spanning tree. Networks of one uplink share it: one of them says it for all."""
    snooping: bool = True
    """Multicast goes to the ports that asked for it by IGMP and MLD, where a querier makes them ask."""
    querier: bool = False
    """The host asks who wants which multicast, where no router does. By IPv4 from the host's address on
    the network, or from 0.0.0.0; by IPv6 where the bridge has a link-local address."""
    neigh_suppress: bool = False
    """ARP and ND for guests are answered by the bridge, from the document's addresses, while the guests' MACs
    are known; they are not sent on to the guests. Gratuitous ARP does not reach them either."""

    rate: NetworkRate = NetworkRate()
    """How much its guests may send and receive together."""
    classes: dict[Name, TrafficClass] = Field(default_factory=dict)
    """Classes of what its guests send and receive by its way out, by name."""
    trust: Literal["dscp", "pcp"] = "dscp"
    """By what the classes of what comes in are told: dscp, the packet's DSCP; pcp, the priority in the VLAN tag that the switch
    has given the frame, which is the class with that pcp. pcp only in mode bridge with vlan."""
    _tagged = False

    @property
    def has_queues(self) -> bool:
        """Whether what its guests send waits at its way out, or is told apart there."""
        return bool(self.rate.in_ or self.rate.out or self.classes or self._tagged)

    def tag(self) -> None:
        """Some NIC of it has a priority in its tags."""
        self.__dict__["_tagged"] = True
        self.__dict__.pop("needs_device", None)

    @property
    def tree_is_ours(self) -> bool:
        """Whether a process of kvmnet's own speaks its spanning tree."""
        return self.stp in ("rstp", "mstp")

    @property
    def has_address(self) -> bool:
        """Whether the host has an address on it, where that is not so by default (mode bridge)."""
        return bool((self.subnet and self.address not in (None, "none"))
                    or (self.subnet6 and self.address6 not in (None, "none")))

    @cached_property
    def needs_device(self) -> bool:
        """Whether a VLAN must have a device of its own: for an address of the host, and for the neighbour table
        that answers for its guests (br_do_proxy_suppress_arp() in net/bridge/br_arp_nd_proxy.c), and for queues of its own."""
        return self.neigh_suppress or self.has_address or self.has_queues
