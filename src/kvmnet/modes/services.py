"""DHCP, router advertisements and DNS of one network, as the configuration of its dnsmasq. Pure.

Every line is one that dnsmasq(8) documents. The configuration holds nothing that changes with every
NIC, since a changed configuration means a restart: guests stand in reservations, and the limit of
leases grows in powers of two. Only a NIC with an MTU of its own has a line there.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network

from kvmnet.drivers.dnsmasq.resources import DnsmasqServer, Reservation
from kvmnet.drivers.dnsmasq.wire import DOMAIN, reads_as_lease_time
from kvmnet.engine.resource import Resource
from kvmnet.modes.model import NicOnNetwork
from kvmnet.modes.segment import Segment
from kvmnet.spec.networks import CLOSED, Mode
from kvmnet.spec.values import INFINITE

FEWEST_LEASES = 2**16
"""dnsmasq lends 1,000 addresses of both families unless told otherwise. It takes memory as it lends, so
that the limit costs nothing, and being this high it hardly ever changes (a change means a restart)."""
MOST_LEASES = 2**22
LEAST_MTU6 = 1280
"""Bytes; an RA must not announce less (RFC 8200, 5)."""


def services(segment: Segment, resolvers: Sequence[str]) -> list[Resource]:
    """The network's server and a reservation for each NIC; nothing when the network offers no service.

    ``resolvers``: the host's own nameservers, asked when the document names none.
    """
    network = segment.network
    lends = bool(dhcp4(segment) or ranges6(segment))
    asks = network.dns.enabled and bool(segment.address or segment.address6)
    if not lends and not asks:
        return []
    config = (*binding(segment), *dns(segment, resolvers), *(lending(segment) if lends else ()))
    server = DnsmasqServer(name=segment.name, dev=segment.bridge, vrf=segment.vrf, config=config, running=True)
    return [server, *(reservation(segment, nic) for nic in segment.nics)]


def reservation(segment: Segment, nic: NicOnNetwork) -> Reservation:
    """Addresses and name of one NIC."""
    hostname = nic.hostname
    if reads_as_lease_time(hostname):
        hostname = f"{hostname}.{domain(segment)}"
    return Reservation(name=f"{segment.name} {nic.mac}", server=segment.name, hostname=hostname, ip=nic.ip,
                       ip6=nic.ip6, tags=())


def binding(segment: Segment) -> Iterator[str]:
    """Serve this link alone, also with addresses that it gets later; leave every other one to others."""
    if segment.vrf:
        yield f"{DOMAIN}{segment.vrf}"
    yield f"interface={segment.bridge}"
    yield "except-interface=lo"
    yield "bind-dynamic"
    yield "no-hosts"
    yield "no-resolv"


# -- DNS -------------------------------------------------------------------------------------------

def domain(segment: Segment) -> str:
    return segment.network.dns.domain or segment.name.lower()


def dns(segment: Segment, resolvers: Sequence[str]) -> Iterator[str]:
    """Names of the network are answered here and never asked outside (RFC 6303 for its reverse zones)."""
    wanted, own = segment.network.dns, domain(segment)
    yield f"domain={own}"
    if not wanted.enabled:
        yield "port=0"
        return
    yield f"local=/{own}/"
    for prefix in (segment.network.subnet, segment.network.subnet6):
        for zone in reverse_zones(prefix) if prefix else ():
            yield f"local=/{zone}/"
    yield "expand-hosts"
    yield "domain-needed"
    yield "cache-size=1000"
    # A network without a way out has none by DNS either, unless the document says so. The host's resolvers are in no
    # routing domain.
    default = () if segment.network.mode in CLOSED or segment.vrf else resolvers
    for server in wanted.upstream if wanted.upstream is not None else default:
        if server not in (segment.address, segment.address6):
            yield f"server={server}"
    for name, addresses in wanted.hosts.items():
        names = name if "." in name else f"{name}.{own},{name}"
        for address in addresses:
            yield f"host-record={names},{address}"


def reverse_zones(prefix: str) -> list[str]:
    """The zones of a prefix's reverse names: on octets for IPv4 (at most 128), nibbles for IPv6 (at most 8)."""
    net = ip_network(prefix)
    step = 8 if isinstance(net, IPv4Network) else 4
    aligned = max(step, -(-net.prefixlen // step) * step)
    labels = aligned // step
    return [".".join(part.network_address.reverse_pointer.split(".")[-labels - 2:])
            for part in net.subnets(new_prefix=aligned)]


# -- DHCP and RA -----------------------------------------------------------------------------------

def dhcp4(segment: Segment) -> IPv4Network | None:
    """The prefix that DHCPv4 serves, if it does."""
    network = segment.network
    return IPv4Network(network.subnet) if network.dhcp.enabled and network.subnet and segment.address else None


def advertises(segment: Segment) -> bool:
    """On a segment that is somebody else's, routers are advertised by its own router alone."""
    network = segment.network
    return network.ra != "off" and not network.mode.on_segment and bool(network.subnet6 and segment.address6)


def lending(segment: Segment) -> Iterator[str]:
    network = segment.network
    if network.mode.on_segment or (network.mode is Mode.VXLAN and not network.dhcp.dynamic):
        yield "dhcp-ignore=tag:!known"
    else:
        yield "dhcp-authoritative"
    yield "dhcp-ignore-names"
    yield f"dhcp-lease-max={most_leases(segment)}"
    if (net := dhcp4(segment)) is not None:
        yield range4(segment, net)
        yield from options4(segment)
    yield from ranges6(segment)
    if advertises(segment):
        yield from advertisement(segment)
        if not network.dhcp.enabled:
            yield "dhcp-ignore=tag:dhcpv6"
    if network.subnet6 and segment.address6:
        yield from options6(segment)


def most_leases(segment: Segment) -> int:
    """Room for both families of every NIC, twice over, and for the dynamic pool; a power of two."""
    need = 4 * len(segment.nics)
    network = segment.network
    if network.dhcp.dynamic and network.subnet:
        first, last = pool4(segment, IPv4Network(network.subnet))
        need += int(ip_network(last).network_address) - int(ip_network(first).network_address) + 1
    return min(MOST_LEASES, max(FEWEST_LEASES, 1 << (need - 1).bit_length() if need else 0))


def lease_time(segment: Segment) -> str:
    seconds = segment.network.dhcp.lease
    return "infinite" if seconds == INFINITE else str(seconds)


def pool4(segment: Segment, net: IPv4Network) -> tuple[str, str]:
    """First and last address of the pool."""
    if segment.network.pool:
        first, _, last = segment.network.pool.partition("-")
        return first.strip(), last.strip()
    return (str(net[0]), str(net[-1])) if net.num_addresses <= 2 else (str(net[1]), str(net[-2]))


def range4(segment: Segment, net: IPv4Network) -> str:
    lease = lease_time(segment)
    if not segment.network.dhcp.dynamic:
        return f"dhcp-range={net.network_address},static,{net.netmask},{lease}"
    first, last = pool4(segment, net)
    return f"dhcp-range={first},{last},{net.netmask},{lease}"


def ranges6(segment: Segment) -> list[str]:
    """DHCPv6 and the prefix to advertise: with reservations; stateless or no DHCPv6 where guests form
    their own addresses; with a pool for everybody where one is given."""
    network = segment.network
    if not network.subnet6 or not segment.address6 or not (network.dhcp.enabled or advertises(segment)):
        return []
    net = IPv6Network(network.subnet6)
    lease = lease_time(segment)
    if advertises(segment) and network.ra == "autoconf":
        how = "ra-stateless" if network.dhcp.enabled else "ra-only"
        return [f"dhcp-range={net.network_address},{how},{net.prefixlen},{lease}"]
    if network.dhcp.dynamic and network.pool6:
        first, _, last = network.pool6.partition("-")
        return [f"dhcp-range={first.strip()},{last.strip()},{net.prefixlen},{lease}"]
    return [f"dhcp-range={net.network_address},static,{net.prefixlen},{lease}"]


def advertisement(segment: Segment) -> Iterator[str]:
    """RA with the network's MTU; where nothing leads out, with a router lifetime of 0 (RFC 4861, 4.2)."""
    if segment.network.ra == "managed":
        yield "enable-ra"
    mtu = f"mtu:{segment.mtu}" if segment.mtu >= LEAST_MTU6 else "off"
    yield f"ra-param={segment.bridge},{mtu},0" + (",0" if segment.network.mode in CLOSED else "")


# -- options ---------------------------------------------------------------------------------------

def router(segment: Segment) -> str:
    """IPv4 router that guests are told; '' for none."""
    network = segment.network
    if network.gateway:
        return network.gateway
    return segment.address if network.mode in (Mode.NAT, Mode.ROUTED) else ""


def options4(segment: Segment) -> Iterator[str]:
    dhcp = segment.network.dhcp
    gateway = router(segment)
    # Without a value the option is not sent; dnsmasq would name itself.
    yield f"dhcp-option=option:router{',' if gateway else ''}{gateway}"
    servers = nameservers(segment, 4)
    yield f"dhcp-option=option:dns-server{',' if servers else ''}{','.join(servers)}"
    yield f"dhcp-option=option:domain-search,{domain(segment)}"
    yield f"dhcp-option=option:mtu,{segment.mtu}"
    for mtu in sorted({nic.mtu for nic in segment.nics if nic.mtu != segment.mtu}):
        yield f"dhcp-option=tag:mtu{mtu},option:mtu,{mtu}"
    # Not as set: in the reservations: dnsmasq 2.86-2.90 links such a tag to its stack when it lends, and
    # frees it when it reads the reservations again.
    for nic in sorted(segment.nics, key=lambda n: n.mac):
        if nic.mtu != segment.mtu:
            yield f"dhcp-mac=set:mtu{nic.mtu},{nic.mac}"
    if routes := classless_routes(segment):
        yield f"dhcp-option=option:classless-static-route,{','.join(routes)}"
    if ntp := [a for a in dhcp.ntp if ":" not in a]:
        yield f"dhcp-option=option:ntp-server,{','.join(ntp)}"
    yield from network_boot(segment)
    for name, value in dhcp.options.items():
        option = name if name.isdigit() or ":" in name else f"option:{name}"
        yield f"dhcp-option={option},{value}" if value else f"dhcp-option={option}"


def nameservers(segment: Segment, family: int) -> list[str]:
    """Servers that guests ask: the host, or what the document names when the host answers nothing."""
    own = segment.address if family == 4 else segment.address6
    if segment.network.dns.enabled:
        return [own] if own else []
    return [a for a in segment.network.dns.upstream or () if (":" in a) == (family == 6)]


def classless_routes(segment: Segment) -> list[str]:
    """Words of option 121. A client that gets it ignores the router option (RFC 3442), so that the
    default route stands here too."""
    network, gateway = segment.network, router(segment)
    routes = [(r.to, r.via) for r in network.dhcp.routes]
    if network.metadata and segment.address:
        routes.append((f"{network.metadata.address}/32", segment.address))
    if segment.address and gateway != segment.address:
        routes += [(prefix, segment.address) for prefix in segment.joined if all(to != prefix for to, _ in routes)]
    if routes and gateway and all(to != "0.0.0.0/0" for to, _ in routes):
        routes.insert(0, ("0.0.0.0/0", gateway))
    return [word for route in routes for word in route]


def network_boot(segment: Segment) -> Iterator[str]:
    pxe = segment.network.dhcp.pxe
    if pxe is None:
        return
    server = pxe.server or segment.address
    yield f'dhcp-boot="{pxe.file}",,{server}'
    if "://" in pxe.file:
        # UEFI HTTP boot takes only offers that bear its own vendor class (UEFI 2.10, 24.7).
        yield "dhcp-vendorclass=set:http-boot,HTTPClient"
        yield "dhcp-option-force=tag:http-boot,option:vendor-class,HTTPClient"
    if pxe.tftp_root:
        yield f"enable-tftp={segment.bridge}"
        yield f'tftp-root="{pxe.tftp_root}"'


def options6(segment: Segment) -> Iterator[str]:
    dhcp = segment.network.dhcp
    servers = nameservers(segment, 6)
    yield "dhcp-option=option6:dns-server" + "".join(f",[{a}]" for a in servers)
    yield f"dhcp-option=option6:domain-search,{domain(segment)}"
    if ntp := [IPv6Address(a).packed for a in dhcp.ntp if ":" in a]:
        # NTP_SUBOPTION_SRV_ADDR (RFC 5908, 4.1), which dnsmasq knows as bytes only.
        yield "dhcp-option=option6:56," + ":".join((b"\0\x01\0\x10" + raw).hex(":") for raw in ntp)
    if dhcp.pxe and "://" in dhcp.pxe.file:
        yield f"dhcp-option=option6:bootfile-url,{dhcp.pxe.file}"
