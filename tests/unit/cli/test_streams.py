"""What a command does with streams that are closed, full, narrow or read no further."""
import os
import subprocess
import sys

import pytest

from kvmnet.cli.output import fitting

KVMNET = [sys.executable, "-c", "from kvmnet.cli.main import main; main()"]


def shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", "-c", script, "bash", *KVMNET], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("script", "code"), [
    ('"$@" --help >/dev/full', 74),
    ('"$@" --version >&-', 0),
    ('"$@" --version', 0),
    ('"$@" nothing', 64),
])
def test_a_command_ends_with_the_code_of_what_became_of_its_output(script: str, code: int) -> None:
    done = shell(script)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_whose_reader_has_gone_ends_as_others_do() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run(["bash", "-c", '"$@" --help; exit $?', "bash", *KVMNET], stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_terminal_that_is_wide_enough_shows_every_column() -> None:
    assert fitting(("a", "b", "c"), (5, 5, 5), (False, True, False), ("a",), 40) == [0, 1, 2]


def test_columns_without_content_go_first_then_the_spare_ones_and_the_last_may_fold() -> None:
    names, widths = ("guest", "mac", "lease", "state"), (8, 17, 10, 60)
    assert fitting(names, widths, (False, False, True, False), ("mac",), 65) == [0, 1, 3]
    assert fitting(names, widths, (False, False, True, False), ("mac",), 50) == [0, 3]
