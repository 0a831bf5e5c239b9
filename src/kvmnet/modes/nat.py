"""mode nat: guests leave behind the host's address; ports of the host can be handed to them. Pure."""
from __future__ import annotations

from kvmnet.facts.model import Facts
from kvmnet.modes.forwarding import forwarding
from kvmnet.modes.hosted import hosted
from kvmnet.modes.segment import Part, Segment


def wire(segment: Segment, facts: Facts) -> Part:
    part = hosted(segment)
    bridge, out, policy = segment.bridge, segment.way_out, part.policy
    policy.reach.add((bridge, out))
    if not segment.vrf:
        policy.inward |= {bridge, out}
    if any(map(segment.isolates, segment.nics)):
        policy.apart.add(bridge)
    policy.masquerade |= {(out, prefix) for _, prefix in policy.sources}
    by_name = {(nic.vm, nic.nic): nic for nic in segment.nics}
    first = {nic.vm: nic for nic in reversed(segment.nics)}
    for forward in segment.network.forwards:
        vm, _, name = forward.to.partition("/")
        nic = by_name[vm, name] if name else first[vm]
        policy.forwards |= {(forward.address or "", forward.protocol, forward.port, guest,
                             forward.to_port or forward.port, bridge)
                            for guest in (nic.ip, nic.ip6) if guest and not (forward.address and ":" in guest)}
    if segment.vrf:
        forwards_in_domain(part, segment)
    forwarding(part, families(segment), tuple(d for d in (bridge, out, segment.vrf) if d), facts)
    return part


def forwards_in_domain(part: Part, segment: Segment) -> None:
    """In a routing domain no lookup of nft's says that an address is the host's (nft_fib4_eval_type() in
    net/ipv4/netfilter/nft_fib_ipv4.c asks the table local): each address of the uplink is named. The host itself is in no
    domain, and its own packets are not handed on."""
    handed = {f for f in part.policy.forwards if f[5] == segment.bridge}
    part.policy.forwards -= handed
    part.policy.vrf_forwards |= {(segment.way_out, host, *f[1:]) for f in handed for host in ((f[0],) if f[0] else segment.outside)
                                 if (":" in host) == (":" in f[3])}
    part.policy.vrf_hairpin |= {(segment.bridge, prefix) for device, prefix in part.policy.sources if device == segment.bridge}


def families(segment: Segment) -> frozenset[int]:
    """IP families that the host routes for the network."""
    return frozenset(v for v, address in ((4, segment.address), (6, segment.address6)) if address)
