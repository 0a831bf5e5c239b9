"""Routing domains (VRFs): who is in which, their devices, tables and conntrack zones. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

from kvmnet.spec.models import Spec
from kvmnet.spec.names import vrf_device
from kvmnet.spec.networks import Network

FEATURE, SERVED = "vrf", "vrf-exec"
"""Features of the host that routing domains, and servers in them, need."""
TABLES = range(1_000_000, 2_000_000)
"""Tables of domains that name none. Beyond what hosts use (systemd-networkd and Netplan: what is written there; policy
routing by hand: small numbers)."""
HIGHEST_ZONE = 0xFFFF


def table(name: str, spec: Spec) -> int:
    """Number of a domain's routing table."""
    return spec.vrfs[name].table or TABLES[crc32(name.encode()) % len(TABLES)]


def device(name: str | None) -> str:
    """Device of a domain; '' for none, which is the host's own."""
    return vrf_device(name) if name else ""


def zones(spec: Spec) -> dict[str, int]:
    """Device of a domain -> its conntrack zone: never 0, which is the host's own, and each another."""
    found: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(spec.vrfs):
        number = crc32(f"vrf {name}".encode()) % HIGHEST_ZONE + 1
        while number in taken:
            number = number % HIGHEST_ZONE + 1
        taken.add(number)
        found[vrf_device(name)] = number
    return found


def networks(vrf: str, spec: Spec) -> Iterator[tuple[str, Network]]:
    yield from ((name, n) for name, n in spec.networks.items() if n.vrf == vrf)
