"""Two networks that reach each other through the host. Pure."""
from __future__ import annotations

from kvmnet.facts.model import Facts
from kvmnet.modes.forwarding import forwarding
from kvmnet.modes.nat import families
from kvmnet.modes.segment import Part, Segment


def join(one: Segment, other: Segment, facts: Facts) -> Part:
    """Each is forwarded to the other, in the families that the host has on both: forwarding is a setting of the
    device that a packet comes in by, and a network that leads nowhere else has none."""
    part = Part()
    part.policy.reach |= {(one.bridge, other.bridge), (other.bridge, one.bridge)}
    both = families(one) & families(other)
    for segment in (one, other):
        forwarding(part, both, (segment.bridge, "", segment.vrf), facts)
        if segment.network.bridge:      # the host's own: a setting of it goes back, and meanwhile nothing else passes by it
            part.borrowed |= {r.key for r in part.resources if getattr(r, "dev", "") == segment.bridge}
            part.policy.lent |= {(segment.bridge, version) for version in both - facts.routing}
    return part
