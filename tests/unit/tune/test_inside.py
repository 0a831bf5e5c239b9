"""What tune says of guests from inside, and of where packets were handled."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.facts.inside import MARK, SCRIPT, SETTINGS, parse
from kvmnet.tune import look
from kvmnet.tune.inside import rows

LINK = {"name": "eth0", "mac": "52:54:00:00:00:01", "driver": "virtio_net", "queues": 1}
MANY = {"channels": {"most": 4, "now": 1}, "offloads": {"tso": False, "gro": True, "tx-checksum": False}}


def test_what_a_guest_uses_of_its_card() -> None:
    told = {"nics": [{"mac": LINK["mac"], "negotiated": {"offered": ["csum", "mq", "packed"], "taken": ["csum", "mq"]}}],
            "inside": {"agent": "", "links": [LINK | MANY, {"name": "br0", "mac": "x"}], "settings": {"net.ipv4.tcp_congestion_control": "cubic"}}}
    (what, value, meaning), (setting, text, _) = rows("web", told)
    assert (what, value) == ("web: eth0", "virtio_net, 1 of 4 queues, off: tso tx-checksum")
    assert "ethtool -L eth0 combined 4" in meaning and "ethtool -K eth0 tso on tx-checksum on" in meaning and "not taken by its driver: packed" in meaning
    assert (setting, text) == ("web: net.ipv4.tcp_congestion_control", "cubic")
    (_, value, meaning), = rows("web", {"inside": {"agent": "", "links": [LINK]}})
    assert (value, meaning) == ("virtio_net, 1 of 1 queues", "it uses what its card offers")


def test_a_guest_that_tells_nothing_is_said_to() -> None:
    (what, value, meaning), = rows("web", {"inside": {"agent": "no agent runs in the guest: its port is not open"}})
    assert (what, value) == ("web: inside", "not seen") and "no agent" in meaning


def test_settings_are_read_with_the_rest() -> None:
    assert all(name in SCRIPT for name in SETTINGS)
    said = f"{MARK} settings\nnet/ipv4/tcp_congestion_control bbr\nnet/core/default_qdisc \nnet/ipv4/tcp_rmem 4096\t131072  6291456\n{MARK} end\n"
    assert parse(said)["settings"] == {"net.ipv4.tcp_congestion_control": "bbr", "net.ipv4.tcp_rmem": "4096 131072 6291456"}
    assert "settings" not in parse(f"{MARK} end\n")


@pytest.mark.parametrize(("counts", "shares", "said"), [
    ("900 50 50 0", "90% 5% 5% 0%", "90% on one CPU: steering"), ("30 20 30 20", "30% 20% 30% 20%", "spread over"), ("7", "100%", "spread over")])
def test_where_softirqs_ran(counts: str, shares: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "softirqs").write_text(f"      CPU0 CPU1\n  NET_TX: 1 1\n  NET_RX: {counts}\n")
    monkeypatch.setattr(look, "PROC", tmp_path)
    (what, value, meaning), = look.softirqs()
    assert (what, value) == ("softirqs (NET_RX)", shares) and meaning.startswith(said)


def test_offloads_that_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "active_features", lambda devices, wanted: {"eth0": ["rx-gro", "rx-checksum"], "eth1": list(wanted)})
    (_, off, why), (_, none, _) = look.offloads(["eth0", "eth1"])
    assert off == "tx-generic-segmentation tx-tcp-segmentation tx-scatter-gather" and "features" in why and none == "none"
