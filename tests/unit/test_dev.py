"""The entry point of a checkout: its words, from any directory."""
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from kvmnet import __version__

ROOT = Path(__file__).parents[2]
DEV = ROOT / "dev"


def dev(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(DEV), *words], cwd=cwd, capture_output=True, text=True, check=False)


def test_without_words_it_says_what_there_is(tmp_path: Path) -> None:
    done = dev(cwd=tmp_path)
    assert done.returncode == 0
    named = set(re.findall(r"^  (\w+) ", done.stdout, re.M))
    understood = set(re.findall(r"^    (\w+)\) ", DEV.read_text(), re.M))
    assert named == understood


def test_a_wrong_word_is_not_taken_for_another(tmp_path: Path) -> None:
    done = dev("tset", cwd=tmp_path)
    assert done.returncode == 64
    assert "no command tset" in done.stderr


def test_run_stays_where_the_caller_is(tmp_path: Path) -> None:
    """Files that are named on its command line are the caller's."""
    assert dev("run", "--version", cwd=tmp_path).stdout.strip().endswith(__version__)
    assert dev("run", "init", "--uplink", "ens18", "mine.yaml", cwd=tmp_path).returncode == 0
    assert "ens18" in (tmp_path / "mine.yaml").read_text()


def test_every_shell_can_read_it() -> None:
    shell = shutil.which("dash") or shutil.which("sh")
    assert shell is not None
    assert os.access(DEV, os.X_OK)
    assert subprocess.run([shell, "-n", str(DEV)], check=False).returncode == 0
