"""Links as the kernel tells them -> what ``ip -json -details link`` prints of them, as far as it is read. Pure.

Of bonds, routing domains, tunnels and macvlans nothing is said, and ``ip`` is asked: they are few where there are any. Sources: rtnetlink(7),
linux/if_link.h, linux/if_bridge.h, linux/if_tun.h, print_linkinfo() in iproute2's ip/ipaddress.c.
"""
from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from socket import AF_INET6
from typing import Any

from kvmnet.host.netlink import INFO_KIND, LINKINFO, Layouts, Places

HEAD = struct.Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, changed."""
ADDRESS, NAME, MTU, LINK, MASTER, TXQLEN, ALIAS, AF_SPEC, LINK_NETNSID, MAX_MTU = 1, 3, 4, 5, 10, 13, 20, 26, 37, 51
"""IFLA_*."""
INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 2, 4, 5
"""IFLA_INFO_*."""
ADDR_GEN_MODE = 8
"""IFLA_INET6_*."""
TYPES = {1: "ether", 772: "loopback", 65534: "none"}
"""ARPHRD_*: those whose hardware address is printed as such."""
FLAGS = {0x1: "UP", 0x80: "NOARP", 0x200: "ALLMULTI"}
"""IFF_*, those that are read."""
MODES = {0: "eui64", 1: "none", 2: "stable_secret", 3: "random"}
"""IN6_ADDR_GEN_MODE_*."""
UNTOLD = frozenset({"bond", "vrf", "vxlan", "gretap", "erspan", "macvlan", "macvtap"})
"""Kinds of links of which ``ip`` tells more than is told here."""
UNTOLD_PORTS = frozenset({"bond", "vrf"})

BRIDGE_NUMBERS = {1: "forward_delay", 2: "hello_time", 3: "max_age", 4: "ageing_time", 5: "stp_state", 6: "priority", 7: "vlan_filtering",
                  12: "root_port", 23: "mcast_snooping", 24: "mcast_query_use_ifaddr", 25: "mcast_querier", 36: "nf_call_iptables",
                  37: "nf_call_ip6tables", 38: "nf_call_arptables", 39: "vlan_default_pvid"}
"""IFLA_BR_*."""
BOOLEANS = 46
"""IFLA_BR_MULTI_BOOLOPT: what is set, and what this kernel has (br_boolopt_multi)."""
BOOLEAN_WORDS = {0x1: "no_linklocal_learn", 0x2: "mcast_vlan_snooping"}
"""BR_BOOLOPT_*."""
PORT_SWITCHES = {4: "hairpin", 5: "guard", 6: "root_block", 8: "learning", 9: "flood", 27: "mcast_flood", 32: "neigh_suppress", 33: "isolated"}
"""IFLA_BRPORT_*."""
OWNER, TUN_TYPE, MULTI_QUEUE = 1, 3, 7
"""IFLA_TUN_*."""
TUN_TYPES = {1: "tun", 2: "tap"}
VLAN_ID, EGRESS, INGRESS, VLAN_PROTOCOL = 1, 3, 4, 5
"""IFLA_VLAN_*."""
PROTOCOLS = {0x8100: "802.1Q", 0x88A8: "802.1ad"}


class Unusual(Exception):
    """Something that is not told here."""


def told(messages: Iterable[bytes]) -> list[dict[str, Any]] | None:
    """The links of a dump; None when ``ip`` has to be asked."""
    layouts = Layouts()
    heard = []
    names = {}
    for message in messages:
        _, kind, index, flags, _ = HEAD.unpack_from(message)
        body = message[HEAD.size:]
        places = layouts.of(body)
        if kind not in TYPES or NAME not in places:
            return None
        names[index] = text(body, places[NAME])
        heard.append((index, kind, flags, body, places))
    try:
        return [link(*one, names, layouts) for one in heard]
    except Unusual:
        return None


def link(index: int, kind: int, flags: int, body: bytes, places: Places, names: Mapping[int, str], layouts: Layouts) -> dict[str, Any]:
    """One link. Raises Unusual."""
    shown: dict[str, Any] = {"ifindex": index, "ifname": names[index], "flags": [word for bit, word in FLAGS.items() if flags & bit],
                             "link_type": TYPES[kind], "mtu": number(body, places[MTU])}
    if ADDRESS in places:
        shown["address"] = body[places[ADDRESS]].hex(":")
    if MASTER in places:
        master = number(body, places[MASTER])
        shown["master"] = names.get(master) or f"if{master}"
    if TXQLEN in places and (length := number(body, places[TXQLEN])):
        shown["txqlen"] = length
    if MAX_MTU in places:
        shown["max_mtu"] = number(body, places[MAX_MTU])
    if ALIAS in places:
        shown["ifalias"] = text(body, places[ALIAS])
    if LINK_NETNSID in places:
        shown["link_netnsid"] = number(body, places[LINK_NETNSID])
    elif LINK in places and (lower := number(body, places[LINK])):
        shown["link"] = names.get(lower) or f"if{lower}"
    if AF_SPEC in places:
        families = body[places[AF_SPEC]]
        if inet6 := layouts.of(families).get(AF_INET6):
            settings = families[inet6]
            mode = settings[layouts.of(settings)[ADDR_GEN_MODE]][0]
            if mode not in MODES:
                raise Unusual
            shown["inet6_addr_gen_mode"] = MODES[mode]
    if LINKINFO in places:
        shown["linkinfo"] = info(body[places[LINKINFO]], layouts)
    return shown


def info(data: bytes, layouts: Layouts) -> dict[str, Any]:
    """What kind of link it is, and what it is as a port. Raises Unusual."""
    places = layouts.of(data)
    shown: dict[str, Any] = {}
    if INFO_KIND in places:
        kind = shown["info_kind"] = text(data, places[INFO_KIND])
        if kind in UNTOLD:
            raise Unusual
        if kind in DATA and INFO_DATA in places:
            own = data[places[INFO_DATA]]
            shown["info_data"] = DATA[kind](own, layouts.of(own), layouts)
    if INFO_SLAVE_KIND in places:
        kind = shown["info_slave_kind"] = text(data, places[INFO_SLAVE_KIND])
        if kind in UNTOLD_PORTS:
            raise Unusual
        if kind == "bridge":
            own = data[places[INFO_SLAVE_DATA]]
            found = layouts.of(own)
            shown["info_slave_data"] = {word: own[found[at]] != b"\0" for at, word in PORT_SWITCHES.items() if at in found}
    return shown


def of_bridge(data: bytes, places: Places, layouts: Layouts) -> dict[str, Any]:
    shown: dict[str, Any] = {word: number(data, places[at]) for at, word in BRIDGE_NUMBERS.items() if at in places}
    if BOOLEANS in places:
        values, known = struct.unpack("=II", data[places[BOOLEANS]])
        shown.update((word, int(bool(values & bit))) for bit, word in BOOLEAN_WORDS.items() if known & bit)
    return shown


def of_tun(data: bytes, places: Places, layouts: Layouts) -> dict[str, Any]:
    """``user`` is a number: whose name it is says nothing more."""
    shown: dict[str, Any] = {"type": TUN_TYPES.get(data[places[TUN_TYPE]][0], "unknown")}
    if OWNER in places:
        shown["user"] = str(number(data, places[OWNER]))
    if MULTI_QUEUE in places:
        shown["multi_queue"] = data[places[MULTI_QUEUE]] != b"\0"
    return shown


def of_vlan(data: bytes, places: Places, layouts: Layouts) -> dict[str, Any]:
    """Raises Unusual."""
    protocol = int.from_bytes(data[places[VLAN_PROTOCOL]], "big")
    if protocol not in PROTOCOLS:
        raise Unusual
    shown: dict[str, Any] = {"id": number(data, places[VLAN_ID]), "protocol": PROTOCOLS[protocol]}
    for at, word in ((EGRESS, "egress_qos"), (INGRESS, "ingress_qos")):
        if at in places:
            pairs = struct.iter_unpack("=4xII", data[places[at]])    # nested attributes of eight bytes each
            shown[word] = [{"from": one, "to": other} for one, other in pairs]
    return shown


DATA: Mapping[str, Callable[[bytes, Places, Layouts], dict[str, Any]]] = {"bridge": of_bridge, "tun": of_tun, "vlan": of_vlan}


def number(data: bytes, place: slice) -> int:
    return int.from_bytes(data[place], sys.byteorder)


def text(data: bytes, place: slice) -> str:
    return data[place].rstrip(b"\0").decode(errors="replace")
