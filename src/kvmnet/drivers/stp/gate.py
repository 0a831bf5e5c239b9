"""The gate of a bridge's ports: its table, and what opens and shuts it. Pure.

Elements that must not outlive the process have a time to live, which the process renews (``OPEN_FOR`` hellos). Where a bridge
has several trees, each has a set of its own, and the tag of a frame says which one counts.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

from kvmnet.records import dataclass, field

CIST = 0
"""Number of the common tree (stp/vectors.py; commands start without the protocol)."""
PRIORITY = -351
"""Before the guards of guests."""
LAST = 400
OPEN_FOR = 4
"""Hellos after which a port shuts by itself that could close a loop: its process does not answer any more."""
BPDUS = "01:80:c2:00:00:00"
VIDS = range(1, 4095)


@dataclass(frozen=True, slots=True)
class Lanes:
    """Which tree each frame goes by: its VLAN's."""

    vlans: Mapping[int, int] = field(default_factory=dict)
    """VLAN -> tree; the others belong to the common one."""
    untagged: int = CIST
    """Tree of frames without a tag."""
    instances: tuple[int, ...] = ()

    @property
    def trees(self) -> tuple[int, ...]:
        return (CIST, *self.instances)

    def tree(self, vid: int) -> int:
        return self.vlans.get(vid, CIST)

    def tagged(self, tree: int) -> list[str]:
        """VLANs of a tree, as nft writes them: ``100-199``."""
        return [f"{first}-{last}" if first < last else str(first) for first, last in spans(v for v in VIDS if self.tree(v) == tree)]


def spans(vids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of *vids*, which are sorted."""
    first = last = 0
    for vid in vids:
        if vid != last + 1 or not first:
            if first:
                yield first, last
            first = vid
        last = vid
    if first:
        yield first, last


def lanes_of(instances: Iterable[str], untagged: int) -> Lanes:
    """``instances``: "NUMBER VLANS", as in ``TreeGate``. ``untagged``: VLAN of frames without a tag; 0 where there is one tree."""
    vlans: dict[int, int] = {}
    numbers = []
    for text in instances:
        number, *parts = text.split()
        numbers.append(int(number))
        for part in parts:
            first, _, last = part.partition("-")
            vlans |= dict.fromkeys(range(int(first), int(last or first) + 1), int(number))
    return Lanes(vlans, vlans.get(untagged, CIST), tuple(numbers))


def table_of(bridge: str) -> str:
    """Name of a bridge's table. Not every name of a device is one that nft takes."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "", bridge)
    return f"bridge kvmnet-tree-{plain}{'' if plain == bridge else f'-{crc32(bridge.encode()):08x}'}"


def open_set(tree: int) -> str:
    """Name of the set of the ports that a tree has open."""
    return f"open{tree or ''}"


def table_text(bridge: str, ports: Sequence[str], lanes: Lanes) -> str:
    """The table, in place of one that is there. No port is open in it. BPDUs go nowhere by it: they are between neighbours,
    and the bridge itself would hand them on (br_handle_frame() in net/bridge/br_input.c)."""
    name = table_of(bridge)
    elements = f" elements = {{ {', '.join(map(quoted, ports))} }};" if ports else ""
    sets = "\n    ".join(f"set {open_set(tree)} {{ type ifname; flags timeout; }}" for tree in lanes.trees)
    return f"""table {name} {{ }}
delete table {name}
table {name} {{
    set ports {{ type ifname;{elements} }}
    {sets}
{by_tag("inward", "iifname", lanes)}{by_tag("outward", "oifname", lanes)}    chain prerouting {{
        type filter hook prerouting priority {PRIORITY}; policy accept;
        iifname @ports ether daddr {BPDUS} drop
        iifname @ports {"jump inward" if lanes.instances else "iifname != @open drop"}
    }}
    chain postrouting {{
        type filter hook postrouting priority {LAST}; policy accept;
        oifname @ports ether daddr {BPDUS} drop
        oifname @ports {"jump outward" if lanes.instances else "oifname != @open drop"}
    }}
}}
"""


def by_tag(way: str, port: str, lanes: Lanes) -> str:
    """Chains that take each frame to its tree's set, where there are several. A frame that is only given a priority (VLAN 0)
    counts as one without a tag, as it does for the bridge."""
    if not lanes.instances:
        return ""
    others = {tree: lanes.tagged(tree) for tree in lanes.trees if tree != lanes.untagged}
    places = ", ".join(f"{vids} : goto {way}{tree}" for tree, found in others.items() for vids in found)
    inner = "".join(f"    chain {way}{tree} {{ {port} != @{open_set(tree)} drop; }}\n" for tree in others)
    choice = f"        vlan id vmap {{ {places} }}\n" if places else ""
    return f"{inner}    chain {way} {{\n{choice}        {port} != @{open_set(lanes.untagged)} drop\n    }}\n"


def quoted(name: str) -> str:
    return f'"{name}"'


def opening(bridge: str, tree: int, opened: Mapping[str, float], shut: Iterable[str]) -> str:
    """What has the gate let pass, by a tree, the ports in *opened*, each for so many seconds (0: for ever), and not those in
    *shut*. Which of them are open now makes no difference."""
    where = f"{table_of(bridge)} {open_set(tree)}"
    lines = [f"add element {where} {{ {quoted(port)} }}\ndelete element {where} {{ {quoted(port)} }}" for port in (*opened, *shut)]
    lines += [f"add element {where} {{ {quoted(port)}{f' timeout {round(seconds)}s' if seconds else ''} }}"
              for port, seconds in opened.items()]
    return "\n".join(lines) + "\n"


def read_listing(text: str) -> tuple[tuple[str, ...], dict[str, set[str]], str]:
    """Of ``nft -j list table``: the ports, those that are open by the set of each tree, and the rest."""
    ports: tuple[str, ...] = ()
    opened: dict[str, set[str]] = {}
    rest = []
    for item in json.loads(text)["nftables"]:
        what: dict[str, Any] = next(iter(item.values()))
        if "chain" in item or "rule" in item:
            rest.append({k: v for k, v in what.items() if k != "handle"})
        elif "set" in item and what["name"] == "ports":
            ports = tuple(sorted(what.get("elem", ())))
        elif "set" in item and what["name"].startswith("open"):
            opened[what["name"]] = {element(e) for e in what.get("elem", ())}
    return ports, opened, json.dumps(rest, sort_keys=True)


def through(opened: Mapping[str, set[str]]) -> set[str]:
    """Ports that may be open for all VLANs without closing a loop: those that every tree has open, else one."""
    every = set.intersection(*opened.values()) if opened else set()
    return every or set(sorted(opened.get(open_set(CIST), ()))[:1])


def element(item: Any) -> str:
    return str(item["elem"]["val"] if isinstance(item, dict) else item)
