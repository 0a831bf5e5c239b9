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

WORDS = ("run", "--rounds", "1", "--no-twin", "--only", "tcp-up,udp-64,hold,file", "--point", "", "--point", "model=e1000 mode=bridge",
         "--set", "memory=192")


@pytest.fixture
def home(tiny: Image, tmp_path: Path) -> Iterator[dict[str, str]]:
    yield {**os.environ, "KVMNET_STATE_DIR": str(tmp_path / "state"), "KVMNET_RUN_DIR": str(tmp_path / "run")}


def kvmnet(home: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "kvmnet.cli.main", "bench", *words], env=home, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def processes(home: dict[str, str]) -> list[str]:
    """Everything that runs with this state directory, and QEMUs of it, by what they were called with."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            with suppress(OSError):
                environment, words = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
                if home["KVMNET_RUN_DIR"].encode() in environment + words or b"kvmnet.name=c0g1" in words:
                    found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


def test_killed_it_leaves_nothing_and_its_record_is_gone_on_with(home: dict[str, str], tmp_path: Path) -> None:
    before = Path("/proc/self/net/dev").read_text().count(":")
    record = tmp_path / "r.jsonl"
    first = kvmnet(home, *WORDS, "--record", str(record))
    try:
        wait_until(lambda: first.poll() is not None or (record.exists() and '"answer"' in record.read_text()), 240, 0.05)
        assert first.poll() is None, first.communicate()
        assert any("qemu" in words for words in processes(home)), "guests run while it measures"
    finally:
        first.kill()
        first.communicate()
    wait_until(lambda: not processes(home), 20)
    kept = read(record)
    assert kept.missing() and not kept.ended and kept.taken

    done = kvmnet(home, "resume", str(record), "--json", "--html", str(tmp_path / "p.html"))
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    whole = read(record)
    assert whole.ended and whole.taken[:len(kept.taken)] == kept.taken
    rows = {(r["subject"], r["what"]): r for r in json.loads(out)["rows"]}
    for name in ("memory=192", "memory=192 model=e1000 mode=bridge"):
        assert rows[name, "tcp-up, guest-host: throughput"]["median"] > 0
        assert rows[name, "file, guest-host: rate"]["good"] and rows[name, "hold, guest-host: until all answer"]["good"]
        assert rows[name, "udp-64, guest-host: rate without loss"]["median"] > 0
    assert [whole.negotiated[n]["driver"] for n in whole.negotiated] == ["virtio_net", "e1000"]
    assert whole.answers("hold", Place.HOST, 0)[0]["answered"] == 1000
    assert "<svg" in (tmp_path / "p.html").read_text()
    assert not processes(home) and Path("/proc/self/net/dev").read_text().count(":") == before
