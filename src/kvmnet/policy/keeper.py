"""The tables that the guard's keeper holds: they drop what no guard has judged. Pure.

A table with ``flags owner`` belongs to one process: nobody else can change it, ``nft flush ruleset``
leaves it standing, and the kernel removes it with the process. So after a flush every guest port is
closed at once, and when the keeper dies the guard itself still stands.
"""
from __future__ import annotations

from hashlib import sha256

from kvmnet.drivers.nftables.resources import GuardKeeper
from kvmnet.policy.guard import PRIORITY
from kvmnet.policy.marks import GUEST, ROUTED

AFTER_HOST_TABLE = -9
"""Just after the forward and input chains of ``inet kvmnet``, which mark what they let pass."""

HELD = {
    "bridge kvmnet-keeper": (
        f"chain prerouting {{ type filter hook prerouting priority {PRIORITY + 1}; "
        f'meta mark & {GUEST:#x} == 0 iifname "kvt-*" counter drop; }}; '
        f"chain input {{ type filter hook input priority {PRIORITY + 1}; "
        f'meta mark & {GUEST:#x} == 0 iifname "kvt-*" counter drop; }};'),
    "inet kvmnet-keeper": (
        'chain prerouting { type filter hook prerouting priority -400; iifname "kvt-*" counter drop; }; '
        f"chain forward {{ type filter hook forward priority {AFTER_HOST_TABLE}; "
        f'iifname "kvb-*" meta mark & {ROUTED:#x} == 0 counter drop; '
        f'oifname "kvb-*" meta mark & {ROUTED:#x} == 0 counter drop; }}; '
        f"chain input {{ type filter hook input priority {AFTER_HOST_TABLE}; "
        f"meta mark & {GUEST | ROUTED:#x} == {GUEST:#x} counter drop; }};"),
}
"""Table -> its declarations, on one line each. The mark comes first: it is the cheaper look."""


def guard_keeper() -> GuardKeeper:
    """The keeper that this version of kvmnet wants."""
    return GuardKeeper(name="guard", version=sha256(repr(HELD).encode()).hexdigest()[:16])
