"""The way between the hosts of an overlay: every peer answers, and a frame of full size gets there in one packet."""
from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from kvmnet.check.model import Claim, Finding, failed, passed
from kvmnet.host.echo import HEADERS, echoes
from kvmnet.modes.segment import Overlay, Segment

WORKERS = 16
PATIENCE = 0.2
"""Seconds for an answer from a peer that has answered before."""


def prove_underlay(segments: Iterable[Segment]) -> list[Claim]:
    """One claim for every peer of every overlay. A group has no list of its hosts: its peers, if any, are asked."""
    asked = [(s, s.overlay, peer) for s in segments if s.overlay and s.network.vxlan for peer in s.network.vxlan.peers]
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(lambda one: carries(*one), asked)
        return [Claim(s.name, "host", f"peer {peer}", f.verdict, f.evidence)
                for (s, _, peer), f in zip(asked, found, strict=True)]


def carries(segment: Segment, overlay: Overlay, peer: str) -> Finding:
    """A packet as long as the longest of the overlay goes to *peer* and back."""
    whole = segment.mtu + overlay.header

    def reached(size: int, timeout: float = PATIENCE) -> bool:
        return echoes(peer, size, source=overlay.local, device=overlay.device, timeout=timeout)

    least = HEADERS[6 if ":" in peer else 4] + 8
    if reached(whole, 1.0) or reached(whole):
        return passed(f"{peer} answers {whole} bytes in one packet")
    if not (reached(least, 1.0) or reached(least)):
        return failed(f"{peer} does not answer echo")
    low, high = least, whole
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if reached(middle) or reached(middle) else (low, middle)
    return failed(f"{peer} answers, but the way there carries {low} bytes in one packet, not {whole}: "
                  f"write networks.{segment.name}.mtu: {low - overlay.header} on every host, or mend the way")
