"""Whether there are huge pages enough for a guest is said before it is started."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.errors import HostCannot
from kvmnet.guests import hugepages
from kvmnet.spec.guests import Run

TEXT = "MemTotal: 16000000 kB\nHugePages_Total: {total}\nHugePages_Free: {free}\nHugePages_Rsvd: {promised}\nHugepagesize: 2048 kB\n"


@pytest.mark.parametrize(("total", "free", "promised", "memory", "why"), [
    (128, 128, 0, 256 << 20, ""), (200, 128, 0, 256 << 20, ""), (128, 127, 0, 256 << 20, "needs 128 huge pages of 2 MiB, of 128 there are 127 free"),
    (300, 200, 100, 256 << 20, "of 300 there are 100 free"), (128, 128, 0, 255 << 20, "255 MiB are no whole number of huge pages of 2 MiB")])
def test_enough_or_said(total: int, free: int, promised: int, memory: int, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text(TEXT.format(total=total, free=free, promised=promised))
    monkeypatch.setattr(hugepages, "MEMINFO", tmp_path / "meminfo")
    hugepages.require("web", Run(memory=memory))
    if not why:
        hugepages.require("web", Run(memory=memory, hugepages=True))
        return
    with pytest.raises(HostCannot, match=why) as refused:
        hugepages.require("web", Run(memory=memory, hugepages=True))
    if "free" in why:
        assert f"vm.nr_hugepages: {total - (free - promised) + 128}" in str(refused.value.hint), "what is used stays, and the guest gets its own"


def test_a_kernel_without_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 16000000 kB\n")
    monkeypatch.setattr(hugepages, "MEMINFO", tmp_path / "meminfo")
    with pytest.raises(HostCannot, match="the kernel has no huge pages"):
        hugepages.require("web", Run(hugepages=True))
