"""DSCP marks as chains of nftables: one for each mark in use, since a mark is a constant there (nft 1.0.6 takes no map). Pure."""
from __future__ import annotations

from kvmnet.spec.rates import Mark

ONLY = {"all": "", "none": "{family} dscp 0 "}
"""First part of a chain's name -> words for the packets that it marks."""


def mark_of(mark: Mark) -> str:
    """Name of the chain that marks a NIC's packets; '' for none."""
    if mark.dscp is None:
        return ""
    return f"{'none' if mark.trust else 'all'}_{mark.dscp}"


def every_mark() -> list[str]:
    """Names of all chains that there can be."""
    return [f"{which}_{code}" for which in ONLY for code in range(64)]


def mark_chain(name: str, *then: str) -> str:
    """The chain of that name: it marks all packets, or those without a DSCP. ``then``: what follows in it."""
    which, _, code = name.partition("_")
    return "\n".join((f"chain {name} {{", *(f"{ONLY[which].format(family=f)}{f} dscp set {code}" for f in ("ip", "ip6")), *then, "}"))
