"""A host by bare tools: what ``ip``, ``sysctl`` and three lines of nft make. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

BRIDGE = "br0"


def lines(taps: Sequence[str], mtu: int, address: str) -> Iterator[str]:
    """What ``ip -batch`` is told."""
    yield f"link add {BRIDGE} type bridge"
    yield from ports(taps, mtu, BRIDGE)
    yield f"link set {BRIDGE} mtu {mtu} up"
    yield f"addr add {address} dev {BRIDGE}"


def ports(taps: Sequence[str], mtu: int, bridge: str) -> Iterator[str]:
    for tap in taps:
        yield f"link set {tap} mtu {mtu} master {bridge}"
        yield f"link set {tap} up"


def masquerade(device: str) -> str:
    """What ``nft -f`` is told."""
    return ("add table ip bare\nadd chain ip bare out { type nat hook postrouting priority 100; }\n"
            f"add rule ip bare out oifname {device} masquerade\n")
