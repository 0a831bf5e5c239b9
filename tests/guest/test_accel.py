"""KVM is believed only when a guest ran on it; the probe guest itself is shown to run, under TCG."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvmnet.errors import HostCannot
from kvmnet.guests import accel
from kvmnet.host.paths import Paths

pytestmark = pytest.mark.guest


def test_the_probe_guest_comes_to_its_end() -> None:
    assert accel.failed("tcg", "nobody", 30.0) is None


def test_a_guest_that_gets_nowhere_is_ended_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spin = bytearray(accel.probe_firmware())
    spin[0xFFF0:0xFFF2] = b"\xeb\xfe"      # jump to itself: what a guest on a broken KVM does
    monkeypatch.setattr(accel, "probe_firmware", lambda: bytes(spin))
    reason = accel.failed("tcg", "nobody", 0.5)
    assert reason == "TCG does not run a guest here: the probe guest did not come to its end in 0.5 s"


def test_a_guest_that_stops_early_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    halt = bytearray(accel.probe_firmware())
    halt[0x200:0x201] = b"\xf4"            # long mode is reached, the count is not
    monkeypatch.setattr(accel, "probe_firmware", lambda: bytes(halt))
    assert accel.failed("tcg", "nobody", 0.5) is not None


def test_qemu_s_own_words_are_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(accel.CPU, "tcg", "nosuchcpu")
    reason = accel.failed("tcg", "nobody", 30.0)
    assert reason is not None and "TCG does not run a guest here: " in reason and "nosuchcpu" in reason


def test_the_answer_is_kept_for_this_boot(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    answer = accel.Accel("tcg", "KVM does not run a guest here; using TCG")
    monkeypatch.setattr(accel, "try_kvm", lambda user, deadline: asked.append(user) or answer)
    assert accel.probe(paths) == accel.probe(paths) == answer
    assert asked == ["nobody"]
    cache = paths.run / "accel.json"
    cache.write_text(json.dumps(json.loads(cache.read_text()) | {"circumstances": "another boot"}))
    assert accel.probe(paths) == answer and len(asked) == 2
    cache.write_text("garbage")
    assert accel.probe(paths) == answer and len(asked) == 3


def test_rights_of_the_device_are_named(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    assert "there is no" in (accel.blocked(device, "nobody") or "")
    device.touch()
    device.chmod(0o600)
    assert "user nobody may not open" in (accel.blocked(device, "nobody") or "")
    device.chmod(0o666)
    assert accel.blocked(device, "nobody") is None


def test_qemu_never_runs_as_root(paths: Paths) -> None:
    with pytest.raises(HostCannot, match="must not run as root"):
        accel.probe(paths, "root")
    with pytest.raises(HostCannot, match="no user nosuchuser"):
        accel.probe(paths, "nosuchuser")


def test_this_host_gets_an_answer(paths: Paths) -> None:
    found = accel.probe(paths)
    assert found.name in ("kvm", "tcg") and found.reason
    assert (paths.run / "accel.json").exists()
