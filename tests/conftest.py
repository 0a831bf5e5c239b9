"""Fixtures that every tier shares."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from lib.netns import new_netns

from kvmnet.host.paths import Paths


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
