"""Links, addresses, routes, neighbours, VLANs of bridge ports and sysctls of a Linux host. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_interface, ip_network
from typing import ClassVar

from kvmnet.engine.resource import Key, Resource, State, option
from kvmnet.records import dataclass

PROTO = "87"
"""Routing protocol number that marks our routes and proxy neighbours (rtnetlink(7): above RTPROT_STATIC
the numbers are user space's own)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Link(Resource):
    """A network device. What it does not have (a tap's STP state) stays None."""

    kind: ClassVar[str] = "link"
    type: str | None = option(doc="bridge, tap, veth, vlan, ...; 'physical' for a NIC", recreate=True)
    parent: str | None = option(doc="vlan, vxlan, macvlan, macvtap: the link that carries it", ref="link",
                                on_delete="cascade", recreate=True)
    vxlan_vni: int | None = option(doc="vxlan: number of the segment", recreate=True)
    vxlan_local: str | None = option(doc="vxlan: address that packets come from; '' for any", recreate=True)
    vxlan_group: str | None = option(doc="vxlan: multicast group, or the one other host; '' for none", recreate=True)
    vxlan_port: int | None = option(doc="vxlan: UDP port", recreate=True)
    vxlan_ttl: int | None = option(doc="vxlan: hops that packets may take; 0 for the route's", recreate=True)
    vxlan_learning: bool | None = option(doc="vxlan: learns which host a MAC is behind", recreate=True)
    vxlan_df: str | None = option(doc="vxlan: may routers fragment its packets: set, unset, inherit", recreate=True)
    gre_remote: str | None = option(doc="gretap, erspan: the machine at the other end", recreate=True)
    gre_local: str | None = option(doc="gretap, erspan: address that packets come from; '' for any", recreate=True)
    gre_ttl: int | None = option(doc="gretap, erspan: hops that packets may take", recreate=True)
    gre_key: int | None = option(doc="gretap: key; erspan: session; -1 for none", recreate=True)
    erspan_version: int | None = option(doc="erspan: 1 for type II, 2 for type III", recreate=True)
    erspan_index: int | None = option(doc="erspan, version 1: index of the mirrored port", recreate=True)
    vlan_id: int | None = option(doc="vlan: its id", recreate=True)
    vlan_protocol: str | None = option(doc="vlan: 802.1Q or 802.1ad", recreate=True)
    vlan_qos: tuple[str, ...] | None = option(doc="vlan: priority of a packet:priority in its tag (PCP), sorted")
    vlan_qos_in: tuple[str, ...] | None = option(doc="vlan: priority in the tag of a frame that comes in:priority of the packet, sorted")
    vrf_table: int | None = option(doc="vrf: number of its routing table", recreate=True)
    passthru: bool | None = option(doc="macvlan, macvtap: it has its parent for itself", recreate=True)
    bond_mode: str | None = option(doc="bond: 802.3ad, active-backup, ...", recreate=True)
    bond_lacp_rate: str | None = option(doc="bond: slow or fast; the kernel changes it only while the bond is down",
                                        recreate=True)
    bond_ad_select: str | None = option(doc="bond: which group is active: stable, bandwidth, count", recreate=True)
    mtu: int | None = option(doc="largest packet in bytes", top_down=True)
    mac: str | None = option(doc="hardware address, lower case")
    up: bool | None = option(doc="administratively up; a member of a bond goes down by joining and by leaving", of="master")
    master: str | None = option(doc="bridge or bond that this link belongs to; '' for none", ref="link")
    bonded: bool | None = option(doc="what it belongs to is a bond: it goes down to join, and by leaving", of="master")
    vrf: str | None = option(doc="routing domain that it is in; '' for none. It goes down to join and to leave", ref="link")
    own_mac: str | None = option(doc="member of a bond: the hardware address that it had before", once=True)
    members: tuple[str, ...] | None = option(doc="bond, vrf: links that belong to it", once=True)
    peer: str | None = option(doc="veth: its other end, where that is on this host", once=True)
    most_mtu: int | None = option(doc="largest MTU that the device takes", once=True)
    guard: str | None = option(doc="guard that must stand before this port is attached",
                               ref="nic-guard")
    keeper: str | None = option(doc="process that keeps ports closed when the guard is flushed",
                                ref="guard-keeper")
    gate: str | None = option(doc="bridge: gate that must stand before it has ports; '' for none", ref="tree-gate",
                              on_delete="stays")
    alias: str | None = option(doc="what it is for; starts with 'kvmnet' when ours")
    multi_queue: bool | None = option(doc="tap: more than one queue", recreate=True, guest="replug")
    user: int | None = option(doc="tap: uid that may open it; -1 for root only", recreate=True)
    addrgenmode: str | None = option(doc="IPv6 link-local generation: none, eui64, ...")
    txqlen: int | None = option(doc="transmit queue length in packets")
    bond_miimon: int | None = option(doc="bond: link monitoring, ms; 0 for none")
    bond_updelay: int | None = option(doc="bond: ms that a member must be up before it is used")
    bond_downdelay: int | None = option(doc="bond: ms that a member must be down before it is left")
    bond_arp_interval: int | None = option(doc="bond: ARP monitoring, ms; 0 for none")
    bond_arp_targets: tuple[str, ...] | None = option(doc="bond: addresses asked by ARP, sorted")
    bond_arp_validate: str | None = option(doc="bond: whose ARP counts: none, active, backup, all, ...")
    bond_primary: str | None = option(doc="bond: member that is preferred")
    bond_primary_reselect: str | None = option(doc="bond: when the primary is taken again: always, better, failure")
    bond_hash: str | None = option(doc="bond: what chooses the member for a packet: layer2, layer3+4, ...")
    bond_min_links: int | None = option(doc="bond: members that must have a carrier for the bond to have one")
    bond_peer_notify: int | None = option(doc="bond: gratuitous ARP and NA sent after a failover")
    macvlan_mode: str | None = option(doc="macvlan, macvtap: bridge, private, vepa or passthru")
    allmulticast: bool | None = option(doc="macvlan, macvtap: takes every multicast; a guest cannot ask for groups")
    arp: bool | None = option(doc="macvlan, macvtap: the host speaks ARP on it")
    vlan_filtering: bool | None = option(doc="bridge: ports are members of VLANs")
    default_pvid: int | None = option(doc="bridge: VLAN that a new port gets; 0 for none")
    stp: bool | None = option(doc="bridge: spanning tree")
    priority: int | None = option(doc="bridge: STP priority; the smallest becomes the root")
    forward_delay: int | None = option(doc="bridge: STP forward delay, 1/100 s", at_times=True)
    hello_time: int | None = option(doc="bridge: STP interval of messages, 1/100 s", at_times=True)
    max_age: int | None = option(doc="bridge: how long an STP message counts, 1/100 s", at_times=True)
    ageing_time: int | None = option(doc="bridge: FDB ageing, 1/100 s")
    mcast_snooping: bool | None = option(doc="bridge: IGMP/MLD snooping")
    mcast_vlan_snooping: bool | None = option(doc="bridge: each VLAN by itself")
    mcast_query_use_ifaddr: bool | None = option(doc="bridge: asks by IGMP from its own address, not from 0.0.0.0")
    mcast_querier: bool | None = option(doc="bridge: asks by IGMP/MLD who wants what")
    linklocal_learn: bool | None = option(
        doc="bridge: learns from frames to 01:80:c2:00:00:0X, which pass no hook of the guard")
    nf_call_iptables: bool | None = option(doc="bridge: IPv4 frames pass the IP hooks")
    nf_call_ip6tables: bool | None = option(doc="bridge: IPv6 frames pass the IP hooks")
    nf_call_arptables: bool | None = option(doc="bridge: ARP frames pass arptables")
    isolated: bool | None = option(doc="port: talks only to ports that are not isolated", of="master")
    learning: bool | None = option(doc="port: learns source addresses", of="master")
    flood: bool | None = option(doc="port: receives unknown unicast", of="master")
    mcast_flood: bool | None = option(doc="port: receives unknown multicast", of="master")
    hairpin: bool | None = option(doc="port: frames may leave where they came in", of="master")
    bpdu_guard: bool | None = option(doc="port: goes down on a BPDU", of="master")
    root_guard: bool | None = option(doc="port: never leads to the STP root", of="master")
    neigh_suppress: bool | None = option(doc="port: ARP/ND answered by the bridge", of="master")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Address(Resource):
    """An IP address on a link; named ``DEV CIDR``, e.g. ``kvb-lan 192.168.1.1/24``."""

    kind: ClassVar[str] = "address"
    dev: str | None = option(doc="the link", ref="link", on_delete="cascade", recreate=True)
    scope: str | None = option(doc="global, link, site, host")
    label: str | None = option(doc="IPv4 label", recreate=True)
    broadcast: str | None = option(doc="IPv4 broadcast address; '' for none", recreate=True)
    peer: str | None = option(doc="far end of a point to point address", recreate=True)
    flags: tuple[str, ...] | None = option(doc="noprefixroute, nodad, home, mngtmpaddr; sorted")
    dynamic: str | None = option(doc="'' when static; 'dhcp' or 'ra' when a lifetime runs")
    lifetime: int | None = option(doc="seconds left, given once when a dynamic address is moved", once=True)
    preferred: int | None = option(doc="seconds until it is deprecated, given once", once=True)
    secondary: bool | None = option(doc="IPv4: is dropped with the first address of its prefix", once=True)
    replaces: str | None = option(doc="address on another link that this one takes the place of", once=True,
                                  replaces=True)

    @classmethod
    def swept(cls, now: State, gone: Sequence[Resource],
              changed: Sequence[tuple[Resource, Resource]]) -> Iterator[tuple[Key, Key]]:
        """IPv6 addresses of a link that goes down (addrconf_ifdown() in net/ipv6/addrconf.c), and IPv4 addresses behind
        a deleted one of the same prefix, where the host does not promote them (__inet_del_ifa() in net/ipv4/devinet.c)."""
        down = going_down(now, changed) | let_go(gone)
        firsts = {(a.dev, ip_interface(a.name.split()[1]).network): a.key for a in gone if isinstance(a, Address)
                  and ":" not in local(a) and not a.secondary}
        if not down and not firsts:
            return
        for address in now.values():
            if not isinstance(address, Address):
                continue
            cidr = address.name.split()[1]
            if ":" in cidr:
                if address.dev in down:
                    yield down[address.dev], address.key
            elif address.secondary and (cause := firsts.get((address.dev, ip_interface(cidr).network))):
                yield cause, address.key

    def stands(self, state: State) -> bool:
        link = state.get(Key(Link.kind, self.dev or ""))
        return self.lifetime is None and not (isinstance(link, Link) and link.up is False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Route(Resource):
    """A route; named by ``route_name``: ``[table T] DST [metric M] [dev DEV]``, which is its identity."""

    kind: ClassVar[str] = "route"
    dev: str | None = option(doc="output link", ref="link", on_delete="cascade", recreate=True)
    dst: str | None = option(doc="prefix, or 'default'", recreate=True)
    family: int | None = option(doc="4 or 6", recreate=True)
    table: str | None = option(doc="routing table", recreate=True)
    metric: int | None = option(doc="preference; smaller wins", recreate=True)
    via: str | None = option(doc="gateway; '' for none")
    src: str | None = option(doc="preferred source address; '' for none")
    scope: str | None = option(doc="global, link, host")
    proto: str | None = option(doc="who made it: kernel, static, ra, dhcp, 87 (kvmnet)")
    flags: tuple[str, ...] | None = option(doc="onlink; sorted")
    options: str | None = option(doc="further iproute2 words (mtu 1400, advmss ...), canonical")
    lifetime: int | None = option(doc="seconds left, given once when a dynamic route is moved", once=True)
    replaces: str | None = option(doc="route on another link that this one takes the place of", once=True,
                                  replaces=True)

    @classmethod
    def swept(cls, now: State, gone: Sequence[Resource],
              changed: Sequence[tuple[Resource, Resource]]) -> Iterator[tuple[Key, Key]]:
        """Routes of a link that goes down, and IPv4 routes of one that loses its last IPv4 address or that have a
        source address which goes (fib_inetaddr_event(), fib_netdev_event() in net/ipv4/fib_frontend.c)."""
        down = going_down(now, changed) | let_go(gone)
        lost = {a.dev: a for a in gone if isinstance(a, Address) and ":" not in local(a)}
        sources = {local(a): a.key for a in gone if isinstance(a, Address)}
        if not down and not sources:
            return
        for address in now.values() if sources else ():
            if isinstance(address, Address):
                sources.pop(local(address), None)
                if ":" not in local(address):
                    lost.pop(address.dev, None)
        for route in now.values():
            if not isinstance(route, Route):
                continue
            if cause := down.get(route.dev or ""):
                yield cause, route.key
            elif route.family == 4 and (last := lost.get(route.dev)):
                yield last.key, route.key
            elif route.family == 4 and (cause := sources.get(route.src or "")):
                yield cause, route.key

    def stands(self, state: State) -> bool:
        link = state.get(Key(Link.kind, self.dev or ""))
        if self.lifetime is not None or (isinstance(link, Link) and link.up is False):
            return False
        here = [a for a in state.values() if isinstance(a, Address)]
        if self.src and self.src not in {local(a) for a in here}:
            return False
        return self.family == 6 or any(a.dev == self.dev and ":" not in local(a) for a in here)


def local(address: Address) -> str:
    """The address without its prefix length."""
    return address.name.split()[1].partition("/")[0]


def let_go(gone: Sequence[Resource]) -> dict[str, Key]:
    """Links that a routing domain lets go because it is deleted: they go down meanwhile (cycle_netdev() in drivers/net/vrf.c)."""
    return {name: vrf.key for vrf in gone if isinstance(vrf, Link) and vrf.type == "vrf" for name in vrf.members or ()}


def going_down(now: State, changed: Sequence[tuple[Resource, Resource]]) -> dict[str, Key]:
    """Link -> the update that takes it down, for good or on its way into or out of a bond or a routing domain, and VLANs
    upon it."""
    down = {}
    for before, claim in changed:
        if not isinstance(before, Link) or not isinstance(claim, Link) or before.up is False:
            continue
        moves = claim.master is not None and claim.master != before.master
        domain = claim.vrf is not None and claim.vrf != (before.vrf or "")
        if claim.up is False or domain or (moves and (before.bonded or claim.bonded)):
            down[before.name] = before.key
    stack = list(down)
    while stack:
        name = stack.pop()
        for link in now.values():
            if isinstance(link, Link) and link.parent == name and link.name not in down:
                down[link.name] = down[name]
                stack.append(link.name)
    return down


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class ProxyNeighbour(Resource):
    """An address that the host answers ARP or ND for on a link; named ``DEV ADDRESS``."""

    kind: ClassVar[str] = "proxy-neighbour"
    dev: str | None = option(doc="the link", ref="link", on_delete="cascade", recreate=True)
    address: str | None = option(doc="IPv4 or IPv6 address", recreate=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Sysctl(Resource):
    """A kernel setting; named by its path with slashes, e.g. ``net/ipv4/conf/kvb-lan/forwarding``."""

    kind: ClassVar[str] = "sysctl"
    permanent: ClassVar[bool] = True
    value: str | None = option(doc="value as the kernel prints it")
    dev: str | None = option(doc="link that it belongs to, if any", ref="link", on_delete="cascade")
    after: str | None = option(doc="sysctl that must be set before this one", ref="sysctl", once=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class BridgeVlan(Resource):
    """A VLAN of a port of a VLAN-aware bridge, or of the bridge itself; named ``DEV VID``."""

    kind: ClassVar[str] = "bridge-vlan"
    dev: str | None = option(doc="the port, or the bridge itself", ref="link", on_delete="cascade", recreate=True)
    bridge: str | None = option(doc="the bridge: a port that leaves it loses its VLANs", ref="link",
                                on_delete="cascade", recreate=True)
    pvid: bool | None = option(doc="untagged frames that come in belong to it")
    untagged: bool | None = option(doc="its frames leave without a tag")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Fdb(Resource):
    """Where an overlay sends frames for a MAC; named ``DEV MAC ADDRESS``. The MAC 00:00:00:00:00:00 stands for
    all that nobody knows, and may lead to several addresses: each gets a copy."""

    kind: ClassVar[str] = "fdb"
    dev: str | None = option(doc="the overlay's link", ref="link", on_delete="cascade", recreate=True)
    mac: str | None = option(doc="hardware address of the frames", recreate=True)
    dst: str | None = option(doc="address of the host that they are sent to", recreate=True)


EVERYONE = "00:00:00:00:00:00"
"""MAC of an Fdb for frames to nobody in particular (vxlan_fdb_create() in drivers/net/vxlan/vxlan_core.c)."""


def fdb(dev: str, dst: str, mac: str = EVERYONE) -> Fdb:
    """A complete Fdb."""
    return Fdb(name=f"{dev} {mac} {dst}", dev=dev, mac=mac, dst=dst)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class VlanMulticast(Resource):
    """How a VLAN-aware bridge handles multicast on one of its VLANs; named ``BRIDGE VID``. It is there as long as
    a port is on the VLAN."""

    kind: ClassVar[str] = "vlan-multicast"
    permanent: ClassVar[bool] = True
    bridge: str | None = option(doc="the bridge", ref="link", on_delete="cascade")
    member: str | None = option(doc="a port's membership, by which the bridge has the VLAN", ref="bridge-vlan",
                                on_delete="cascade", once=True)
    snooping: bool | None = option(doc="IGMP/MLD snooping")
    querier: bool | None = option(doc="the bridge asks by IGMP/MLD who wants what")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Neighbour(Resource):
    """The MAC of an address on a link, for good; named ``DEV ADDRESS``."""

    kind: ClassVar[str] = "neighbour"
    dev: str | None = option(doc="the link", ref="link", on_delete="cascade", recreate=True)
    mac: str | None = option(doc="hardware address, lower case")


def vlan_name(dev: str, vid: int) -> str:
    """Name of a BridgeVlan."""
    return f"{dev} {vid}"


def address_name(dev: str, cidr: str) -> str:
    """Name of an Address. ``cidr``: address with its prefix length; any spelling is made canonical."""
    return f"{dev} {ip_interface(cidr)}"


def proxy_name(dev: str, address: str) -> str:
    """Name of a ProxyNeighbour."""
    return f"{dev} {ip_interface(address).ip}"


def default_metric(family: int) -> int:
    """Metric of a route that names none: 0 for IPv4, 1024 for IPv6 (IP6_RT_PRIO_USER)."""
    return 1024 if family == 6 else 0


def route_name(dst: str, *, family: int, dev: str = "", table: str = "main", metric: int | None = None,
               mark: str = "") -> str:
    """Name of a Route: ``default dev ens18``, ``::/0 dev ens18``, ``table 100 10.0.0.0/8 metric 5``.

    The default route of IPv6 is spelled ``::/0`` so that both families can have one. ``mark`` tells
    apart what the kernel keeps side by side (``via fe80::1`` of two routers, ``tos 0x10``).
    """
    where = "" if table == "main" else f"table {table} "
    to = ("::/0" if family == 6 else "default") if dst == "default" else dst
    rank = "" if metric in (None, default_metric(family)) else f" metric {metric}"
    return f"{where}{to}{rank}{f' dev {dev}' if dev else ''}{f' {mark}' if mark else ''}"


def route(dst: str, *, dev: str = "", via: str = "", src: str = "", table: str = "main",
          metric: int | None = None, family: int = 0) -> Route:
    """A complete route of ours. ``dst``: a prefix, or ``default`` (then ``family`` or ``via`` says which)."""
    if dst != "default":
        net = ip_network(dst)
        family, dst = net.version, "default" if net.prefixlen == 0 else str(net)
    elif not family:
        family = ip_interface(via).version if via else 4
    number = default_metric(family) if metric is None else metric
    return Route(name=route_name(dst, family=family, dev=dev, table=table, metric=number), dev=dev, dst=dst,
                 family=family, table=table, metric=number, via=via, src=src, proto=PROTO, flags=(), options="")
