"""How a bond spreads many flows over its members."""
from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

from kvmnet.bench.failover.bonds import Bond
from kvmnet.host.askers import Datagrams
from kvmnet.host.clock import wait_until
from kvmnet.host.filters import marked_sent
from kvmnet.host.watch import Watch
from kvmnet.records import dataclass

DISCARD = 9
"""UDP port of the discard service (RFC 863): an end without it answers some of them with an ICMP error."""
PORTS = range(1024, 65536)
SEED = 863
"""Of the choice of ports, so that a second run has the same flows."""
BY_PORTS = ("layer3+4", "encap3+4")
"""Hashes that look at ports."""
HASHING = ("balance-xor", "802.3ad")
WANTED = 95.0
"""Percent of an even share that the least used member has where flows can be spread. Of 10,000 flows over two members
chance alone leaves less than that once in a million times; of 1,000 once in nine."""


@dataclass(frozen=True, slots=True)
class Share:
    """Datagrams by member."""

    flows: int
    by_member: Mapping[str, int]

    def percent(self, member: str) -> float:
        return 100 * self.by_member[member] / max(1, sum(self.by_member.values()))

    @property
    def balance(self) -> float:
        """What the least used member carries, in percent of an even share."""
        counts = self.by_member.values()
        return 100 * min(counts) * len(counts) / max(1, sum(counts)) if counts else 0.0


def spreads(bond: Bond) -> str:
    """'' when the bond can spread the flows to one address over all members, else why not."""
    if bond.mode == "balance-rr":
        return ""
    if bond.mode in HASHING:
        policy = str(bond.options.get("xmit_hash_policy", "layer2"))
        return "" if policy in BY_PORTS else f"the hash {policy} does not look at ports: flows to one next hop stay together"
    return {"active-backup": "active-backup uses one member at a time",
            "broadcast": "broadcast sends everything by every member"}.get(
                bond.mode, f"{bond.mode} moves flows by load and by who they are for")


def share(bond: Bond, target: str, flows: int) -> Share:
    """Send one datagram of each of *flows* UDP flows to *target*, and count by which member it leaves."""
    mark = secrets.randbits(32)
    used: Sequence[str] = [m.name for m in bond.members if m.usable]
    with ExitStack() as stack:
        watches = [stack.enter_context(Watch(name, marked_sent(mark))) for name in used]
        sender = stack.enter_context(Datagrams(target, DISCARD, mark))
        sent = sum(sender.send(port) for port in random.Random(SEED).sample(PORTS, flows))
        counts = dict.fromkeys(used, 0)

        def all_left() -> bool:
            for watch in watches:
                counts[watch.device] += watch.passed()
            return sum(counts.values()) >= sent

        with suppress(TimeoutError):
            wait_until(all_left, 2)
    return Share(flows, counts)
