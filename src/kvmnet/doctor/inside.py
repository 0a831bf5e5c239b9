"""The inside of guests, as their agents told it: what there keeps packets from coming or going. Pure.

The same judgements serve the path of one packet and the look at the whole host. What a guest did not tell is not judged.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import Any

from kvmnet.doctor.blame import by_rule
from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.hooks import HOST, at_hook
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.packet import TCP, UDP, UNKNOWN, Context, Packet
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.trip import Trip
from kvmnet.doctor.view import Inner, Json, View, carrier, up
from kvmnet.records import replace

DEAD = ("FAILED", "INCOMPLETE")
Judge = Callable[[View, Inner], Iterable[Finding]]


def inner_of(view: View, end: End) -> Inner | None:
    """The inside of an end; None where nothing was told."""
    return next((i for i in view.inners if i.tap == end.dev and end.mac in ("", i.link["mac"])), None)


def bridge_addresses(view: View, inner: Inner, version: int) -> list[IPv4Interface | IPv6Interface]:
    """Addresses that the host has on the segment of a card."""
    master = view.links.get(view.links[inner.tap].get("master", ""), {})
    return view.addresses(master, "inet6" if version == 6 else "inet")


def owners(view: View) -> dict[str, str]:
    """Address of the host, link-local ones too -> MAC of its device."""
    return {str(ip_address(a["local"])): str(link.get("address", "")) for link in view.links.values() for a in link.get("addr_info", ()) if "local" in a}


# -- one card --------------------------------------------------------------------------------------

def nic_down(view: View, inner: Inner) -> Iterator[Finding]:
    if inner.link.get("up") is False and up(view.links[inner.tap]) and carrier(view.links[inner.tap]):
        yield Finding(code="guest-nic-down", severity=Severity.BLOCKS, where=inner.title, what=f"the card {inner.link['name']} is down inside {inner.guest}",
                      why="its port on the host is up: only the guest has switched it off, so nothing comes or goes", evidence=(f"in {inner.guest}: {inner.link['name']} is not UP",),
                      fix=(f"kvmnet vm exec {inner.guest} ip link set {inner.link['name']} up",))


def without_address(view: View, inner: Inner) -> Iterator[Finding]:
    """Only where a document says which address it is to have."""
    for version, field in ((4, "ip"), (6, "ip6")):
        wanted, has = str(inner.given.get(field) or ""), inner.addresses(version)
        if wanted and "addresses" in inner.link and inner.link.get("up") and not inner.link.get("master") and ip_address(wanted) not in [a.ip for a in has]:
            yield lacks(inner, wanted, has)


def lacks(inner: Inner, wanted: str, has: Iterable[IPv4Interface | IPv6Interface]) -> Finding:
    """Of a card that has not the address that it is known by."""
    shown = ", ".join(str(a) for a in has)
    evidence = (f"in {inner.guest}: ip addr show {inner.link['name']}: {shown or 'none'}",)
    if shown:
        return Finding(code="guest-other-address", severity=Severity.BLOCKS, where=inner.title, what=f"{inner.guest} has {shown} on {inner.link['name']}, not {wanted}", certainty=Certainty.LIKELY,
                       why=f"who asks for {wanted} gets no answer, and a guard lets nothing pass that comes from an address that was not given", evidence=evidence,
                       fix=(f"take DHCP in {inner.guest}, or set {wanted} there; or write the other address into the document (extra)",))
    return Finding(code="guest-without-address", severity=Severity.BLOCKS, where=inner.title, what=f"{inner.guest} has no IPv{ip_address(wanted).version} address on {inner.link['name']}; {wanted} is meant for it",
                   why="no DHCP client runs there, its question or the answer is lost, or nobody has set the address", evidence=evidence,
                   fix=(f"kvmnet why {inner.guest} host --udp 67   # whether DHCP would come through", f"a DHCP client in {inner.guest} for {inner.link['name']}"))


def other_prefix(view: View, inner: Inner) -> Iterator[Finding]:
    for version in (4, 6):
        for own in inner.addresses(version):
            theirs = next((b for b in bridge_addresses(view, inner, version) if own.ip in b.network), None)
            if theirs and own.network.prefixlen not in (theirs.network.prefixlen, own.max_prefixlen):
                missed = "takes machines of other networks for neighbours, and asks for them in vain" if own.network.prefixlen < theirs.network.prefixlen else "takes some neighbours for far away, and sends their packets to its router"
                yield Finding(code="guest-other-prefix", severity=Severity.DEGRADES, where=inner.title, what=f"{inner.guest} has {own} on {inner.link['name']}, its network is {theirs.network}",
                              why=f"the guest {missed}", evidence=(f"in {inner.guest}: {own}", f"the host's own on that segment: {theirs}"),
                              fix=(f"kvmnet vm exec {inner.guest} ip addr replace {own.ip}/{theirs.network.prefixlen} dev {inner.link['name']}", f"kvmnet vm exec {inner.guest} ip addr del {own} dev {inner.link['name']}"))


def duplicate_address(view: View, inner: Inner) -> Iterator[Finding]:
    for row in inner.link.get("addresses", ()):
        if row.get("failed"):
            yield Finding(code="guest-duplicate-address", severity=Severity.BLOCKS, where=inner.title, what=f"{inner.guest} does not use {row['local']}: another machine answered for it",
                          why="an IPv6 address is given up when duplicate address detection finds it in use (RFC 4862)", evidence=(f"in {inner.guest}: {row['local']} is dadfailed",),
                          fix=(f"give {inner.guest} another address, or find who has it: ip -6 neigh show {row['local']}",))


def gateway(view: View, inner: Inner) -> Iterator[Finding]:
    """What the guest knows of the routers of its default routes."""
    for row in inner.inside.get("routes", ()):
        if row["dst"] == "default" and row["dev"] == inner.link["name"] and row["via"]:
            yield from next_hop(inner, row["via"], owners(view).get(row["via"], ""), "the host")


def next_hop(inner: Inner, address: str, mac: str, who: str) -> Iterator[Finding]:
    """What the guest's neighbour table has for an address. ``mac``: who has it, ''  where that is not known."""
    known = inner.neighbour(address)
    shown = (f"in {inner.guest}: ip neigh: {address} {known.get('mac') or 'no MAC'} {known.get('state', '')}",)
    if known.get("mac") and mac and known["mac"] != mac:
        yield Finding(code="guest-wrong-neighbour", severity=Severity.BLOCKS, where=inner.title, what=f"{inner.guest} takes {known['mac']} for the MAC of {address}, but {who} has it with {mac}",
                      why="its frames go to a MAC that is not there: a router has changed, somebody else answered (ARP spoofing), or an entry was written by hand", evidence=shown,
                      fix=(f"kvmnet vm exec {inner.guest} ip neigh del {address} dev {inner.link['name']}",))
    elif known.get("state") in DEAD:
        yield Finding(code="guest-gateway-silent", severity=Severity.BLOCKS, where=inner.title, what=f"{inner.guest} has asked for {address} and got no answer", certainty=Certainty.LIKELY,
                      why="it sends nothing there as long as nobody answers" + ("" if mac else "; the host does not have that address"), evidence=shown,
                      fix=(f"kvmnet why {inner.guest} {address}   # what loses the question",) if mac else (f"the right gateway in {inner.guest}: ip route replace default via ADDRESS",))


def mtu(view: View, inner: Inner) -> Iterator[Finding]:
    port, own = int(view.links[inner.tap].get("mtu", 0)), int(inner.link.get("mtu", 0))
    if own and port and own != port:
        large = own > port
        yield Finding(code="guest-mtu", severity=Severity.DEGRADES if large else Severity.NOTE, where=inner.title, what=f"the MTU of {inner.link['name']} in {inner.guest} is {own}, that of its port {inner.tap} is {port}",
                      why="what it sends larger is dropped on the way, and nobody tells it" if large else "others on its segment may send it larger packets, which its card may drop", evidence=(f"in {inner.guest}: mtu {own}; {inner.tap} mtu {port}",),
                      fix=(f"kvmnet vm exec {inner.guest} ip link set {inner.link['name']} mtu {port}",))


def nested_mtu(view: View, inner: Inner) -> Iterator[Finding]:
    """Where the guest forwards by this card."""
    own, name = int(inner.link.get("mtu", 0)), inner.link["name"]
    if inner.inside.get("settings", {}).get("net.ipv4.ip_forward") != "1" or not any(r["dst"] == "default" and r["dev"] == name for r in inner.inside.get("routes", ())):
        return
    for link in inner.inside.get("links", ()):
        if not link.get("hardware") and link["name"] != inner.link.get("master") and link.get("up") and int(link.get("mtu", 0)) > own:
            yield Finding(code="guest-nested-mtu", severity=Severity.DEGRADES, where=inner.title, what=f"{link['name']} in {inner.guest} has MTU {link['mtu']}, the card {name} by which it leaves {own}", certainty=Certainty.LIKELY,
                          why="containers and guests there send packets that do not fit: they get through only as long as every firewall on the way back lets ICMP say so", evidence=(f"in {inner.guest}: {link['name']} mtu {link['mtu']}, {name} mtu {own}, ip_forward 1",),
                          fix=(f"kvmnet vm exec {inner.guest} ip link set {link['name']} mtu {own}   # and of what is in it; of Docker: \"mtu\": {own} in daemon.json",))


def queues_unused(view: View, inner: Inner) -> Iterator[Finding]:
    offered, used = int(inner.nic.get("queues") or 1), int(inner.link.get("queues", 0))
    can = min(offered, inner.cpus)
    taken = (inner.nic.get("negotiated") or {}).get("taken", ())
    if used and used < can:
        yield Finding(code="guest-queues-unused", severity=Severity.NOTE, where=inner.title, what=f"{inner.guest} uses {used} of the {offered} queues of {inner.link['name']}, and has {inner.cpus} processors",
                      why="one queue is served by one processor at a time", evidence=(f"in {inner.guest}: {used} queues of {inner.link['name']}", f"{'mq was negotiated' if 'mq' in taken else 'its driver did not take mq'}"),
                      fix=(f"kvmnet vm exec {inner.guest} ethtool -L {inner.link['name']} combined {can}",))


OFFLOADED = {"tx-checksum": "csum", "tso": "host_tso4", "rx-checksum": "guest_csum"}
"""Offload as the guest names it -> the feature of the card that makes it possible."""


def offloads_off(view: View, inner: Inner) -> Iterator[Finding]:
    told, taken = inner.link.get("offloads") or {}, (inner.nic.get("negotiated") or {}).get("taken", ())
    off = [name for name, feature in OFFLOADED.items() if told.get(name) is False and feature in taken]
    if off:
        yield Finding(code="guest-offloads-off", severity=Severity.NOTE, where=inner.title, what=f"{inner.guest} has switched {', '.join(off)} off on {inner.link['name']}, which the card offers",
                      why="every packet of 1,500 bytes is then made and summed up by itself: several times less throughput", evidence=tuple(f"in {inner.guest}: ethtool -k {inner.link['name']}: {n} off" for n in off),
                      fix=(f"kvmnet vm exec {inner.guest} ethtool -K {inner.link['name']} {' '.join(OPTIONS[n] + ' on' for n in off)}",))


OPTIONS = {"tx-checksum": "tx", "tso": "tso", "rx-checksum": "rx"}


def without_resolver(view: View, inner: Inner) -> Iterator[Finding]:
    """Only where a server on its segment would answer it."""
    bridge = view.links[inner.tap].get("master", "")
    serves = any(bridge in s.get("interfaces", ()) and s.get("port") for s in view.rows("dhcp_servers"))
    if serves and "resolvers" in inner.inside and not inner.inside["resolvers"] and inner.addresses():
        yield Finding(code="guest-without-resolver", severity=Severity.DEGRADES, where=inner.title, what=f"{inner.guest} knows no server for names", certainty=Certainty.LIKELY,
                      why="/etc/resolv.conf names none: addresses work, names do not", evidence=(f"in {inner.guest}: no nameserver in /etc/resolv.conf",), fix=(f"a DHCP client in {inner.guest} that writes /etc/resolv.conf, or nameserver ADDRESS there",))


def subnet_overlap(view: View, inner: Inner) -> Iterator[Finding]:
    """Another device of the guest's with addresses of the card's own subnet."""
    for link in inner.inside.get("links", ()):
        if link.get("hardware") or link["name"] == inner.link.get("master") or not link.get("up"):
            continue
        for own in inner.addresses():
            for row in link.get("addresses", ()):
                other = ip_interface(f"{row['local']}/{row['prefixlen']}")
                if other.version == own.version and other.network.prefixlen < other.max_prefixlen and (other.ip in own.network or (other.network.subnet_of(own.network))):  # type: ignore[arg-type]
                    yield Finding(code="guest-subnet-overlap", severity=Severity.BLOCKS, where=inner.title, what=f"{link['name']} in {inner.guest} has {other}, of the subnet {own.network} of its card {inner.link['name']}",
                                  why="it sends what is for its router and its neighbours to that device: typical of libvirt or containers started in a guest, which take the subnet that the host's network has already", certainty=Certainty.LIKELY,
                                  evidence=(f"in {inner.guest}: {inner.link['name']} {own}, {link['name']} {other}",),
                                  fix=(f"kvmnet vm exec {inner.guest} ip addr del {other} dev {link['name']}", f"another subnet for {link['name']}: virsh net-edit, or \"bip\" in Docker's daemon.json"))


CARD: tuple[Judge, ...] = (nic_down, duplicate_address, other_prefix, mtu, subnet_overlap)
"""What is wrong with a card whatever is sent."""


# -- one guest -------------------------------------------------------------------------------------

def other_mac(view: View) -> Iterator[Finding]:
    """Cards whose MAC was changed inside: both sides know a MAC that the other does not."""
    for guest in view.rows("guests"):
        links = (guest.get("inside") or {}).get("links", ())
        inner, outer = {i.get("mac") for i in links}, {n["mac"] for n in guest.get("nics", ()) if n.get("mac")}
        changed = [i for i in links if i.get("hardware") and i.get("mac_set") and not i.get("master") and i["mac"] not in outer]
        for nic, link in zip([n for n in guest.get("nics", ()) if n.get("mac") and n["mac"] not in inner], changed, strict=False):
            yield Finding(code="guest-other-mac", severity=Severity.BLOCKS, where=f"{guest['name']} {link['name']}", what=f"{guest['name']} sends from {link['mac']} by {link['name']}, its card has {nic['mac']}", certainty=Certainty.LIKELY,
                          why="the MAC was changed inside the guest; a guard, a lease and a filter of the card know the other", evidence=(f"in {guest['name']}: {link['name']} {link['mac']} (set by hand)", f"QEMU: {nic['name']} {nic['mac']}"),
                          fix=(f"kvmnet vm exec {guest['name']} ip link set {link['name']} address {nic['mac']}", "or write the MAC into the document"))


def route_of(inside: Json, target: str) -> Json | None:
    """The guest's route to *target*: the longest prefix, of those the lowest metric; None without one."""
    wanted = ip_address(target)
    fitting = [(network.prefixlen, -row["metric"], n, row) for n, row in enumerate(inside.get("routes", ())) if row["version"] == wanted.version
               and wanted in (network := ip_network({4: "0.0.0.0/0", 6: "::/0"}[row["version"]] if row["dst"] == "default" else row["dst"], strict=False))]
    return max(fitting, key=lambda f: f[:2])[3] if fitting else None


def without_route(view: View) -> Iterator[Finding]:
    """Guests whose host would route for them, and that have no default route."""
    done = set()
    for inner in view.inners:
        for version, family in ((4, "inet"), (6, "inet6")):
            key = inner.guest, version
            here = [b for b in bridge_addresses(view, inner, version) if any(a.ip in b.network for a in inner.addresses(version))]
            master = view.links[inner.tap].get("master", "")
            routes = view.forwards(master) if version == 4 else view.routers.get((family, "all"), False)
            out = any((":" in str(r.get("gateway", "")) or r in view.rows("routes6")) == (version == 6) for r in view.ways_out)
            if key in done or inner.link.get("up") is False or not (here and routes and out and "routes" in inner.inside):
                continue
            done.add(key)
            if any(r["version"] == version and r["dst"] in ("default", "0.0.0.0/1", "::/1", "2000::/3") for r in inner.inside["routes"]):
                continue
            yield no_route(inner, "what is outside its networks", str(here[0].ip), Certainty.LIKELY)


def no_route(inner: Inner, target: str, router: str, certainty: Certainty = Certainty.PROVED) -> Finding:
    version = "-6 " if ":" in router else ""
    return Finding(code="guest-without-route", severity=Severity.BLOCKS if certainty is Certainty.PROVED else Severity.DEGRADES, where=inner.title, what=f"{inner.guest} has no route to {target}",
                   why="it sends nothing, and says 'Network is unreachable'", evidence=(f"in {inner.guest}: ip {version}route: " + ("; ".join(
                       f"{r['dst']}{' via ' + r['via'] if r['via'] else ''} dev {r['dev']}" for r in inner.inside["routes"][:8] if (r["version"] == 6) == bool(version)) or "none"),),
                   fix=(f"kvmnet vm exec {inner.guest} ip {version}route add default via {router or 'GATEWAY'} dev {inner.link['name']}",), certainty=certainty)


# -- on the path of a packet -----------------------------------------------------------------------

def hop(trip: Trip, inner: Inner, more: str = "") -> None:
    told = [", ".join(str(a) for a in inner.addresses(trip.packet.version)) or "no address", f"MTU {inner.link['mtu']}" if "mtu" in inner.link else "",
            f"{inner.link['queues']} queues" if inner.link.get("queues", 1) > 1 else "", more]
    trip.hop(f"{inner.title}", "inside", f"{'down' if inner.link.get('up') is False else 'up'}, {', '.join(t for t in told if t)}")


def unheard(trip: Trip, end: End) -> None:
    """Of a guest of ours that told nothing: why."""
    for guest in trip.scene.rows("guests"):
        reason = (guest.get("inside") or {}).get("agent")
        if reason and any(n.get("tap") == end.dev for n in guest.get("nics", ())):
            trip.hops[-1].words += f"{'; ' if trip.hops[-1].words else ''}its inside is not seen: {reason}"


def sends(trip: Trip, a: End, b: End) -> None:
    """What stands in the way inside the guest that sends."""
    if not (inner := inner_of(trip.scene, a)):
        return
    target = trip.packet.target
    row = route_of(inner.inside, target) if "routes" in inner.inside else {}
    hop(trip, inner, f"{row['dst']}{' via ' + row['via'] if row['via'] else ''}" if row and row["type"] == "unicast" else "")
    card(trip, inner, a)
    if inner.link.get("up") is False:
        return      # its routes are gone with it
    if row is None or (row and row["type"] != "unicast"):
        routers = [str(x.ip) for x in bridge_addresses(trip.scene, inner, trip.packet.version)]
        trip.find(no_route(inner, target, routers[0] if routers else ""))
    elif row and row["dev"] == inner.link["name"]:
        after = row["via"] or target
        mac = owners(trip.scene).get(after, "") or (b.mac if b.place is Place.NIC and after == b.ip else "")
        if not row["via"] and b.place is Place.OUTSIDE and bridge_addresses(trip.scene, inner, trip.packet.version):
            off_link(trip, inner, target)
        for finding in next_hop(inner, after, mac, b.title if after == b.ip else "the host"):
            trip.find(finding)
    elif row:
        trip.blocks("guest-other-card", inner.title, f"{inner.guest} sends packets to {target} by {row['dev']}, not by {inner.link['name']}", "its own routing table chooses the card",
                    f"in {inner.guest}: {row['dst']} dev {row['dev']}", severity=Severity.NOTE)
    firewall(trip, inner, trip.packet, "output", "postrouting")


def off_link(trip: Trip, inner: Inner, target: str) -> None:
    """It takes what is elsewhere for a neighbour."""
    for finding in other_prefix(trip.scene, inner):
        if any(ip_address(target) in a.network for a in inner.addresses()):
            trip.find(replace(finding, severity=Severity.BLOCKS))


def receives(trip: Trip, b: End) -> None:
    """What stands in the way inside the guest that the packet comes to."""
    if not (inner := inner_of(trip.scene, b)):
        return
    hop(trip, inner)
    card(trip, inner, b)
    changed = firewall(trip, inner, trip.packet, "prerouting", "input")
    if trip.context.flow is None and not changed:
        service(trip, inner)


def card(trip: Trip, inner: Inner, end: End) -> None:
    for judge in CARD:
        for finding in judge(trip.scene, inner):
            trip.find(finding)
    has = inner.addresses(ip_address(end.ip).version)
    if "addresses" in inner.link and ip_address(end.ip) not in [a.ip for a in has] and inner.link.get("up") is not False and not ip_address(end.ip).is_link_local:
        trip.find(lacks(inner, end.ip, has))


def firewall(trip: Trip, inner: Inner, packet: Packet, *hooks: str) -> bool:
    """The guest's own rules, as far as it may read them. Whether they changed the packet."""
    told = inner.inside
    if told.get("nft_text") and not told.get("nft"):
        trip.blocks("rule-unknown", f"{inner.guest}: nft", f"{inner.guest} has rules of its own, which could not be read", "nft inside the guest printed what cannot be parsed", certainty=Certainty.UNKNOWN)
    if not any(told.get(name) for name in ("nft", "xtables")):
        return False
    scene = Scene({"format": 1, "links": [], "nft": told.get("nft"), "nft_text": told.get("nft_text", ""), "xtables": {"ip": told["xtables"]} if told.get("xtables") else {}})
    context = Context(packet, flow=trip.context.flow, alone=True, pkttype=HOST, fib=lambda *_: UNKNOWN)
    changed = False
    for hook in hooks:
        inwards = hook in ("prerouting", "input")
        context.iif, context.oif = (inner.link["name"], "") if inwards else ("", inner.link["name"])
        for passage in at_hook(scene.rules, context, "ip", hook):
            changed = changed or bool(passage.judgement.changed)
            if passage.verdict is not Verdict.ACCEPT:
                found = by_rule(scene, context, passage, asked=False)
                trip.find(replace(found, code="rule-unknown" if passage.verdict is Verdict.UNKNOWN else "guest-firewall", where=f"{inner.guest}: {found.where}", what=f"inside {inner.guest}: {found.what}",
                                  why=found.why if passage.verdict is Verdict.UNKNOWN else f"a firewall of {inner.guest} itself: nothing on the host can let it pass", fix=tuple(f"in {inner.guest}: {f}" for f in found.fix)))
    return changed


def service(trip: Trip, inner: Inner) -> None:
    """Whether a program of the guest listens."""
    packet, told = trip.packet, inner.inside.get("listening")
    if told is None or not packet.upper or packet.upper[0] not in (TCP, UDP):
        return
    proto, port, target = {TCP: "tcp", UDP: "udp"}[packet.upper[0]], packet.ports[1], ip_address(packet.target)
    some: list[Any] = [s for s in told if (s["proto"], s["port"]) == (proto, port)]
    if not any(listens(s["address"], str(target)) for s in some):
        trip.blocks("nobody-listens", f"{inner.guest} {proto} {port}", f"nobody in {inner.guest} listens on {proto} {port} of {target}", "the guest answers with a reset or port unreachable",
                    *(f"in {inner.guest}: a program listens on {s['address']} only" for s in some))


def listens(own: str, target: str) -> bool:
    """Whether a socket on *own* takes what comes for *target* (:: takes both families, net.ipv6.bindv6only aside)."""
    address, wanted = ip_address(own), ip_address(target)
    return address == wanted or own == "::" or (own == "0.0.0.0" and wanted.version == 4) or str(ip_interface(own).ip) == f"::ffff:{target}"
