"""The command ``kvmnet doctor``: what it prints, and its exit codes."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from kvmnet.cli.doctor import LISTED, doctor
from kvmnet.errors import KvmnetError

BRIDGE = {"ifname": "br0", "ifindex": 1, "flags": ["UP", "LOWER_UP"], "mtu": 1500, "address": "02:00:00:00:00:b0", "linkinfo": {"info_kind": "bridge"}}


def port(name: str, up: bool) -> dict[str, Any]:
    return {"ifname": name, "ifindex": 2, "flags": ["UP", "LOWER_UP"] if up else [], "mtu": 1500, "master": "br0", "address": "02:00:00:00:00:01", "link_type": "ether"}


def run(folder: Path, facts: dict[str, Any], *words: str) -> tuple[int, str]:
    file = folder / "host.json"
    file.write_text(json.dumps({"format": 1, "links": []} | facts))
    done = CliRunner().invoke(doctor, ["--facts", str(file), *words], standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.output


def test_what_blocks_is_said_with_its_cure(tmp_path: Path) -> None:
    code, text = run(tmp_path, {"links": [BRIDGE, port("eth0", False)]})
    assert code == 1 and "eth0, a port of br0, is down" in text and "[port-down, proved]" in text and "$ ip link set eth0 up" in text and "1 blocks" in text


def test_a_healthy_host(tmp_path: Path) -> None:
    code, text = run(tmp_path, {"links": [BRIDGE, port("eth0", True)], "missing": {"nft": "nft not found"}})
    assert code == 0 and "nothing is wrong" in text and "not looked at: nft: nft not found" in text


def test_a_note_is_no_failure(tmp_path: Path) -> None:
    guest = {"pid": 7, "name": "a", "argv": ["qemu-system-x86_64", "-accel", "tcg"]}
    code, text = run(tmp_path, {"guests": [guest]})
    assert code == 0 and "[not-accelerated, proved]" in text


def test_many_alike_are_counted(tmp_path: Path) -> None:
    facts = {"links": [BRIDGE, *(port(f"eth{n}", False) for n in range(LISTED + 3))]}
    assert "… and 3 more port-down" in run(tmp_path, facts)[1]
    assert run(tmp_path, facts, "--all")[1].count("[port-down,") == LISTED + 3


def test_json(tmp_path: Path) -> None:
    code, text = run(tmp_path, {"links": [BRIDGE, port("eth0", False)]}, "--json")
    finding, = json.loads(text)["findings"]
    assert code == 1 and finding["code"] == "port-down" and finding["severity"] == "blocks" and finding["fix"] == ["ip link set eth0 up"]


def test_a_capture_that_was_tampered_with_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(KvmnetError, match="not as `kvmnet facts` writes it"):
        run(tmp_path, {"links": [{"ifname": "br0", "flags": 7, "linkinfo": {"info_kind": "bridge"}}]})
