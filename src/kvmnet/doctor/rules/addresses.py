"""Rules about addresses, routes and neighbours. Pure."""
from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from itertools import islice
from typing import Any

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.routing import ERRORS, Asked, look_up
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.view import Json, View, kind, owned, up

TAKES_ALL = ("bridge", "bond", "team", "openvswitch")
"""Kinds of master that take what their ports receive; a VRF does not."""
SILENT = {"FAILED", "INCOMPLETE"}
RP = "TcpExt.IPReversePathFilter"


def address_on_port(view: View) -> Iterator[Finding]:
    """A device has an address although it is the port of a bridge or bond. What arrives there goes to the master: the host answers ARP for
    the address on the wrong device, or not at all."""
    for link in view.links.values():
        master = view.links.get(link.get("master", ""), {})
        found = view.addresses(link)
        if not found or kind(master) not in TAKES_ALL:
            continue
        name, over = link["ifname"], master["ifname"]
        default = [r for r in view.ways_out if r.get("dev") == name and r.get("table", "main") == "main" and r.get("gateway")]
        yield Finding(code="address-on-port", severity=Severity.BLOCKS, where=name, what=f"{', '.join(str(a) for a in found)} is on {name}, which is a port of {over}",
                      why=f"Frames that arrive by {name} are handed to {over}; the address belongs there.", evidence=(f"{name} master {over}", *(f"inet {a} on {name}" for a in found)),
                      fix=(*(f"ip addr add {a} dev {over}" for a in found), *(f"ip addr del {a} dev {name}" for a in found),
                           *(f"ip route replace default via {r['gateway']} dev {over}" for r in default)))


def subnet_overlap(view: View) -> Iterator[Finding]:
    """Two devices are directly connected to subnets that overlap: packets for the shared part leave by one of them only. Typical: libvirt
    in a guest makes 192.168.122.0/24, which is also the guest's own network."""
    for family in ("inet", "inet6"):
        found: list[tuple[Any, str]] = sorted((a.network, link["ifname"]) for link in view.links.values() for a in view.addresses(link, family)
                                              if a.network.prefixlen < a.network.max_prefixlen and not in_vrf(view, link) and link["ifname"] != "lo")
        for at, (network, dev) in enumerate(found):
            for other, there in found[at + 1:]:
                if other.network_address > network.broadcast_address:
                    break
                if there != dev and shared(view, dev) != shared(view, there):
                    yield Finding(code="subnet-overlap", severity=Severity.DEGRADES, where=there, what=f"{other} on {there} overlaps {network} on {dev}",
                                  why="The host sends packets for the shared addresses by one of the two devices; who is behind the other gets none.",
                                  evidence=(f"{network} dev {dev}", f"{other} dev {there}"), fix=("give one of the two another subnet",))


def shared(view: View, name: str) -> str:
    """The device whose wire a macvlan is on; any other device itself: what is on one wire is reached by both."""
    link = view.links[name]
    return str(link.get("link", name)) if kind(link) in ("macvlan", "macvtap") else name


def in_vrf(view: View, link: Any) -> bool:
    return kind(view.links.get(link.get("master", ""), {})) == "vrf"


def domain(view: View, name: str) -> str:
    """The VRF that a device belongs to, by its bridge too; '' for none."""
    for _ in range(3):
        if kind(view.links.get(name, {})) == "vrf":
            return name
        name = view.links.get(name, {}).get("master", "")
    return ""


def address_twice(view: View) -> Iterator[Finding]:
    """One address is on two devices of this host, a guest has an address of the host, or another machine answers for one. Each VRF has its own."""
    owned: dict[tuple[str, str], list[str]] = defaultdict(list)
    for link in view.links.values():
        for a in view.addresses(link):
            owned[domain(view, link["ifname"]), str(a.ip)].append(link["ifname"])
    for n in view.rows("nics"):
        for address in (n.get("ip"), n.get("ip6")):
            if address and (key := (domain(view, n.get("tap", "")), address)) in owned:
                owned[key].append(f"{n['vm']}/{n['nic']}")
    macs = {link.get("address") for link in view.links.values()}
    for n in view.rows("neighbours"):
        if (key := (domain(view, n.get("dev", "")), n.get("dst", ""))) in owned and n.get("lladdr") and n["lladdr"] not in macs:
            owned[key].append(f"{n['dev']}, behind it, at {n['lladdr']}")
    for (_, address), where in owned.items():
        if len(set(where)) > 1:
            yield Finding(code="address-twice", severity=Severity.DEGRADES, where=where[-1], what=f"{address} is on {' and '.join(dict.fromkeys(where))}",
                          why="Who asks for it gets two answers, or the wrong one.", evidence=tuple(f"{address}: {w}" for w in where), fix=("take it from one of them",))


def duplicate_detected(view: View) -> Iterator[Finding]:
    """The check for duplicates of an IPv6 address failed: another machine has it, or the question came back by a loop. It is not used."""
    for link in view.links.values():
        for a in link.get("addr_info", ()):
            if a.get("dadfailed"):
                name = link["ifname"]
                yield Finding(code="duplicate-detected", severity=Severity.BLOCKS, where=name, what=f"{a['local']} on {name} is not used: another machine has it",
                              why="An address whose check for duplicates failed is neither sent from nor answered (RFC 4862).", evidence=(f"inet6 {a['local']} dadfailed",),
                              fix=(f"tcpdump -ni {name} 'icmp6 and ip6[40] == 136'   # who answers", f"ip addr del {a['local']}/{a['prefixlen']} dev {name}"))


def address_moves(view: View) -> Iterator[Finding]:
    """A neighbour's address was answered by one MAC and, a moment later, by another: two machines with one address, or forged ARP. Clones with
    one machine-id get one address by DHCP."""
    then = {(n["dst"], n.get("dev")): n["lladdr"] for n in view.rows("neighbours") if n.get("lladdr")}
    for n in view.later.get("neighbours") or ():
        before = then.get((n.get("dst", ""), n.get("dev")))
        if before and n.get("lladdr") and n["lladdr"] != before:
            yield Finding(code="address-moves", severity=Severity.DEGRADES, where=n["dev"], what=f"{n['dst']} moved from {before} to {n['lladdr']}",
                          why="Two machines answer for one address; each gets some of the other's packets.", evidence=(f"neigh {n['dst']} lladdr {before}, then {n['lladdr']}",),
                          fix=("in a clone: truncate -s 0 /etc/machine-id, then reboot", "kvmnet's guard lets each guest answer for its own addresses alone"))


def wrong_neighbour(view: View) -> Iterator[Finding]:
    """A permanent entry of the neighbour table has another MAC than the guest of that address: it outlived a move of the address."""
    right = {n["ip"]: n["mac"] for n in view.rows("nics") if n.get("ip")}
    right |= {row["ip"]: row["mac"] for s in view.rows("dhcp_servers") for row in s["leases"] if row["ip"] not in right}
    for n in view.rows("neighbours"):
        mac = right.get(n.get("dst", ""))
        if mac and n.get("lladdr") and n["lladdr"] != mac and {"PERMANENT", "NOARP"} & set(n.get("state", ())):
            yield Finding(code="wrong-neighbour", severity=Severity.BLOCKS, where=n["dev"], what=f"the host sends packets for {n['dst']} to {n['lladdr']}; its guest has {mac}",
                          why="A permanent entry is never asked again.", evidence=(f"{n['dst']} dev {n['dev']} lladdr {n['lladdr']} PERMANENT",), fix=(f"ip neigh del {n['dst']} dev {n['dev']}",))


def gateway_silent(view: View) -> Iterator[Finding]:
    """The next hop of a default route does not answer ARP or ND."""
    states = {(n.get("dst"), n.get("dev")): set(n.get("state", ())) for n in view.rows("neighbours")}
    for r in (hop for way in view.ways_out for hop in hops(way)):
        if SILENT & states.get((r.get("gateway"), r.get("dev")), set()):
            yield Finding(code="gateway-silent", severity=Severity.DEGRADES if r.get("weight") else Severity.BLOCKS, where=r["dev"], certainty=Certainty.LIKELY, what=f"the gateway {r['gateway']} does not answer on {r['dev']}",
                          why="Packets to the outside wait for its MAC and are dropped." if not r.get("weight") else "It is one of several next hops: the flows that fall to it are lost, the others pass.", evidence=(f"neigh {r['gateway']} dev {r['dev']} {' '.join(states[r['gateway'], r['dev']])}",),
                          fix=(f"ip -br link show {r['dev']}", "VLAN of the switch port; is the address on the right device?"))


def route_without_link(view: View) -> Iterator[Finding]:
    """A default route leads to a device that is down or has no carrier."""
    for r in (hop for way in view.ways_out for hop in hops(way)):
        if {"linkdown", "dead"} & set(r.get("flags", ())):
            yield Finding(code="route-without-link", severity=Severity.DEGRADES if r.get("weight") else Severity.BLOCKS, where=r["dev"], what=f"the default route by {r['dev']} leads nowhere: {', '.join(r['flags'])}",
                          why="Packets that take it are lost.", evidence=(f"default via {r.get('gateway', 'link')} dev {r['dev']} {' '.join(r['flags'])}",), fix=(f"ip link set {r['dev']} up",))


def hops(route: Json) -> list[Json]:
    """The next hops of a route that has several, which have a weight; or the route itself."""
    return route.get("nexthops") or [route]


def route_error(view: View) -> Iterator[Finding]:
    """A route or policy rule refuses packets (blackhole, unreachable, prohibit) that another route would take: for a network of the host's guests, or for all
    that they send outside. The last route of a VRF's table, which keeps from the other tables what it does not know, is no such one."""
    for version in (4, 6):
        routes, rules = f"routes{version}", f"rules{version}"
        refusing = [r for r in view.rows(routes) if r.get("type") in ERRORS and r.get("metric") not in LAST]
        if not refusing and not any(r.get("action") in ERRORS for r in view.rows(rules)):
            continue
        scene = Scene(view.facts)
        opened = Scene({**view.facts, routes: [r for r in view.rows(routes) if r not in refusing], rules: [r for r in view.rows(rules) if r.get("action") not in ERRORS]})
        for words, asked in wanted(view, version, refusing):
            way = look_up(scene, asked)
            if way.type in ERRORS and (meant := look_up(opened, asked)).type == "unicast":
                yield Finding(code="route-error", severity=Severity.BLOCKS, where=way.route, certainty=Certainty.LIKELY, what=f"what is for {words} {ERRORS[way.type]}: {way.route} is {way.type}",
                              why=f"Without it they would go by {meant.dev}. If that is meant, all is well.", evidence=(f"ip {'-6 ' if version == 6 else ''}route get {asked.target}: {way.type}", f"else: {meant.route}"), fix=(way.end,))


LAST = (4278198272, 4294967295)
"""Metrics of routes that are asked last: of a VRF's table (vrf.rst), and of the kernel's own for IPv6 (ip6_null_entry)."""
FAR = {4: "1.1.1.1", 6: "2606:4700:4700::1111"}


def wanted(view: View, version: int, refusing: list[Json]) -> Iterator[tuple[str, Asked]]:
    """What guests need: to be found, and to be sent on."""
    way = next((r["dev"] for r in view.ways_out if r.get("dev") and (":" in r.get("gateway", "")) == (version == 6)), "")
    yield "the outside", Asked(FAR[version])
    for bridge in view.bridges:
        name = bridge["ifname"]
        if not view.guest_ports(name):
            continue
        for own in view.addresses(bridge, "inet6" if version == 6 else "inet")[:1]:
            guest = next((str(a) for a in islice(own.network.hosts(), 3) if a != own.ip), str(own.ip))
            yield f"guests of {name}", Asked(guest, FAR[version], way)
            for one in (str(r["dst"]).partition("/")[0] for r in refusing if r.get("dst") != "default"):
                if ip_address(one) in own.network:
                    yield f"{one}, a guest of {name},", Asked(one, FAR[version], way)
            if view.routers.get(("inet6" if version == 6 else "inet", name)):
                yield f"the outside, from guests of {name},", Asked(FAR[version], guest, name)


def prefix_without_route(view: View) -> Iterator[Finding]:
    """A device has an address, and no route leads to its subnet: the host hears those who are there, and sends its answers elsewhere."""
    held = {(r.get("dev"), r.get("dst")) for r in view.routes}
    local = {(r.get("dev"), r.get("dst")) for r in view.routes if r.get("type") == "local"}
    wider = [(r.get("dev"), ip_network(r["dst"], strict=False)) for r in view.routes if "/" in str(r.get("dst", ""))]
    for link in view.links.values():
        if not up(link):
            continue
        name, bare = link["ifname"], {a.get("local") for a in link.get("addr_info", ()) if a.get("noprefixroute") or a.get("tentative") or a.get("dadfailed") or a.get("deprecated")}
        for a in view.addresses(link):
            network = a.network
            if network.prefixlen == network.max_prefixlen or str(a.ip) in bare or (name, str(a.ip)) not in local or (name, str(network)) in held or any(
                    dev == name and n.version == network.version and a.ip in n for dev, n in wider):
                continue
            yield Finding(code="prefix-without-route", severity=Severity.BLOCKS, where=name, what=f"{name} has {a}, and no route leads to {network}", why="The kernel makes that route with the address; somebody took it away.",
                          evidence=(f"ip addr show {name}: {a}", f"ip route show {network}: nothing by {name}"), fix=(f"ip {'-6 ' if a.version == 6 else ''}route add {network} dev {name}{f' src {a.ip}' if a.version == 4 else ''}",))


def ra_ignored(view: View) -> Iterator[Finding]:
    """The host forwards IPv6 and has addresses or routes by router advertisement on a device with accept_ra=1. A router does not heed
    advertisements then: addresses and the default route are lost, at once or when their lifetime ends."""
    if view.number("net/ipv6/conf/all/forwarding") != 1:
        return
    heard = {r.get("dev") for r in view.rows("routes6") if r.get("protocol") == "ra"}
    for link in view.links.values():
        name = link["ifname"]
        by_ra = [a["local"] for a in link.get("addr_info", ()) if a["family"] == "inet6" and a.get("dynamic") and a.get("scope") == "global" and a.get("prefixlen") == 64]
        if view.sysctl(f"net/ipv6/conf/{name}/accept_ra") == "1" and (by_ra or name in heard):
            yield Finding(code="ra-ignored", severity=Severity.DEGRADES, where=name, what=f"{name} lives by router advertisements, and ignores them because the host forwards IPv6",
                          why="accept_ra=1 means: unless forwarding is on (ip-sysctl.rst).", fix=(f"sysctl -w net.ipv6.conf.{name}.accept_ra=2",),
                          evidence=("net.ipv6.conf.all.forwarding = 1", f"net.ipv6.conf.{name}.accept_ra = 1", *(f"dynamic {a}" for a in by_ra[:3])))


def router_among_guests(view: View) -> Iterator[Finding]:
    """Router advertisements that the host (or its bridge) heeds come from behind a guest's port: a guest has made itself the gateway."""
    macs = {(n.get("dst"), n.get("dev")): n.get("lladdr") for n in view.rows("neighbours")}
    places = {(r["mac"], r["master"]): r["ifname"] for r in view.rows("fdb") if r.get("master") and r.get("state") != "permanent"}
    for r in view.rows("routes6"):
        if r.get("protocol") != "ra" or not r.get("gateway"):
            continue
        port = places.get((macs.get((r["gateway"], r["dev"])) or "", r["dev"]))
        if port and kind(view.links.get(port, {})) in ("tun", "veth"):
            yield Finding(code="router-among-guests", severity=Severity.DEGRADES, where=port, what=f"the router {r['gateway']} of {r['dev']} is a guest behind {port}",
                          why="Everybody on the bridge who heeds router advertisements sends to that guest what is meant for the outside.",
                          evidence=(f"{r['dst']} via {r['gateway']} dev {r['dev']} proto ra", f"fdb: {macs[r['gateway'], r['dev']]} at {port}"), certainty=Certainty.LIKELY,
                          fix=(f"sysctl -w net.ipv6.conf.{r['dev']}.accept_ra=0   # the host itself", "a guard that drops RAs of guests: kvmnet's does"))


def two_routers(view: View) -> Iterator[Finding]:
    """Two machines advertise themselves as router on one device: one of them may be a mistake or an attack."""
    found: dict[str, set[str]] = defaultdict(set)
    for r in view.rows("routes6"):
        if r.get("protocol") == "ra" and r.get("dst") == "default":
            found[r.get("dev", "")] |= {r["gateway"]} if r.get("gateway") else {n["gateway"] for n in r.get("nexthops", ()) if n.get("gateway")}
    for dev, gateways in found.items():
        if len(gateways) > 1:
            yield Finding(code="two-routers", severity=Severity.RISK, where=dev, what=f"{len(gateways)} routers advertise themselves on {dev}: {', '.join(sorted(gateways))}",
                          why="Unless both are meant (VRRP uses one address), packets go to whichever is preferred.", evidence=tuple(f"default via {g} dev {dev} proto ra" for g in sorted(gateways)),
                          fix=(f"tcpdump -nvi {dev} 'icmp6 and ip6[40] == 134'",))


def reverse_path(view: View) -> Iterator[Finding]:
    """Reverse path filtering is strict on a host with two ways out: packets that come in by the one that is not preferred for the answer are
    dropped without a word."""
    conf = {(r.get("family"), r.get("interface")): r.get("rp_filter") for r in view.rows("netconf")}
    devices = sorted({r["dev"] for r in view.ways_out if r.get("dev") and ":" not in r.get("gateway", "")})
    strict = [d for d in devices if "strict" in (conf.get(("inet", d)), conf.get(("inet", "all"))) and "loose" not in (conf.get(("inet", d)), conf.get(("inet", "all")))]
    dropped = view.counters.get(RP, 0)
    if len(devices) > 1 and strict and (dropped or not answered_apart(view, devices)):
        yield Finding(code="reverse-path", severity=Severity.DEGRADES if dropped else Severity.RISK, where=strict[0],
                      what=f"packets that come by another of {', '.join(devices)} than their answer would take are dropped" + (f"; {dropped} were" if dropped else ""),
                      why="rp_filter=1 wants the way back to be the way that a packet came (RFC 3704).", certainty=Certainty.PROVED if dropped else Certainty.LIKELY,
                      evidence=(*(f"rp_filter strict on {d}" for d in strict), f"IPReversePathFilter = {dropped}"),
                      fix=(*own_ways(view), *(f"sysctl -w net.ipv4.conf.{d}.rp_filter=2" for d in strict)))
    elif dropped and strict_at_all(conf):
        growing = growth(view, RP)
        if growing:
            yield Finding(code="reverse-path", severity=Severity.DEGRADES, where="all", what=f"reverse path filtering dropped {growing} packets within {view.later['seconds']:.1f} s",
                          why="Their sender is not where the routes of this host say.", evidence=(f"IPReversePathFilter = {dropped}, +{growing}",),
                          fix=("sysctl -w net.ipv4.conf.all.log_martians=1   # says who", "a route to the sender, or rp_filter=2 on the device"))


def answered_apart(view: View, devices: list[str]) -> bool:
    """Whether each way out has rules by which what is sent from its addresses leaves by it, and nothing that comes in is handed on to guests: the check of the reverse path asks those rules, too."""
    ways = {(str(r.get("table", "main")), r.get("dev")) for r in view.ways_out}
    preferred = {r.get("dev") for r in view.ways_out if str(r.get("table", "main")) == "main"}
    led = {(str(rule.get("src")), str(rule.get("table"))) for rule in view.rows("rules4")}
    return len(preferred) == 1 and "dnat" not in str(view.facts.get("nft_text") or "") and all(
        any((str(a.ip), table) in led or (str(a.network.network_address), table) in led for table, dev in ways if dev == name) for name in devices if name not in preferred for a in view.addresses(view.links[name], "inet"))


def own_ways(view: View) -> Iterator[str]:
    """Rules that let what has the address of an uplink leave by it, where a table has its default route and nothing leads to that table."""
    chosen = {str(rule.get("table")) for rule in view.rows("rules4")}
    for r in view.ways_out:
        table = str(r.get("table", "main"))
        if table not in (*chosen, "main") and r.get("dev") in view.links and ":" not in r.get("gateway", ""):
            yield from (f"ip rule add from {a.ip} table {table}" for a in view.addresses(view.links[r["dev"]], "inet"))


def strict_at_all(conf: dict[Any, Any]) -> bool:
    return "strict" in conf.values()


def growth(view: View, counter: str) -> int:
    """How much a counter of /proc/net grew between the two looks."""
    from kvmnet.doctor.view import counters
    if not view.later:
        return 0
    return max(0, counters(view.later.get("counters") or {}).get(counter, 0) - view.counters.get(counter, 0))


def forwarding_off(view: View) -> Iterator[Finding]:
    """A rule translates addresses for guests (masquerade, snat), and the host does not forward what comes from their bridge: guests reach the
    host and nothing beyond. Each device has a switch of its own; net.ipv4.ip_forward sets them all."""
    texts = [*(str(view.facts.get("nft_text") or "").splitlines()), *(line for t in (view.facts.get("xtables") or {}).values() for line in t.splitlines())]
    rules = [line.strip() for line in texts if "masquerade" in line.lower() or " snat " in line or "-j SNAT" in line]
    out = {r["dev"] for r in view.ways_out if r.get("dev") and ":" not in r.get("gateway", "")}
    named = {name for line in rules for name in view.links if name in line.replace('"', " ").split()} & out
    closed = [b["ifname"] for b in view.bridges if rules and view.addresses(b, "inet") and view.guest_ports(b["ifname"]) and b["ifname"] not in out
              and not view.forwards(b["ifname"]) and meant(b["ifname"], view, rules)]
    closed += [name for name in sorted(named) if not view.forwards(name) and not closed]
    if closed:
        yield Finding(code="forwarding-off", severity=Severity.BLOCKS, where=closed[0], what=f"the host translates addresses of guests and does not forward what comes by {', '.join(closed)}",
                      why="Packets that are for others are dropped where their device does not forward.", evidence=(f"net.ipv4.ip_forward = {view.sysctl('net/ipv4/ip_forward')}", *(f"net.ipv4.conf.{d}.forwarding = 0" for d in closed), rules[0]),
                      fix=("kvmnet apply",) if all(owned(d) for d in closed) else ("sysctl -w net.ipv4.ip_forward=1   # opens the host as a router: look at the forward chain first",))


def meant(bridge: str, view: View, rules: list[str]) -> bool:
    """Whether any of the rules is about this network: by its device or subnet, or about all."""
    subnets = [str(a.network) for a in view.addresses(view.links[bridge], "inet")]
    return any(bridge in rule or any(s in rule for s in subnets) or not re.search(r"saddr|iif|-s ", rule) for rule in rules)
