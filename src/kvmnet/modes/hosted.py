"""A bridge of our own with the host on it: what nat, routed and isolated have in common. Pure."""
from __future__ import annotations

from hashlib import blake2s
from typing import Any

from kvmnet.drivers.linux.resources import Address, Link, Neighbour, Sysctl, address_name, proxy_name
from kvmnet.modes.segment import Part, Segment
from kvmnet.spec.networks import Network


def hosted(segment: Segment) -> Part:
    """The bridge, the host's addresses on it and the services that guests may ask."""
    part = Part()
    bridge = segment.bridge
    own_mac = stable_mac(segment.identity)
    part.resources.append(own_bridge(segment, own_mac))
    part.policy.routers.add((bridge, own_mac))
    part.resources += ipv6_settings(bridge, wanted=bool(segment.address6))
    part.resources += addresses(segment)
    allow_services(part, segment)
    part.resources += neighbours(segment)
    if segment.network.querier and not segment.address6:
        part.notes.append(f"network {segment.name}: the host asks for multicast by IGMP alone, it has no IPv6 there")
    part.policy.hosted.add(bridge)
    part.policy.sources |= forwardable(segment)
    inside = {p for p, address in ((segment.network.subnet, segment.address),
                                   (segment.network.subnet6, segment.address6)) if p and address}
    if segment.vrf:
        part.policy.vrf_inside |= {(bridge, prefix) for prefix in inside}
        part.policy.vrf_served |= {(bridge, place) for place in served_at(segment)}
    else:
        part.policy.inside |= inside
    return part


def served_at(segment: Segment) -> set[str]:
    """Where guests may send to for DHCP and DNS: the host's addresses on their own network, and everybody on it."""
    return {a for a in (segment.address, segment.address6, "255.255.255.255" if segment.address else "",
                        *(("fe80::/10", "ff02::/16") if segment.address6 else ())) if a}


def own_bridge(segment: Segment, mac: str) -> Link:
    """The bridge itself: complete, its MAC pinned so that ports coming and going never change it."""
    network = segment.network
    return Link(name=segment.bridge, type="bridge", mtu=segment.mtu, mac=mac, up=True, master="", vrf=segment.vrf,
                alias=f"kvmnet network {segment.name}", mcast_snooping=network.snooping, mcast_querier=network.querier,
                mcast_query_use_ifaddr=network.querier and bool(segment.address), linklocal_learn=False,
                nf_call_iptables=False, nf_call_ip6tables=False, nf_call_arptables=False,
                **spanning(segment.bridge, network if network.stp else None))


def spanning(bridge: str, network: Network | None) -> dict[str, Any]:
    """Settings of a bridge for the spanning tree that *network* declares; None: without one. The kernel counts in
    1/100 s. It speaks none itself where a process of ours does."""
    if network is None:
        return {"stp": False, "forward_delay": 0, "gate": ""}
    if network.tree_is_ours:
        return {"stp": False, "forward_delay": 0, "gate": bridge}
    options = network.stp_options
    return {"stp": True, "gate": "", "priority": options.priority, "forward_delay": 100 * options.forward_delay,
            "hello_time": 100 * options.hello, "max_age": 100 * options.max_age}


def ipv6_settings(bridge: str, *, wanted: bool) -> list[Sysctl]:
    """No IPv6 at all on a bridge where the host has no IPv6 address; no autoconfiguration on ours."""
    base = f"net/ipv6/conf/{bridge}"
    return [Sysctl(name=f"{base}/{name}", value=value, dev=bridge)
            for name, value in (("disable_ipv6", "0" if wanted else "1"), ("accept_ra", "0"), ("autoconf", "0"))]


def addresses(segment: Segment) -> list[Address]:
    found = []
    if segment.cidr:
        found.append(Address(name=address_name(segment.bridge, segment.cidr), dev=segment.bridge,
                             scope="global", label=segment.bridge, broadcast="", peer="", flags=(), dynamic=""))
    if segment.cidr6:
        # nodad: without a carrier the address would stay tentative and dnsmasq could not bind to it.
        found.append(Address(name=address_name(segment.bridge, segment.cidr6), dev=segment.bridge,
                             scope="global", label="", broadcast="", peer="", flags=("nodad",), dynamic=""))
    return found


def neighbours(segment: Segment) -> list[Neighbour]:
    """What the bridge answers ARP and ND with, where the document wants that."""
    if not segment.network.neigh_suppress:
        return []
    return [Neighbour(name=proxy_name(segment.bridge, address), dev=segment.bridge, mac=nic.mac)
            for nic in segment.nics if nic.declared.guard == "full" for address in (nic.ip, nic.ip6) if address]


def allow_services(part: Part, segment: Segment) -> None:
    """DHCP, DNS and what the document allows on the host, and the metadata service."""
    network, bridge, policy = segment.network, segment.bridge, part.policy
    policy.own |= {a for a in (segment.address, segment.address6) if a}
    policy.bridged.add(bridge)
    if network.dhcp.enabled:
        policy.services |= {(bridge, "udp", port)
                            for port, address in ((67, segment.address), (547, segment.address6)) if address}
        if network.dhcp.pxe and network.dhcp.pxe.tftp_root:
            policy.services.add((bridge, "udp", 69))
    if network.dns.enabled and (segment.address or segment.address6):
        policy.services |= {(bridge, "udp", 53), (bridge, "tcp", 53)}
    policy.allowed |= {(bridge, a.protocol, a.port) for a in network.allow}
    if (meta := network.metadata) and segment.address:
        policy.metadata.add((bridge, meta.address, meta.port, segment.address, meta.to_port))


def forwardable(segment: Segment) -> set[tuple[str, str]]:
    """Prefixes that guests of the bridge may use as source through the host."""
    extra = {prefix for nic in segment.nics for prefix in nic.prefixes}
    return {(segment.bridge, p) for p in (segment.network.subnet, segment.network.subnet6, *extra) if p}


def host_has_service(network: Network) -> bool:
    return network.dhcp.enabled or network.dns.enabled or network.ra != "off"


def stable_mac(text: str) -> str:
    """A locally administered MAC that is the same for the same text."""
    digest = blake2s(text.encode(), digest_size=5, person=b"kvmnet").digest()
    return ":".join(f"{b:02x}" for b in (0x02, *digest))
