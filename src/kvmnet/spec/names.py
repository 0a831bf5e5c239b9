"""Names of kernel objects for things of the document. Pure.

A device name has at most 15 bytes. Short names are used as they are; longer ones keep their
beginning and get a hash, so that the name is stable and two never meet by chance.
"""
from __future__ import annotations

from hashlib import blake2s

TAP = "kvt-"
"""Reserved prefix of guest taps: a frame from such a port passes only if its guard allows it."""
BRIDGE = "kvb-"
"""Reserved prefix of bridges that kvmnet makes."""
PROBE = "kvp-"
"""Reserved prefix of the far ends of probe ports, inside their namespaces."""
ROOM = 11


def tap_name(vm: str, nic: str) -> str:
    """Device of one guest NIC: ``kvt-web1-0`` for nic0 of web1."""
    index = nic[3:] if nic.startswith("nic") and nic[3:].isdigit() else nic
    return TAP + short(f"{vm}-{index}")


def bridge_name(network: str) -> str:
    """Bridge of one network: ``kvb-lan``."""
    return BRIDGE + short(network)


def short(text: str) -> str:
    """*text* in at most 11 bytes: as it is, or 5 bytes of it and a hash."""
    if len(text) <= ROOM:
        return text
    return text[:5] + "~" + blake2s(text.encode(), digest_size=4).hexdigest()[:5]


def nic_name(position: int, declared: str | None) -> str:
    return declared or f"nic{position}"
