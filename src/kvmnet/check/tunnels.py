"""Encrypted tunnels: every peer answers through one, a packet of full size gets there, and nothing of it is in clear on the wire."""
from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from time import monotonic

from kvmnet.check.model import Claim, Finding, Verdict, failed, passed, skipped
from kvmnet.host.echo import HEADERS, echoes
from kvmnet.host.packets import Capture, exists
from kvmnet.modes.tunnel import FarEnd, TunnelWay
from kvmnet.spec.ways import TUNNEL_HEADERS

PATIENCE = 1.0
"""Seconds for an answer; the first packet waits for a handshake."""
TRANSPORT = b"\x04\0\0\0"
"""Begins a message of WireGuard that carries a packet (WireGuard's white paper, 5.4.6)."""


def prove_tunnels(tunnels: Iterable[TunnelWay]) -> list[Claim]:
    """Two claims for every peer whose address in the tunnel is known."""
    return [Claim(tunnel.uplink, "host", f"{what} {peer.name}", found.verdict, found.evidence)
            for tunnel in tunnels for peer in tunnel.peers for what, found in prove(tunnel, peer)]


def prove(tunnel: TunnelWay, peer: FarEnd) -> Iterator[tuple[str, Finding]]:
    if not peer.address:
        yield "peer", skipped("no single address is allowed to it, so there is nobody to ask: add ADDRESS to allowed")
        return
    found = carries(tunnel, peer)
    yield "peer", found
    if found.verdict is Verdict.PASS:
        yield "encrypted", in_secret(tunnel, peer)


def carries(tunnel: TunnelWay, peer: FarEnd) -> Finding:
    """A packet as long as the tunnel's MTU goes to *peer* and back in one piece."""

    def reached(size: int) -> bool:
        return echoes(peer.address, size, device=tunnel.device, timeout=PATIENCE)

    least = HEADERS[6 if ":" in peer.address else 4] + 8
    if not any(reached(least) for _ in range(3)):
        return failed(f"{peer.address} does not answer echo: are the keys and the port right, and is UDP let through?")
    if reached(tunnel.mtu) or reached(tunnel.mtu):
        return passed(f"{peer.address} answers {tunnel.mtu} bytes in one packet")
    low, high = least, tunnel.mtu
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reached(middle) else (low, middle)
    return failed(f"{peer.address} answers, but the tunnel carries {low} bytes in one packet, not {tunnel.mtu}: "
                  f"write uplinks.{tunnel.uplink}.mtu: {low} on every host, or mend the way")


def in_secret(tunnel: TunnelWay, peer: FarEnd) -> Finding:
    """An echo with a mark goes through the tunnel; on the device below there are encrypted packets, and no mark."""
    if not exists(tunnel.carrier):
        return skipped(f"there is no device {tunnel.carrier} to listen on")
    mark = os.urandom(16)
    with Capture(tunnel.carrier) as wire:
        answered = echoes(peer.address, tunnel.mtu, device=tunnel.device, timeout=PATIENCE, payload=mark)
        heard = list(listen(wire, 0.1))
    if not answered:
        return failed(f"{peer.address} does not answer any more")
    if any(mark in frame for frame in heard):
        return failed(f"what was sent to {peer.address} through the tunnel was on {tunnel.carrier} in clear")
    # One packet each way carries the echo whole; what is shorter would be fragments.
    full = [f for f in heard if TRANSPORT in f[:80] and len(f) >= tunnel.mtu + TUNNEL_HEADERS[4]]
    if len(full) < 2:
        return failed(f"the echo came back, but not by encrypted packets of full size on {tunnel.carrier}: another way leads there")
    return passed(f"on {tunnel.carrier} its {tunnel.mtu} bytes and the answer were one packet each, encrypted")


def listen(wire: Capture, seconds: float) -> Iterator[bytes]:
    """What was heard, and what comes within *seconds*."""
    deadline = monotonic() + seconds
    while True:
        while (frame := wire.receive()) is not None:
            yield frame
        if (left := deadline - monotonic()) <= 0 or not select.select([wire.fd], [], [], left)[0]:
            return
