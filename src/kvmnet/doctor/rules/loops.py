"""Rings of bridges within one host. Pure."""
from __future__ import annotations

from kvmnet.doctor.view import View, data, up


def rings(view: View) -> list[list[str]]:
    """Wires (pairs of veth) that close a ring of bridges without spanning tree: for each the wire that closes it and
    the bridges that it joins."""
    group = {b["ifname"]: b["ifname"] for b in view.bridges}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    found = []
    for one, other in view.wires:
        a, b = one.get("master", ""), other.get("master", "")
        if a not in group or b not in group or not (up(one) and up(other)):
            continue
        if data(view.links[a]).get("stp_state") and data(view.links[b]).get("stp_state"):
            continue
        if root(a) == root(b):
            found.append([a, one["ifname"], other["ifname"], b])
        else:
            group[root(a)] = root(b)
    return found
