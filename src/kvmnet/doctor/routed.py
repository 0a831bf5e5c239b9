"""A packet at the host's IP: up from a device, through routing, NAT and rules, to the host itself or out again. Pure."""
from __future__ import annotations

from ipaddress import ip_address, ip_interface
from typing import Any

from kvmnet.doctor import ipsec
from kvmnet.doctor.expressions import value
from kvmnet.doctor.filters import filters
from kvmnet.doctor.finding import Certainty, Severity
from kvmnet.doctor.hooks import HOST, Passage
from kvmnet.doctor.packet import ICMP, ICMP6, STATES, TCP, UDP, UNKNOWN, Tracked, made
from kvmnet.doctor.routing import ERRORS, Asked, Way, comes_back, look_up, lost, of_packet
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.segment import device
from kvmnet.doctor.trip import Trip, begin
from kvmnet.records import dataclass

DESTINATION, SOURCE = -100, 100
"""Priorities of NAT: NF_IP_PRI_NAT_DST, NF_IP_PRI_NAT_SRC."""
ALL = 1 << 40


@dataclass
class Undo:
    """What NAT made of the first packet, for the answer: the addresses and ports that the flow began with."""

    source: tuple[str, int]
    target: tuple[str, int]


def come_up(trip: Trip, dev: str, undo: Undo | None = None) -> Way:
    """From a device into IP, as far as the decision where it goes. ``undo``: of an answer, what NAT puts back."""
    scene = trip.scene
    trip.context.pkttype = HOST
    if scene.kind(dev) == "bridge" or not trip.hops:
        trip.at("netdev", "ingress", iif=dev, where=dev)
    if not trip.seen:
        nat(trip, trip.at("ip", "prerouting", iif=dev, upto=DESTINATION), dev, "")
        if undo:
            put_back(trip, 1, undo.source)
        trip.at("ip", "prerouting", iif=dev, above=DESTINATION)
    elif undo:
        put_back(trip, 1, undo.source)
    if domain := scene.domain_of(dev):
        enter_domain(trip, domain)
    way = look_up(scene, of_packet(trip.packet, dev, mark=mark(trip)))
    checked = domain or dev
    if trip.packet.version == 4 and (why := comes_back(scene, trip.packet, checked, way, mark(trip))):
        trip.hop(dev, "route", "reverse path")
        trip.blocks("reverse-path", dev, f"the check of the reverse path drops it: {why}", "rp_filter takes a packet only where the way back to its source leads to the same device (1), or anywhere (2)",
                    f"net.ipv4.conf.{checked}.rp_filter and all: the larger is {scene.reverse_path(checked)}",
                    fix=(f"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{checked}.rp_filter=2",))
    refused_address(trip)
    routed(trip, way, dev)
    loopback(trip, dev)
    return way


def loopback(trip: Trip, dev: str) -> None:
    """What comes from outside for 127.0.0.0/8, mostly by a rule that translates there, is no packet that may be (ip_route_input_slow())."""
    scene = trip.scene
    if trip.packet.version == 4 and ip_address(trip.packet.target).is_loopback and dev != "lo" and not any(scene.sysctl(f"net/ipv4/conf/{d}/route_localnet") == "1" for d in ("all", dev)):
        trip.blocks("loopback-target", dev, f"the packet is for {trip.packet.target} and came by {dev}: the kernel drops it", "what comes by a device may not be for 127.0.0.0/8 unless route_localnet is on there; a rule of NAT sends it to a program that listens on loopback alone",
                    f"net.ipv4.conf.{dev}.route_localnet = {scene.sysctl(f'net/ipv4/conf/{dev}/route_localnet') or 0}", fix=(f"sysctl -w net.ipv4.conf.{dev}.route_localnet=1   # better: let the program listen on an address of {dev}, and translate to that",))


def enter_domain(trip: Trip, domain: str) -> None:
    """A member of a VRF hands the packet up: prerouting once more, by the VRF's device; NAT and conntrack have had it."""
    device(trip, domain, "domain")
    trip.domain = domain
    trip.at("ip", "prerouting", iif=domain, upto=DESTINATION - 1)
    trip.at("ip", "prerouting", iif=domain, above=DESTINATION)


def mark(trip: Trip) -> int:
    return trip.context.mark if isinstance(trip.context.mark, int) else 0


def routed(trip: Trip, way: Way, iif: str) -> None:
    """The decision of the routing tables."""
    target = trip.packet.target
    trip.hop("routing", "route", f"{target}: {way.route or 'no route'}")
    if way.unsure:
        trip.blocks("route-unknown", way.unsure, f"{way.unsure} asks for what is not judged here; it may send the packet another way", "", certainty=Certainty.UNKNOWN, severity=Severity.NOTE)
    if unrouted(trip, way, target, iif):
        return
    if way.type == "none":
        for dev in without_routes(trip.scene, trip.packet.version):
            near = any(ip_address(target) in ip_interface(a).network for a in trip.scene.addresses_of(dev, trip.packet.version))
            trip.blocks("link-down", dev, f"{dev} is down", "the routes by a device are gone while it is down", f"{dev} has {', '.join(trip.scene.addresses_of(dev, trip.packet.version))}",
                        fix=(f"ip link set {dev} up",), certainty=Certainty.PROVED if near else Certainty.LIKELY)
        place = trip.scene.on_link(target, trip.scene.domain_of(iif))
        own = next((a for a in trip.scene.addresses_of(place, trip.packet.version) if ip_address(target) in ip_interface(a).network), "") if place and trip.scene.up(place) else ""
        bare = [dev for dev in trip.scene.links if is_bare(trip.scene, dev, trip.packet.version)]
        trip.blocks("no-route", "routing", f"the host has no route to {target}", "what has no route is dropped, and its sender told so",
                    f"ip route get {target}", f"{', '.join(bare[:4])}: up, and without an IPv{trip.packet.version} address (with the address its routes go)" if bare and not own else "", f"{place} has {own}, and the route of its subnet is gone" if own else "", fix=(f"ip {'-6 ' if trip.packet.version == 6 else ''}route add {ip_interface(own).network} dev {place}",) if own else (f"ip route add {target} via GATEWAY" if ip_address(target).version == 4 else f"ip -6 route add {target} via GATEWAY",))
    elif way.type in ERRORS:
        trip.blocks("route-error", way.route, f"a route of type {way.type} takes packets to {target}", f"the packet {ERRORS[way.type]}", f"ip route: {way.route}",
                    fix=(way.end,) if way.end else ())
    elif way.type == "unicast" and trip.scene.bridge_of(way.dev):
        bridge = trip.scene.bridge_of(way.dev)
        own = next((a for a in trip.scene.addresses_of(way.dev, trip.packet.version)), "ADDRESS/LENGTH")
        trip.blocks("address-on-port", way.dev, f"the route leads to {way.dev}, which is a port of {bridge}", "what a port receives goes to its bridge, never to its own address: answers are not heard",
                    f"ip addr show {way.dev}: {own}; master {bridge}", fix=(f"ip addr del {own} dev {way.dev}", f"ip addr add {own} dev {bridge}"))


def unrouted(trip: Trip, way: Way, target: str, iif: str) -> bool:
    """An address of the host's that its routes do not know as such: the table local, or the rule that leads there, was emptied by hand."""
    scene = trip.scene
    dev = scene.owner(target, scene.domain_of(iif))
    if way.type in ("local", "broadcast", *ERRORS) or not dev or not scene.up(dev) or scene.domain_of(dev) != scene.domain_of(iif) or any(
            a.get("local") == target and (a.get("tentative") or a.get("dadfailed")) for a in scene.links[dev].get("addr_info", ())):
        return False
    six = " -6" if trip.packet.version == 6 else ""
    ruled = any(str(r.get("table")) in ("local", "255") for r in scene.part(f"rules{trip.packet.version}"))
    trip.blocks("address-not-local", dev, f"{target} is an address of {dev}, and the host's routes do not know it as its own", "what is for it is sent on or dropped instead of taken in, and nobody who asks for it (ARP) is answered" if not six else "what is for it is sent on or dropped instead of taken in",
                f"ip rule: {'a rule leads to table local' if ruled else 'no rule leads to table local'}", f"ip route get {target}: {way.route or 'no route'}",
                fix=(f"ip{six} route add local {target} dev {dev} table local",) if ruled else (f"ip{six} rule add pref 0 lookup local",))
    return True


def is_bare(scene: Scene, dev: str, version: int) -> bool:
    """Whether a device could lead out and has no address."""
    return scene.kind(dev) in ("", "vlan", "bond", "veth") and scene.links[dev].get("link_type") == "ether" and scene.up(dev) and scene.carrier(dev) and not scene.master(dev) and not any(
        r.get("dev") == dev and r.get("table", "main") != "local" for r in scene.part("routes4") if version == 4) and not any(not ip_interface(a).is_link_local for a in scene.addresses_of(dev, version))


def without_routes(scene: Scene, version: int) -> list[str]:
    """Devices that have addresses, and are down."""
    return [dev for dev in scene.links if not scene.up(dev) and any(not ip_interface(a).is_link_local for a in scene.addresses_of(dev, version))]


def nat(trip: Trip, passages: list[Passage], iif: str, oif: str) -> None:
    """Addresses that the rules translate, in the packet."""
    for passage in passages:
        for name, body, table in passage.judgement.changed:
            where = 1 if name in ("dnat", "redirect") else 0
            address, port = body.get("addr"), body.get("port")
            new: Any = own_address(trip, iif if name == "redirect" else oif) if name in ("redirect", "masquerade") else address
            if isinstance(new, dict):
                new = value(new, trip.context, table, "ipv6_addr" if trip.packet.version == 6 else "ipv4_addr")
                new = str(ip_address(new)) if isinstance(new, int) else UNKNOWN
            if new is UNKNOWN or (new is not None and not is_address(new)) or isinstance(port, dict):
                trip.blocks("nat-unknown", passage.chain, f"{name} to an address that cannot be told from here", "", certainty=Certainty.UNKNOWN)
                continue
            old = trip.packet.source if where == 0 else trip.packet.target
            if where == 0 and new:
                answered(trip, passage, oif, str(new))
            if new:
                trip.context.packet = trip.packet.to_address(where, str(new))
            if isinstance(port, int):
                trip.context.packet = trip.packet.to_port(where, port)
            trip.hops[-1].words += f"; {'source' if where == 0 else 'destination'} {old} becomes {new or old}"
            trip.translated = True


def answered(trip: Trip, passage: Passage, oif: str, new: str) -> None:
    """Whether answers to a translated source find this host: somebody must answer for it on the segment that it seems to be on."""
    scene = trip.scene
    proxied = any(row.get("dst") == new for row in scene.part("proxies"))
    if oif and new not in scene.own and scene.on_link(new) == oif and look_up(scene, Asked(new, iif=oif)).type != "local" and not proxied:
        trip.blocks("nat-not-own", passage.chain, f"the source becomes {new}, which this host has not", f"answers come to {new} on the segment of {oif}: the others there ask who has it (ARP), and nobody says so",
                    f"{passage.chain}: {passage.reasons[-1].text if passage.reasons else 'snat'}", f"addresses of {oif}: {', '.join(scene.addresses_of(oif, trip.packet.version)) or 'none'}",
                    fix=(f"ip addr add {new}/{32 if '.' in new else 128} dev {oif}",), certainty=Certainty.LIKELY)


def is_address(text: object) -> bool:
    try:
        ip_address(str(text))
    except ValueError:
        return False
    return True


def own_address(trip: Trip, dev: str) -> str | None:
    own = trip.scene.addresses_of(dev, trip.packet.version)
    return own[0].partition("/")[0] if own else None


def put_back(trip: Trip, place: int, end: tuple[str, int]) -> None:
    """NAT undone in an answer."""
    address, port = end
    if trip.context.strayed:
        if not place:
            return
        trip.hop("conntrack", "nat", f"zone {trip.context.zone}")
        trip.blocks("ct-zone-apart", "conntrack", f"the answer comes to connection tracking in zone {trip.context.zone}, its flow is in another: NAT does not put it back", "a flow is known in its own zone only; a rule has set the zone (ct zone set, CT --zone) of one direction",
                    "ct zone", fix=("nft -a list ruleset | grep 'zone set'   # and set it for both directions: by the bridge, and by the flow's mark for answers",))
        return
    if address and (trip.packet.source, trip.packet.target)[place] != address:
        trip.context.packet = trip.packet.to_address(place, address)
        trip.hop("conntrack", "nat", f"{'destination' if place else 'source'} back to {address}")
    if port:
        trip.context.packet = trip.packet.to_port(place, port)


def to_host(trip: Trip, dev: str) -> None:
    """Into the host itself."""
    trip.at("ip", "input", iif=dev)
    ipsec.judged(trip, "in")
    table_full(trip)
    packet, scene = trip.packet, trip.scene
    if packet.upper and packet.upper[0] in (TCP, UDP) and not answers(trip):
        service(trip, {TCP: "tcp", UDP: "udp"}[packet.upper[0]], packet.ports[1])
    echo = {ICMP: "net.ipv4.icmp_echo_ignore_all", ICMP6: "net.ipv6.icmp.echo_ignore_all"}.get(packet.upper[0] if packet.upper else 0, "")
    if echo and scene.sysctl(echo.replace(".", "/")) == "1" and not answers(trip):
        trip.hop("host", "service", "echo")
        trip.blocks("echo-ignored", "host", f"the host answers no ping{'6' if packet.version == 6 else ''}", "it was told not to", f"{echo} = 1", fix=(f"sysctl -w {echo}=0",))


def answers(trip: Trip) -> bool:
    return trip.context.flow is not None


def refused_address(trip: Trip, address: str = "") -> None:
    """An address of the host's that another machine has, too: it is neither sent from nor answered (RFC 4862). ``address``: '' for the packet's destination."""
    for dev, link in trip.scene.links.items():
        for a in link.get("addr_info", ()):
            if a.get("dadfailed") and a.get("local") == (address or trip.packet.target):
                trip.blocks("duplicate-detected", dev, f"{a['local']} on {dev} is not used: another machine has it", "an address whose check for duplicates failed is neither sent from nor answered (RFC 4862)", f"ip addr show {dev}: {a['local']}/{a['prefixlen']} dadfailed",
                            fix=(f"ip addr del {a['local']}/{a['prefixlen']} dev {dev}   # and another one; who has it: tcpdump -ni {dev} 'icmp6 and ip6[40] == 136'",))


def service(trip: Trip, proto: str, port: int) -> None:
    """Whether a program of the host listens."""
    scene, target = trip.scene, ip_address(trip.packet.target)
    some = [s for s in scene.part("listening") if s["proto"] == proto and s["port"] == port]
    fitting = [s for s in some if ip_address(s["address"]) in (target, ip_address("::"), ip_address("0.0.0.0")) and (
        ip_address(s["address"]).version == target.version or s["address"] == "::")]
    trip.hop("host", "service", f"{proto} {port}: {fitting[0]['program'] or 'a socket'}" if fitting else f"{proto} {port}: nobody listens")
    if not fitting:
        trip.blocks("nobody-listens", f"{proto} {port}", f"nobody listens on {proto} {port} of {target}", "the kernel answers with a reset or port unreachable",
                    *(f"{s['program'] or 'a socket'} listens on {s['address']} only" for s in some))


def table_full(trip: Trip) -> None:
    scene = trip.scene
    count, most = scene.number("net/netfilter/nf_conntrack_count"), scene.number("net/netfilter/nf_conntrack_max")
    if trip.context.tracked is not None and count is not None and most and count >= most:
        trip.hop("conntrack", "conntrack", f"{count} of {most}")
        trip.blocks("conntrack-table", "conntrack", f"the table of connections is full: {count} of {most}", "packets of new flows are dropped ('nf_conntrack: table full')",
                    f"nf_conntrack_count {count}, nf_conntrack_max {most}", fix=(f"sysctl -w net.netfilter.nf_conntrack_max={most * 2}",))


def forward(trip: Trip, iif: str, way: Way, undo: Undo | None = None) -> None:
    """From one device to another, as far as the device that it leaves by."""
    scene, version = trip.scene, trip.packet.version
    if not scene.routes_from(trip.domain or iif, version):
        name = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
        trip.hop("forwarding", "route", "off")
        trip.blocks("forwarding-off", iif, f"the host does not forward IPv{version} that comes by {iif}", "a host that is no router drops what is not for itself",
                    f"forwarding of {iif}: off; {name} = {scene.sysctl(name.replace('.', '/'))}", fix=(f"sysctl -w {name}=1" if version == 6 or scene.sysctl("net/ipv4/ip_forward") != "1" else f"sysctl -w net.ipv4.conf.{iif}.forwarding=1",))
    ipsec.forwarded(trip)
    expired(trip)
    trip.at("ip", "forward", iif=iif, oif=way.dev)
    table_full(trip)
    before = trip.translated
    out_hooks(trip, iif, way.dev, undo)
    if trip.translated and not before and between_guests(trip, iif, way.dev):
        trip.blocks("nat-between-guests", way.dev, f"NAT changes the source of packets from {iif} to {way.dev}", "guests see each other by the host's address: cluster software and logs take them for one, rules by address miss",
                    severity=Severity.DEGRADES)
    if scene.mtu(way.dev) < scene.mtu(iif):
        trip.hop(way.dev, "mtu", f"MTU {scene.mtu(way.dev)}")
        silent = untold(trip, iif)
        trip.blocks("way-out-mtu", way.dev, f"the MTU shrinks from {scene.mtu(iif)} ({iif}) to {scene.mtu(way.dev)} ({way.dev}){', and the host cannot tell senders so' if silent else ''}",
                    "senders are told by ICMP; large transfers hang where that is filtered", *silent, fix=(f"ip link set {iif} mtu {scene.mtu(way.dev)}   # and its ports, and DHCP option 26; or let ICMP errors pass in the rule that is named",) if silent else (), severity=Severity.DEGRADES if silent else Severity.NOTE)


def untold(trip: Trip, iif: str) -> list[str]:
    """Rules of the host that drop what tells a sender that a packet is too large (RFC 1191, RFC 8201)."""
    version, own = trip.packet.version, own_address(trip, iif)
    if not own or trip.context.flow is not None:
        return []
    told = made(("02:00:00:00:00:fe", trip.scene.mac(iif)), own, trip.packet.source, ICMP6 if version == 6 else ICMP, (0, 0), trip.packet.frame[14:42])
    scout = begin(trip.scene, told.with_bits("th", 0, 16, 0x0200 if version == 6 else 0x0304), Tracked(state=STATES["related"]))
    scout.at("ip", "output", oif=iif)
    scout.at("ip", "postrouting", oif=iif)
    return [f.evidence[0] for f in scout.findings if f.severity is Severity.BLOCKS and f.certainty is Certainty.PROVED]


def expired(trip: Trip) -> None:
    """A router takes one from the TTL, and does not send on what has none left (ip_forward(), ip6_forward())."""
    offset = 64 if trip.packet.version == 4 else 56
    left = trip.packet.bits("nh", offset, 8)
    if isinstance(left, int) and left <= 1:
        trip.hop("routing", "route", f"TTL {left}")
        trip.blocks("ttl-expired", "routing", f"the packet has a TTL of {left} where the host should send it on", "a router drops what has no hop left, and answers 'time exceeded'; a rule before it has set it so low, since a packet begins with 64",
                    f"{'ttl' if trip.packet.version == 4 else 'hoplimit'} {left} at forward", fix=("nft -a list ruleset | grep -E 'ttl set|hoplimit set'   # and take that rule out; iptables: TTL, HL in table mangle",))


def between_guests(trip: Trip, iif: str, oif: str) -> bool:
    return trip.scene.kind(iif) == "bridge" and trip.scene.kind(oif) == "bridge"


def out_hooks(trip: Trip, iif: str, oif: str, undo: Undo | None) -> None:
    nat(trip, trip.at("ip", "postrouting", iif=iif, oif=oif, upto=SOURCE), iif, oif)
    if undo:
        put_back(trip, 0, undo.target)
    trip.at("ip", "postrouting", iif=iif, oif=oif, above=SOURCE)
    ipsec.judged(trip, "out")


def sent(trip: Trip, own: str, undo: Undo | None = None) -> Way:
    """By the host itself, from an address of the device *own*."""
    trip.context.linked = False
    domain = trip.scene.domain_of(own)
    way = look_up(trip.scene, of_packet(trip.packet, oif=domain, mark=mark(trip)))
    routed(trip, way, "")
    if domain:      # sockets of the host speak in a VRF when they are bound to it (ip vrf exec), and in answers
        device(trip, domain, "domain")
        trip.at("ip", "output", oif=domain)
    before = of_packet(trip.packet, oif=domain, mark=mark(trip))
    nat(trip, trip.at("ip", "output", oif=way.dev, upto=DESTINATION), "", way.dev)
    trip.at("ip", "output", oif=way.dev, above=DESTINATION)
    after = of_packet(trip.packet, oif=domain, mark=mark(trip))
    if after.target != before.target or (after != before and reroutes(trip)):
        way = look_up(trip.scene, after)
        routed(trip, way, "")
    out_hooks(trip, "", way.dev, undo)
    return way


def reroutes(trip: Trip) -> bool:
    """Whether the kernel looks a route up anew for a packet of its own that rules have marked: chains of type route do that, and the table mangle of
    xtables (nf_route_table_hook4(), ipt_mangle_out())."""
    families = ("inet", "ip6" if trip.packet.version == 6 else "ip")
    return any(c.type == "route" or (c.table.endswith("mangle") and c.name == "OUTPUT") for c in trip.scene.rules.ruleset.bases("output", families))


def other_ways(trip: Trip, way: Way, target: str) -> None:
    """The other next hops of the route: a flow that the kernel sends by one that is dead is lost, and which that is a hash says (fib_select_multipath())."""
    scene = trip.scene
    dead = {hop: reason for hop in way.others if (reason := lost(scene, hop[0], hop[1] or target))}
    if not dead or lost(scene, way.dev, way.via or target):     # where none works, that is told of the first
        return
    living = [(way.dev, way.via), *(hop for hop in way.others if hop not in dead)]
    table = way.route.rpartition("(table ")[2].rstrip(")")
    words = ("" if table == "main" else f" table {table}") + "".join(f" {'nexthop ' if len(living) > 1 else ''}{'via ' + via + ' ' if via else ''}dev {dev}" for dev, via in living)
    trip.hop("routing", "route", f"{len(dead)} of {len(way.others) + 1} next hops do not work")
    trip.blocks("multipath-hop", way.route.partition(" ")[0], f"{len(dead)} of {len(way.others) + 1} next hops of the route do not work: some flows pass, others never do",
                "the kernel spreads flows over all next hops by a hash of their addresses, also to one that nobody answers for (fib_multipath_use_neigh=0)", way.route, *dead.values(),
                fix=(f"ip{' -6' if trip.packet.version == 6 else ''} route replace {way.route.partition(' ')[0]}{words}",), certainty=Certainty.UNKNOWN)


def neighbour(trip: Trip, dev: str, target: str, expected: str) -> str:
    """MAC that the host sends to for a next hop; *expected* is what it has, '' where that is not known."""
    if "NOARP" in trip.scene.flags(dev) and trip.scene.kind(dev) in ("", "bridge", "veth", "bond", "vlan", "macvlan") and trip.scene.links[dev].get("link_type") != "loopback":
        trip.hop(dev, "neighbour", "no ARP")
        trip.blocks("arp-off", dev, f"{dev} asks and answers no ARP (NOARP)", "the host takes every MAC there for known, and its own is not told to anybody", f"ip link show {dev}: {','.join(trip.scene.flags(dev))}", fix=(f"ip link set {dev} arp on",))
    entry = trip.scene.neighbours.get((dev, target), {})
    state, mac = "/".join(entry.get("state", ())) or "not asked yet", str(entry.get("lladdr", ""))
    trip.hop(dev, "neighbour", f"{target} is {mac or 'not known'} ({state})")
    if {"PERMANENT", "NOARP"} & set(entry.get("state", ())) and mac and not expected and trip.scene.kind(dev) != "bridge":
        trip.blocks("neighbour-written", dev, f"the MAC of {target} on {dev} was written by hand: {mac}", "a permanent entry is never asked again; whether it is still right shows a packet (kvmnet why --prove)", f"ip neigh show {target} dev {dev}: {mac} {state}",
                    fix=(f"ip neigh del {target} dev {dev}",), severity=Severity.NOTE, certainty=Certainty.UNKNOWN)
    shown = f"ip neigh show {target} dev {dev}: {mac} {state}"
    if mac and expected and mac != expected:
        trip.blocks("wrong-neighbour", dev, f"the host takes {mac} for the MAC of {target}, which has {expected}", "its frames go to a MAC that is not there any more: the address has moved, and nobody announced it",
                    shown, fix=(f"ip neigh del {target} dev {dev}",))
    elif "FAILED" in entry.get("state", ()) or "INCOMPLETE" in entry.get("state", ()):
        trip.blocks("neighbour-silent" if target == trip.packet.target else "gateway-silent", dev, f"nobody answers for {target} on {dev}", f"the host asked ({'ARP' if '.' in target else 'neighbour solicitation'}) and heard nothing: it is off, has another address, or the question or the answer is lost",
                    shown, certainty=Certainty.LIKELY)
    most = trip.scene.number("net/ipv4/neigh/default/gc_thresh3" if "." in target else "net/ipv6/neigh/default/gc_thresh3")
    count = sum(1 for (_, dst) in trip.scene.neighbours if (":" in dst) == (":" in target))
    if not mac and most and count >= most:
        trip.blocks("neighbour-table", dev, f"the table of neighbours is full: {count} of {most}", "new neighbours are not asked for ('neighbour table overflow')", fix=(f"sysctl -w net.ipv{4 if '.' in target else 6}.neigh.default.gc_thresh3={most * 4}",))
    return mac or expected


def way_out(trip: Trip, dev: str, seen: tuple[str, ...] = ()) -> None:
    """By a device to the wire, with what is below it."""
    scene = trip.scene
    if not dev or dev in seen:
        return
    trip.at("netdev", "egress", oif=dev, where=dev)
    filters(trip, dev, "egress")
    device(trip, dev, "uplink")
    kind = scene.kind(dev)
    if kind == "bond":
        bond(trip, dev)
    elif kind in ("vlan", "macvlan") and (below := str(scene.links[dev].get("link", ""))) in scene.links:
        way_out(trip, below, (*seen, dev))


def bond(trip: Trip, dev: str) -> None:
    scene = trip.scene
    members = [name for name, link in scene.links.items() if link.get("master") == dev]
    working = [m for m in members if scene.up(m) and scene.carrier(m) and scene.port(m).get("mii_status", "UP") == "UP"]
    trip.hop(dev, "bond", f"{scene.data(dev).get('mode', '')}: {len(working)} of {len(members)} members work")
    if not working:
        trip.blocks("bond-dead", dev, "no member of the bond works", "what the host sends by it is lost", *(f"{m}: {'up' if scene.up(m) else 'down'}, {'carrier' if scene.carrier(m) else 'no carrier'}" for m in members))
    partner = str((scene.data(dev).get("ad_info") or {}).get("partner_mac", ""))
    if scene.data(dev).get("mode") == "802.3ad" and partner in ("", "00:00:00:00:00:00"):
        trip.blocks("bond-partner", dev, "the switch speaks no LACP", "an 802.3ad bond without a partner uses one member, and a switch without a LAG sees the MAC at several ports", f"partner_mac {partner or 'none'}",
                    severity=Severity.DEGRADES)


def first_port(scene: Scene, bridge: str) -> str:
    """The port of a bridge that leads out: hardware, a bond, a VLAN; '' without."""
    kinds = ("", "bond", "vlan", "vxlan", "team")
    return next((p for p in scene.members.get(bridge, ()) if scene.kind(p) in kinds), "")
