"""Routing domains: the device that is one, and that nothing in it finds a way by the host's own table. Pure.

A packet that comes in by a member of a domain is looked up in the domain's table first (rule l3mdev, which the kernel makes with
the first domain of a network namespace and keeps); when that has no answer the next rule is asked, which is the host's main
table. So each table ends with routes that answer: unreachable.

What is in a domain passes the IP hooks with the domain's device as input device, from the routing on
(vrf_ip_rcv() in drivers/net/vrf.c): the rules for it are in policy/vrf.py.
"""
from __future__ import annotations

from kvmnet.drivers.linux.resources import PROTO, Link, Route, route_name
from kvmnet.modes.segment import Part
from kvmnet.spec import domains
from kvmnet.spec.models import Spec

LAST = 4278198272
"""Metric of the routes that end a table (Documentation/networking/vrf.rst)."""


def wire_vrfs(spec: Spec) -> Part:
    part = Part()
    zones = domains.zones(spec)
    for name in spec.vrfs:
        device, table = domains.device(name), domains.table(name, spec)
        part.resources.append(Link(name=device, type="vrf", vrf_table=table, up=True, alias=f"kvmnet vrf {name}"))
        part.resources += (end_of(str(table), family, device) for family in (4, 6))
        part.policy.vrf_zones.add((device, zones[device]))
    return part


def end_of(table: str, family: int, device: str) -> Route:
    """What a table answers when nothing else does. IPv6 shows such a route on lo."""
    dev = "lo" if family == 6 else ""
    return Route(name=route_name("default", family=family, dev=dev, table=table, metric=LAST), dev=dev, dst="default",
                 family=family, table=table, metric=LAST, via="", src="", proto=PROTO, flags=(), options="unreachable")


def join(part: Part, device: str, vrf: str | None, zones: dict[str, int]) -> None:
    """What the host's own table must know of a member."""
    if domain := domains.device(vrf):
        part.policy.vrf_members.add((domain, device))
        part.policy.vrf_zones.add((device, zones[domain]))
