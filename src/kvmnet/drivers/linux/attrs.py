"""Settings of a link, one row each: how ``ip -json`` shows it and how ``ip`` is told. Pure.

A row of ``LINK`` is read from the link itself, one of ``BRIDGE`` from its bridge data, one of
``PORT`` from what it is as a port of a bridge, one of ``BOND``, ``VLAN``, ``VRF`` and ``VXLAN`` from the data of those types.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, ip_address
from typing import Any, NamedTuple

Read = Callable[[Mapping[str, Any]], Any]
Write = Callable[[Any], tuple[str, ...]]


class Attr(NamedTuple):
    """``usual``: the value that a fresh port, bridge or bond has, so that it needs no command."""

    read: Read
    write: Write
    usual: Any = None


def number(word: str, shown: str = "") -> Attr:
    """A number that ``ip`` takes and shows."""
    label = shown or word
    return Attr(lambda d: d.get(label), lambda v: (word, str(v)))


def digit(word: str) -> Attr:
    """A switch shown and told as 0 or 1."""
    return Attr(lambda d: None if (v := d.get(word)) is None else bool(v), lambda v: (word, "1" if v else "0"))


def switch(word: str, usual: bool, shown: str = "") -> Attr:
    """A switch of a port: shown as true or false, told as on or off."""
    label = shown or word
    return Attr(lambda d: d.get(label), lambda v: (word, "on" if v else "off"), usual)


def in_vrf(item: Mapping[str, Any]) -> bool:
    """Whether what the kernel calls a link's master is a routing domain."""
    return bool(item.get("linkinfo", {}).get("info_slave_kind") == "vrf")


LINK: dict[str, Attr] = {
    "mac": Attr(lambda d: d.get("address"), lambda v: ("address", v)),
    "mtu": number("mtu"),
    "txqlen": number("txqueuelen", "txqlen"),
    "addrgenmode": Attr(lambda d: d.get("inet6_addr_gen_mode"), lambda v: ("addrgenmode", v)),
    "vrf": Attr(lambda d: d.get("master", "") if in_vrf(d) else "", lambda v: ("master", v) if v else ("nomaster",)),
    "master": Attr(lambda d: "" if in_vrf(d) else d.get("master", ""), lambda v: ("master", v) if v else ("nomaster",)),
    "up": Attr(lambda d: "UP" in d.get("flags", ()), lambda v: ("up" if v else "down",)),
}
"""In the order in which ``ip link set`` is told; alias, guard, keeper and gate share one kernel attribute."""

BOND: dict[str, Attr] = {
    "bond_mode": number("mode"),
    "bond_miimon": number("miimon")._replace(usual=0),
    "bond_updelay": number("updelay")._replace(usual=0),
    "bond_downdelay": number("downdelay")._replace(usual=0),
    "bond_arp_interval": number("arp_interval")._replace(usual=0),
    "bond_arp_targets": Attr(lambda d: tuple(sorted(t for t in d.get("arp_ip_target") or () if t)),
                             lambda v: ("arp_ip_target", ",".join(v)), ()),
    "bond_arp_validate": Attr(lambda d: d.get("arp_validate") or "none", lambda v: ("arp_validate", v), "none"),
    "bond_primary": number("primary"),
    "bond_primary_reselect": number("primary_reselect"),
    "bond_hash": number("xmit_hash_policy"),
    "bond_min_links": number("min_links"),
    "bond_peer_notify": number("num_grat_arp", "num_peer_notif"),
    "bond_lacp_rate": number("lacp_rate", "ad_lacp_rate"),
    "bond_ad_select": number("ad_select"),
}
"""The mode first: it decides what the others may be."""

VLAN: dict[str, Attr] = {
    "vlan_protocol": number("protocol"),
    "vlan_id": number("id"),
    "vlan_qos": Attr(lambda d: tuple(sorted(f"{m['from']}:{m['to']}" for m in d.get("egress_qos", ()))),
                     lambda v: ("egress-qos-map", *v) if v else (), ()),
    "vlan_qos_in": Attr(lambda d: tuple(sorted(f"{m['from']}:{m['to']}" for m in d.get("ingress_qos", ()))),
                        lambda v: ("ingress-qos-map", *v) if v else (), ()),
}

VRF: dict[str, Attr] = {"vrf_table": number("table")}

VXLAN: dict[str, Attr] = {
    "vxlan_vni": number("id"),
    "vxlan_local": Attr(lambda d: d.get("local", d.get("local6", "")), lambda v: ("local", v) if v else ()),
    "vxlan_group": Attr(lambda d: next((d[k] for k in ("group", "group6", "remote", "remote6") if k in d), ""),
                        lambda v: ("group" if ip_address(v).is_multicast else "remote", v) if v else ()),
    "vxlan_port": number("dstport", "port"),
    "vxlan_ttl": Attr(lambda d: v if isinstance(v := d.get("ttl", 0), int) else 0, lambda v: ("ttl", str(v) if v else "auto")),
    "vxlan_learning": Attr(lambda d: bool(d.get("learning", False)), lambda v: ("learning" if v else "nolearning",)),
    "vxlan_df": Attr(lambda d: d.get("df", "unset"), lambda v: ("df", v)),
}
GRE: dict[str, Attr] = {
    "gre_remote": number("remote"),
    "gre_local": Attr(lambda d: "" if (v := d.get("local", "any")) == "any" else v, lambda v: ("local", v) if v else ()),
    "gre_ttl": Attr(lambda d: v if isinstance(v := d.get("ttl", 0), int) else 0, lambda v: ("ttl", str(v) if v else "inherit")),
    "gre_key": Attr(lambda d: int(IPv4Address(d["okey"])) if "okey" in d else -1, lambda v: ("key", str(v)) if v >= 0 else ()),
    "erspan_version": number("erspan_ver"),
    "erspan_index": number("erspan", "erspan_index"),
}
"""Whether a packet may be fragmented on its way is not the inner packet's business: nobody inside is told (ignore-df)."""
GRE_TYPES: dict[str, tuple[str, ...]] = {"gretap": ("nopmtudisc", "ignore-df"), "erspan": ("seq", "nopmtudisc", "ignore-df")}
"""Type -> words that it always gets. erspan_validate() in net/ipv4/ip_gre.c wants a sequence and a key."""
ERSPAN_3 = ("erspan_dir", "ingress", "erspan_hwid", "0x0")
"""What version 2 asks for besides."""
MACVLANS = frozenset({"macvlan", "macvtap"})
MACVLAN: dict[str, Attr] = {
    "allmulticast": Attr(lambda d: "ALLMULTI" in d["flags"], lambda v: ("allmulticast", "on" if v else "off"), False),
    "arp": Attr(lambda d: "NOARP" not in d["flags"], lambda v: ("arp", "on" if v else "off"), True),
}
"""Read from the link and told with it; only macvlans and macvtaps are asked for them."""

BRIDGE: dict[str, Attr] = {
    "vlan_filtering": digit("vlan_filtering")._replace(usual=False),
    "default_pvid": number("vlan_default_pvid")._replace(usual=1),
    "stp": Attr(lambda d: None if (v := d.get("stp_state")) is None else bool(v),
                lambda v: ("stp_state", "1" if v else "0")),
    "priority": number("priority")._replace(usual=32768),
    "forward_delay": number("forward_delay"),
    "hello_time": number("hello_time")._replace(usual=200),
    "max_age": number("max_age")._replace(usual=2000),
    "ageing_time": number("ageing_time"),
    "mcast_snooping": digit("mcast_snooping"),
    "mcast_vlan_snooping": digit("mcast_vlan_snooping")._replace(usual=False),
    "mcast_query_use_ifaddr": digit("mcast_query_use_ifaddr")._replace(usual=False),
    "mcast_querier": digit("mcast_querier")._replace(usual=False),
    "linklocal_learn": Attr(lambda d: None if (v := d.get("no_linklocal_learn")) is None else not v,
                            lambda v: ("no_linklocal_learn", "0" if v else "1")),
    "nf_call_iptables": digit("nf_call_iptables"),
    "nf_call_ip6tables": digit("nf_call_ip6tables"),
    "nf_call_arptables": digit("nf_call_arptables"),
}

ROOTS_TIMERS = ("forward_delay", "hello_time", "max_age")
"""While another bridge is the root of the tree the kernel shows that one's times, and nowhere our own."""

PORT: dict[str, Attr] = {
    "isolated": switch("isolated", False),
    "learning": switch("learning", True),
    "flood": switch("flood", True),
    "mcast_flood": switch("mcast_flood", True),
    "hairpin": switch("hairpin", False),
    "bpdu_guard": switch("guard", False),
    "root_guard": switch("root_block", False),
    "neigh_suppress": switch("neigh_suppress", False),
}

OURS = "kvmnet"
"""A link whose alias starts so is ours."""
SEPARATOR = " | "


def join_alias(alias: str, guard: str, keeper: str, gate: str = "") -> str:
    """The kernel's alias: what the link is for, and what must stand while it is a port, or has ports.

    The kernel has no other place on a link that survives us; at most 255 bytes (IFALIASZ).
    """
    return SEPARATOR.join((alias, *(f"{n}={v}" for n, v in (("guard", guard), ("keeper", keeper), ("gate", gate)) if v)))


def split_alias(text: str) -> tuple[str, str, str, str]:
    """(alias, guard, keeper, gate) of a kernel alias; the inverse of ``join_alias``."""
    if SEPARATOR not in text or not text.startswith(OURS):
        return text, "", "", ""
    alias, *rest = text.split(SEPARATOR)
    words = dict(r.partition("=")[::2] for r in rest)
    if words.keys() - {"guard", "keeper", "gate"}:
        return text, "", "", ""
    return alias, words.get("guard", ""), words.get("keeper", ""), words.get("gate", "")
