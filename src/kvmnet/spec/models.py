"""What the operator writes. One field is type, default, validation and documentation of an option;
the schema, the reference and the editor's help are generated from here.

Values are canonical once parsed: MACs in lower case with colons, prefixes without host bits,
address ranges as two addresses, so that comparing is ``==``.
"""
from __future__ import annotations

from enum import StrEnum
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field

from kvmnet.spec.limits import Limits
from kvmnet.spec.mirrors import Mirror
from kvmnet.spec.part import Part as Part
from kvmnet.spec.policies import NicGroup, Tenant
from kvmnet.spec.rates import Mark, NetworkRate, Rate, TrafficClass
from kvmnet.spec.values import (
    Address,
    Address4,
    Address6,
    Cidr,
    Domain,
    Duration,
    Group,
    IfName,
    Line,
    Mac,
    Name,
    Network4,
    Network6,
    NetworkName,
    PciSlot,
    PortNumber,
    Prefix,
    Range4,
    Range6,
    Setting,
    Size,
    VlanId,
    VlanRanges,
)
from kvmnet.spec.wireguard import Wireguard


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


class Model(StrEnum):
    VIRTIO = "virtio"
    VIRTIO_TRANSITIONAL = "virtio-transitional"
    E1000E = "e1000e"
    E1000 = "e1000"
    PCNET = "pcnet"
    RTL8139 = "rtl8139"
    VMXNET3 = "vmxnet3"


class BondMode(StrEnum):
    ROUND_ROBIN = "balance-rr"
    ACTIVE_BACKUP = "active-backup"
    XOR = "balance-xor"
    BROADCAST = "broadcast"
    LACP = "802.3ad"
    TLB = "balance-tlb"
    ALB = "balance-alb"


class ArpMonitor(Part):
    """Members are watched by asking addresses by ARP, not by their carrier."""

    interval: Annotated[int, Field(ge=10, le=60000)] = 1000
    """Milliseconds between questions."""
    targets: Annotated[tuple[Address4, ...], Field(min_length=1, max_length=16)]
    """Addresses that answer, e.g. the gateway."""
    check: Literal["none", "active", "backup", "all"] = "none"
    """Which members must see an answer of the targets themselves; none counts any ARP."""


class BondOptions(Part):
    """How a bond uses and watches its members."""

    primary: IfName | None = None
    """active-backup, balance-tlb, balance-alb: member that is preferred; the first when not given."""
    reselect: Literal["always", "better", "failure"] = "always"
    """When the primary is taken again after it was lost: always, if it is faster, or only when the
    other fails."""
    miimon: Annotated[int, Field(ge=1, le=60000)] | None = None
    """Milliseconds between looks at the members' carriers; 100 when neither it nor arp is given."""
    updelay: Annotated[int, Field(ge=0, le=600000)] = 0
    """Milliseconds that a carrier must last before the member is used; a multiple of miimon."""
    downdelay: Annotated[int, Field(ge=0, le=600000)] = 0
    """Milliseconds without a carrier before the member is left; a multiple of miimon."""
    arp: ArpMonitor | None = None
    """Watch by ARP instead of the carrier. Not in 802.3ad, balance-tlb and balance-alb."""
    hash: Literal["layer2", "layer2+3", "layer3+4", "encap2+3", "encap3+4", "vlan+srcmac"] | None = None
    """802.3ad, balance-xor, balance-tlb: what chooses the member for a packet. When not given: layer3+4
    in 802.3ad, else layer2."""
    lacp_rate: Literal["slow", "fast"] | None = None
    """802.3ad: ask the partner for a message each 30 s or each second; slow when not given."""
    ad_select: Literal["stable", "bandwidth", "count"] | None = None
    """802.3ad: which group of members is used; stable when not given."""
    min_links: Annotated[int, Field(ge=0, le=64)] = 0
    """Members that must have a carrier for the bond to have one."""
    peer_notify: Annotated[int, Field(ge=0, le=255)] = 1
    """Gratuitous ARPs and unsolicited NAs sent after a failover."""


Entries = Annotated[int, Field(ge=1, le=65535)]
Queues = Annotated[int, Field(ge=0, le=1024)]
Micros = Annotated[int, Field(ge=0, le=1000000)]


class Rings(Part):
    """Sizes of a NIC's rings. The hardware's maximum is shown by ethtool -g."""

    rx: Entries | None = None
    """Entries for frames that come in."""
    tx: Entries | None = None
    """Entries for frames that go out."""


class Channels(Part):
    """Queues of a NIC. The hardware's maximum is shown by ethtool -l."""

    combined: Queues | None = None
    """Queue pairs that receive and send."""
    rx: Queues | None = None
    """Queues that only receive."""
    tx: Queues | None = None
    """Queues that only send."""


class Coalesce(Part):
    """When a NIC interrupts: later saves CPU time, sooner saves delay."""

    adaptive_rx: bool | None = None
    """The NIC chooses for frames that come in."""
    adaptive_tx: bool | None = None
    """The NIC chooses for frames that went out."""
    rx_usecs: Micros | None = None
    """Microseconds from a frame that came in to the interrupt."""
    rx_frames: Micros | None = None
    """Frames that came in until the interrupt."""
    tx_usecs: Micros | None = None
    """Microseconds from a frame that went out to the interrupt."""
    tx_frames: Micros | None = None
    """Frames that went out until the interrupt."""


class Pause(Part):
    """Pause frames (IEEE 802.3x)."""

    autoneg: bool | None = None
    """Negotiate them with the other end."""
    rx: bool | None = None
    """Obey those that come in."""
    tx: bool | None = None
    """Send them when the NIC is full."""


class Ethtool(Part):
    """Hardware settings of a NIC, of a bond: of each member. What is not given is left alone, everything is given
    back by destroy."""

    rings: Rings = Rings()
    """Ring sizes."""
    channels: Channels = Channels()
    """Queues."""
    coalesce: Coalesce = Coalesce()
    """Interrupts."""
    pause: Pause = Pause()
    """Pause frames."""
    features: dict[Line, bool] = Field(default_factory=dict)
    """Offloads by the kernel's name as ethtool -k shows it, e.g. {rx-vlan-filter: false}; a group such as
    tx-checksumming stands for those of its features that the NIC can change."""


class UplinkRoute(Part):
    """A route of the host by an uplink."""

    to: Prefix
    """Destination prefix, e.g. 10.0.0.0/8."""
    via: Address | None = None
    """Next hop; directly on the link when not given."""
    metric: Annotated[int, Field(ge=0, le=4294967295)] | None = None
    """Preference; smaller wins. The kernel's own when not given."""


class TreePort(Part):
    """A NIC as a port of a spanning tree (stp: rstp)."""

    cost: Annotated[int, Field(ge=1, le=200000000)] | None = None
    """What the way by it costs; by its speed when not given (20000 for 1 Gbit/s, 2000 for 10 Gbit/s and where it is not known)."""
    priority: Annotated[int, Field(ge=0, le=240, multiple_of=16)] = 128
    """Of two ports to the same bridge that with the smaller one is used."""


class Uplink(Part):
    """A way out of the host: a NIC, a bond of NICs, a VLAN of either, or a tunnel over one of these. NICs are borrowed:
    nothing but what is written here is changed, and everything is given back by destroy. Bonds, VLANs and tunnels are
    made, and what the host has on a NIC moves to the bond that takes it."""

    device: IfName | None = None
    """Name of the host's NIC, e.g. ens18. With members, and with on: name of the link that is made, e.g.
    bond0; kvu-NAME when not given. With vlan alone: the NIC that carries it."""
    redundant: dict[IfName, TreePort] = Field(default_factory=dict)
    """Further NICs of the host that lead to the same segment, each with its settings as a port, {} for the usual ones. With device
    they become ports of the bridge of a network in mode bridge, which needs stp: it shuts what would close a loop."""
    tree: TreePort = TreePort()
    """The uplink itself as a port of a spanning tree."""
    members: tuple[IfName, ...] = ()
    """NICs of the host that make a bond."""
    bond: BondMode | None = None
    """How the members are used; active-backup when not given."""
    options: BondOptions = BondOptions()
    """Further settings of the bond."""
    vlan: VlanId | None = None
    """VLAN id of a sub-interface of device, or of the uplink named by on."""
    on: Name | None = None
    """Uplink that carries the VLAN, e.g. a bond, or another VLAN (QinQ); of a tunnel, the uplink that its packets take."""
    wireguard: Wireguard | None = None
    """A tunnel to other hosts, encrypted: for networks of the modes nat, routed and vxlan."""
    protocol: Literal["802.1Q", "802.1ad"] = "802.1Q"
    """Kind of the VLAN's tag; 802.1ad for the outer tag of QinQ."""
    vlans: VlanRanges = ()
    """VLAN ids that the switch carries to this uplink, e.g. [100, 200-299]. Networks, trunks and VLANs on it must
    be among them. Any when not given."""
    mtu: Annotated[int, Field(ge=68, le=65535)] | None = None
    """MTU in bytes. Left alone when not given; of a bond its members', of a VLAN that of its carrier, of a tunnel that
    of the uplink below less 60 bytes, or 80 where an endpoint is IPv6."""
    vfs: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Virtual functions (SR-IOV) that the NIC is split into, for networks of mode sriov. VFs that others made
    are kept when there are enough of them, and never taken away while somebody uses one."""
    vrf: Name | None = None
    """Routing domain that it is in: its addresses, gateways and routes are seen there alone."""
    mac: Mac | None = None
    """MAC of a bond or VLAN. When not given: of a bond its first member's, of a VLAN its carrier's."""
    addresses: tuple[Cidr, ...] = ()
    """Addresses of the host on the uplink with their prefix lengths, beside those that it has, e.g.
    192.0.2.5/24. In mode bridge they are on the bridge."""
    gateway: Address4 | None = None
    """Next hop of the host's IPv4 default route."""
    gateway6: Address6 | None = None
    """Next hop of the host's IPv6 default route."""
    routes: tuple[UplinkRoute, ...] = ()
    """Further routes of the host."""
    ethtool: Ethtool = Ethtool()
    """Hardware settings of the NIC, or of every member of the bond."""


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
    where the uplink leads to other bridges. A guest's port never leads to the root. mstp is not spoken yet."""
    stp_options: StpOptions = StpOptions()
    """Further settings of the spanning tree."""
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
    """Classes of what its guests send by its way out, by name."""

    @property
    def has_queues(self) -> bool:
        """Whether what its guests send waits at its way out, or is told apart there."""
        return bool(self.rate.in_ or self.rate.out or self.classes)

    @property
    def has_address(self) -> bool:
        """Whether the host has an address on it, where that is not so by default (mode bridge)."""
        return bool((self.subnet and self.address not in (None, "none"))
                    or (self.subnet6 and self.address6 not in (None, "none")))

    @property
    def needs_device(self) -> bool:
        """Whether a VLAN must have a device of its own: for an address of the host, and for the neighbour table
        that answers for its guests (br_do_proxy_suppress_arp() in net/bridge/br_arp_nd_proxy.c), and for queues of its own."""
        return self.neigh_suppress or self.has_address or self.has_queues


class Offloads(Part):
    """Offloads of a virtio NIC, told to the guest. None leaves QEMU's default (on)."""

    csum: bool | None = None
    """Checksums of packets that the guest sends."""
    tso4: bool | None = None
    """TCP segments over IPv4 that the guest sends."""
    tso6: bool | None = None
    """TCP segments over IPv6 that the guest sends."""
    ufo: bool | None = None
    """UDP fragments that the guest sends."""
    guest_csum: bool | None = None
    """Checksums of packets that the guest receives."""
    guest_tso4: bool | None = None
    """TCP segments over IPv4 that the guest receives."""
    guest_tso6: bool | None = None
    """TCP segments over IPv6 that the guest receives."""
    guest_ufo: bool | None = None
    """UDP fragments that the guest receives."""
    mrg_rxbuf: bool | None = None
    """Mergeable receive buffers."""


class Extra(Part):
    """What a NIC may use beyond its own MAC and addresses: VRRP, nested guests, routers."""

    macs: tuple[Mac, ...] = ()
    """Further source MACs, e.g. VRRP's 00:00:5e:00:01:01."""
    addresses: tuple[Prefix, ...] = ()
    """Further source addresses or prefixes, e.g. 192.0.2.7 or 2001:db8:7::/64."""
    roles: tuple[Literal["dhcp-server", "router", "querier"], ...] = ()
    """What the guest may do beyond a plain guest: answer DHCP, advertise routes, query IGMP/MLD."""


class Nic(Part):
    """One network card of a guest."""

    network: Name
    """Network that it is on."""
    name: NetworkName | None = None
    """Its name within the guest, the key under which its MAC and addresses are remembered;
    nic0, nic1, ... by position when not given."""
    model: Model = Model.VIRTIO
    """Card that the guest sees. virtio is fastest; the others are for guests without its driver."""
    mac: Mac | None = None
    """Hardware address; a stable one is made when not given."""
    ip: Address4 | Literal["none"] | None = None
    """IPv4 address; a stable one from the pool when not given; none for no IPv4."""
    ip6: Address6 | Literal["none"] | None = None
    """IPv6 address; a stable one from the prefix when not given; none for no IPv6."""
    hostname: Name | None = None
    """DHCP and DNS name; the guest's name (for its first NIC) when not given."""
    guard: Literal["full", "mac", "off"] = "full"
    """full: bound to its MAC and addresses; mac: bound to its MAC only; off: not bound. mode sriov: mac or
    off, because a VF looks at MAC and VLAN only."""
    extra: Extra = Extra()
    """What it may use beyond its own MAC and addresses."""
    receives: Literal["all", "copies"] = "all"
    """copies: it is no port of its network. It gets what mirrors copy to it and nothing else, and what the guest sends by
    it is dropped."""
    trunk: VlanRanges = ()
    """VLAN ids that it may send tagged, e.g. [10, 20-29]. Inside them only the MAC is bound. On a
    VLAN-aware bridge they are those of the uplink; what it sends untagged is on its network."""
    untagged: bool = True
    """With trunk, on a VLAN-aware bridge: it also sends and gets untagged, on its network. false: tags only, the
    network's own VLAN among them."""
    groups: tuple[Name, ...] = ()
    """Groups that it is in: default deny, and what their rules allow."""
    limits: Limits = Limits()
    """What it may cause at most; more is dropped. The network's when not given, each by itself."""
    isolated: bool | None = None
    """Does not reach other isolated NICs of its network; the network's isolated_ports when not given."""
    mtu: Annotated[int, Field(ge=68, le=65521)] | None = None
    """MTU in bytes told to the guest; the network's when not given."""
    link: Literal["up", "down", "always"] = "up"
    """Carrier that the guest sees. mode sriov: up follows that of the uplink; always is up without it, too, so
    that VFs of one NIC go on reaching each other."""
    vf: Annotated[int, Field(ge=0, le=65534)] | None = None
    """mode sriov: number of the VF; a free one, the same for ever, when not given."""
    rate: Rate = Rate()
    """How fast it may be."""
    mark: Mark = Mark()
    """What its packets are marked with."""
    trust: bool = False
    """mode sriov: the guest may change its MAC and see frames of others, as its driver asks; needs guard: off."""
    failover: NetworkName | None = None
    """mode sriov: network of a second, virtio card with the same MAC and addresses, which the guest uses while
    the VF is away: during a live migration, and in a guest without the VF's driver. Machine q35."""
    queues: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    """Queue pairs (virtio, vmxnet3 by itself); auto is one per vCPU, at most 8."""
    vhost: Literal["on", "off", "auto"] = "auto"
    """In-kernel backend (virtio): auto uses it where the host has it."""
    rx_ring: Literal[256, 512, 1024] | None = None
    """Receive ring entries (virtio)."""
    tx_ring: Literal[256, 512, 1024] | None = None
    """Transmit ring entries (virtio); more than 256 needs vhost-user, QEMU refuses it otherwise."""
    packed: bool = False
    """Packed ring layout (virtio)."""
    offloads: Offloads = Offloads()
    """Offloads told to the guest (virtio)."""
    boot: Annotated[int, Field(ge=0)] | None = None
    """Boot order; smaller boots first."""
    pci: PciSlot | None = None
    """PCI address on the guest's first bus, SLOT or SLOT.FUNCTION in hex, e.g. 05 or 05.0."""


class Run(Part):
    """How kvmnet starts the guest itself (driver qemu)."""

    memory: Size = 256 * 2**20
    """Memory, e.g. 256M or 2G."""
    cpus: Annotated[int, Field(ge=1, le=255)] = 1
    """Virtual CPUs."""
    image: Literal["tiny"] | None = None
    """tiny: kvmnet's own test guest (Debian kernel, busybox, guest agent), made on first use."""
    kernel: Line | None = None
    """Kernel file to boot directly."""
    initrd: Line | None = None
    """Initial RAM disk for kernel."""
    append: Line = ""
    """Further words of the kernel command line."""
    disk: Line | None = None
    """Disk image: qcow2 when its name ends in .qcow2, else raw."""
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    """auto: KVM where it really runs a guest, else TCG."""
    machine: Literal["pc", "q35"] = "q35"
    """Machine type; q35 gets spare PCIe ports for hot-plug."""
    user: Line = "nobody"
    """User that QEMU runs as; nobody: each guest as a user of its own, without a name."""


class Vm(Part):
    """A guest and its network cards."""

    driver: Literal["qemu", "external"] | None = None
    """qemu: kvmnet starts it; external: kvmnet prepares the tap and prints the arguments.
    Without it: qemu when run is given, else external."""
    run: Run | None = None
    """How to start it."""
    owner: Line | None = None
    """driver external: user that may open the tap, e.g. libvirt-qemu; root only when not given."""
    tenant: Name | None = None
    """Tenant that it belongs to; that of its networks when not given."""
    nics: Annotated[tuple[Nic, ...], Field(min_length=1)]
    """Its network cards, in order."""


class Spec(Part):
    """The document."""

    version: Literal[1]
    """Version of the document's language."""
    uplinks: dict[Name, Uplink] = Field(default_factory=dict)
    """Ways out of the host, by name."""
    networks: dict[NetworkName, Network] = Field(default_factory=dict)
    """Networks, by name."""
    vrfs: dict[Name, Vrf] = Field(default_factory=dict)
    """Routing domains, by name."""
    vms: dict[Name, Vm] = Field(default_factory=dict)
    """Guests, by name."""
    reach: tuple[Address, ...] = ()
    """Addresses that must still answer after a change of a way out, besides the gateways of the host: a management
    station, a router behind the first one. Those that do not answer before the change are not required to."""
    groups: dict[Name, NicGroup] = Field(default_factory=dict)
    """Groups of NICs and their rules, by name."""
    address_sets: dict[Name, tuple[Prefix, ...]] = Field(default_factory=dict)
    """Addresses and prefixes that rules name as set:NAME."""
    tenants: dict[Name, Tenant] = Field(default_factory=dict)
    """Tenants, by name."""
    tuning: dict[Line, Setting] = Field(default_factory=dict)
    """Kernel settings of the whole host, e.g. {net.netfilter.nf_conntrack_max: 1048576}; borrowed one by one, and given
    back. kvmnet tune proposes them and says what each is for."""
    mirrors: dict[Name, Mirror] = Field(default_factory=dict)
    """Mirrors, by name."""

    @cached_property
    def bridged(self) -> dict[str, dict[str, Network]]:
        """Uplink -> networks of mode bridge that make a bridge around it, or around a VLAN of it."""
        found: dict[str, dict[str, Network]] = {}
        for name, network in self.networks.items():
            if network.mode is Mode.BRIDGE and network.uplink and not network.bridge:
                found.setdefault(network.uplink, {})[name] = network
        return found

    @cached_property
    def sharing(self) -> frozenset[str]:
        """Uplinks whose networks share a VLAN-aware bridge, where the kernel can filter VLANs."""
        return frozenset(uplink for uplink, here in self.bridged.items()
                         if any(n.vlan and not n.needs_device for n in here.values())
                         and not any(n.neigh_suppress for n in here.values() if not n.vlan))

    @cached_property
    def untagged(self) -> dict[str, str]:
        """Uplink -> the network of mode bridge that is on none of its VLANs."""
        return {uplink: name for uplink, here in self.bridged.items() for name, n in reversed(here.items()) if not n.vlan}

    @cached_property
    def trunked(self) -> dict[str, set[int]]:
        """Network -> VLAN ids on the trunks of its NICs."""
        found: dict[str, set[int]] = {}
        for vm in self.vms.values():
            for nic in vm.nics:
                if nic.trunk:
                    found.setdefault(nic.network, set()).update(nic.trunk)
        return found
