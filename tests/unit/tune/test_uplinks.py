"""Rings, queues and interrupts of the NICs below uplinks: proposed where the driver has them and the document does not say."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.drivers.ethtool.resources import NicTuning
from kvmnet.spec.knobs import Profile
from kvmnet.spec.load import loads
from kvmnet.tune import look
from kvmnet.tune.uplinks import uplinks

FULL = NicTuning(name="eth0", dev="eth0", rx_ring=512, tx_ring=4096, combined=1, adaptive_rx=False, rx_usecs=50, rx_frames=0,
                 most=("rx_ring=4096", "tx_ring=4096", "combined=8"))
POOR = NicTuning(name="eth1", dev="eth1", rx_usecs=0, rx_frames=0, adaptive_rx=False, most=())
DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
  pair: {members: [eth1, eth2]}
  carried: {device: eth3, vlan: 7}
"""


def proposed(profile: Profile, text: str = DOCUMENT, cpus: int = 4) -> dict[str, tuple[str, str]]:
    found = uplinks(profile, loads(text).spec, {"eth0": FULL, "eth1": POOR}, cpus)
    return {p.name: (p.now, p.proposed) for p in found}


@pytest.mark.parametrize(("profile", "found"), [
    (Profile.THROUGHPUT, {"rings.rx": ("512", "4096"), "coalesce.adaptive_rx": ("false", "true"), "channels.combined": ("1", "4")}),
    (Profile.ROUTER, {"rings.rx": ("512", "4096"), "coalesce.adaptive_rx": ("false", "true"), "channels.combined": ("1", "4")}),
    (Profile.DENSITY, {"channels.combined": ("1", "4")}),
    (Profile.LATENCY, {"coalesce.rx_usecs": ("50", "8")}),
])
def test_by_profile(profile: Profile, found: dict[str, tuple[str, str]]) -> None:
    assert proposed(profile) == {f"uplinks.wan.ethtool.{k}": v for k, v in found.items()}


def test_never_more_than_the_hardware_or_the_processors() -> None:
    assert proposed(Profile.DENSITY, cpus=64)["uplinks.wan.ethtool.channels.combined"] == ("1", "8")
    assert proposed(Profile.DENSITY, cpus=1) == {}


def test_what_the_document_says_is_left() -> None:
    said = DOCUMENT.replace("{device: eth0}", "{device: eth0, ethtool: {rings: {rx: 512}, channels: {combined: 1}}}")
    assert set(proposed(Profile.THROUGHPUT, said)) == {"uplinks.wan.ethtool.coalesce.adaptive_rx"}


def test_what_is_proposed_is_taken_by_the_document() -> None:
    for profile in Profile:
        for name, (_, value) in proposed(profile).items():
            part, setting = name.removeprefix("uplinks.wan.ethtool.").split(".")
            loads(f"version: 1\nuplinks: {{wan: {{device: eth0, ethtool: {{{part}: {{{setting}: {value}}}}}}}}}\n")


def test_where_packets_are_handled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, text in {"rx-0/rps_cpus": "00000000,00000000", "rx-1/rps_cpus": "0", "tx-0/xps_cpus": "3"}.items():
        (tmp_path / "eth0/queues" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "eth0/queues" / path).write_text(f"{text}\n")
    (tmp_path / "eth0/tx_queue_len").write_text("1000\n")
    monkeypatch.setattr(look, "SYS_NET", tmp_path)
    monkeypatch.setattr(look.os, "sched_getaffinity", lambda pid: set(range(4)))
    rows = {what: (value, meaning) for what, value, meaning in look.placement(["eth0", "gone"])}
    assert rows["eth0: RPS"][0] == "off" and "2 receive queue(s) for 4 CPUs" in rows["eth0: RPS"][1]
    assert rows["eth0: XPS"][0] == "3" and rows["eth0: txqueuelen"][0] == "1000" and len(rows) == 3
    (tmp_path / "eth0/queues/rx-1/rps_cpus").write_text("f\n")
    assert {w: v for w, v, _ in look.placement(["eth0"])}["eth0: RPS"] == "00000000,00000000 f"


def test_where_guests_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task, (comm, places) in {"10": ("qemu-system-x86", "0-3"), "11": ("CPU 0/KVM", "0-3"), "12": ("CPU 1/KVM", "0-3"),
                                 "13": ("vhost-10", "2")}.items():
        (tmp_path / "10/task" / task).mkdir(parents=True)
        (tmp_path / "10/task" / task / "comm").write_text(f"{comm}\n")
        (tmp_path / "10/task" / task / "status").write_text(f"Name:\t{comm}\nCpus_allowed_list:\t{places}\n")
    monkeypatch.setattr(look, "PROC", tmp_path)
    monkeypatch.setattr(look.os, "sched_getaffinity", lambda pid: set(range(4)))
    rows = {what: (value, meaning) for what, value, meaning in look.guests({"web": 10, "ended": 99})}
    assert rows["web: vCPUs"][0] == "2 on CPUs 0-3" and rows["web: vCPUs"][1].startswith("not pinned")
    assert rows["web: vhost"] == ("1 on CPUs 2", "pinned") and len(rows) == 2
    assert look.spread("0-2,5") == {0, 1, 2, 5}
