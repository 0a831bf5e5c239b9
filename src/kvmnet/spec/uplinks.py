"""Uplinks, as the operator writes them: NICs, bonds, VLANs on them, and what their hardware is told."""
from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.part import Part
from kvmnet.spec.types import (
    Address,
    Address4,
    Address6,
    Cidr,
    CpuSets,
    IfName,
    Line,
    Mac,
    Name,
    Prefix,
    VlanId,
    VlanRanges,
)
from kvmnet.spec.wireguard import Wireguard


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


class Steering(Part):
    """Which CPUs handle a NIC's packets, of a bond: of each member's. One set for all queues (0-3,8), or a list for the queues in turn;
    none for no CPU by name. What is not given is left alone, everything is given back by destroy."""

    receive: CpuSets | None = None
    """CPUs among which the kernel spreads flows that come in by a queue (RPS), for NICs with fewer queues than the host has CPUs; none: the
    CPU that got the interrupt handles them."""
    send: CpuSets | None = None
    """CPUs that send by a queue (XPS); none: a hash of the flow chooses the queue. Not for NICs with one queue."""
    interrupts: CpuSets | None = None
    """CPUs that get the NIC's interrupts. irqbalance moves them again, where it runs and is not told to leave them (--banirq)."""


class UplinkRoute(Part):
    """A route of the host by an uplink."""

    to: Prefix
    """Destination prefix, e.g. 10.0.0.0/8."""
    via: Address | None = None
    """Next hop; directly on the link when not given."""
    metric: Annotated[int, Field(ge=0, le=4294967295)] | None = None
    """Preference; smaller wins. The kernel's own when not given."""


class TreePort(Part):
    """A NIC as a port of a spanning tree (stp: rstp or mstp)."""

    cost: Annotated[int, Field(ge=1, le=200000000)] | None = None
    """What the way by it costs; by its speed when not given (20000 for 1 Gbit/s, 2000 for 10 Gbit/s and where it is not known)."""
    priority: Annotated[int, Field(ge=0, le=240, multiple_of=16)] = 128
    """Of two ports to the same bridge that with the smaller one is used."""
    costs: dict[Annotated[int, Field(ge=1, le=4094)], Annotated[int, Field(ge=1, le=200000000)]] = Field(default_factory=dict)
    """stp: mstp: instance -> what the way by it costs there, where that is not cost."""


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
    qdisc: Literal["fq_codel", "fq", "cake", "noqueue", "mq"] | None = None
    """How frames wait that the NIC sends, of a bond: each member's, with redundant: all of them. fq_codel: flows take turns and none waits long;
    cake: the same, also among hosts, for more processor time; fq: flows take turns; noqueue: they do not wait, what does not fit is lost; mq:
    each queue of the NIC by itself, below as net.core.default_qdisc says, which is what the kernel does with a NIC of several queues.
    Left alone when not given; the kernel's own comes back when it is taken away."""
    ethtool: Ethtool = Ethtool()
    """Hardware settings of the NIC, or of every member of the bond."""
    steering: Steering = Steering()
    """CPUs that handle its packets."""
