"""Going back means going back to another document, however often the present one was applied."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.api import Host
from kvmnet.errors import KvmnetError
from kvmnet.host.paths import Paths
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]


@pytest.fixture(autouse=True)
def nothing_left(netns: None, paths: Paths) -> Iterator[None]:
    yield
    Host(paths).change(Host(paths).plan_destroy)


ONE, TWO = (f"version: 1\nnetworks: {{{name}: {{mode: isolated, subnet: 10.1.0.0/24}}}}\n" for name in ("one", "two"))


def applied(paths: Paths, folder: Path, text: str) -> Path:
    document = folder / "kvmnet.yaml"
    document.write_text(text)
    Host(paths).apply_file(document)
    return document


def test_a_repair_is_no_place_to_go_back_to(paths: Paths, tmp_path: Path) -> None:
    applied(paths, tmp_path, ONE)
    with pytest.raises(KvmnetError, match="no earlier revision"):
        Host(paths).plan_revision()
    document = applied(paths, tmp_path, TWO)
    sh("ip link set kvb-two down")
    assert Host(paths).apply_file(document).revision == 3
    assert Host(paths).plan_revision().source == "revision 1"
    Host(paths).change(Host(paths).plan_revision)
    assert "kvb-one" in sh("ip link") and "kvb-two" not in sh("ip link")
    assert Host(paths).plan_revision().source == "revision 3"


def test_after_a_destroy_everything_comes_back(paths: Paths, tmp_path: Path) -> None:
    applied(paths, tmp_path, ONE)
    Host(paths).change(Host(paths).plan_destroy)
    assert "kvb-one" not in sh("ip link")
    Host(paths).change(Host(paths).plan_revision)
    assert "kvb-one" in sh("ip link")
