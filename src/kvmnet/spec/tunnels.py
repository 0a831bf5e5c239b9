"""Encrypted tunnels to other hosts: their secrets, and where their peers are. Pure."""
from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_interface, ip_network

from kvmnet.spec.models import Spec
from kvmnet.spec.uplinks import Uplink
from kvmnet.spec.wireguard import Wireguard, WireguardPeer


def endpoint_address(endpoint: str) -> str:
    """The address of ``192.0.2.7:51820`` or ``[2001:db8::7]:51820``."""
    return endpoint.rpartition(":")[0].strip("[]")


def secrets(wireguard: Wireguard) -> Iterator[tuple[str, str]]:
    """(option, file) of every secret that the document names by its file."""
    if wireguard.private_key_file:
        yield "private_key_file", wireguard.private_key_file
    for name, peer in wireguard.peers.items():
        if peer.preshared_key_file:
            yield f"peers.{name}.preshared_key_file", peer.preshared_key_file


def secret_files(spec: Spec) -> tuple[str, ...]:
    """Files with secrets that the document names."""
    found = (file for u in spec.uplinks.values() if u.wireguard for _, file in secrets(u.wireguard))
    return tuple(dict.fromkeys(found))


def own_address(uplink: Uplink, peer: WireguardPeer) -> str:
    """The address of *peer* inside the tunnel: the first that is allowed to it alone, those beside this host's own first;
    '' when there is none."""
    single = [p.partition("/")[0] for p in peer.allowed if ip_network(p).num_addresses == 1]
    beside = [ip_interface(a).network for a in uplink.addresses]
    return next((a for a in single if any(ip_interface(a).ip in net for net in beside)), single[0] if single else "")
