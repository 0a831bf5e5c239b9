"""Routing between a guest network and its way out: which kernel settings, and in which order. Pure.

IPv4 is switched on only for the two devices: the kernel asks the device that a packet came in by
(ip_route_input_slow() in net/ipv4/route.c), so nothing else of the host begins to route.

IPv6 up to Linux 6.16 knows only one switch for all (ip6_forward() in net/ipv6/ip6_output.c asks
conf/all/forwarding). It makes every interface a router, and the moment it goes on the kernel deletes
the default routes that router advertisements gave, unless the interface has accept_ra=2
(rt6_purge_dflt_routers() in net/ipv6/route.c). So that comes first, on every device that lives by
advertisements. From 6.17 there is force_forwarding, one device at a time, and nothing else changes.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvmnet.drivers.linux.resources import Address, Route, Sysctl
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts

if TYPE_CHECKING:
    from kvmnet.modes.segment import Part

PER_DEVICE = "ipv6-force-forwarding"
"""Feature: net/ipv6/conf/DEV/force_forwarding (Linux 6.17)."""


def forwarding(part: Part, families: frozenset[int], devices: tuple[str, ...], facts: Facts) -> None:
    """Add to *part* what lets packets pass between *devices*: the bridge, the way out and, where the two are in a routing
    domain, its device, which is what packets seem to come in by there."""
    bridge = devices[0]
    wanted: list[Sysctl] = []
    if 4 in families:
        wanted += [Sysctl(name=f"net/ipv4/conf/{dev}/forwarding", value="1", dev=dev) for dev in devices if dev]
    if 6 in families:
        wanted.append(Sysctl(name=f"net/ipv6/conf/{bridge}/forwarding", value="1", dev=bridge))
        if facts.features.get(PER_DEVICE) == "":
            wanted += [Sysctl(name=f"net/ipv6/conf/{dev}/force_forwarding", value="1", dev=dev)
                       for dev in devices if dev]
        else:
            wanted += every_device(facts, exempt={bridge})
            part.notes.append("IPv6 forwarding is one switch for the whole host on this kernel: every interface "
                              "becomes a router (net.ipv6.conf.all.forwarding=1)")
    if len(devices) == 2:
        part.policy.lent |= {(devices[1], version) for version in families - facts.routing if devices[1]}
    part.resources += wanted
    part.borrowed |= {s.key for s in wanted if s.dev not in (bridge, *devices[2:])}


def every_device(facts: Facts, exempt: Iterable[str]) -> list[Sysctl]:
    """IPv6 forwarding for the whole host, after accept_ra=2 wherever advertisements are lived by."""
    first = [Sysctl(name=f"net/ipv6/conf/{dev}/accept_ra", value="2", dev=dev)
             for dev in sorted(advertised(facts) - set(exempt))]
    switch = Sysctl(name="net/ipv6/conf/all/forwarding", value="1", dev="", after=first[-1].name if first else "")
    return [*first, switch]


def advertised(facts: Facts) -> set[str]:
    """Devices with an address or a route from router advertisements, or that wait for one as routers."""
    found = set()
    for resource in facts.state.values():
        match resource:
            case Address(dev=str(dev), dynamic="ra") | Route(dev=str(dev), proto="ra") if dev:
                found.add(dev)
            case Sysctl(name=name, value="2", dev=str(dev)) if dev and name.endswith("/accept_ra"):
                found.add(dev)
    return found


def forwarding_sysctls(devices: Iterable[str]) -> tuple[str, ...]:
    """Settings to observe so that ``forwarding`` can be planned for *devices*."""
    return tuple(f"net/ipv6/conf/{dev}/accept_ra" for dev in devices)


def accepts_advertisements(device: str, facts: Facts) -> bool:
    """Whether *device* listens to router advertisements now (accept_ra with a router's exception)."""

    def value(name: str, otherwise: str) -> str:
        found = facts.state.get(Key(Sysctl.kind, f"net/ipv6/conf/{device}/{name}"))
        return found.value or otherwise if isinstance(found, Sysctl) else otherwise

    accept = value("accept_ra", "")
    return accept == "2" or (accept == "1" and value("forwarding", "0") == "0")
