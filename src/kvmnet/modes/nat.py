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
    policy.inward |= {bridge, out}
    policy.masquerade |= {(out, prefix) for _, prefix in policy.sources}
    by_name = {(nic.vm, nic.nic): nic for nic in segment.nics}
    first = {nic.vm: nic for nic in reversed(segment.nics)}
    for forward in segment.network.forwards:
        vm, _, name = forward.to.partition("/")
        nic = by_name[vm, name] if name else first[vm]
        policy.forwards |= {(forward.address or "", forward.protocol, forward.port, guest,
                             forward.to_port or forward.port, bridge)
                            for guest in (nic.ip, nic.ip6) if guest and not (forward.address and ":" in guest)}
    forwarding(part, families(segment), (bridge, out), facts)
    return part


def families(segment: Segment) -> frozenset[int]:
    """IP families that the host routes for the network."""
    return frozenset(v for v, address in ((4, segment.address), (6, segment.address6)) if address)
