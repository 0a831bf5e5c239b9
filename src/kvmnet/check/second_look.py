"""What packets tell when the same is asked in another way: of the inside of guests without an agent, and of networks behind this host.

A guest gets a ping in the name of the other end, put in at its port: where the answer goes shows what routes and neighbours it has. Who is beyond this host is
asked from the host's own address there, too: one that answers that and not the first has no way back to the first. And where this host has no address
on a bridge, an ARP probe (RFC 5227) shows whether somebody there has the address that was named.
"""
from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_interface
from time import monotonic

from kvmnet.doctor.asking import NOBODY
from kvmnet.doctor.ends import End, Place, by_address, is_address, is_private
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.packet import ARP, ICMP, ICMP6, TCP, UDP, Packet, made, question
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.view import Json
from kvmnet.doctor.why import Report
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture
from kvmnet.host.trace import send_raw
from kvmnet.records import dataclass, field

SECONDS, PACKETS = 1.5, 3
FRAMES = 500
"""Read from a device at a time: a busy one must not hold up the others."""


@dataclass
class Heard:
    """What came by a device after a question."""

    answers: list[str] = field(default_factory=list)
    """MACs that answers went to."""
    asked: list[str] = field(default_factory=list)
    """Addresses that the asked one wants to know the MAC of."""


def is_answer(frame: bytes, mark: int, number: int, asker: str) -> bool:
    """An echo reply with the mark, or what TCP answers the SYN with, at the asker's address."""
    packet = Packet(frame)
    if packet.upper is None or packet.target != asker:
        return False
    if packet.upper[0] == TCP == number:
        return packet.bits("th", 64, 32) == mark + 1
    return packet.upper[0] == number and number != UDP and packet.bits("th", 64, 32) == mark and packet.bits("th", 0, 8) in (0, 129)


def wanted(frame: bytes, mac: str) -> str:
    """The address whose MAC a frame of *mac* asks for; '' of any other frame."""
    packet = Packet(frame)
    if packet.macs[1] != mac:
        return ""
    if packet.protocol == ARP and len(frame) >= packet.network + 28 and frame[packet.network + 7] == 1:
        return str(ip_address(frame[packet.network + 24:packet.network + 28]))
    if packet.version == 6 and packet.upper and packet.upper[0] == ICMP6 and packet.bits("th", 0, 8) == 135:
        return str(ip_address(frame[packet.upper[1] + 8:packet.upper[1] + 24]))
    return ""


def exchange(dev: str, mark: int, number: int, asker: str, asked: str, send: Callable[[Capture], None]) -> Heard:
    """Asks at most ``PACKETS`` times, and listens on *dev* until an answer comes, for at most ``SECONDS``. ``asked``: MAC of who is asked."""
    heard, sent, last = Heard(), 0, 0.0
    with Capture(dev) as wire:
        def step() -> bool:
            nonlocal sent, last
            if sent < PACKETS and monotonic() - last > SECONDS / PACKETS / 2:
                last, sent = monotonic(), sent + 1
                send(wire)
            for _ in range(FRAMES):
                if (told := wire.hear()) is None:
                    break
                if told[1]:
                    continue
                if is_answer(told[0], mark, number, asker):
                    heard.answers.append(Packet(told[0]).macs[0])
                elif address := wanted(told[0], asked):
                    heard.asked.append(address)
            return bool(heard.answers)
        with suppress(TimeoutError):
            wait_until(step, SECONDS, 0.01)
    return heard


# -- inside guests ---------------------------------------------------------------------------------

def inside(scene: Scene, report: Report) -> list[Finding]:
    """What the guests at both ends do with a packet of the other end."""
    a, b = report.source, report.target
    found = of_guest(scene, a, b.ip, b)
    if report.leaves_as and not report.moved:
        found += of_guest(scene, b, report.leaves_as, a)
    return found


def of_guest(scene: Scene, guest: End, other: str, end: End) -> list[Finding]:
    """Whether the guest's answers to *other* find their way out of it. Nothing where its port cannot be asked, or nobody answers there at all."""
    bridge = scene.bridge_of(guest.dev)
    if guest.place is not Place.NIC or not bridge or not guest.mac or scene.kind(guest.dev) not in ("tun", "veth") or (Place.NIC is end.place and not end.mac):
        return []
    version = ip_address(other).version
    near = [str(ip_interface(a).ip) for a in scene.addresses_of(bridge, version) if ip_address(guest.ip) in ip_interface(a).network]
    direct = end.place is Place.NIC and end.segment == bridge and other == end.ip
    if not direct and not near:     # its router is another machine
        return []
    if not direct and any(ip_address(other) in ip_interface(a).network for a in scene.addresses_of(bridge, version)):     # it rightly looks for that on its own segment
        return []
    router = end.mac if direct else scene.mac(bridge)
    heard = ping(scene, guest, other, router)
    astray = next((mac for mac in heard.answers if mac != router and (direct or mac not in scene.macs_at(bridge))), "")
    if astray:
        return [sent_astray(scene, guest, other, router, astray)]
    if heard.answers:
        return []
    questions = [a for a in dict.fromkeys(heard.asked) if a not in near]
    if questions and not direct:
        return [asked_for(guest, other, questions[0], near[0])]
    if direct or heard.asked or not ping(scene, guest, near[0], router).answers:
        return []
    return [Finding(code="guest-without-route", severity=Severity.BLOCKS, where=guest.dev, certainty=Certainty.LIKELY, what=f"{guest.title} answers its segment and nobody beyond: it has no route to {other}, or a firewall of its own",
                    why="It got both pings at its port, and sent one answer.", evidence=(f"a ping from {near[0]} was answered at {guest.dev}, one from {other} was not",), fix=(f"# in the guest: ip{' -6' if version == 6 else ''} route add default via {near[0]}",))]


def ping(scene: Scene, guest: End, source: str, router: str) -> Heard:
    """A ping handed to a guest by its port."""
    mark, number = secrets.randbits(31) | 1, ICMP6 if ":" in source else ICMP
    packet = made((guest.mac, router or NOBODY), source, guest.ip, number, (mark % 65536, 1), mark.to_bytes(4, "big") + b"kvmnet why")
    return exchange(guest.dev, mark, number, source, guest.mac, lambda wire: wire.send(packet.frame))


def sent_astray(scene: Scene, guest: End, other: str, router: str, astray: str) -> Finding:
    known = next((port for (_, mac, _), (port, _) in scene.fdb.items() if mac == astray), "") or next((name for name, link in scene.links.items() if link.get("address") == astray), "")
    seen = (f"its answer to {other} went to {astray}, seen at {guest.dev}",)
    if astray == guest.mac:
        return Finding(code="guest-wrong-neighbour", severity=Severity.BLOCKS, where=guest.dev, what=f"{guest.title} sends what is for {other} to its own MAC: it asks nobody for MACs (ARP is off on its card)", why="A card without ARP takes its own MAC for everybody's, and does not answer who asks for its address.",
                       evidence=seen, fix=("# in the guest: ip link set DEV arp on",))
    if known:
        return Finding(code="guest-other-way", severity=Severity.NOTE, where=guest.dev, what=f"{guest.title} sends what is for {other} to {astray}, which is behind {known}", why="Its routes name another router than this host; what that one does is not judged here.", evidence=seen)
    return Finding(code="guest-wrong-neighbour", severity=Severity.BLOCKS, where=guest.dev, what=f"{guest.title} sends what is for {other} to {astray}, which nobody here has; it should be {router}", why="An entry of its neighbour table was written by hand, or is of a machine that is gone.",
                   evidence=seen, fix=("# in the guest: ip neigh flush all; permanent entries: ip neigh del ADDRESS dev DEV",))


def asked_for(guest: End, other: str, address: str, router: str) -> Finding:
    seen = (f"it asks who has {address}, seen at {guest.dev}",)
    if address == other:
        return Finding(code="guest-other-prefix", severity=Severity.BLOCKS, where=guest.dev, what=f"{guest.title} looks for {other} on its own segment", why="Its prefix, or a route without a gateway, takes that address for one of its neighbours'.", evidence=seen,
                       fix=(f"# in the guest: ip route get {other}, which should go via {router}",))
    return Finding(code="guest-gateway-silent", severity=Severity.BLOCKS, where=guest.dev, certainty=Certainty.LIKELY, what=f"{guest.title} sends what is for {other} by {address}, and nobody answers for that", why="The router in its routes is off, or has another address.", evidence=seen,
                   fix=(f"# in the guest: ip{' -6' if ':' in router else ''} route replace default via {router}",))


# -- beyond this host ------------------------------------------------------------------------------

def way_back(scene: Scene, report: Report) -> list[Finding]:
    """Whether what did not answer answers the host's own address on that way: then it has no way back to the address that asked."""
    target, dev, asker, number = report.target, report.leaves_by, report.leaves_as, report.probe.number
    every = [ip_interface(a) for a in scene.addresses_of(dev, report.probe.version) if not ip_interface(a).is_link_local]
    own = [str(a.ip) for a in every if str(a.ip) != asker]
    if target.place is not Place.OUTSIDE or not dev or not asker or number == UDP or not own or any(str(a.ip) == asker and a.network.prefixlen < a.max_prefixlen for a in every):
        return []
    mark = secrets.randbits(31) | 1
    framed = report.leaves_to != NOBODY and scene.links[dev].get("link_type") == "ether"     # past the rules, which may translate this source, too
    packet = made((report.leaves_to, scene.mac(dev)) if framed else (NOBODY, NOBODY), own[0], target.ip, number, (32768 + mark % 28000, report.probe.port), b"" if number == TCP else mark.to_bytes(4, "big") + b"kvmnet why", sequence=mark if number == TCP else 1)
    heard = exchange(dev, mark, number, own[0], "", lambda wire: wire.send(packet.frame) if framed else send_raw(target.ip, packet.frame[14:], scene.domain_of(dev)))
    if not heard.answers:
        return []
    return [Finding(code="no-way-back", severity=Severity.BLOCKS, where=dev, what=f"{target.title} answers {own[0]} and not {asker}: what is behind {dev} has no way back to {asker}, or takes nothing from it",
                    why="The packet leaves this host with that source; the networks behind must have a route to it that leads here.", evidence=(f"sent by {dev} from {asker}: no answer; from {own[0]}: an answer came back",),
                    fix=(f"# on the router behind {dev}: ip{' -6' if ':' in asker else ''} route add {asker} via {own[0]}", f"# or let this host translate it: masquerade what leaves by {dev}"))]


def other_sender(scene: Scene, report: Report) -> list[Finding]:
    """Whether a machine on the guest's own segment that did not answer it answers the host there: then frames of the guest's MAC are refused behind its port."""
    a, b, number = report.source, report.target, report.probe.number
    bridge = scene.bridge_of(b.dev)
    dev = scene.face(bridge, a.dev) if bridge and bridge == scene.bridge_of(a.dev) else ""
    own = next((str(i.ip) for i in map(ip_interface, scene.addresses_of(dev, report.probe.version)) if ip_address(b.ip) in i.network), "") if dev else ""
    if a.place is not Place.NIC or b.place is not Place.NIC or not own or not b.mac or number == UDP:
        return []
    mark = secrets.randbits(31) | 1
    packet = made((b.mac, scene.mac(dev)), own, b.ip, number, (32768 + mark % 28000, report.probe.port), b"" if number == TCP else mark.to_bytes(4, "big") + b"kvmnet why", sequence=mark if number == TCP else 1)
    if not exchange(dev, mark, number, own, "", lambda wire: wire.send(packet.frame)).answers:
        return []
    return [Finding(code="sender-refused", severity=Severity.BLOCKS, where=b.dev, certainty=Certainty.LIKELY, what=f"{b.title} answers {own} and not {a.title}: what is behind {b.dev} takes no frames of {a.mac or 'the guest'}, or nothing from {a.ip}",
                    why="Ports at hosting providers, port security and Wi-Fi let only the MAC of the host's own card through; a firewall of that machine looks the same from here.", evidence=(f"put in at {a.dev} from {a.ip}: no answer; by {dev} from {own}: an answer came back",),
                    fix=("# a routed or nat network instead of a bridge to that port, or the MAC made known there",))]


# -- who is where ----------------------------------------------------------------------------------

def seek(scene: Scene, words: Sequence[str]) -> list[Json]:
    """Neighbours for addresses that nothing on this host knows, on bridges where it has none: who answered a probe there."""
    found: list[Json] = []
    for word in words:
        if not is_address(word) or ":" in word or not is_private(word) or by_address(scene, word).place is not Place.OUTSIDE:
            continue
        for bridge in scene.members:
            if scene.up(bridge) and not scene.addresses_of(bridge, 4):
                found += [{"dst": word, "dev": bridge, "lladdr": mac, "state": ["REACHABLE"]} for mac in answers_on(scene, bridge, word)]
    return found


def answers_on(scene: Scene, bridge: str, address: str) -> list[str]:
    """MACs that answer for an address on a bridge."""
    macs: dict[str, None] = {}
    asked = question(scene.mac(bridge), "0.0.0.0", address).frame
    with Capture(bridge) as wire:
        wire.send(asked)

        def step() -> bool:
            for _ in range(FRAMES):
                if (frame := wire.receive()) is None:
                    break
                packet = Packet(frame)
                at = packet.network
                if packet.protocol == ARP and frame[at + 7:at + 8] == b"\2" and str(ip_address(frame[at + 14:at + 18])) == address:
                    macs[packet.macs[1]] = None
            return bool(macs)
        with suppress(TimeoutError):
            wait_until(step, SECONDS, 0.01)
    return list(macs)
