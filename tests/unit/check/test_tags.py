"""Which priority a guest's packet leaves with, by the document."""
from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from kvmnet.check import tags
from kvmnet.check.model import Verdict
from kvmnet.check.tags import priorities_of
from kvmnet.spec.guests import Nic
from kvmnet.spec.networks import Network
from kvmnet.spec.rates import Mark

SHOP = Network.model_validate({"mode": "bridge", "uplink": "wan", "vlan": 5, "classes": {
    "video": {"dscp": "af11", "pcp": 3}, "bulk": {"dscp": "cs1"}, "voice": {"dscp": [46, 44], "pcp": 5}}})


@pytest.mark.parametrize(("mark", "wanted"), [
    (Mark(), {0: 0, 10: 3, 44: 5}),
    (Mark(pcp=2), {0: 2, 10: 3, 44: 5}),
    (Mark(dscp=10), {0: 3, 10: 3, 44: 3}),
    (Mark(dscp=10, trust=True, pcp=2), {0: 3, 10: 3, 44: 5}),
    (Mark(dscp=8, pcp=2), {0: 0, 10: 0, 44: 0})])    # a class without a priority
def test_priorities(mark: Mark, wanted: dict[int, int]) -> None:
    assert priorities_of(Nic(network="shop", mark=mark), SHOP) == wanted


class Sent:
    """An idle NIC's station, which keeps what it sends."""

    mac, ip = "52:54:00:00:00:0a", "10.5.0.9"

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)


@pytest.mark.parametrize(("wire", "leaves", "verdict"), [
    ("eth0", {0: 2, 10: 3, 44: 5}, Verdict.PASS), ("eth0", {0: 2, 10: 0, 44: 5}, Verdict.FAIL), ("eth0", {10: 3, 44: 5}, Verdict.FAIL),
    ("", {}, None)])
def test_what_leaves_is_held_against_the_document(monkeypatch: pytest.MonkeyPatch, wire: str, leaves: dict[int, int], verdict: Verdict | None) -> None:
    station = Sent()

    def heard(device: str, send: Callable[[bytes], None], frames: dict[bytes, bytes]) -> dict[bytes, int]:
        for frame in frames.values():
            send(frame)
        assert device == wire and all(nonce in frame for nonce, frame in frames.items())
        return {nonce: leaves[frame[15] >> 2] for nonce, frame in frames.items() if frame[15] >> 2 in leaves}
    monkeypatch.setattr(tags, "heard", heard)
    nic = SimpleNamespace(declared=Nic(network="shop", mark=Mark(pcp=2)), tap="kvt-a-0")
    place = SimpleNamespace(segment=SimpleNamespace(network=SHOP, wire=wire), other_mac="52:54:00:00:00:ee", other_ip="10.5.0.77",
                            subject=SimpleNamespace(allowed=SimpleNamespace(sends_anything=lambda tap: True)))
    finding = tags.tagged(place, SimpleNamespace(nic=nic, station=station))  # type: ignore[arg-type]
    assert (finding.verdict if finding else None) == verdict
    assert len(station.frames) == (3 if wire else 0)
    if verdict is Verdict.FAIL:
        assert finding and "wanted 0 with 2, 10 with 3, 44 with 5" in finding.evidence
