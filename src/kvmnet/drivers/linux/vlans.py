"""VLANs as the kernel tells them -> what ``bridge -json vlan show`` and ``bridge -json vlan global show`` print, as far as it is read. Pure.

Sources: linux/if_bridge.h, br_vlan_global_opts_fill() in net/bridge/br_vlan_options.c, bridge/vlan.c in iproute2.
"""
from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from kvmnet.drivers.linux.links import AF_SPEC, HEAD, NAME, text
from kvmnet.host.netlink import Layouts, attributes

VLAN_INFO = 2
"""IFLA_BRIDGE_VLAN_INFO: flags and id."""
FLAGS = {0x2: "PVID", 0x4: "Egress Untagged"}
BEGIN, END = 0x8, 0x10
"""BRIDGE_VLAN_INFO_RANGE_*."""
GLOBAL_OPTIONS = 2
"""BRIDGE_VLANDB_GLOBAL_OPTIONS."""
ID, RANGE = 1, 2
SWITCHES = {3: "mcast_snooping", 15: "mcast_querier"}
"""BRIDGE_VLANDB_GOPTS_*."""


def of_ports(messages: Iterable[bytes]) -> list[dict[str, Any]]:
    """Ports and bridges with their VLANs, neighbouring ones of the same flags as ranges."""
    layouts = Layouts()
    found = []
    for message in messages:
        body = message[HEAD.size:]
        places = layouts.of(body)
        if NAME not in places or AF_SPEC not in places:
            continue
        vlans: list[dict[str, Any]] = []
        first = 0
        for kind, value in attributes(body[places[AF_SPEC]]):
            if kind != VLAN_INFO:
                continue
            flags, number = struct.unpack("=HH", value)
            if flags & BEGIN:
                first = number
                continue
            vlans.append({"vlan": first if flags & END else number, "vlanEnd": number, "flags": [word for bit, word in FLAGS.items() if flags & bit]})
        found.append({"ifname": text(body, places[NAME]), "vlans": vlans})
    return found


def of_bridges(messages: Iterable[bytes], names: Mapping[int, str]) -> list[dict[str, Any]]:
    """Bridges with how they handle multicast on each VLAN. ``names``: index -> name of links."""
    found: dict[str, list[dict[str, Any]]] = {}
    for message in messages:
        index, = struct.unpack_from("=I", message, 4)    # br_vlan_msg
        for kind, value in attributes(message[8:]):
            options = dict(attributes(value)) if kind == GLOBAL_OPTIONS else {}
            if index in names and ID in options:
                first = int.from_bytes(options[ID], sys.byteorder)
                last = int.from_bytes(options[RANGE], sys.byteorder) if RANGE in options else first
                shown = {word: options[at][0] for at, word in SWITCHES.items() if at in options}
                found.setdefault(names[index], []).append({"vlan": first, "vlanEnd": last, **shown})
    return [{"ifname": name, "vlans": vlans} for name, vlans in found.items()]
