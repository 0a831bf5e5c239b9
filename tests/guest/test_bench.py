"""kvmnet bench with real guests: killed in the middle it leaves nothing, and its record is gone on with."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from kvmnet.bench.record import read
from kvmnet.bench.scenarios import Place
from kvmnet.guests.image import Image
from kvmnet.host.clock import wait_until

pytestmark = pytest.mark.guest

E1000 = "model=e1000 mode=bridge net.ipv4.tcp_mtu_probing=2"
WORDS = ("run", "--rounds", "1", "--no-twin", "--only", "tcp-up,udp-64,hold,file", "--point", E1000, "--set", "memory=192")
DOCUMENT = """version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: nat, uplink: wan, subnet: 192.0.2.0/24, dhcp: {enabled: false}, dns: {enabled: false}}}
groups: {web: {ingress: [{tcp: [80]}]}}
vms: {web: {nics: [{network: lan, groups: [web], ip: 192.0.2.7}]}, db: {nics: [{network: lan}]}}
"""


@pytest.fixture
def home(tiny: Image, tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {**os.environ, "KVMNET_STATE_DIR": str(tmp_path / "state"), "KVMNET_RUN_DIR": str(tmp_path / "run")}


def kvmnet(home: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "kvmnet.cli.main", "bench", *words], env=home, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def called_with(home: dict[str, str]) -> list[Path]:
    """What runs with this run directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with suppress(OSError):
                if home["KVMNET_RUN_DIR"].encode() in (entry / "environ").read_bytes():
                    found.append(entry)
    return found


def spaces(home: dict[str, str]) -> set[str]:
    """PID namespaces that it has made."""
    found = set()
    for entry in called_with(home):
        with suppress(OSError):
            found.add(str((entry / "ns/pid").readlink()))
    return found - {str(Path("/proc/self/ns/pid").readlink())}


def inside(namespaces: set[str]) -> list[str]:
    """What runs in them, by its name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if str((entry / "ns/pid").readlink()) in namespaces:
                    found.append((entry / "comm").read_text().strip())
    return found


def test_killed_it_leaves_nothing_and_its_record_is_gone_on_with(home: dict[str, str], tmp_path: Path) -> None:
    before = Path("/proc/self/net/dev").read_text().count(":")
    record, document = tmp_path / "r.jsonl", tmp_path / "host.yaml"
    document.write_text(DOCUMENT)
    first = kvmnet(home, *WORDS, "--document", str(document), "--record", str(record))
    try:
        wait_until(lambda: first.poll() is not None or (record.exists() and '"answer"' in record.read_text()), 240, 0.05)
        assert first.poll() is None, first.communicate()
        own = spaces(home)
        assert sum("qemu" in name for name in inside(own)) == 2, "guests run while it measures"
    finally:
        first.kill()
        first.communicate()
    wait_until(lambda: not called_with(home) and not inside(own), 20)
    kept = read(record)
    assert kept.missing() and not kept.ended and kept.taken

    done = kvmnet(home, "resume", str(record), "--json", "--html", str(tmp_path / "p.html"))
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    whole = read(record)
    assert whole.ended and whole.taken[:len(kept.taken)] == kept.taken
    rows = {(r["subject"], r["what"]): r for r in json.loads(out)["rows"]}
    for name in (f"{document} web/nic0", f"memory=192 {E1000}"):
        assert rows[name, "tcp-up, guest-host: throughput"]["median"] > 0
        assert rows[name, "file, guest-host: rate"]["good"] and rows[name, "hold, guest-host: until all answer"]["good"]
        assert rows[name, "udp-64, guest-host: rate without loss"]["median"] > 0
    assert [whole.negotiated[n]["driver"] for n in whole.negotiated] == ["virtio_net", "e1000"]
    assert whole.answers("hold", Place.HOST, 0)[0]["answered"] == 1000
    assert "<svg" in (tmp_path / "p.html").read_text()
    assert not called_with(home) and Path("/proc/self/net/dev").read_text().count(":") == before


def test_a_guest_s_traffic_is_cut_off_and_comes_back_by_the_other_way(home: dict[str, str], tmp_path: Path) -> None:
    """RSTP, which every kernel that makes bridges can have: the way that carries the load loses its carrier."""
    done = kvmnet(home, "run", "--rounds", "1", "--no-twin", "--only", "failover", "--between", "guest-outside", "--set", "memory=192",
                  "--point", "uplink=rstp mode=bridge", "--record", str(tmp_path / "r.jsonl"), "--json")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    rows = {r["what"]: r for r in json.loads(out)["rows"]}
    gap, lost = rows["failover, guest-outside: gap"], rows["failover, guest-outside: requests lost"]
    answer = read(tmp_path / "r.jsonl").answers("failover", Place.OUTSIDE, 0)[0]
    assert gap["good"] and gap["median"] > 0 and 0 < lost["median"] < answer["sent"]
    assert answer["over"] and answer["after"] > 0, "answers came before it was lost, and afterwards"
    assert not called_with(home)


def test_a_tunnel_is_measured_to_its_far_end(home: dict[str, str], tmp_path: Path) -> None:
    done = kvmnet(home, "run", "--rounds", "1", "--no-twin", "--only", "tcp-up", "--between", "guest-outside", "--set", "memory=192",
                  "--point", "mode=vxlan", "--record", str(tmp_path / "r.jsonl"), "--json")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    rows = {r["what"]: r["median"] for r in json.loads(out)["rows"]}
    assert rows["tcp-up, guest-outside: throughput"] > 0
