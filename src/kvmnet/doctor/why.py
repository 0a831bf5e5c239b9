"""Why A does not reach B: the path there and the way back, hop by hop, with everything that stands in it. Pure.

The packet is a real one, as bytes: what each hop makes of it (NAT, marks, MACs) is what the next one sees. The first
packet of a flow goes there, its answer comes back with the flow known to conntrack.
"""
from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address, ip_interface
from typing import Any

from kvmnet.doctor.asking import NOBODY, ask, ask_beyond, heard, host_at, proxied
from kvmnet.doctor.ends import End, Place, by_address, is_private, led_to, pair
from kvmnet.doctor.filters import filters
from kvmnet.doctor.finding import Certainty, Finding, Severity, ranked
from kvmnet.doctor.inside import receives, sends, unheard
from kvmnet.doctor.macvlan import from_shared, into_shared, is_shared, to_shared
from kvmnet.doctor.packet import (
    ICMP,
    ICMP6,
    NO_MAC,
    STATES,
    TCP,
    UDP,
    UNKNOWN,
    Packet,
    Tracked,
    made,
)
from kvmnet.doctor.routed import (
    Undo,
    come_up,
    first_port,
    forward,
    neighbour,
    other_ways,
    refused_address,
    sent,
    to_host,
    way_out,
)
from kvmnet.doctor.routing import Asked, Way, look_up
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.segment import cross, device, enter, leave
from kvmnet.doctor.switched import at_switch, from_beyond, in_switch
from kvmnet.doctor.trip import Hop, State, Trip, begin, state_of
from kvmnet.doctor.tunnels import below
from kvmnet.doctor.unseen import unseen, written
from kvmnet.doctor.vfs import at_vf, is_vf
from kvmnet.doctor.view import owned
from kvmnet.errors import KvmnetError
from kvmnet.records import asdict, dataclass, replace

SPORT = 40000
NEEDED = {"nft": "the rules of nftables", "xtables": "the rules of iptables", "fdb": "the bridges' forwarding tables", "routes4": "the routes", "routes6": "the IPv6 routes",
          "rules4": "the policy rules", "rules6": "the IPv6 policy rules", "netconf": "the forwarding switches", "neighbours": "the neighbour table", "filters": "the filters of tc"}
"""Part of a capture -> what it is; without it nothing is sure."""
EXIT = {State.OK: 0, State.BLOCKED: 1, State.UNKNOWN: 3}


@dataclass(frozen=True, slots=True)
class Probe:
    """The packet that is asked about."""

    protocol: str = "icmp"
    """tcp, udp or icmp."""
    port: int = 0
    version: int = 4

    @property
    def number(self) -> int:
        return {"tcp": TCP, "udp": UDP}.get(self.protocol, ICMP6 if self.version == 6 else ICMP)

    def __str__(self) -> str:
        return f"{self.protocol} {self.port}" if self.port else f"ping{'6' if self.version == 6 else ''}"


@dataclass(frozen=True, slots=True)
class Report:
    source: End
    target: End
    probe: Probe
    there: Sequence[Hop]
    back: Sequence[Hop]
    macs: tuple[str, str] = (NO_MAC, NO_MAC)
    """(destination, source) of the frame that A sends."""
    leaves_by: str = ""
    """Device by which the host sends it on; '' where it does not."""
    leaves_as: str = ""
    """Its source address then."""
    leaves_to: str = ""
    """The MAC of its next hop."""
    moved: bool = False
    """Whether NAT sends it to another end than the one that was named."""
    live: Any = None
    """What packets showed; None where none were sent."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        return ranked(f for hop in (*self.there, *self.back) for f in hop.findings)

    @property
    def state(self) -> State:
        return state_of(self.findings)

    @property
    def blocking(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity is Severity.BLOCKS)

    @property
    def exit_code(self) -> int:
        return EXIT[self.state]

    def to_json(self) -> dict[str, Any]:
        return {"format": 1, "state": str(self.state), "from": asdict(self.source), "to": asdict(self.target), "probe": asdict(self.probe),
                "there": [hop_json(h) for h in self.there], "back": [hop_json(h) for h in self.back], "findings": [f.to_json() for f in self.findings],
                "live": self.live.to_json() if self.live else None}


def hop_json(hop: Hop) -> dict[str, Any]:
    return {"where": hop.where, "what": hop.what, "words": hop.words, "state": str(hop.state), "findings": [f.code for f in hop.findings]}


def why(scene: Scene, source: str, target: str, probe: Probe) -> Report:
    """Raises KvmnetError for ends that are not known."""
    a, b = pair(scene, source, target, probe.version)
    a = faced(scene, a, b)
    b = faced(scene, b, a)
    if a.place is not Place.NIC and b.place is not Place.NIC and a.place is b.place:
        raise KvmnetError(f"{source} and {target} are both {'the host' if a.place is Place.HOST else 'outside'}: no packet between them passes what is looked at here",
                          "name a guest, a NIC, a device, or an address of one; where this host has no address on a bridge, the port with the address: p1@192.0.2.5")
    ports = (SPORT, probe.port)
    first = made((NO_MAC, a.mac or NOBODY), a.ip, b.ip, probe.number, ports)
    there = journey(scene, a, b, first)
    final = there.packet
    tracked = there.context.tracked
    flow = replace(tracked, state=STATES["established"], status=UNKNOWN, direction=1, first=first) if tracked and tracked.state == STATES["new"] else tracked
    reached = there.reached or b
    answer = made((NO_MAC, reached.mac or NOBODY), final.target, final.source, probe.number, (final.ports[1], final.ports[0]) if probe.port else ports, answer=True)
    undo = Undo((a.ip, SPORT if probe.port else 0), (b.ip, probe.port)) if there.translated else None
    back = journey(scene, reached, a, answer, flow or Tracked(state=STATES["established"], direction=1), undo, there.out)
    if reached is not b and a.segment == reached.segment and a.place is reached.place is Place.NIC and final.source == a.ip:
        hairpin(there, a, reached, b.ip)
    return Report(a, b, probe, there.hops, back.hops, there.macs if there.macs[0] else (NO_MAC, NO_MAC), there.left, final.source, final.macs[0], there.reached is not None)


def faced(scene: Scene, end: End, other: End) -> End:
    """The host has many addresses: by name it is the one that the other end is nearest to."""
    if end.place is not Place.HOST or end.name != "host":
        return end
    version = ip_address(other.ip).version
    way = look_up(scene, Asked(other.ip)) if other.place is not Place.HOST else Way("none")
    own = [(ip_interface(a), dev) for dev in (other.segment, way.dev) for a in scene.addresses_of(dev, version)]
    best = next((o for o in own if ip_address(other.ip) in o[0].network), own[0] if own else None)
    if way.source and (dev := scene.owner(way.source)):     # a route may name the address to send from
        best = ip_interface(way.source), dev
    return replace(end, ip=str(best[0].ip), segment=best[1], mac=scene.mac(best[1])) if best else end


def hairpin(trip: Trip, a: End, b: End, asked: str) -> None:
    trip.blocks("hairpin-nat", b.segment, f"{b.title} answers {a.title} directly, not by the address that was asked",
                "the destination was translated, the source was not: both are on one segment, so the answer does not pass the host again, and is not known to the asker",
                f"{asked} was translated to {b.ip}, the source {a.ip} was not", f"{a.ip} and {b.ip} are both on {b.segment}",
                fix=(f"nft add table ip hairpin '{{ chain post {{ type nat hook postrouting priority srcnat; iifname {b.segment} oifname {b.segment} ct status dnat masquerade; }}; }}'",))


# -- one direction ---------------------------------------------------------------------------------

def journey(scene: Scene, a: End, b: End, packet: Packet, flow: Tracked | None = None, undo: Undo | None = None, came: str = "") -> Trip:
    """A packet from one end to the other. ``came``: device by which it comes from outside, where that is known."""
    trip = begin(scene, packet, flow)
    trip.hop(a.title, "guest" if a.place is Place.NIC else str(a.place), a.how)
    unread(trip)
    if a.place is Place.NIC:
        unheard(trip, a)
        sends(trip, a, b)
        from_guest(trip, a, b, undo)
    elif a.place is Place.HOST:
        deliver(trip, sent(trip, a.segment, undo), b)
    else:
        from_outside(trip, a, b, undo, came)
    end = trip.reached or b
    trip.hop(end.title, "guest" if end.place is Place.NIC else str(end.place))
    if end.place is Place.NIC:
        receives(trip, end)
    return trip


def unread(trip: Trip) -> None:
    """Parts of the capture that the host could not tell: they may hold anything."""
    for part, reason in (trip.scene.facts.get("missing") or {}).items():
        if part in NEEDED:
            trip.blocks("facts-missing", part, f"{NEEDED[part]} could not be read", "what stands there is not judged; run it as root, with the tools installed", str(reason), certainty=Certainty.UNKNOWN)


def from_guest(trip: Trip, a: End, b: End, undo: Undo | None) -> None:
    scene, bridge = trip.scene, a.segment
    if is_shared(scene, a):
        from_shared(trip, a, b)
        return
    if is_vf(scene, a):
        at_vf(trip, a, b)
        return
    if not a.dev:
        unseen(trip, a)
    face = scene.face(bridge, a.dev)
    direct = b.place is Place.NIC and b.segment == bridge and on_link(scene, face, a.ip, b.ip) and trip.packet.target == b.ip
    gateway = face if face and scene.kind(face) and (scene.addresses_of(face, trip.packet.version) or led_to(scene, a.ip, scene.domain_of(face)) == face) else ""
    mac = (b.mac if direct else scene.mac(gateway)) or NOBODY
    trip.context.packet = trip.packet.between(mac, trip.packet.macs[1])
    trip.macs = trip.packet.macs
    if a.dev:
        enter(trip, a.dev)
    if not bridge and a.dev and scene.routed(a.dev) and not in_switch(scene, a.dev):
        onward(trip, a.dev, b, undo)
        return
    if not bridge and a.dev and (in_switch(scene, a.dev) or not scene.addresses_of(a.dev, trip.packet.version)):
        lost(trip, a.dev, b)
        bridge = gateway = b.segment if b.place is not Place.OUTSIDE and scene.kind(b.segment) == "bridge" else ""
        if not bridge:
            return
    if direct:
        heard(trip, [ask(scene, a, b)])
        if not b.mac and set(scene.neighbours.get((face, b.ip), {}).get("state", ())) & {"FAILED", "INCOMPLETE"}:
            neighbour(trip, face, b.ip, "")
        proxied(trip, face, b.ip)
        if out := cross(trip, bridge, a.dev, b.dev):
            leave(trip, bridge, a.dev, out)
            below(trip, out)
        return
    if not gateway:
        if b.place is Place.HOST and b.segment and scene.base(b.segment) == bridge:
            not_in_vlan(trip, a, b)
        else:
            by_uplink(trip, a, b)
        return
    router = host_at(scene, gateway, trip.packet.version, a.ip)
    near = b.place is Place.HOST and on_link(scene, face, a.ip, b.ip)     # asked for by its own address, whatever device has it
    heard(trip, [ask(scene, a, replace(router, ip=b.ip) if near else router)])
    refused_address(trip, router.ip)
    cross(trip, bridge, a.dev, "")
    trip.at_bridge("input", bridge, bridge, "")
    if gateway != bridge:
        device(trip, gateway, "vlan")
        filters(trip, gateway, "ingress")
        trip.at("netdev", "ingress", iif=gateway, where=gateway)
    onward(trip, gateway, b, undo)


def not_in_vlan(trip: Trip, a: End, b: End) -> None:
    """The host has the address on a bridge that goes by VLANs, in another one than the guest's."""
    scene, bridge, vlan = trip.scene, a.segment, trip.scene.pvid(a.dev)
    theirs = str(scene.data(b.segment).get("id")) if b.segment != bridge else ", ".join(str(v) for v, flags in scene.vlans.get(bridge, {}).items() if "Egress Untagged" in flags) or "none"
    trip.hop(bridge, "bridge", f"the host is in VLAN {theirs} there")
    trip.blocks("vlan-mismatch", bridge, f"the host has {b.ip} on {b.segment}, in VLAN {theirs}, and {a.dev} is in VLAN {vlan or 'none'}", "a bridge that goes by VLANs hands to the host what belongs to a VLAN of the bridge's own (bridge vlan, self)",
                f"bridge vlan show dev {bridge}: {', '.join(map(str, scene.vlans.get(bridge, {}))) or 'none'}; {a.dev}: PVID {vlan or 'none'}",
                fix=(f"bridge vlan add dev {bridge} vid {vlan} self   # and a VLAN device on it with an address of the guests' subnet",))


def onward(trip: Trip, dev: str, b: End, undo: Undo | None) -> None:
    """From a device through the host's IP."""
    way = come_up(trip, dev, undo)
    if trip.context.flow is None and trip.packet.target != b.ip:
        b = trip.reached = by_address(trip.scene, trip.packet.target, trip.domain)
        trip.hop(b.title, "nat", "is where it goes")
    if way.type in ("local", "broadcast"):
        to_host(trip, dev)
        if b.place is not Place.HOST and not trip.context.strayed:
            trip.blocks("own-address", "routing", f"{trip.packet.target} is an address of the host itself", "the packet ends here instead of being sent on", way.route)
        return
    if way.type == "unicast" and not (b.place is Place.HOST and any(f.code == "duplicate-detected" for f in trip.findings)):
        forward(trip, dev, way, undo)
        deliver(trip, way, b)


def from_outside(trip: Trip, a: End, b: End, undo: Undo | None, came: str) -> None:
    scene = trip.scene
    if is_shared(scene, b):
        into_shared(trip, b)
        return
    if is_vf(scene, b):
        at_vf(trip, b, a)
        return
    if b.dev and not b.segment and in_switch(scene, b.dev):
        from_beyond(trip, b.dev)
        return
    face = scene.face(b.segment, b.dev)
    if b.place is Place.NIC and b.segment and not (face and scene.addresses_of(face, trip.packet.version)) and (port := first_port(scene, b.segment)):
        trip.context.packet = on_trunk(scene, trip.packet.between(b.mac or NOBODY, NOBODY), b, port)
        enter(trip, port)
        if out := cross(trip, b.segment, port, b.dev):
            leave(trip, b.segment, port, out)
        return
    way = look_up(scene, Asked(a.ip))
    dev = came or (way.dev if way.type == "unicast" else "")
    if not dev:
        trip.hop("uplink", "uplink", "which device it comes by is not known: there is no route to it")
        return
    port = first_port(scene, dev) if scene.kind(dev) == "bridge" else ""
    trip.context.packet = trip.packet.between(scene.mac(dev), NOBODY)
    if port:
        enter(trip, port)
        cross(trip, dev, port, "")
        trip.at_bridge("input", dev, dev, "")
    else:
        device(trip, dev, "uplink")
        filters(trip, dev, "ingress")
        trip.at("netdev", "ingress", iif=dev, where=dev)
    onward(trip, dev, b, undo)


def on_trunk(scene: Scene, packet: Packet, b: End, port: str) -> Packet:
    """A frame as it comes from outside to a guest: with the tag of its VLAN, where the port has that tagged."""
    vlan = scene.pvid(b.dev) if b.dev and scene.filters_vlans(b.segment) else 0
    return packet.tagged_with(vlan) if vlan and "Egress Untagged" not in scene.vlans.get(port, {}).get(vlan, ()) else packet


def by_uplink(trip: Trip, a: End, b: End) -> None:
    """The guest's router is not this host: its frames leave by the bridge's uplink."""
    scene, bridge = trip.scene, a.segment
    if not bridge and in_switch(scene, a.dev):
        at_switch(trip, a.dev, b)
        return
    if not bridge:
        trip.hop(a.dev or "?", "port", "no bridge")
        trip.blocks("not-followed", a.dev or a.title, f"{a.dev or a.title} is in no bridge of this host", "a macvtap, a VF or another switch carries its frames: they are not followed here", certainty=Certainty.UNKNOWN)
        return
    port = first_port(scene, bridge)
    if trip.packet.version == 6 and scene.sysctl(f"net/ipv6/conf/{bridge}/disable_ipv6") == "1" and scene.addresses_of(bridge, 4):
        trip.hop(bridge, "route", "no IPv6")
        trip.blocks("ipv6-disabled", bridge, f"IPv6 is switched off on {bridge}: the host has no address there", "it answers no neighbour discovery, sends no router advertisement and forwards nothing", f"net.ipv6.conf.{bridge}.disable_ipv6 = 1",
                    fix=(f"sysctl -w net.ipv6.conf.{bridge}.disable_ipv6=0   # its addresses must be given anew",))
        return
    if not port:
        trip.hop(bridge, "bridge", "no way out")
        trip.blocks("no-uplink", bridge, f"{bridge} has no port that leads out, and the host has no address on it", "the guest has no router: it reaches its own segment only",
                    f"ports: {', '.join(scene.members.get(bridge, ())) or 'none'}", fix=("kvmnet apply   # gives it the addresses that the document has for it",) if owned(bridge) else (f"ip addr add ADDRESS/LENGTH dev {bridge}",))
        return
    leave(trip, bridge, a.dev, port)
    below(trip, port)
    under = str(scene.links[port].get("link", ""))
    if scene.kind(port) in ("vlan", "bond") and under in scene.links:
        way_out(trip, under)
    trip.hop("outside", "outside", f"by {port}; what is beyond is not seen from here")


def deliver(trip: Trip, way: Way, b: End) -> None:
    """By the device of a route to the next hop."""
    scene, dev = trip.scene, way.dev
    if not dev or way.type != "unicast" or (scene.bridge_of(dev) and scene.base(dev) == dev):
        return
    if is_shared(scene, b):
        to_shared(trip, way, b)
        return
    if is_vf(scene, b):
        way_out(trip, dev)
        at_vf(trip, b, b)
        return
    hop = way.via or trip.packet.target
    there = b if b.place is Place.NIC and hop == b.ip else None
    wrong_segment(trip, way, b, hop)
    other_ways(trip, way, trip.packet.target)
    trip.left = dev
    trip.context.linked = True
    asks = not (there is None and scene.kind(dev) in ("tun", "wireguard"))
    if asks and scene.kind(dev) != "bridge" and (own := scene.addresses_of(dev, trip.packet.version)):
        heard(trip, [ask_beyond(scene, dev, own[0].partition("/")[0], hop)])
    if asks:
        without_gateway(trip, way, hop)
    mac = neighbour(trip, dev, hop, there.mac if there else "") if asks else ""
    trip.context.packet = trip.packet.between(mac or NOBODY, scene.mac(dev) or NO_MAC)
    bridge = scene.base(dev)
    if scene.kind(bridge) == "bridge":
        if there:
            heard(trip, [ask(scene, host_at(scene, dev, trip.packet.version, b.ip), there)])
        down(trip, dev, bridge)
        expected = there.dev if there else first_port(scene, bridge)
        if there and not there.dev:
            unseen(trip, there)
            written(trip, there)
        elif out := cross(trip, bridge, "", expected):
            leave(trip, bridge, "", out)
            below(trip, out)
        return
    trip.out = dev
    way_out(trip, dev)
    if there and there.dev and dev in scene.switched:
        at_switch(trip, dev, there)
    if b.place is Place.OUTSIDE:
        answered_for(trip, dev)
        private_source(trip, b)


def without_gateway(trip: Trip, way: Way, hop: str) -> None:
    """A default route that names a device and no router: every address is asked for on that segment, and nobody there has those of elsewhere."""
    scene = trip.scene
    silent = set(scene.neighbours.get((way.dev, hop), {}).get("state", ())) & {"FAILED", "INCOMPLETE"}
    if way.via or not silent or not way.route.startswith("default") or any(ip_address(hop) in ip_interface(a).network for a in scene.addresses_of(way.dev, trip.packet.version)):
        return
    trip.hop("routing", "route", "no gateway")
    trip.blocks("route-without-gateway", way.dev, f"the default route leads to {way.dev} without a gateway: the host asks on that segment for the MAC of {hop} itself", "that works only where somebody there answers for every address (proxy ARP); on a segment of guests nobody does", way.route,
                f"ip neigh show {hop} dev {way.dev}: {'/'.join(silent)}", fix=(f"ip{' -6' if trip.packet.version == 6 else ''} route replace default via GATEWAY dev UPLINK",), certainty=Certainty.LIKELY)


def down(trip: Trip, dev: str, bridge: str) -> None:
    """From the host's IP into a bridge, by the bridge itself or a VLAN device on it (br_dev_xmit())."""
    for name in dict.fromkeys((dev, bridge)):
        trip.at("netdev", "egress", oif=name, where=name)
        filters(trip, name, "egress")
        device(trip, name, "bridge" if name == bridge else "vlan")
        if name != bridge:
            trip.context.packet = trip.packet.tagged_with(int(trip.scene.data(dev).get("id", 0)))
    outside_vlan(trip, bridge)


def outside_vlan(trip: Trip, bridge: str) -> None:
    """A bridge that goes by VLANs takes from the host what belongs to a VLAN of its own."""
    scene, vlan = trip.scene, trip.packet.vlan
    if vlan and scene.filters_vlans(bridge) and vlan not in scene.vlans.get(bridge, {}):
        trip.blocks("vlan-mismatch", bridge, f"{bridge} takes no frames of VLAN {vlan} from the host", "the host's side of a bridge that goes by VLANs is a port like the others", f"bridge vlan show dev {bridge}: {', '.join(map(str, scene.vlans.get(bridge, {}))) or 'none'}",
                    fix=(f"bridge vlan add dev {bridge} vid {vlan} self",))


def wrong_segment(trip: Trip, way: Way, b: End, hop: str) -> None:
    """A route that leads away from the bridge that a guest is on. By a gateway that is right where the host is no router there."""
    scene, dev = trip.scene, way.dev
    if b.place is not Place.NIC or not b.segment or b.segment == scene.base(dev) or b.dev not in scene.links:
        return
    own = next((a for a in scene.addresses_of(b.segment, trip.packet.version) if ip_address(b.ip) in ip_interface(a).network), "")
    if hop == b.ip or own or (trip.context.flow is not None and trip.hops[0].what == "outside"):     # forwarded to who has asked by this host's IP
        trip.blocks("wrong-segment", dev, f"the route to {b.ip} leads to {dev}, but {b.dev} is on {b.segment}", "the question who has it is asked on the wrong segment" if hop == b.ip else f"the packet goes to {hop} instead: the route of the guests' subnet is gone, or another is preferred",
                    way.route, fix=led_right(scene, way, b, own))


def led_right(scene: Scene, way: Way, b: End, own: str) -> tuple[str, ...]:
    """What brings packets for a guest back to its segment: its port into the bridge that has its subnet, the route of its subnet, or the end of the route that is preferred to it."""
    if not own and way.via:
        return (f"ip{' -6' if ':' in b.ip else ''} route add {b.ip} dev {b.segment}",)
    if not own:
        return (f"ip link set {b.dev} master {scene.base(way.dev)}",) if scene.kind(scene.base(way.dev)) == "bridge" and not scene.addresses_of(b.segment, ip_address(b.ip).version) else ()
    if way.route.startswith("default"):
        return (f"ip route replace {ip_interface(own).network} dev {b.segment} src {ip_interface(own).ip}",)
    text, _, table = way.route.rstrip(")").partition(" (table ")
    return (f"ip{' -6' if ':' in b.ip else ''} route del {text}{'' if table == 'main' else ' table ' + table}",)


def answered_for(trip: Trip, dev: str) -> None:
    """The source of a guest that is routed, and seems to be on the segment that it leaves by: who is there asks for its MAC, and this host must answer (arp_process(), ndisc_recv_ns())."""
    scene, source, version = trip.scene, trip.packet.source, trip.packet.version
    if trip.context.flow is not None or source in scene.own or scene.on_link(source) != dev or not (back := led_to(scene, source, trip.domain)) or scene.base(dev) == back:
        return
    entry = any(row.get("dst") == source and row.get("dev") == dev for row in scene.part("proxies"))
    if (version == 4 and (entry or "1" in (scene.sysctl(f"net/ipv4/conf/{d}/proxy_arp") for d in ("all", dev)))) or (entry and "1" in (scene.sysctl(f"net/ipv6/conf/{d}/proxy_ndp") for d in ("all", dev))):
        return
    what = "proxy ARP" if version == 4 else "proxy neighbour discovery"
    fix = f"ip neigh add proxy {source} dev {dev}" if version == 4 else f"sysctl -w net.ipv6.conf.{dev}.proxy_ndp=1 && ip -6 neigh add proxy {source} dev {dev}"
    trip.blocks("source-unanswered", dev, f"the packet leaves {dev} with the source {source}, which is in the prefix of {dev}, and this host does not answer for it there", f"the machines behind {dev} take {source} for one of their own segment and ask who has it; unless their router has a route to it by this host, {what} must answer",
                f"{source} is behind {back}, the prefix of {dev} is {', '.join(scene.addresses_of(dev, version))}", fix=(fix,), severity=Severity.NOTE, certainty=Certainty.UNKNOWN)


def private_source(trip: Trip, b: End) -> None:
    """Answers find a private address only where the network outside has a route to it."""
    source, private = trip.packet.source, is_private(trip.packet.source)
    trip.hop("outside", "outside", "what is beyond is not seen from here")
    tracked = trip.context.tracked
    if trip.scene.rules.translates and tracked is not None and tracked.state == STATES["untracked"] and source not in trip.scene.own and trip.context.flow is None and private:
        trip.blocks("no-nat", "conntrack", f"the packet leaves with the source {source}: a rule has taken it from connection tracking (notrack), and NAT with it", "NAT translates tracked flows only",
                    "ct state untracked", fix=("nft -a list ruleset | grep notrack   # and take that rule out, or bind it to what needs it",), certainty=Certainty.LIKELY)
    elif private and not is_private(b.ip) and not trip.scene.on_link(b.ip) and source not in trip.scene.own and trip.context.flow is None:
        trip.blocks("no-nat", "outside", f"the packet leaves with the private source {source}", "nobody in the Internet has a route back to it: a NAT on the way must change it, and this host does not",
                    "no masquerade or snat applies to it", fix=(f"nft add table ip nat '{{ chain post {{ type nat hook postrouting priority srcnat; ip saddr {source} oifname {trip.context.oif or 'UPLINK'} masquerade; }}; }}'",),
                    certainty=Certainty.LIKELY)


def lost(trip: Trip, dev: str, b: End) -> None:
    """A port that is nowhere; ``enter`` has said so for taps and veths."""
    if in_switch(trip.scene, dev):
        at_switch(trip, dev, b)
    elif not trip.hops[-1].findings:
        trip.blocks("not-followed", dev, f"{dev} is in no bridge of this host", "what it carries is not followed here", certainty=Certainty.UNKNOWN)


def on_link(scene: Scene, bridge: str, first: str, second: str) -> bool:
    """Whether a guest takes another for one of its own segment: by the host's prefix there, else taken for granted."""
    version = ip_address(first).version
    prefixes = [ip_interface(a).network for a in scene.addresses_of(bridge, version)]
    mine = [p for p in prefixes if ip_address(first) in p]
    return not mine or any(ip_address(second) in p for p in mine)
