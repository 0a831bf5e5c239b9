"""Fixtures that every tier shares."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from lib.netns import new_netns

from kvmnet.host.paths import Paths


@pytest.fixture
def netns() -> Iterator[None]:
    """The test runs in a network namespace of its own."""
    with new_netns():
        yield


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """State and run directories of the test's own."""
    monkeypatch.setenv("KVMNET_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("KVMNET_RUN_DIR", str(tmp_path / "run"))
    return Paths.from_environment()
