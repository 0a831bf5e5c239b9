"""Mirrors to files: what is kept, how much of it, through what happens to the process and to the disk."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmnet.capture import pcapng
from kvmnet.check import mirrors
from kvmnet.check.model import Verdict
from kvmnet.drivers.recorder.process import Recording, recording
from kvmnet.host.clock import wait_until
from kvmnet.mirrored import MirrorStatus
from kvmnet.status import status
from lib.frames import BROADCAST, arp, ether
from lib.netns import sh
from lib.tap import Tap
from lib.world import World, snapshot, unchanged, world

pytestmark = pytest.mark.net

ONE, TWO = ("52:54:00:00:63:01", "10.63.0.11"), ("52:54:00:00:63:02", "10.63.0.12")
MIB = 1 << 20


def document(to: str, direction: str = "sent", limit: str = "") -> str:
    return f"""
version: 1
networks: {{lan: {{mode: isolated, subnet: 10.63.0.0/24}}}}
vms:
  one: {{nics: [{{network: lan, mac: '{ONE[0]}', ip: {ONE[1]}}}]}}
  two: {{nics: [{{network: lan, mac: '{TWO[0]}', ip: {TWO[1]}}}]}}
{f"mirrors: {{all: {{from: [one], direction: {direction}, to: {{file: {to}}}{limit}}}}}" if to else ""}
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world() as made:
        made.apply(document(""))
        yield made


@pytest.fixture(scope="module")
def one(here: World) -> Iterator[Tap]:
    with Tap("kvt-one-0") as tap, Tap("kvt-two-0") as two:
        def through() -> int:
            tap.send(frame(b"hello"))
            return two.got(b"hello")
        wait_until(through, 20, 0.1)
        yield tap


def frame(nonce: bytes, size: int = 60) -> bytes:
    return ether(BROADCAST, ONE[0], 0x0806, arp(1, ONE, ("00:00:00:00:00:00", TWO[1])) + nonce + bytes(max(0, size - 42 - len(nonce))))


def kept(folder: Path, nonce: bytes) -> int:
    """Frames with *nonce* in all files of the folder; each file is whole blocks."""
    return sum(nonce in data for file in folder.glob("web-*.pcapng") for _, _, data in pcapng.packets(whole(file)))


def whole(file: Path) -> bytes:
    try:
        return pcapng.whole(file.read_bytes())
    except FileNotFoundError:    # it was the oldest
        return b""


def mirror(here: World) -> MirrorStatus:
    found = status(here.host)
    assert found
    return found.mirrors[0]


def process(here: World) -> Recording:
    return recording(here.paths.run, "all")


def told(here: World) -> dict[str, Any]:
    return process(here).state() or {}


def test_frames_are_kept_through_changes_and_the_death_of_the_process(here: World, one: Tap, tmp_path: Path) -> None:
    before = snapshot()
    text = document(str(tmp_path / "web.pcapng"))
    here.apply(text)
    assert here.drift() == []
    one.send(frame(b"first"))
    wait_until(lambda: kept(tmp_path, b"first") == 1, 20)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    wait_until(lambda: mirror(here).frames >= 1 and mirror(here).state == "ok", 20)
    assert (mirror(here).lost, mirror(here).file) == (0, str(file))
    record = process(here).read("process.json")
    assert record
    (worker,) = map(int, sh(f"pgrep -P {record['pid']}").split())
    os.kill(worker, signal.SIGKILL)

    def again() -> bool:    # the one that watches it begins it anew
        one.send(frame(b"later"))
        return kept(tmp_path, b"later") > 0
    wait_until(again, 20)
    assert here.drift() == [] and len(list(tmp_path.iterdir())) == 2
    sh("ip link del kvm-all")
    assert "create link kvm-all" in here.drift()
    here.apply(text)
    assert here.drift() == []

    def behind() -> bool:
        one.send(frame(b"device-anew"))
        return kept(tmp_path, b"device-anew") > 0
    wait_until(behind, 20)
    os.kill(record["pid"], signal.SIGKILL)
    wait_until(lambda: here.drift() == ["update recorder all"], 20)
    assert mirror(here).state == "incomplete"
    one.send(frame(b"nobody-writes"))
    here.apply(text)
    wait_until(lambda: mirror(here).lost >= 1, 20)
    assert kept(tmp_path, b"nobody-writes") == 0 and kept(tmp_path, b"first") == 1
    assert mirror(here).frames > 0, "the counts go on"
    here.apply(document(""))
    unchanged(before)
    assert process(here).read("process.json") is None and not process(here).folder.exists()
    assert kept(tmp_path, b"first") == 1, "what was kept stays"


def test_size_and_number_of_files_are_bounded_and_others_are_left(here: World, one: Tap, tmp_path: Path) -> None:
    theirs = tmp_path / "web-00007.pcapng"
    theirs.write_bytes(b"not ours")
    here.apply(document(f"{{path: {tmp_path}/web.pcapng, size: 1M, files: 2}}"))

    def files() -> list[Path]:
        return sorted(tmp_path.glob("web-*.pcapng"))[1:]

    def turned() -> bool:
        for _ in range(64):
            one.send(frame(b"much", 1500))
        return bool(files()) and files()[0].name > "web-00009.pcapng"
    wait_until(turned, 60)
    wait_until(lambda: len(files()) == 2, 20)
    assert all(f.stat().st_size <= MIB for f in files()) and theirs.read_bytes() == b"not ours"
    assert kept_in(files()[0]) > 600, "a file that is full is full"
    here.apply(document(f"{{path: {tmp_path}/web.pcapng, size: 1M, files: 2, snap: 64}}", limit=", limit: 64kbit"))
    wait_until(lambda: len(files()) == 2, 20)
    for _ in range(100):    # twice what may pass at once and wait
        one.send(frame(b"short", 1500))
    wait_until(lambda: kept_in(files()[-1]) > 0, 20)
    assert {(length, len(data)) for _, length, data in pcapng.packets(whole(files()[-1]))} == {(1500, 64)}
    wait_until(lambda: mirror(here).lost > 0, 20)    # beyond the limit
    here.apply(document(""))


def kept_in(file: Path) -> int:
    return sum(1 for _ in pcapng.packets(whole(file)))


def test_a_full_disk_loses_copies_and_nothing_else(here: World, one: Tap, tmp_path: Path) -> None:
    sh(f"mount -t tmpfs -o size=1536k none {tmp_path}")
    try:
        here.apply(document(f"{{path: {tmp_path}/web.pcapng, size: 1M, files: 2}}"))

        def full() -> bool:
            for _ in range(64):
                one.send(frame(b"much", 1500))
            return bool(told(here).get("trouble"))
        wait_until(full, 60)
        found = mirror(here)
        assert (found.state, found.lost > 0) == ("down", True) and "No space left" in found.trouble
        for file in tmp_path.glob("*.pcapng"):
            assert list(pcapng.blocks(file.read_bytes())), "whole blocks"
        sh(f"mount -o remount,size=8m {tmp_path}")

        def goes_on() -> bool:
            one.send(frame(b"room-again"))
            return kept(tmp_path, b"room-again") > 0
        wait_until(goes_on, 20)
        wait_until(lambda: told(here).get("trouble") == "", 20)
        here.apply(document(""))
    finally:
        sh(f"umount -l {tmp_path}")


def test_a_folder_that_is_not_there_yet_costs_copies_alone(here: World, one: Tap, tmp_path: Path) -> None:
    here.apply(document(str(tmp_path / "later" / "web.pcapng")))
    one.send(frame(b"too-early"))
    wait_until(lambda: told(here).get("lost", 0) >= 1, 20)
    found = mirror(here)
    assert found.state == "down" and "No such file" in found.trouble and here.drift() == []
    (tmp_path / "later").mkdir()

    def goes_on() -> bool:
        one.send(frame(b"in-time"))
        return kept(tmp_path / "later", b"in-time") > 0
    wait_until(goes_on, 20)
    wait_until(lambda: told(here).get("trouble") == "", 20)
    assert kept(tmp_path / "later", b"too-early") == 0
    here.apply(document(""))


def test_check_compares_files_with_the_source(here: World, one: Tap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here.apply(document(str(tmp_path / "web.pcapng"), "both"))

    def verdicts() -> dict[str, Verdict]:
        return {c.name: c.verdict for c in here.host.check().claims if c.network == "mirror all"}
    assert verdicts() == {"copies": Verdict.PASS, "files": Verdict.PASS}
    record = process(here).read("process.json")
    assert record
    (worker,) = map(int, sh(f"pgrep -P {record['pid']}").split())
    os.kill(worker, signal.SIGSTOP)
    monkeypatch.setattr(mirrors, "PATIENCE", 0.5)    # it does not come
    try:
        assert verdicts() == {"copies": Verdict.PASS, "files": Verdict.FAIL}
    finally:
        os.kill(worker, signal.SIGCONT)
    here.apply(document(""))
