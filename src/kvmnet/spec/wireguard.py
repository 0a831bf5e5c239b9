"""An encrypted tunnel to other hosts, as the operator writes it. Pure."""
from __future__ import annotations

from typing import Annotated

from kvmnet.spec.form import Field
from kvmnet.spec.part import Part
from kvmnet.spec.types import Endpoint, Name, PortNumber, Prefixes, SecretFile, WireguardKey


class WireguardPeer(Part):
    """Another host at the far end of a tunnel."""

    key: WireguardKey
    """Its public key, which its own kvmnet status shows."""
    endpoint: Endpoint | None = None
    """Where it is first sent to, ADDRESS:PORT. Without, it is waited for. It may roam: where its last packet that was
    really its own came from is where it is sent to from then on."""
    allowed: Prefixes = ()
    """Addresses that lead to it, and that its packets may come from, e.g. [10.99.0.2, 10.50.0.0/16]. They are no routes:
    what is outside the prefixes of addresses needs one in routes."""
    keepalive: Annotated[int, Field(ge=0, le=65535)] = 0
    """Seconds between packets that keep the way open through somebody's NAT; 0 for none. 25 is usual."""
    preshared_key_file: SecretFile | None = None
    """File with a secret that both ends share, as wg genpsk makes it: readable for root alone."""


class Wireguard(Part):
    """A tunnel by WireGuard (https://www.wireguard.com/protocol/): the link between the hosts is encrypted, and each host is
    known by its key."""

    port: PortNumber = 51820
    """UDP port of this host. Packets to it are taken by the uplink that on names, and by no other device."""
    private_key_file: SecretFile | None = None
    """File with this host's private key, as wg genkey makes it: readable for root alone. When not given, apply makes a
    key once and keeps it in the state directory; kvmnet status shows the public one."""
    peers: dict[Name, WireguardPeer] = Field(default_factory=dict)
    """The other hosts, by name."""
