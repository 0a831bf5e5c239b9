"""mode routed: guests are reached and leave under their own addresses. Pure."""
from __future__ import annotations

from kvmnet.drivers.linux.resources import ProxyNeighbour, Sysctl
from kvmnet.facts.model import Facts
from kvmnet.modes.forwarding import forwarding
from kvmnet.modes.hosted import hosted
from kvmnet.modes.nat import families
from kvmnet.modes.segment import Part, Segment


def wire(segment: Segment, facts: Facts) -> Part:
    part = hosted(segment)
    bridge, out = segment.bridge, segment.way_out
    part.policy.reach |= {(bridge, out), (out, bridge)}
    forwarding(part, families(segment), tuple(d for d in (bridge, out, segment.vrf) if d), facts)
    if segment.network.proxy:
        answer_for_guests(part, segment)
    return part


def answer_for_guests(part: Part, segment: Segment) -> None:
    """Proxy ARP and ND on the uplink for exactly the guests' addresses.

    Single proxy entries need no proxy_arp setting, which would answer for everything that the
    host can route (arp_process() in net/ipv4/arp.c); ND needs proxy_ndp (net/ipv6/ndisc.c).
    """
    out = segment.way_out
    for nic in segment.nics:
        for address in (nic.ip, nic.ip6):
            if address:
                part.resources.append(ProxyNeighbour(name=f"{out} {address}", dev=out, address=address))
    if segment.address6:
        ndp = Sysctl(name=f"net/ipv6/conf/{out}/proxy_ndp", value="1", dev=out)
        part.resources.append(ndp)
        part.borrowed.add(ndp.key)
