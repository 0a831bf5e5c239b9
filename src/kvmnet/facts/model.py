"""Facts of a host that the compiler needs, as data. Pure."""
from __future__ import annotations

from collections.abc import Mapping

from kvmnet.engine.resource import Resource, State
from kvmnet.records import dataclass, field


@dataclass(frozen=True, slots=True)
class LinkNeighbour:
    """The machine at the other end of a NIC, by LLDP. '' and 0 for what it does not tell."""

    name: str
    description: str = ""
    address: str = ""
    """Where it is managed."""
    port: str = ""
    port_id: str = ""
    vlans: tuple[int, ...] = ()
    """VLANs that it announces on the port; many switches announce none."""
    native: int = 0
    """VLAN of untagged frames."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What compile() knows of the host. Collected in bulk; JSON in and out for captures and tests."""

    state: State = field(default_factory=dict)
    """Everything seen: links, addresses, routes, also what is not ours."""
    features: Mapping[str, str] = field(default_factory=dict)
    """Feature name -> '' when the host has it, else the reason why not."""
    cpus: int = 1
    """CPUs that kvmnet may run on."""
    cpu_set: str = "0"
    """Those CPUs, as 0-3,8."""
    cpu_numbers: int = 0
    """One more than the largest number of a CPU; 0 when not known."""
    nodes: str = "0"
    """NUMA nodes with memory, as 0-1."""
    running: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Guests that kvmnet runs now -> names of the NICs that they have."""
    resolvers: tuple[str, ...] = ()
    """Nameservers of the host's resolv.conf."""
    users: Mapping[str, int] = field(default_factory=dict)
    """User name -> uid, for those that the document names."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """File of a secret that the document names -> '', or what is wrong with it."""
    limits: Mapping[str, int] = field(default_factory=dict)
    """Kernel limits: gc_thresh3 (IPv4), gc_thresh3_6, nf_conntrack_max."""
    routing: frozenset[int] = frozenset({4, 6})
    """IP versions that the host forwards without us (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding)."""
    dhcp_clients: Mapping[str, str] = field(default_factory=dict)
    """Device -> the daemon that gets its address by DHCP (``dhclient, pid 812``); '' names one that
    looks after every device (NetworkManager)."""
    wireless: frozenset[str] = frozenset()
    """NICs that are wireless, whatever their names."""
    rules: tuple[str, ...] = ()
    """Policy rules as ``ip rule`` prints them, both families; none when none of them names a device."""
    lent: tuple[str, ...] = ()
    """Devices that had addresses or routes which stand elsewhere because of us, and get them back one day."""
    services: frozenset[str] = frozenset()
    """Services that configure any link that they find: NetworkManager, systemd-networkd."""
    link_neighbours: Mapping[str, tuple[LinkNeighbour, ...]] = field(default_factory=dict)
    """NIC -> who is at its other end, where lldpd runs."""
    ruleset: str = ""
    """The nftables rules of the host as ``nft -s -t list ruleset`` prints them, without our own tables."""
    places: dict[str, list[Resource]] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What ``standing_on`` has sorted."""

    def standing_on(self, *devices: str) -> list[Resource]:
        """What is on these devices (addresses, routes, settings; '' for what is on none), in the order of ``state``
        for each. Sorted once: compiling asks for each network."""
        if not self.places:
            for resource in self.state.values():
                if (device := getattr(resource, "dev", None)) is not None:
                    self.places.setdefault(device, []).append(resource)
        return [r for device in devices for r in self.places.get(device, ())]


@dataclass(frozen=True, slots=True)
class Allocation:
    """What one NIC got and keeps for ever. '' where it has none."""

    mac: str
    ip: str
    ip6: str
    vf: int = -1
    """Number of its VF; -1 for none."""


Allocations = Mapping[tuple[str, str, str], Allocation]
"""(vm, nic, network) -> Allocation."""
