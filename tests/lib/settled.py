"""What stands on a host when everything has come to rest, to be compared before and after."""
from __future__ import annotations

from lib.world import World, snapshot


def settled() -> dict[str, object]:
    """What is there, without what a NIC keeps of its link: qdisc queues and the state that follows from carriers."""
    found = snapshot()
    for link in found["links"]:
        for name in ("qdisc", "operstate", "num_tx_queues"):
            link.pop(name, None)
        link["addr_info"] = [a for a in link["addr_info"] if a["scope"] != "link"]
    found["routes"] = [r for r in found["routes"] if "fe80" not in r and "ff00" not in r]
    return found


def lines(world: World, text: str) -> None:
    """Apply *text*; the next plan must be empty."""
    world.apply(text)
    assert world.drift() == []
