"""Routing domains in the host's own table: rules of the same meaning as outside, for packets of a domain. Pure.

A packet passes prerouting twice: on the device that it came in by, then on the domain's. From then on the input device is the
domain's, and the device that it came in by is asked by ``meta sdifname`` (Linux 5.6, in input and forward only).

* zones: what is in a domain has a conntrack zone of its own, so that equal addresses of two domains never are one flow. Set before
  conntrack, by the device in and, for the host's own packets, by the device out.
* taps: another device of the domain may not bring a guest's address as source; the same address in another domain is somebody else.
* forward: only between devices of the same domain is anything ever allowed (``reach``), and the domain's table knows no other.
* input: from guests the host answers DHCP, DNS, ND and echo. ND alone comes on the device itself.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmnet.modes.segment import HostPolicy

TAPS = "iifname @vrf_devices goto vrf_taps"
FORWARD = 'iifname "kvr-*" goto vrf_forward'
INPUT = 'iifname "kvr-*" goto vrf_input'
CHAINS = """\
chain vrf_taps {
iifname . ip saddr @vrf_elsewhere4 counter drop
iifname . ip6 saddr @vrf_elsewhere6 counter drop
}
chain vrf_forward {
meta sdifname "kvb-*" meta sdifname . ip saddr != @sources4 counter drop
meta sdifname "kvb-*" meta sdifname . ip6 saddr != @sources6 counter drop
meta sdifname . oifname @paths ct state { established, related } goto pass
ct state invalid drop
meta sdifname . oifname @reach goto pass
meta sdifname . oifname @handed ct status dnat goto pass
goto refuse
}
chain vrf_input {
meta sdifname @hosted goto vrf_host
}
chain vrf_host {
ct state vmap { established : goto pass, related : goto pass, invalid : drop }
meta sdifname . meta l4proto . th dport @services meta sdifname . ip daddr @vrf_served4 goto pass
meta sdifname . meta l4proto . th dport @services meta sdifname . ip6 daddr @vrf_served6 goto pass
meta sdifname . meta l4proto . th dport @allowed goto pass
icmp type echo-request goto pass
icmpv6 type { echo-request, mld-listener-report, mld2-listener-report } goto pass
counter drop
}"""


def is_used(policy: HostPolicy) -> bool:
    return bool(policy.vrf_zones)


def chains(policy: HostPolicy) -> list[str]:
    """Everything of domains; nothing when the document has none."""
    if not is_used(policy):
        return []
    zones = ", ".join(f'"{device}" : {zone}' for device, zone in sorted(policy.vrf_zones))
    return [CHAINS, *(zone_chain(f"vrf_zones_{way}", hook, f"{key} map {{ {zones} }}")
                      for way, hook, key in (("in", "prerouting", "iifname"), ("out", "output", "oifname")))]


def zone_chain(name: str, hook: str, lookup: str) -> str:
    return "\n".join((f"chain {name} {{", f"type filter hook {hook} priority -300; policy accept;", f"ct zone set {lookup}", "}"))


def devices(policy: HostPolicy) -> set[str]:
    """Members of domains, and the domains themselves."""
    return {device for device, _ in policy.vrf_zones}


def elsewhere(policy: HostPolicy) -> Iterable[tuple[str, str]]:
    """(member, prefix): sources that another device of the same domain has."""
    inside = dict[str, set[str]]()
    for device, prefix in policy.vrf_inside:
        inside.setdefault(device, set()).add(prefix)
    by_domain = dict[str, set[str]]()
    for domain, member in policy.vrf_members:
        by_domain.setdefault(domain, set()).add(member)
    for members in by_domain.values():
        for member in members:
            for other in members - {member}:
                yield from ((member, prefix) for prefix in inside.get(other, ()))
