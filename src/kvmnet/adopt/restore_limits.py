"""Abuse limits of a NIC, read back from its resource. Pure."""
from __future__ import annotations

from typing import Any

from kvmnet.drivers.nftables.resources import NicLimits
from kvmnet.spec.limits import PLACES

Tree = dict[str, Any]


def restored(found: NicLimits | None) -> Tree:
    """The part ``limits`` of a NIC; empty when it has none. What followed from another limit is written too."""
    out: Tree = {}
    for name, (part, field) in PLACES.items():
        if value := getattr(found, name, 0):
            words = value if name == "concurrent" else f"{value}/s"
            (out.setdefault(part, {}) if part else out)[field] = words
    if out and found and (found.burst or 1) > 1:
        out["burst"] = found.burst
    return out
