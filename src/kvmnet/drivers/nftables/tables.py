"""Names of our tables. Pure."""
from __future__ import annotations

GUARD, EGRESS = "bridge kvmnet", "netdev kvmnet"
GUARDS = (GUARD, EGRESS)
"""The tables of guards of NICs: ports of bridges, and others."""
ROUTED = "inet kvmnet-groups"
"""The table that judges for groups and tenants what the host routes or sends to a guest."""
HOST = "inet kvmnet"
"""What the host lets in and through. Its sets belong to its text."""
FILLED = (*GUARDS, ROUTED)
"""The tables whose set elements are resources of their own."""
OURS = frozenset({"kvmnet", "kvmnet-marks", "kvmnet-groups"})
"""Names of our tables, in whatever family."""


def table_of(name: str) -> str:
    """The table in ``TABLE SET``."""
    return name.rpartition(" ")[0]
