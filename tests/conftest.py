"""Fixtures that every tier shares."""
from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib import leftovers
from lib.netns import new_netns

settings.register_profile("kvmnet", deadline=None)  # a busy machine is no failure
settings.load_profile("kvmnet")

pytest_plugins = ["lib.lab_pytest", "lib.side"]


@pytest.fixture(scope="session", autouse=True)
def nothing_outlives_the_tests() -> Iterator[None]:
    """Daemons, guests, keepers and timers that tests start are gone when the tests are."""
    word = os.environ[leftovers.WORD] = secrets.token_hex(8)
    yield
    try:
        wait_until(lambda: not leftovers.processes(word), 20, 0.2)
    except TimeoutError:
        found = leftovers.processes(word)
        leftovers.end(found)
        raise AssertionError(f"left running: {sorted(found.values())}") from None


@pytest.fixture
def netns() -> Iterator[None]:
    """The test runs in a network namespace of its own."""
    with new_netns():
        yield


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    """State and run directories of the test's own. The latter can be entered by every user, as
    /run/kvmnet can: daemons that give up root read their files there again."""
    with TemporaryDirectory(prefix="kvmnet-run-") as run:
        Path(run).chmod(0o755)
        monkeypatch.setenv("KVMNET_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setenv("KVMNET_RUN_DIR", run)
        monkeypatch.setenv("KVMNET_ETC_DIR", str(tmp_path / "etc"))
        yield Paths.from_environment()
