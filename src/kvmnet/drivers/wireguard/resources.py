"""A tunnel by WireGuard and each of its peers. Pure.

Secrets never are a part of them: a resource names the file that a secret is in, and says whether the kernel has what is
in the file. What is public stands there as it is.
"""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Key, Resource, State, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Tunnel(Resource):
    """What a WireGuard link is told; named by the link."""

    kind: ClassVar[str] = "wireguard"
    dev: str | None = option(doc="the link", ref="link", on_delete="delete", recreate=True)
    port: int | None = option(doc="UDP port")
    key_file: str | None = option(doc="file of the private key; '' for the one that kvmnet makes and keeps")
    keyed: bool | None = option(doc="it has the private key of its file")
    public: str | None = option(doc="public key; claimed only to go back to one that was there before")
    carrier: str | None = option(doc="device that its packets take")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class TunnelPeer(Resource):
    """Another host at the far end; named ``DEV KEY``, the public key."""

    kind: ClassVar[str] = "wireguard-peer"
    tunnel: str | None = option(doc="the tunnel", ref="wireguard", on_delete="cascade", recreate=True)
    allowed: tuple[str, ...] | None = option(doc="prefixes that lead to it and that its packets come from; sorted")
    endpoint: str | None = option(doc="where it was told to be, ADDRESS:PORT; '' for nowhere. It may roam")
    keepalive: int | None = option(doc="seconds between packets that keep the way open; 0 for none")
    secret_file: str | None = option(doc="file of the preshared key; '' for none")
    keyed: bool | None = option(doc="it has the preshared key of its file, or none where there is no file")


def peer_name(dev: str, key: str) -> str:
    """Name of a TunnelPeer."""
    return f"{dev} {key}"


def tunnel_of(state: State, dev: str) -> Tunnel | None:
    found = state.get(Key(Tunnel.kind, dev))
    return found if isinstance(found, Tunnel) else None
