"""What ``ip -json`` prints -> resources. Pure: no process, no file.

What the kernel makes by itself is left out: its own tables, connected routes and link-local
addresses. A connected route with a lifetime stays in: a router advertisement made it, and it
outlives the address that is moved away from its link.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv6Address
from typing import Any

from kvmnet.drivers.linux.attrs import (
    BOND,
    BRIDGE,
    GRE,
    GRE_TYPES,
    LINK,
    MACVLAN,
    MACVLANS,
    OURS,
    PORT,
    ROOTS_TIMERS,
    VLAN,
    VRF,
    VXLAN,
    split_alias,
)
from kvmnet.drivers.linux.resources import (
    Address,
    BridgeVlan,
    Fdb,
    Link,
    Neighbour,
    ProxyNeighbour,
    Route,
    VlanMulticast,
    address_name,
    default_metric,
    fdb,
    proxy_name,
    route_name,
    vlan_name,
)
from kvmnet.engine.resource import Key, Resource
from kvmnet.records import replace

Json = Mapping[str, Any]
FOREVER = 4294967295
"""Lifetime of what stays (INFINITY_LIFE_TIME)."""

LINK_READS = tuple((n, a.read) for n, a in LINK.items())
BRIDGE_READS = tuple((n, a.read) for n, a in BRIDGE.items())
BOND_READS = tuple((n, a.read) for n, a in BOND.items())
VLAN_READS = tuple((n, a.read) for n, a in VLAN.items())
GRE_READS = tuple((n, a.read) for n, a in GRE.items())
VXLAN_READS = tuple((n, a.read) for n, a in VXLAN.items())
PORT_READS = tuple((n, a.read) for n, a in PORT.items())


def is_ours(link: Link) -> bool:
    return (link.alias or "").startswith(OURS)


def parse_links(items: Iterable[Json], uid_of: Callable[[str], int]) -> Iterator[Link]:
    """Links of ``ip -json -details link``. ``uid_of``: user name -> uid, for the owners of taps."""
    for item in items:
        if "ifname" not in item:
            continue
        info = item.get("linkinfo", {})
        data = info.get("info_data", {})
        alias, guard, keeper, gate = split_alias(item.get("ifalias", ""))
        found: dict[str, Any] = {n: read(item) for n, read in LINK_READS}
        kind = link_type(item, info, data)
        if kind == "bridge":
            found.update((n, read(data)) for n, read in BRIDGE_READS)
            found["gate"] = gate
            if data.get("root_port"):
                found.update(dict.fromkeys(ROOTS_TIMERS))
        elif kind == "tap":
            found["multi_queue"] = data.get("multi_queue")
            user = data.get("user")
            found["user"] = -1 if user is None else uid_of(str(user))
        elif kind == "vlan":
            found.update((n, read(data)) for n, read in VLAN_READS)
            found["parent"] = item.get("link", "")
        elif kind == "vxlan":
            found.update((n, read(data)) for n, read in VXLAN_READS)
            found["parent"] = data.get("link", "")
        elif kind == "vrf":
            found.update((n, a.read(data)) for n, a in VRF.items())
        elif kind in GRE_TYPES:
            found.update((n, read(data)) for n, read in GRE_READS)
        elif kind in MACVLANS:
            found.update(parse_macvlan(item, data, alias))
        else:
            found["most_mtu"] = item.get("max_mtu") or None
            if kind == "bond":
                found.update((n, read(data)) for n, read in BOND_READS)
            elif kind == "ifb":    # has one by chance, and takes none (no ndo_set_mac_address in drivers/net/ifb.c)
                found["mac"] = None
            elif kind == "veth" and "link_netnsid" not in item:
                found["peer"] = item.get("link")
        if info.get("info_slave_kind") == "bridge":
            port = info["info_slave_data"]
            found.update((n, read(port)) for n, read in PORT_READS)
        if kind not in ("tap", "bridge"):
            found["bonded"] = info.get("info_slave_kind") == "bond"
        if found.get("bonded"):
            found["own_mac"] = info["info_slave_data"].get("perm_hwaddr")
        yield Link(name=item["ifname"], type=kind, alias=alias, guard=guard, keeper=keeper, **found)


def parse_macvlan(item: Json, data: Json, alias: str) -> dict[str, Any]:
    """Settings of a macvlan or macvtap. Whether one of our macvtaps is up is a resource of its own: it goes up
    after its guard."""
    found: dict[str, Any] = {n: a.read(item) for n, a in MACVLAN.items()}
    found |= {"parent": item.get("link", ""), "macvlan_mode": data.get("mode"),
              "passthru": data.get("mode") == "passthru"}
    if item["linkinfo"]["info_kind"] == "macvtap" and alias.startswith(OURS):
        found["up"] = None
    return found


def with_members(links: Mapping[str, Link]) -> dict[str, Link]:
    """*links*, the bonds and routing domains among them with the names of their members."""
    members: dict[str, list[str]] = {}
    for link in links.values():
        if holder := link.vrf or (link.master if link.bonded else ""):
            members.setdefault(holder, []).append(link.name)
    return {name: replace(link, members=tuple(members.get(name, ()))) if link.type in ("bond", "vrf") else link
            for name, link in links.items()}


def parse_vlans(items: Iterable[Json], links: Mapping[str, Link]) -> Iterator[BridgeVlan]:
    """VLANs of ``bridge -json vlan show``, of bridges that go by them."""
    for item in items:
        link = links.get(item.get("ifname", ""))
        if link is None:
            continue
        bridge = links.get(link.master) if link.master else link
        if bridge is None or not bridge.vlan_filtering:
            continue
        for vlan in item.get("vlans", ()):
            for vid in range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1):
                flags = vlan.get("flags", ())
                yield BridgeVlan(name=vlan_name(link.name, vid), dev=link.name, bridge=bridge.name,
                                 pvid="PVID" in flags, untagged="Egress Untagged" in flags)


def parse_fdb(items: Iterable[Json], links: Mapping[str, Link]) -> Iterator[Fdb]:
    """Entries of ``bridge -json fdb show`` that lead to other hosts and were not learnt, without those that the
    kernel makes of a multicast group."""
    for item in items:
        link = links.get(item.get("ifname", ""))
        if link is None or link.type != "vxlan" or "dst" not in item or item.get("state") != "permanent":
            continue
        if item["dst"] != link.vxlan_group:
            yield fdb(link.name, item["dst"], item["mac"])


def parse_multicast(items: Iterable[Json], state: Mapping[Key, Resource]) -> Iterator[VlanMulticast]:
    """Multicast of VLANs, of ``bridge -json vlan global show``. ``state``: links and VLANs of ports. A VLAN is
    there by the uplink's membership as well as by any other: the first port that is no tap stands for all."""
    members: dict[tuple[str, str], str] = {}
    for resource in state.values():
        if isinstance(resource, BridgeVlan) and resource.dev != resource.bridge:
            port = state.get(Key(Link.kind, resource.dev or ""))
            if not isinstance(port, Link) or port.type != "tap":
                members.setdefault((resource.bridge or "", resource.name.rpartition(" ")[2]), resource.name)
    for item in items:
        bridge = item.get("ifname", "")
        link = state.get(Key(Link.kind, bridge))
        if not isinstance(link, Link) or not link.mcast_vlan_snooping:
            continue
        for vlan in item.get("vlans", ()):
            for vid in range(vlan["vlan"], vlan.get("vlanEnd", vlan["vlan"]) + 1):
                yield VlanMulticast(name=vlan_name(bridge, vid), bridge=bridge, member=members.get((bridge, str(vid))),
                                    snooping=bool(vlan.get("mcast_snooping")), querier=bool(vlan.get("mcast_querier")))


def parse_neighbours(items: Iterable[Json]) -> Iterator[tuple[Neighbour, str]]:
    """Neighbours for good, of ``ip -Numeric -json neigh show nud permanent``, with the protocol number that made
    each."""
    for item in items:
        if "dst" in item and "lladdr" in item and item.get("state") == ["PERMANENT"]:
            yield (Neighbour(name=proxy_name(item["dev"], item["dst"]), dev=item["dev"], mac=item["lladdr"]),
                   str(item.get("protocol", "")))


def link_type(item: Json, info: Json, data: Json) -> str:
    kind: str = info.get("info_kind", "")
    if kind == "tun":
        return str(data.get("type", "tun"))
    if kind:
        return kind
    return "physical" if item.get("link_type") == "ether" else str(item.get("link_type", ""))


ADDRESS_FLAGS = ("autojoin", "home", "mngtmpaddr", "nodad", "noprefixroute")
"""Flags that ``ip address`` can set, sorted."""


def parse_addresses(items: Iterable[Json], links: Mapping[str, Link]) -> Iterator[Address]:
    """Addresses of ``ip -json address``. ``links``: what the links themselves look like."""
    for item in items:
        for info in item.get("addr_info", ()):
            dev = item["ifname"]
            if "local" in info and not kernel_made(info, links.get(dev)):
                yield parse_address(dev, info)


def parse_address(dev: str, info: Json) -> Address:
    version4 = info["family"] == "inet"
    valid = info.get("valid_life_time", FOREVER)
    preferred = info.get("preferred_life_time", FOREVER)
    return Address(
        name=address_name(dev, f"{info['local']}/{info['prefixlen']}"), dev=dev,
        scope=str(info.get("scope", "global")), label=info.get("label", "") if version4 else "",
        broadcast=info.get("broadcast", ""), peer=info.get("address", ""),
        flags=tuple(f for f in ADDRESS_FLAGS if info.get(f)),
        dynamic="" if valid == FOREVER else lease_kind(info, version4),
        lifetime=None if valid == FOREVER else valid,
        preferred=None if valid == FOREVER else min(preferred, valid),
        secondary=True if version4 and info.get("secondary") else None)


def lease_kind(info: Json, version4: bool) -> str:
    """Who renews an address whose lifetime runs: 'ra' for the kernel itself, else 'dhcp' for a daemon.

    The kernel's own have mngtmpaddr or temporary (addrconf_prefix_rcv_add_addr() in
    net/ipv6/addrconf.c); daemons make theirs /128 or with noprefixroute.
    """
    if version4:
        return "dhcp"
    if info.get("mngtmpaddr") or info.get("temporary"):
        return "ra"
    return "dhcp" if info.get("noprefixroute") or info["prefixlen"] == 128 else "ra"


def kernel_made(info: Json, link: Link | None) -> bool:
    """A link-local address that the kernel gave to the link by itself.

    With eui64 it is known from a MAC: the link's, or one that it had before, whose address the kernel leaves
    when the MAC changes. In the other modes it cannot be told from a configured one, except where the
    kernel makes none.
    """
    if info["family"] != "inet6" or info.get("scope") != "link" or info["prefixlen"] != 64:
        return False
    mode = link.addrgenmode if link else None
    if mode == "none":
        return False
    if mode == "eui64" and link and link.mac and len(link.mac) == 17:
        return IPv6Address(info["local"]).packed[11:13] == b"\xff\xfe"
    return True


def eui64(mac: str) -> str:
    """Link-local address of a MAC (RFC 4291, appendix A)."""
    b = bytes.fromhex(mac.replace(":", ""))
    return str(IPv6Address(b"\xfe\x80" + bytes(6) + bytes((b[0] ^ 2, b[1], b[2], 0xff, 0xfe, b[3], b[4], b[5]))))


SPECIAL_TYPES = {"6": "blackhole", "7": "unreachable", "8": "prohibit", "9": "throw"}
"""Route types that have a word of their own before the destination (RTN_*, linux/rtnetlink.h)."""
ROUTE_TYPES = frozenset(SPECIAL_TYPES.values())
KERNEL_TYPES = frozenset({"2", "3", "4", "5"})
"""local, broadcast, anycast, multicast."""
PROTOS = {"1": "redirect", "2": "kernel", "3": "boot", "4": "static", "9": "ra", "11": "zebra", "12": "bird",
          "16": "dhcp", "18": "keepalived", "42": "babel", "186": "bgp", "188": "ospf"}
"""Numbers of RTPROT_* (linux/rtnetlink.h). ``ip`` is asked for numbers and told numbers: it names them
by files of the host, and ``ip -batch`` mixes up names and numbers of protocols within one batch
(rtnl_rtprot_a2n() in iproute2 6.1 keeps the last number under the last name)."""
PROTO_NUMBERS = {name: number for number, name in PROTOS.items()}
ADVERTISED = "ra"
"""Protocol of a route from a router advertisement. Its metric is no part of its identity: one that we
make ranks behind the kernel's own (see words.py), and the two stand for the same thing."""
TABLES = {"253": "default", "254": "main", "255": "local"}
TABLE_NUMBERS = {name: number for number, name in TABLES.items()}
SCOPES = {"0": "global", "200": "site", "253": "link", "254": "host", "255": "nowhere"}
KNOWN = frozenset({"type", "dst", "dev", "table", "protocol", "scope", "metric", "gateway", "via", "prefsrc",
                   "flags", "expires", "metrics", "nexthops", "pref", "tos", "cache", "error", "from", "uid"})
METRICS = ("mtu", "window", "rtt", "rttvar", "ssthresh", "cwnd", "advmss", "reordering", "hoplimit", "initcwnd",
           "features", "rto_min", "initrwnd", "quickack", "congctl")
UNTOLD = "?"
"""Starts a word of ``options`` that ``ip`` cannot be told back (encapsulation, a shared next hop)."""


def parse_routes(items: Iterable[Json], family: int) -> Iterator[Route]:
    """Routes of ``ip -Numeric -json -details route show table all`` of one family, without the kernel's."""
    taken: set[str] = set()
    for item in items:
        if "dst" not in item or item.get("table") == "255" or item.get("type") in KERNEL_TYPES:
            continue
        if item.get("protocol") == "2" and "expires" not in item:
            continue
        if item.get("expires", 1) <= 0:
            continue  # dead, and not yet swept up (fib6_run_gc() each 30 s)
        found = parse_route(item, family, taken)
        if found.name not in taken:
            taken.add(found.name)
            yield found


def parse_route(item: Json, family: int, taken: set[str]) -> Route:
    gateway = item.get("gateway") or (item.get("via") or {}).get("host", "")
    metric: int | None = item.get("metric", default_metric(family) if family == 4 else 0)
    dst, dev = canonical(item["dst"], family), item.get("dev", "")
    table = TABLES.get(item["table"]) or str(item["table"])
    proto = PROTOS.get(item["protocol"]) or str(item["protocol"])
    if proto == ADVERTISED:
        metric = None
    tos = f"tos {item['tos']}" if "tos" in item else ""
    mark = " ".join(w for w in (tos, f"via {gateway}" if proto == ADVERTISED and gateway else "") if w)

    def name(mark: str) -> str:
        return route_name(dst, family=family, dev=dev, table=table, metric=metric, mark=mark)

    own = name(mark)
    if own in taken and proto != ADVERTISED:
        own = name(f"{tos} via {gateway or item.get('nexthops', '')}".strip())
    return Route(name=own, dev=dev, dst=dst, family=family, table=table, metric=metric, via=gateway,
                 src=item.get("prefsrc", ""), scope=SCOPES.get(item["scope"], item["scope"]), proto=proto,
                 flags=("onlink",) if "onlink" in item.get("flags", ()) else (), options=route_options(item),
                 lifetime=item.get("expires"))


def canonical(dst: str, family: int) -> str:
    if dst == "default":
        return dst
    return dst if "/" in dst else f"{dst}/{32 if family == 4 else 128}"


def route_options(item: Json) -> str:
    """Everything else of a route as the words that ``ip`` takes."""
    words: list[str] = []
    if special := SPECIAL_TYPES.get(item.get("type", "")):
        words.append(special)
    if "tos" in item:
        words += ["tos", str(item["tos"])]
    for metrics in item.get("metrics", ()):
        for name in METRICS:
            if name in metrics:
                value = metrics[name]
                words += [name, ",".join(value) if isinstance(value, list) else str(value)]
    if item.get("pref", "medium") != "medium":
        words += ["pref", item["pref"]]
    if "from" in item:
        words += ["from", item["from"]]
    for hop in item.get("nexthops", ()):
        words += nexthop(hop)
    words += [f"{UNTOLD}{name}" for name in sorted(item.keys() - KNOWN)]
    return " ".join(words)


def nexthop(hop: Json) -> list[str]:
    words = ["nexthop"]
    if gateway := hop.get("gateway") or (hop.get("via") or {}).get("host"):
        words += ["via", gateway]
    words += ["dev", hop["dev"], "weight", str(hop.get("weight", 1))]
    return words + (["onlink"] if "onlink" in hop.get("flags", ()) else [])


def parse_proxies(items: Iterable[Json]) -> Iterator[tuple[ProxyNeighbour, str]]:
    """Proxy neighbours of ``ip -Numeric -json neigh show proxy``, each with the protocol number that made it."""
    for item in items:
        if "dst" in item and "dev" in item:
            proxy = ProxyNeighbour(name=proxy_name(item["dev"], item["dst"]), dev=item["dev"], address=item["dst"])
            yield proxy, str(item.get("protocol", ""))


def sysctl_device(name: str, links: Mapping[str, Link]) -> str:
    """The link that a sysctl path belongs to, or ''. A name with dots is one component of the path."""
    parts = name.split("/")
    if len(parts) >= 5 and parts[0] == "net" and parts[2] in ("conf", "neigh") and parts[3] in links:
        return parts[3]
    return ""
