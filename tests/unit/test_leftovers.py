"""The search for processes that outlive the tests finds one."""
from __future__ import annotations

import os
import subprocess

from kvmnet.host.clock import wait_until
from lib import leftovers


def test_a_process_that_outlives_its_test_is_found() -> None:
    child = subprocess.Popen(["sleep", "30"], env={**os.environ, leftovers.WORD: "a-word-of-its-own"})
    try:
        assert wait_until(lambda: leftovers.processes("a-word-of-its-own"), 20).keys() == {child.pid}
        leftovers.end(leftovers.processes("a-word-of-its-own"))
        assert child.wait(20) < 0
    finally:
        child.kill()
        child.wait()
