"""A port that a spanning tree of kvmnet's own keeps shut: which tree, who is its root, and whether that is as it should be. Pure."""
from __future__ import annotations

from typing import Any

from kvmnet.doctor.trip import Trip
from kvmnet.drivers.stp.gate import lanes_of

GATED = " | gate="
"""In the alias of a bridge whose spanning tree kvmnet speaks itself (drivers/linux/attrs.py)."""
SPARE = {"alternate": "another port leads there", "backup": "another port of this bridge leads to the same link"}
"""Role of a port that is shut for good -> why."""


def kept_shut(trip: Trip, port: str, bridge: str, state: str, vlan: int) -> None:
    """``state``: that in the kernel. ``vlan``: of the frame inside of the bridge; 0 where it does not go by them."""
    row: dict[str, Any] = next((r for r in trip.scene.part("trees") if r["bridge"] == bridge), {})
    if port not in row.get("ports", {}):
        if state != "forwarding":    # opened by hand it would close a loop, and the gate would drop its frames all the same
            trip.blocks("port-state", port, f"the port is {state}: the spanning tree keeps it shut",
                        "it has another way, or waits for its neighbours' agreement; or nobody speaks for it any more",
                        f"{bridge} has a gate, which the process of kvmnet opens", fix=("kvmnet status",))
        return
    lanes = lanes_of(row["instances"], row["untagged"])
    number = lanes.untagged if not vlan or vlan == trip.scene.pvid(port) else lanes.tree(vlan)
    told, tree = row["ports"][port]["trees"][str(number)], row["trees"][str(number)]
    if told["state"] == "forwarding":
        return
    which = f"instance {number} of MSTP keeps it shut for VLAN {vlan}" if number else "the spanning tree keeps it shut"
    leads = f"the root {tree['root']} is behind {tree['root_port']}" if tree["root_port"] else f"{bridge} is the root"
    why = SPARE.get(told["role"])
    trip.blocks("port-state", port, f"the port is {told['state']}: {which}",
                f"as it should be: {leads}, {why}, and open it would close a loop" if why else f"it waits for its neighbour's agreement; {leads}",
                f"role {told['role']}, cost {told['cost']}, {row['ports'][port]['heard']} BPDUs heard there", fix=("kvmnet status",))
