"""The gate of a bridge's ports: its table, and what opens and shuts it. Pure.

Elements that must not outlive the process have a time to live, which the process renews (``OPEN_FOR`` hellos).
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

PRIORITY = -351
"""Before the guards of guests."""
LAST = 400
OPEN_FOR = 4
"""Hellos after which a port shuts by itself that could close a loop: its process does not answer any more."""
BPDUS = "01:80:c2:00:00:00"


def table_of(bridge: str) -> str:
    """Name of a bridge's table. Not every name of a device is one that nft takes."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "", bridge)
    return f"bridge kvmnet-tree-{plain}{'' if plain == bridge else f'-{crc32(bridge.encode()):08x}'}"


def table_text(bridge: str, ports: Sequence[str]) -> str:
    """The table, in place of one that is there. No port is open in it. BPDUs go nowhere by it: they are between neighbours,
    and the bridge itself would hand them on (br_handle_frame() in net/bridge/br_input.c)."""
    name = table_of(bridge)
    elements = f" elements = {{ {', '.join(map(quoted, ports))} }};" if ports else ""
    return f"""table {name} {{ }}
delete table {name}
table {name} {{
    set ports {{ type ifname;{elements} }}
    set open {{ type ifname; flags timeout; }}
    chain prerouting {{
        type filter hook prerouting priority {PRIORITY}; policy accept;
        iifname @ports ether daddr {BPDUS} drop
        iifname @ports iifname != @open drop
    }}
    chain postrouting {{
        type filter hook postrouting priority {LAST}; policy accept;
        oifname @ports ether daddr {BPDUS} drop
        oifname @ports oifname != @open drop
    }}
}}
"""


def quoted(name: str) -> str:
    return f'"{name}"'


def opening(bridge: str, opened: Mapping[str, float], shut: Iterable[str]) -> str:
    """What has the gate let pass the ports in *opened*, each for so many seconds (0: for ever), and not those in *shut*.
    Which of them are open now makes no difference."""
    name = table_of(bridge)
    lines = [f"add element {name} open {{ {quoted(port)} }}\ndelete element {name} open {{ {quoted(port)} }}" for port in (*opened, *shut)]
    lines += [f"add element {name} open {{ {quoted(port)}{f' timeout {round(seconds)}s' if seconds else ''} }}"
              for port, seconds in opened.items()]
    return "\n".join(lines) + "\n"


def read_listing(text: str) -> tuple[tuple[str, ...], dict[str, float], str]:
    """Of ``nft -j list table``: the ports, those that are open with the seconds that they were given, and the rest."""
    ports: tuple[str, ...] = ()
    opened: dict[str, float] = {}
    rest = []
    for item in json.loads(text)["nftables"]:
        what: dict[str, Any] = next(iter(item.values()))
        if "chain" in item or "rule" in item:
            rest.append({k: v for k, v in what.items() if k != "handle"})
        elif "set" in item and what["name"] == "ports":
            ports = tuple(sorted(what.get("elem", ())))
        elif "set" in item and what["name"] == "open":
            opened = dict(element(e) for e in what.get("elem", ()))
    return ports, opened, json.dumps(rest, sort_keys=True)


def element(item: Any) -> tuple[str, float]:
    inner = item["elem"] if isinstance(item, dict) else {"val": item}
    return inner["val"], float(inner.get("timeout", 0))
