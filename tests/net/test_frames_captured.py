"""kvmnet capture: what guests, bridges and uplinks carry, in files that other programs read, within their bounds."""
from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmnet.capture import pcapng
from kvmnet.capture.pcapng import blocks
from kvmnet.cli.main import run_command
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import device_mac
from lib.frames import BROADCAST, UDP, arp, ether, ip4, tag, udp
from lib.netns import sh
from lib.tap import Tap
from lib.world import OUTSIDE, World, world

pytestmark = pytest.mark.net

ONE, TWO = ("52:54:00:00:60:01", "10.60.0.11"), ("52:54:00:00:60:02", "10.60.0.12")
DOCUMENT = f"""
version: 1
uplinks: {{wan: {{device: eth0}}}}
networks: {{lan: {{mode: nat, uplink: wan, subnet: 10.60.0.0/24}}}}
groups: {{web: {{ingress: [{{}}]}}}}
vms:
  one: {{nics: [{{network: lan, mac: '{ONE[0]}', ip: {ONE[1]}, groups: [web]}}]}}
  two: {{nics: [{{network: lan, mac: '{TWO[0]}', ip: {TWO[1]}}}]}}
"""


@pytest.fixture(scope="module")
def here() -> Iterator[tuple[World, Tap, Tap]]:
    with world() as made:
        made.apply(DOCUMENT)
        with Tap("kvt-one-0") as one, Tap("kvt-two-0") as two:
            probe = ether(BROADCAST, ONE[0], 0x0806, arp(1, ONE, ("00:00:00:00:00:00", TWO[1])))

            def through() -> int:
                one.send(probe)
                return two.got(probe)
            wait_until(through, 20, 0.1)
            yield made, one, two


def says(nonce: bytes, port: int = 7, size: int = 100) -> bytes:
    payload = nonce.ljust(size - 42, b".")
    return ether(TWO[0], ONE[0], 0x0800, ip4(ONE[1], TWO[1], UDP, udp(ONE[1], TWO[1], 7, port, payload)))


class Running:
    """A capture that has begun."""

    def __init__(self, *words: str):
        self.process = subprocess.Popen([sys.executable, "-m", "kvmnet.cli.main", "capture", "--json", *words],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()

    def end(self, ask: bool = False) -> dict[str, object]:
        if ask:
            self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        assert out, f"{self.first}{err}"
        return {**json.loads(out), "code": self.process.returncode, "said": err}


@contextmanager
def capturing(*words: str) -> Iterator[Running]:
    made = Running(*words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait()


def packets(file: Path) -> list[tuple[int, int, bytes, int]]:
    """(interface, nanoseconds, frame, its length on the device) of every packet of a file."""
    found = []
    for kind, body in blocks(file.read_bytes()):
        if kind == pcapng.PACKET:
            interface, high, low, kept, whole = struct.unpack_from("=5I", body)
            found.append((interface, high << 32 | low, body[20:20 + kept], whole))
    return found


def with_nonce(file: Path, nonce: bytes) -> Sequence[tuple[int, int, bytes, int]]:
    return [p for p in packets(file) if nonce in p[2]]


def test_both_ends_of_a_frame_in_one_file_that_tcpdump_reads(here: tuple[World, Tap, Tap], tmp_path: Path) -> None:
    _, one, two = here
    file = tmp_path / "both.pcapng"
    with capturing("one", "two", "--write", str(file), "--filter", "udp port 77") as running:
        for number in range(200):
            one.send(says(b"n%03d!" % number, 77))
        one.send(says(b"another port", 78))
        two.wait(b"another port")
        result = running.end(ask=True)
    assert (result["ended"], result["code"]) == ("asked", 0)
    found = packets(file)
    assert [len([p for p in found if p[0] == i]) for i in (0, 1)] == [200, 200], "sent by one, received by two, nothing else"
    assert [p[2] for p in found if p[0] == 0] == [says(b"n%03d!" % n, 77) for n in range(200)], "in order, byte by byte"
    times = [p[1] for p in found]
    assert times == sorted(times) and len({t % 1000 for t in times}) > 1, "nanoseconds"
    assert [(i["device"], i["frames"], i["lost"]) for i in result["interfaces"]] == [  # type: ignore[attr-defined]
        ("kvt-one-0", 200, 0), ("kvt-two-0", 200, 0)]
    read = sh(f"tcpdump -nr {file} 2>&1")
    assert read.count("10.60.0.11.7 > 10.60.0.12.77: UDP") == 400
    assert file.stat().st_mode & 0o777 == 0o600
    names = [body for kind, body in blocks(file.read_bytes()) if kind == pcapng.INTERFACE]
    assert b"kvt-one-0" in names[0] and b"sent by one/nic0; received by one/nic0" in names[0] and b"udp port 77" in names[0]


@pytest.mark.parametrize(("where", "expected"), [
    (("one", "--direction", "sent"), {0: 1}), (("one", "--direction", "received"), {}), (("two", "--direction", "sent"), {}),
    (("two/nic0", "--direction", "received"), {0: 1}), (("group:web",), {0: 1}), (("network:lan",), {0: 1}),
    (("device:kvt-one-0", "device:kvt-two-0"), {0: 1, 1: 1}),
])
def test_where_and_direction(here: tuple[World, Tap, Tap], tmp_path: Path, where: tuple[str, ...], expected: dict[int, int]) -> None:
    """A frame from one to two: at each end once, in a network once in all."""
    _, one, two = here
    file = tmp_path / "x.pcapng"
    with capturing(*where, "--write", str(file)) as running:
        one.send(says(b"once-only"))
        two.wait(b"once-only")
        two.forget()
        running.end(ask=True)
    found = with_nonce(file, b"once-only")
    assert {i: len([p for p in found if p[0] == i]) for i in {p[0] for p in found}} == expected


def test_the_way_out_hop_by_hop(here: tuple[World, Tap, Tap], tmp_path: Path) -> None:
    """A guest's packet at its tap, on the host's bridge and, with the host's address, at the uplink."""
    _, one, _ = here
    file = tmp_path / "hops.pcapng"
    gateway = device_mac("kvb-lan")
    out = ether(gateway, ONE[0], 0x0800, ip4(ONE[1], OUTSIDE, UDP, udp(ONE[1], OUTSIDE, 7, 99, b"the-way-out")))
    with capturing("one", "--hop", "tap", "--hop", "bridge", "--hop", "uplink", "--write", str(file), "--count", "3",
                   "--filter", "udp dst port 99") as running:
        one.send(out)
        result = running.end()
    assert result["ended"] == "count"
    devices = [i["device"] for i in result["interfaces"]]  # type: ignore[attr-defined]
    sources = {devices[i]: data[26:30] for i, _, data, _ in packets(file)}
    guest, host = bytes([10, 60, 0, 11]), bytes([192, 0, 2, 2])
    assert sources == {"kvt-one-0": guest, "kvb-lan": guest, "eth0": host}


def test_a_tag_is_put_back_and_long_frames_are_cut(here: tuple[World, Tap, Tap], tmp_path: Path) -> None:
    _, one, _two = here
    file = tmp_path / "tag.pcapng"
    with capturing("one", "--write", str(file), "--filter", "vlan 7", "--snap", "64", "--count", "1") as running:
        one.send(says(b"untagged"))
        one.send(tag(7, says(b"tagged", size=200)))
        running.end()
    assert [(frame, whole) for _, _, frame, whole in packets(file)] == [(tag(7, says(b"tagged", size=200))[:68], 204)]


def test_size_bounds_a_file_and_the_files(here: tuple[World, Tap, Tap], tmp_path: Path) -> None:
    _, one, _two = here
    big, file, many = says(b"filler", size=1400), tmp_path / "one.pcapng", tmp_path / "many.pcapng"
    with capturing("one", "--direction", "sent", "--write", str(file), "--size", "1M") as running:
        while running.process.poll() is None:
            one.send(big)
        result = running.end()
    assert result["ended"] == "size" and 2**20 - 3000 < file.stat().st_size <= 2**20
    assert blocks(file.read_bytes())[-1][0] == pcapng.STATISTICS
    with capturing("one", "--direction", "sent", "--write", str(many), "--size", "1M", "--files", "2") as running:
        def third() -> bool:
            for _ in range(50):
                one.send(big)
            return (tmp_path / "many-00003.pcapng").exists()
        wait_until(third, 30, 0)
        result = running.end(ask=True)
    left = sorted(f for f in tmp_path.iterdir() if f.name.startswith("many"))
    assert len(left) == 2 and [str(f) for f in left] == result["files"]
    assert all(f.stat().st_size <= 2**20 and blocks(f.read_bytes())[-1][0] == pcapng.STATISTICS for f in left)


def test_lines_time_and_a_device_that_goes_away(here: tuple[World, Tap, Tap]) -> None:
    """Without a file each frame is a line; the time ends it, and so does the end of what it watches."""
    _, one, _ = here
    with subprocess.Popen([sys.executable, "-m", "kvmnet.cli.main", "capture", "one", "--count", "1", "--filter", "udp"],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        def printed() -> bool:
            one.send(says(b"hello"))
            return process.poll() is not None
        wait_until(printed, 30, 0.1)
        assert process.stdout is not None
        assert process.stdout.read().endswith(" one/nic0 in 10.60.0.11.7 > 10.60.0.12.7 UDP, 100 bytes\n")
    sh("ip link add gone0 type veth peer name gone1; ip link set gone0 up; ip link set gone1 up")
    file = Path(os.environ["KVMNET_STATE_DIR"]).parent / "gone.pcapng"
    with capturing("device:gone0", "--write", str(file)) as running:
        sh("ip link del gone0")
        result = running.end()
    assert (result["ended"], result["code"]) == ("gone", 1)
    with capturing("one", "--write", f"{file}2", "--for", "1s") as running:
        assert running.end()["ended"] == "time"


@pytest.mark.parametrize(("words", "said"), [
    (("nobody",), "there is no guest nobody"), (("network:wan",), "there is no network wan"), (("one/eth9",), "one has no NIC eth9"),
    (("one", "--filter", "tcp[0]"), "'[0]' is not understood"), (("device:none0",), "cannot watch none0"), ((), "Missing argument"),
    (("host:one",), "is no source"), (("one", "--for", "soon"), "is no time"), (("one", "--write", "/nowhere/x"), "cannot be written"),
    (("uplink:wan", "--hop", "bridge"), "has no hops"), (("one", "--write", "/dev/null"), "exists already"),
])
def test_what_cannot_be_is_said(here: tuple[World, Tap, Tap], words: tuple[str, ...], said: str,
                                monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["kvmnet", "capture", *words])
    assert run_command() in (1, 11, 12, 64)
    assert said in capsys.readouterr().err
