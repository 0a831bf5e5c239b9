"""kvmnet-load, compiled and run on a link of this kernel: what it counts is what arrives."""
from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvmnet.bench.histogram import Histogram, bucket
from kvmnet.bench.traffic.program import program
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net

ADDRESS, OTHER, GROUP = "192.0.2.1", "192.0.2.2", "239.255.51.99"


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The program, in a namespace in which its other end listens, also to a group."""
    folder = tmp_path_factory.mktemp("load")
    with pytest.MonkeyPatch.context() as patch, new_netns():
        patch.delenv("KVMNET_IMAGE_DIR", raising=False)
        made = program(Paths(folder, folder))
        assert program(Paths(folder, folder)) == made, "compiled once"
        sh(f"ip addr add {ADDRESS}/24 dev lo; ip addr add {OTHER}/24 dev lo; ip link set lo multicast on; ip route add 239.0.0.0/8 dev lo")
        pid = json.loads(sh(f"{made} serve life=300 group={GROUP} on={ADDRESS}"))["pid"]
        yield made
        sh(f"kill {pid}")


def ask(load: Path, words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sh(f"{load} {words.replace(' ', f' to={ADDRESS} ', 1)}"))
    return found


def test_buckets_are_those_of_the_report(load: Path, tmp_path: Path) -> None:
    values = [0, 1, 127, 128, 129, 255, 256, 257, 511, 1000, 12345, 10**6 + 7, 2**31, 2**40 + 12345, 2**50]
    source = tmp_path / "b.c"
    source.write_text('#include "load.h"\nint main(void) { unsigned long long v; while (scanf("%llu", &v) == 1) printf("%u\\n", bucket(v)); return 0; }\n')
    headers = Path(__file__).parents[2] / "src" / "kvmnet" / "bench" / "traffic"
    sh(f"cc -I{headers} -o {tmp_path}/b {source}")
    done = subprocess.run([str(tmp_path / "b")], input="\n".join(map(str, values)), capture_output=True, text=True, check=True)
    assert list(map(int, done.stdout.split())) == [bucket(v) for v in values]


@pytest.mark.parametrize("way", ["up", "down"])
def test_streams(load: Path, way: str) -> None:
    found = ask(load, f"tcp ms=200 streams=3 way={way}")
    assert len(found["bytes"]) == 3 and min(found["bytes"]) > 0 and found["seconds"] >= 0.19


def test_packets_that_are_dropped_are_missing(load: Path) -> None:
    """Every fourth is dropped, and counted as lost; without the rule none is."""
    def whole() -> bool:
        found = ask(load, "udp ms=200 rate=2000 size=64")
        assert found["counts"][0]["twice"] == 0
        return bool(found["counts"][0]["received"] == found["sent"] > 100)

    def three_of_four() -> bool:
        got = ask(load, "udp ms=200 rate=2000 size=64")
        assert got["counts"][0]["received"] <= got["sent"] * 3 / 4 + 1
        return bool(got["sent"] - got["counts"][0]["received"] == pytest.approx(got["sent"] / 4, abs=1))

    wait_until(whole, 20)    # a receiver that does not run for a while loses packets
    sh(f"nft 'add table ip t; add chain ip t c {{ type filter hook input priority 0; }}; "
       f"add rule ip t c ip daddr {ADDRESS} udp dport 5199 @th,64,8 0x6b @th,88,8 0x44 numgen inc mod 4 == 0 drop'")
    try:
        wait_until(three_of_four, 20)
    finally:
        sh("nft delete table ip t")


def test_a_frame_has_its_size(load: Path) -> None:
    """64 bytes with header and checksum are 46 of IPv4: loopback counts them with its 14 bytes of header."""
    before = int(Path("/proc/self/net/dev").read_text().split("lo:")[1].split()[0])
    found = ask(load, "udp ms=300 rate=3000 size=1518")
    after = int(Path("/proc/self/net/dev").read_text().split("lo:")[1].split()[0])
    assert (after - before) / found["sent"] == pytest.approx(1518 - 4, rel=0.03)


def test_a_group_is_counted_by_its_receivers(load: Path) -> None:
    found = json.loads(sh(f"{load} udp to={GROUP} ms=100 rate=1000 size=512 ask={ADDRESS},{OTHER}"))
    assert [c["received"] for c in found["counts"]] == [found["sent"]] * 2 and found["sent"] > 20


@pytest.mark.parametrize("by", ["udp", "tcp"])
def test_every_turn_has_its_time(load: Path, by: str) -> None:
    found = ask(load, f"turns count=500 by={by}")
    times = Histogram.from_pairs(found["times"])
    assert times.total == 500 - found["lost"] and found["lost"] == 0
    assert 1000 < times.percentile(50) < found["seconds"] * 1e9 / 100


def test_a_gap_is_the_time_without_answers(load: Path) -> None:
    """20 requests in a row that nobody answers; without the rule there is no gap."""
    def calm() -> bool:
        found = ask(load, "steady ms=300 us=2000")
        return bool(found["over"] and found["sent"] > 10 and found["lost"] == 0 == found["gap"])

    def gap_of_twenty() -> bool:
        found = ask(load, "steady ms=1000 us=5000")
        assert found["sent"] <= 40 or found["lost"] >= 20
        return bool(found["lost"] == 20 and 20 * 0.005 <= found["gap"] < found["seconds"] and found["after"] >= 20 * 0.005 and found["over"])

    wait_until(calm, 30)    # an end that does not run for a while answers too late
    sh(f"nft 'add table ip t; add chain ip t c {{ type filter hook input priority 0; }}; "
       f"add rule ip t c ip daddr {ADDRESS} udp dport 5199 @th,128,32 20-39 drop'")
    try:
        wait_until(gap_of_twenty, 30)
        sh(f"nft add rule ip t c ip daddr {ADDRESS} udp dport 5199 drop")
        assert not ask(load, "steady ms=100 us=1000")["over"], "a gap that does not end"
    finally:
        sh("nft delete table ip t")


def test_connections_made_and_held(load: Path) -> None:
    waiting = len(sh("ss -Htan state time-wait").splitlines())
    made = ask(load, "connect ms=200 streams=4")
    assert made["made"] == Histogram.from_pairs(made["times"]).total > 10 and made["failed"] == 0
    assert ask(load, "hold count=1000")["answered"] == 1000
    assert len(sh("ss -Htan state time-wait").splitlines()) <= waiting, "no port is left used up"


def test_a_file_is_compared(load: Path) -> None:
    assert ask(load, "file bytes=5000001") | {"seconds": 0} == {"seconds": 0, "bytes": 5000001, "same": True}


@pytest.mark.parametrize("words", ["smtp", "tcp ms=0", "tcp ms=99999999", "hold count=1000000", "tcp port=5200"])
def test_what_cannot_be_done_is_said(load: Path, words: str) -> None:
    done = subprocess.run(f"{load} {words} to={ADDRESS}", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr and not done.stdout
