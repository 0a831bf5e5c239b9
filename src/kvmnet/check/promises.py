"""What a network promises to its guests, proved from a station on it: addresses, names, ways, sizes.

Each function proves one claim; None means that the document does not promise it.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import ip_address, ip_network

from kvmnet.check import dhcp
from kvmnet.check.echo import AAAA, HEADERS, A, look_up, ping
from kvmnet.check.model import Finding, Subject, failed, passed, skipped
from kvmnet.check.probe import HOSTNAME
from kvmnet.check.station import Listener, Station
from kvmnet.host.packets import device_mtu
from kvmnet.modes import services
from kvmnet.modes.segment import Segment
from kvmnet.records import dataclass
from kvmnet.spec.networks import CLOSED, Mode

SHORT = 0.6
"""Seconds to wait where silence is the expected answer."""
LEAST_MTU6 = 1280
"""Bytes (RFC 8200, 5)."""


@dataclass(frozen=True, slots=True)
class Place:
    """A station on its network, and a second one beside it."""

    segment: Segment
    subject: Subject
    station: Station
    peer: Station
    other_mac: str
    """A MAC that nobody has; likewise the addresses, '' where none is left."""
    other_ip: str
    other_ip6: str
    number: int = 1
    """The probe's number, which its DNS name ends with."""
    uplinks: Sequence[Listener] = ()
    """Ears at the devices that lead outside."""
    mtu: int = 0
    """MTU in bytes that the station is told; 0: the network's."""


Promise = Callable[[Place], Finding | None]
Prove = Callable[[Place], Iterable[tuple[str, Finding | None]]]
"""One or several claims that are proved together."""


# -- addresses and names ---------------------------------------------------------------------------

def dhcp4(place: Place) -> Finding | None:
    """The reserved address, with router and MTU of the document."""
    segment, station = place.segment, place.station
    if services.dhcp4(segment) is None:
        return None
    if not station.ip:
        return skipped("no IPv4 address of the pool is free for a probe")
    lease = dhcp.lease4(station)
    if lease.error:
        return failed(lease.error)
    wrong = difference({"address": (lease.address, station.ip), "router": (lease.router, services.router(segment)),
                        "MTU": (lease.mtu, place.mtu or segment.mtu)})
    if wrong:
        return failed(f"{lease.server} gives {wrong}")
    dhcp.release4(station, lease)
    way = f", router {lease.router}" if lease.router else ""
    return passed(f"{lease.address} from {lease.server}{way}, MTU {lease.mtu}")


def difference(pairs: dict[str, tuple[object, object]]) -> str:
    """Words for what is not as wanted; '' when all is."""
    return ", ".join(f"{name} {got or 'none'} instead of {want or 'none'}"
                     for name, (got, want) in pairs.items() if got != want)


def dhcp6(place: Place) -> Finding | None:
    segment, network, station = place.segment, place.segment.network, place.station
    if not (network.dhcp.enabled and network.subnet6 and segment.address6) or formed_by_guests(segment):
        return None
    if not station.ip6:
        return skipped("no IPv6 address of the pool is free for a probe")
    lease = dhcp.lease6(station)
    if lease.error:
        return failed(lease.error)
    if lease.address != station.ip6:
        return failed(f"the server gives {lease.address} instead of {station.ip6}")
    dhcp.release6(station, lease)
    return passed(f"{lease.address} by DHCPv6")


def formed_by_guests(segment: Segment) -> bool:
    return segment.network.ra == "autoconf" and services.advertises(segment)


def ra(place: Place) -> Finding | None:
    """A router advertisement with the network's prefix, flags and MTU."""
    segment = place.segment
    if not services.advertises(segment):
        return None
    router = dhcp.find_router(place.station)
    if router is None:
        return failed("no router answers a solicitation")
    prefix = str(segment.network.subnet6)
    formed = formed_by_guests(segment)
    pairs: dict[str, tuple[object, object]] = {
        "managed flag": (str(router.managed).lower(), str(not formed).lower()),
        "default route": (str(router.lifetime > 0).lower(), str(segment.network.mode not in CLOSED).lower())}
    if segment.mtu >= LEAST_MTU6:
        pairs["MTU"] = (router.mtu, segment.mtu)
    if formed:
        pairs["prefix"] = (prefix if router.prefixes.get(prefix) else "", prefix)
    if wrong := difference(pairs):
        return failed(f"{router.address} advertises {wrong}")
    flags = "managed" if router.managed else f"prefix {prefix}"
    return passed(f"{router.address} advertises: {flags}, MTU {router.mtu}, lifetime {router.lifetime} s")


def dns(place: Place) -> Finding | None:
    """The name of a guest (of the probe where there is none), by the host's own server."""
    segment = place.segment
    server = segment.address if place.station.ip else ""
    server = server or segment.address6
    if not segment.network.dns.enabled or not server:
        return None
    name, ip, ip6 = known_name(place)
    want, kind = (ip, A) if ip else (ip6, AAAA)
    if not want:
        return skipped("nobody on this network has a name")
    full = f"{name}.{services.domain(segment)}"
    answer = look_up(place.station, server, full, kind)
    if answer.error:
        return failed(f"{full}: {answer.error}")
    if want not in answer.addresses:
        return failed(f"{full} is {', '.join(answer.addresses)} instead of {want}")
    return passed(f"{full} is {want} by {server}")


def known_name(place: Place) -> tuple[str, str, str]:
    for nic in place.segment.nics:
        if nic.hostname and (nic.ip or nic.ip6):
            return nic.hostname, nic.ip, nic.ip6
    return f"{HOSTNAME}{place.number}", place.station.ip, place.station.ip6


# -- ways ------------------------------------------------------------------------------------------

def gateway(segment: Segment, family: int) -> str:
    """The router of a network, or the host where nothing is routed; '' for none."""
    if family == 4:
        return services.router(segment) or segment.address
    return segment.address6 or segment.network.gateway6 or ""


def own_address(station: Station, family: int) -> str:
    return station.ip if family == 4 else station.ip6


def reaches_gateway(place: Place, family: int) -> Finding | None:
    target = gateway(place.segment, family)
    if not target:
        return None
    if not own_address(place.station, family):
        return skipped(f"no IPv{family} address of the pool is free for a probe")
    echo = ping(place.station, target)
    return passed(f"{target} answers echo") if echo.answered else failed(echo.words)


def reaches_outside(place: Place, family: int) -> Finding | None:
    segment, station = place.segment, place.station
    subnet = segment.network.subnet if family == 4 else segment.network.subnet6
    if segment.network.mode in CLOSED or not subnet or not gateway(segment, family):
        return None
    if not own_address(station, family):
        return skipped(f"no IPv{family} address of the pool is free for a probe")
    target = place.subject.target(family, place.segment.vrf)
    if not target:
        return skipped(f"no IPv{family} address outside is known; name one with --outside")
    beside = segment.network.mode.on_segment and ip_address(target) in ip_network(subnet)
    nonce = os.urandom(12)
    echo = ping(station, target, via="" if beside else gateway(segment, family), nonce=nonce)
    if echo.answered:
        return passed(f"{target} answers echo" + (f", out by {segment.way_out}" if segment.way_out else ""))
    if echo.words and not echo.refused and any(ear.carried(nonce) for ear in place.uplinks):
        back = "" if segment.network.mode is Mode.NAT else f"; does the router there know the way back to {subnet}?"
        return failed(f"{echo.words}, though the question left by the uplink{back}")
    return failed(echo.words)


def reaches_guest(place: Place, family: int) -> Finding | None:
    """From one port to another; of isolated ports the opposite is claimed (``refusals``)."""
    if not place.segment.meeting:
        return None
    target = own_address(place.peer, family)
    if not target or not own_address(place.station, family):
        return None
    echo = ping(place.station, target)
    return passed(f"{target} on another port answers echo") if echo.answered else failed(echo.words)


def carries_mtu(place: Place, family: int) -> Finding | None:
    """A packet of exactly the MTU goes there and back in one piece, one byte more does not."""
    segment, station, mtu = place.segment, place.station, place.segment.mtu
    beside = "" if not segment.meeting else own_address(place.peer, family)
    target = gateway(segment, family) or beside
    if not target or not own_address(station, family) or (family == 6 and mtu < LEAST_MTU6):
        return None
    if mtu < HEADERS[family] + 8:
        return skipped(f"an echo does not fit into {mtu} bytes")
    exact = ping(station, target, size=mtu)
    if not exact.answered:
        return failed(f"{mtu} bytes with DF: {exact.words}")
    if not exact.whole:
        return failed(f"{mtu} bytes with DF: the answer of {target} came in fragments, its MTU is smaller")
    if target == beside:
        return passed(f"{mtu} bytes with DF to {target} and back in one packet")
    more = ping(station, target, size=mtu + 1, patience=SHORT)
    if more.answered and more.whole:
        return failed(f"{mtu + 1} bytes came back from {target} in one packet: its MTU is larger than {mtu}")
    how = "in fragments only" if more.answered else "not at all"
    return passed(f"{mtu} bytes with DF to {target} and back in one packet, {mtu + 1} {how}")


def carries_outside(place: Place, family: int) -> Finding | None:
    """The same by the network's way out. How much fits is this host's business as far as the next hop; what lies
    beyond may be smaller and say so."""
    segment, station, target = place.segment, place.station, place.subject.target(family, place.segment.vrf)
    subnet = segment.network.subnet if family == 4 else segment.network.subnet6
    way = gateway(segment, family)
    if segment.network.mode in CLOSED or not subnet or not way or not target or not own_address(station, family):
        return None
    size = mtu_outside(segment)
    if size < (LEAST_MTU6 if family == 6 else HEADERS[4] + 8):
        return None
    beside = segment.network.mode.on_segment and ip_address(target) in ip_network(subnet)
    via = "" if beside else way
    exact = ping(station, target, via=via, size=size)
    if exact.answered and exact.whole:
        return passed(f"{size} bytes with DF to {target} and back in one packet{smaller(segment, size)}")
    if not ping(station, target, via=via).answered:
        return skipped(f"{target} answers no echo of any size")
    said = exact.words or f"the answer of {target} came in fragments"
    if not place.subject.is_next_hop(target, segment.vrf):
        return skipped(f"{size} bytes with DF: {said}; {target} is beyond the next hop, where an MTU may be smaller")
    return failed(f"{size} bytes with DF: {said}")


def mtu_outside(segment: Segment) -> int:
    """MTU in bytes as far as the next hop: the network's, or that of its way out where that is smaller."""
    return min(segment.mtu, device_mtu(segment.way_out) or segment.mtu)


def smaller(segment: Segment, size: int) -> str:
    return "" if size == segment.mtu else f", the MTU of {segment.way_out}"


def both(prove: Callable[[Place, int], Finding | None], family: int) -> Promise:
    return lambda place: prove(place, family)


PROMISES: dict[str, Promise] = {
    "dhcp4": dhcp4,
    "dhcp6": dhcp6,
    "ra": ra,
    "dns": dns,
    "gateway4": both(reaches_gateway, 4),
    "gateway6": both(reaches_gateway, 6),
    "outside4": both(reaches_outside, 4),
    "outside6": both(reaches_outside, 6),
    "guest-to-guest4": both(reaches_guest, 4),
    "guest-to-guest6": both(reaches_guest, 6),
    "mtu4": both(carries_mtu, 4),
    "mtu6": both(carries_mtu, 6),
    "mtu-outside4": both(carries_outside, 4),
    "mtu-outside6": both(carries_outside, 6),
}
"""Claim -> its proof, in the order of the report."""


def single(name: str, promise: Promise) -> Prove:
    return lambda place: [(name, promise(place))]


def promises() -> Iterator[Prove]:
    return (single(name, promise) for name, promise in PROMISES.items())
