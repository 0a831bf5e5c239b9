"""Guests and their NICs, as the operator writes them."""
from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from kvmnet.spec.form import Field
from kvmnet.spec.limits import Limits
from kvmnet.spec.part import Part
from kvmnet.spec.rates import Mark, Rate
from kvmnet.spec.types import (
    Address4,
    Address6,
    CpuSets,
    Line,
    Mac,
    Name,
    NetworkName,
    Nodes,
    PciSlot,
    Prefix,
    Size,
    VlanRanges,
)


class Model(StrEnum):
    VIRTIO = "virtio"
    VIRTIO_TRANSITIONAL = "virtio-transitional"
    E1000E = "e1000e"
    E1000 = "e1000"
    PCNET = "pcnet"
    RTL8139 = "rtl8139"
    VMXNET3 = "vmxnet3"


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
    qdisc: Literal["fq_codel", "fq", "cake", "noqueue"] | None = None
    """How frames wait at its host side: those that its tap sends to the guest, in mode macvtap those that the guest sends. With a rate, or a share
    of its network's or tenant's, it is how they wait there, in both directions. The kernel's own when not given, with a rate fq_codel."""
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
    rss: bool = False
    """The guest says which queue gets which flow (virtio; receive side scaling); otherwise a flow comes back by the queue by which the guest
    last sent it. Done by QEMU, so without vhost; needs several queues, and a guest that can (Linux 5.18)."""
    offloads: Offloads = Offloads()
    """Offloads told to the guest (virtio)."""
    boot: Annotated[int, Field(ge=0)] | None = None
    """Boot order; smaller boots first."""
    pci: PciSlot | None = None
    """PCI address on the guest's first bus, SLOT or SLOT.FUNCTION in hex, e.g. 05 or 05.0."""


class Pin(Part):
    """CPUs that a guest's threads may use. One set for all of a kind (0-3,8), or a list for them in turn; every CPU when not given."""

    vcpus: CpuSets | None = None
    """Virtual CPUs, in their order."""
    vhost: CpuSets | None = None
    """The kernel's threads that move the packets of its NICs (vhost)."""
    qemu: CpuSets | None = None
    """QEMU's main loop, which moves packets where there is no vhost."""


class Run(Part):
    """How kvmnet starts the guest itself (driver qemu)."""

    memory: Size = 256 * 2**20
    """Memory, e.g. 256M or 2G."""
    hugepages: bool = False
    """Its memory is of the host's huge pages, taken whole when it starts; tuning: {vm.nr_hugepages: ...} sets them aside."""
    nodes: Nodes | None = None
    """NUMA nodes of the host that its memory is from, and from no others, e.g. 0 or 0-1; any when not given."""
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
    pin: Pin = Pin()
    """CPUs that its threads may use; changed while it runs."""
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
