"""Where the kernel sends a packet: policy rules, tables, and the way back (fib_rules.c, fib_frontend.c). Pure."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from typing import Any

from kvmnet.doctor.packet import ABSENT, Context, Packet, Value
from kvmnet.doctor.scene import Scene
from kvmnet.records import dataclass, replace

Json = Mapping[str, Any]
MATCHED = frozenset({"priority", "src", "srclen", "dst", "dstlen", "iif", "oif", "fwmark", "fwmask", "table", "action", "not", "protocol", "suppress_prefixlen",
                     "iif_detached", "oif_detached", "goto", "nop", "unresolved"})
"""What of a policy rule is understood."""
ERRORS = {"blackhole": "is lost", "unreachable": "is answered with host unreachable", "prohibit": "is answered with prohibited"}


@dataclass(frozen=True, slots=True)
class Way:
    """What a look-up gives."""

    type: str
    """unicast, local, broadcast, multicast, blackhole, unreachable, prohibit; none without a route."""
    dev: str = ""
    via: str = ""
    """Next hop; '' on the link."""
    route: str = ""
    """The route, and the table that it is in."""
    unsure: str = ""
    """A rule that could not be judged, and might have sent it another way."""
    source: str = ""
    """Address that the host itself would send from."""
    others: tuple[tuple[str, str], ...] = ()
    """(device, next hop) of the other ways of a route that has several: the kernel takes one by a hash of the flow (fib_multipath_hash())."""
    end: str = ""
    """Command that takes the route or rule away, of one that refuses packets."""

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.dev, *(dev for dev, _ in self.others))


@dataclass(frozen=True, slots=True)
class Asked:
    """A look-up."""

    target: str
    source: str = ""
    iif: str = ""
    """'' for what the host sends."""
    oif: str = ""
    mark: int = 0
    protocol: int = 0
    """0 where no packet is meant, but any."""
    ports: tuple[int, int] = (0, 0)
    tos: int = 0
    """Type of service, without the bits of congestion."""


SILENT = frozenset({"FAILED", "INCOMPLETE"})
"""States of neighbours that do not answer."""


def of_packet(packet: Packet, iif: str = "", oif: str = "", mark: int = 0, *, back: bool = False) -> Asked:
    """The look-up for a packet, or for an answer to it."""
    ports, (near, far) = packet.ports, (packet.source, packet.target)
    tos = packet.bits("nh", 8, 8) if packet.version == 4 else 0
    return Asked(near if back else far, far if back else near, iif, oif, mark, packet.upper[0] if packet.upper else 0, (ports[1], ports[0]) if back else ports, tos & 0x1C if isinstance(tos, int) else 0)


def look_up(view: Scene, asked: Asked) -> Way:
    version = ip_address(asked.target).version
    unsure = ""
    domain = view.domain_of(asked.iif) or view.domain_of(asked.oif)
    if domain and asked.oif == domain:
        asked = replace(asked, oif="")
    for rule in sorted(view.part(f"rules{version}"), key=lambda r: r.get("priority", 0)):
        if "l3mdev" in rule:    # a VRF's own table; what it does not know, the rules behind it are asked for
            if domain and (found := in_table(view, version, str(view.data(domain).get("table", "")), asked, None)) is not None:
                return Way(**{**found, "unsure": unsure})
            continue
        applies = holds(rule, asked)
        if applies is None:
            unsure = unsure or f"ip rule {rule.get('priority')}"
            continue
        if not applies:
            continue
        if rule.get("action") in ERRORS:
            return Way(rule["action"], route=f"ip rule {rule.get('priority')}", unsure=unsure, end=f"ip{' -6' if version == 6 else ''} rule del priority {rule.get('priority')}")
        if "table" not in rule:
            continue
        found = in_table(view, version, str(rule["table"]), asked, rule.get("suppress_prefixlen"))
        if found is not None:
            return Way(**{**found, "unsure": unsure})
    return Way("none", unsure=unsure)


def holds(rule: Json, asked: Asked) -> bool | None:
    """Whether a policy rule applies; None when it asks for something that is not known."""
    def prefix(name: str, address: str) -> bool:
        if rule.get(name, "all") == "all":
            return True
        return bool(address) and inside(address, f"{rule[name]}/{rule.get(name + 'len', 32 if '.' in str(rule[name]) else 128)}")

    mark = int(str(rule.get("fwmark", "0")), 0)
    mask = int(str(rule.get("fwmask", "0xffffffff")), 0)
    if set(rule) & KEYS.keys() and (special := packet_is(rule, asked)) is not True:
        return None if special is None else "not" in rule
    found = prefix("src", asked.source) and prefix("dst", asked.target) and rule.get("iif", asked.iif or "lo") == (asked.iif or "lo") and \
        rule.get("oif", asked.oif) == asked.oif and ("fwmark" not in rule or asked.mark & mask == mark)
    if not found:
        return "not" in rule
    return None if set(rule) - MATCHED - KEYS.keys() else "not" not in rule


NUMBERS = {"tcp": 6, "udp": 17, "icmp": 1, "ipv6-icmp": 58, "sctp": 132, "gre": 47, "esp": 50}
KEYS: Mapping[str, int] = {"ipproto": 0, "sport": 0, "dport": 1, "sport_start": 0, "sport_end": 0, "dport_start": 1, "dport_end": 1, "tos": 0}
"""What a policy rule may ask of a packet beside its addresses; of ports which."""


def packet_is(rule: Json, asked: Asked) -> bool | None:
    """Whether a packet has the protocol, the ports and the type of service that a rule asks for; None where it cannot be told."""
    if "ipproto" in rule:
        name = str(rule["ipproto"])
        wanted = NUMBERS.get(name, int(name) if name.isdigit() else None)
        if wanted is None or wanted != asked.protocol:
            return None if wanted is None and asked.protocol else False
    for place, word in enumerate(("sport", "dport")):
        first, last = rule.get(word, rule.get(f"{word}_start")), rule.get(word, rule.get(f"{word}_end"))
        if first is not None and last is not None and not (asked.protocol in (6, 17) and int(first) <= asked.ports[place] <= int(last)):
            return False
    if "tos" in rule:
        try:
            return int(str(rule["tos"]), 0) & 0x1C == asked.tos
        except ValueError:
            return None
    return True


def inside(address: str, network: str) -> bool:
    wanted, held = ip_address(address), ip_network(network, strict=False)
    return wanted.version == held.version and wanted in held


def in_table(view: Scene, version: int, table: str, asked: Asked, suppress: int | None) -> dict[str, Any] | None:
    """The route of one table with the longest prefix, then the least metric."""
    best: tuple[tuple[int, int], Json] | None = None
    for route in routes(view, version, table):
        length = covers(route, asked.target)
        if length is None or (asked.oif and route.get("dev", asked.oif) != asked.oif) or dead(route) or (
                version == 6 and route.get("type") == "multicast" and not asked.oif):
            continue
        order = (-length, int(route.get("metric", 0)))
        if best is None or order < best[0]:
            best = (order, route)
    if best is None or best[1].get("type") == "throw" or (suppress is not None and -best[0][0] <= int(suppress)):
        return None
    route = best[1]
    hops = sorted((h for h in route.get("nexthops", ()) if not dead(h)), key=lambda h: bool(lost(view, str(h.get("dev", "")), gateway(h) or asked.target)))
    hop: Json = hops[0] if hops else route
    text = f"{route.get('dst')}{' via ' + str(gateway(hop)) if gateway(hop) else ''}{' dev ' + hop['dev'] if hop.get('dev') else ''} (table {table})"
    kind = str(route.get("type", "unicast"))
    return {"type": kind, "dev": str(hop.get("dev", "")), "via": gateway(hop), "route": text, "source": str(route.get("prefsrc", "")), "others": tuple((str(h.get("dev", "")), gateway(h)) for h in hops[1:]),
            "end": f"ip{' -6' if version == 6 else ''} route del {'' if hop.get('dev') else kind + ' '}{route.get('dst')}{'' if table == 'main' else ' table ' + table}" if kind in ERRORS else ""}


def lost(view: Scene, dev: str, hop: str) -> str:
    """Why what is sent to a next hop does not arrive there; '' where nothing says so."""
    if dev in view.links and not (view.up(dev) and view.carrier(dev)):
        return f"{dev} {'has no carrier' if view.up(dev) else 'is down'}"
    states = view.neighbours.get((dev, hop), {}).get("state", ())
    return f"nobody answers for {hop} on {dev} ({'/'.join(states)})" if SILENT & set(states) else ""


def gateway(hop: Json) -> str:
    return str(hop.get("gateway") or (hop.get("via") or {}).get("host", ""))


def dead(hop: Json) -> bool:
    return "dead" in hop.get("flags", ())


def routes(view: Scene, version: int, table: str) -> Iterable[Json]:
    return (r for r in view.part(f"routes{version}") if str(r.get("table", "main")) == table)


def covers(route: Json, address: str) -> int | None:
    """Length of a route's prefix when it holds the address."""
    dst = str(route.get("dst", ""))
    if dst in ("default", "0.0.0.0/0", "::/0"):
        return 0
    try:
        network = ip_network(dst, strict=False)
    except ValueError:
        return None
    wanted = ip_address(address)
    return network.prefixlen if network.version == wanted.version and wanted in network else None


def fib(view: Scene) -> Any:
    """What the expression fib of nftables answers (nft_fib_ipv4.c): the type of an address, or the device of the way to it."""
    def answer(context: Context, result: str, flags: frozenset[str]) -> Value:
        packet = context.packet
        address = packet.source if "saddr" in flags else packet.target
        if not address:
            return ABSENT
        if "saddr" in flags and result != "type" and nameless(packet):
            return context.iif if result == "oifname" else 1
        way = look_up(view, Asked(address, oif=context.iif if "iif" in flags and result != "type" else "", mark=int(context.mark) if "mark" in flags and isinstance(context.mark, int) else 0))
        if result == "type":
            if ip_address(address).is_multicast:
                return 5
            return {"local": 2, "broadcast": 3, "blackhole": 6, "unreachable": 7, "prohibit": 8, "multicast": 5}.get(way.type, 1)
        there = way.type in ("unicast", "local")
        return (way.dev if there else "") if result == "oifname" else int(there)
    return answer


def nameless(packet: Packet) -> bool:
    """Of a machine that has no address yet (DHCP): the kernel takes its device for the right one (nft_fib4_eval())."""
    return packet.version == 4 and packet.source.startswith("0.") and (packet.target == "255.255.255.255" or packet.target.startswith("224.0.0."))


def comes_back(scene: Scene, packet: Packet, iif: str, onward: Way, mark: int = 0) -> str:
    """Why the check of the reverse path refuses a packet; '' when it does not. The way back is looked up as if the
    answer came by the device that the packet goes out by (__fib_validate_source()), and without its mark unless
    src_valid_mark is on."""
    strict, source = scene.reverse_path(iif), packet.source
    marked = mark if "1" in (scene.sysctl(f"net/ipv4/conf/{iif}/src_valid_mark"), scene.sysctl("net/ipv4/conf/all/src_valid_mark")) else 0
    way = look_up(scene, of_packet(packet, onward.dev if onward.type == "unicast" else scene.domain_of(iif), mark=marked, back=True))
    if way.type in ("local", "broadcast") and "1" not in (scene.sysctl(f"net/ipv4/conf/{iif}/accept_local"), scene.sysctl("net/ipv4/conf/all/accept_local")):
        return f"its source {source} is the host's own address"
    if strict == 0:
        return ""
    if way.type != "unicast":
        return f"there is no route back to {source}"
    return f"the way back to {source} is by {way.dev or 'another device'} ({way.route})" if strict == 1 and iif not in way.devices and iif != scene.domain_of(way.dev) else ""
