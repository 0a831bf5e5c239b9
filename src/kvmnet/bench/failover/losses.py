"""How a member is lost, and given back: commands that can be repeated without harm."""
from __future__ import annotations

from enum import StrEnum

from kvmnet.host.put_back import Command

TABLE = "kvmnet_bench"
"""Of kvmnet's mark: what a killed bench and its killed undo left, the next apply removes."""


class Loss(StrEnum):
    LINK = "link"
    SILENT = "silent"


WORDS = {
    Loss.LINK: "is taken down",
    Loss.SILENT: "loses every frame in both directions and keeps its carrier (nftables on its ingress and egress)",
}


def commands(loss: Loss, member: str) -> tuple[list[Command], list[Command]]:
    """What makes a loss, and what ends it."""
    if loss is Loss.LINK:
        return [link(member, "down")], [link(member, "up")]
    chains = "".join(f"add chain netdev {TABLE} {hook} {{ type filter hook {hook} device {member} priority -500; policy drop; }}\n"
                     for hook in ("ingress", "egress"))
    fresh = f"add table netdev {TABLE}\n"
    return [nft(fresh + chains)], [nft(f"{fresh}delete table netdev {TABLE}\n")]


def link(member: str, state: str) -> Command:
    return Command(("ip", "link", "set", "dev", member, state))


def nft(text: str) -> Command:
    return Command(("nft", "-f", "-"), text)
