"""A tunnel by WireGuard as an uplink: its link, what it is told, its peers, and who may send to its port. Pure.

The link carries IP packets only: it has no MAC and no neighbours. Who is behind which address is known to the tunnel
alone (``allowed``), and routes lead into it like into any other device.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.wireguard.resources import Tunnel, TunnelPeer, peer_name, tunnel_of
from kvmnet.facts.model import Facts
from kvmnet.records import dataclass
from kvmnet.spec import tunnels, ways
from kvmnet.spec.models import Spec
from kvmnet.spec.wireguard import Wireguard

if TYPE_CHECKING:
    from kvmnet.modes.links import Way
    from kvmnet.modes.segment import Part


def wire_tunnel(part: Part, name: str, wireguard: Wireguard, way: Way, carrier: str, facts: Facts) -> None:
    """``carrier``: the device that its packets take."""
    dev = way.device
    part.resources.append(Link(name=dev, type="wireguard", mtu=way.mtu, up=True, master="", addrgenmode="none",
                               alias=f"kvmnet uplink {name}"))
    part.resources.append(Tunnel(name=dev, dev=dev, port=wireguard.port, key_file=wireguard.private_key_file or "", keyed=True,
                                 carrier=carrier))
    for peer in wireguard.peers.values():
        part.resources.append(TunnelPeer(
            name=peer_name(dev, peer.key), tunnel=dev, allowed=peer.allowed, endpoint=peer.endpoint or "",
            keepalive=peer.keepalive, secret_file=peer.preshared_key_file or "", keyed=True))
    part.policy.tunnels.add((wireguard.port, carrier))
    if not (seen := tunnel_of(facts.state, dev)) or not seen.public:
        part.notes.append(f"uplink {name}: the other hosts need its public key, which kvmnet status shows after apply")


@dataclass(frozen=True, slots=True)
class FarEnd:
    """A peer as it is proved and shown."""

    name: str
    public: str
    address: str
    """Its own address in the tunnel; '' when the document does not say."""


@dataclass(frozen=True, slots=True)
class TunnelWay:
    """A tunnel of the document with everything settled."""

    uplink: str
    device: str
    carrier: str
    port: int
    mtu: int
    peers: tuple[FarEnd, ...]


def tunnel_ways(spec: Spec, facts: Facts) -> tuple[TunnelWay, ...]:
    found = []
    for name in ways.by_carrier(spec):
        uplink = spec.uplinks[name]
        if uplink.wireguard is None:
            continue
        peers = tuple(FarEnd(n, p.key, tunnels.own_address(uplink, p)) for n, p in uplink.wireguard.peers.items())
        found.append(TunnelWay(name, ways.device(name, spec), ways.way_out(uplink.on, spec, facts.features), uplink.wireguard.port,
                               ways.mtu(name, spec, facts.state) or 1500, peers))
    return tuple(found)
