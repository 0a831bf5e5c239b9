"""What ``wg show all dump`` prints, and the words of ``wg set``. Pure.

The dump holds secrets: what is read from it stays in memory, and nothing here has a repr that shows one.
"""
from __future__ import annotations

from collections.abc import Iterable

from kvmnet.records import dataclass, field

NONE = "(none)"


@dataclass(slots=True)
class SeenPeer:
    public: str
    secret: str = field(repr=False)
    """Preshared key, '' for none."""
    endpoint: str
    """Where it is now; '' for nowhere."""
    allowed: tuple[str, ...]
    handshake: int
    """Unix time of the last handshake; 0 for never."""
    received: int
    sent: int
    keepalive: int


@dataclass(slots=True)
class SeenTunnel:
    dev: str
    secret: str = field(repr=False)
    """Private key, '' for none."""
    public: str
    port: int
    peers: dict[str, SeenPeer] = field(default_factory=dict)


def parse_dump(text: str) -> dict[str, SeenTunnel]:
    """Tunnels of ``wg show all dump`` (wg(8)): five fields for a device, nine for a peer."""
    found: dict[str, SeenTunnel] = {}
    for line in text.splitlines():
        words = line.split("\t")
        if len(words) == 5:
            dev, secret, key, port, _mark = words
            found[dev] = SeenTunnel(dev, unless_none(secret), unless_none(key), int(port))
        elif len(words) == 9 and words[0] in found:
            dev, key, secret, endpoint, allowed, handshake, received, sent, keepalive = words
            found[dev].peers[key] = SeenPeer(
                key, unless_none(secret), unless_none(endpoint), tuple(sorted(unless_none(allowed).split(","))) if unless_none(allowed) else (),
                int(handshake), int(received), int(sent), 0 if keepalive == "off" else int(keepalive))
    return found


def unless_none(word: str) -> str:
    return "" if word == NONE else word


def peer_words(key: str, *, allowed: Iterable[str] | None, endpoint: str | None, keepalive: int | None,
               secret_file: str | None) -> list[str]:
    """Words of ``wg set`` for one peer; None for what is not told. An endpoint cannot be taken away."""
    words = ["peer", key]
    if secret_file is not None:
        words += ["preshared-key", secret_file]
    if endpoint:
        words += ["endpoint", endpoint]
    if keepalive is not None:
        words += ["persistent-keepalive", str(keepalive) if keepalive else "off"]
    if allowed is not None:
        words += ["allowed-ips", ",".join(allowed)]
    return words
