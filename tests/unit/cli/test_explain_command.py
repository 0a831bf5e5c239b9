"""The command ``kvmnet explain``: words, exit codes, captures."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvmnet.cli.doctor import explain
from kvmnet.errors import KvmnetError

CAPTURE = {"format": 1, "links": [], "sysctls": {"net/netfilter/nf_conntrack_count": "100", "net/netfilter/nf_conntrack_max": "100"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "host.json"
    file.write_text(json.dumps(CAPTURE))
    return file


def run(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(explain, words, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.return_value, done.output


def test_a_line_on_a_captured_host(file: Path) -> None:
    code, text = run("nf_conntrack:", "table", "full,", "dropping", "packet", "--facts", str(file))
    assert code == 0 and "[seen here]" in text and "100 of 100 connections" in text and "$ sysctl -w net.netfilter.nf_conntrack_max" in text


def test_json(file: Path) -> None:
    code, text = run("ENOBUFS", "--facts", str(file), "--json")
    told = json.loads(text)
    assert code == 0 and told["known"] and told["name"] == "ENOBUFS" and {c["holds"] for c in told["causes"]} <= {"seen", "possible", "ruled_out", "unknown"}


def test_what_nobody_knows(file: Path) -> None:
    code, text = run("EXDEV", "--facts", str(file))
    assert code == 1 and "Invalid cross-device link" in text and "nearest:" in text
    assert json.loads(run("flux", "--facts", str(file), "--json")[1])["known"] is False


@pytest.mark.parametrize(("content", "words"), [("{", "not JSON"), ("[]", "not a capture"), ('{"format": 99, "links": []}', "format 99"), ("[" * 100_000, "not JSON")])
def test_a_file_that_is_no_capture(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "wrong"
    file.write_text(content)
    with pytest.raises(KvmnetError, match=words):
        run("ENOBUFS", "--facts", str(file))
    with pytest.raises(KvmnetError, match="No such file"):
        run("ENOBUFS", "--facts", str(tmp_path / "none"))
