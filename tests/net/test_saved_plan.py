"""A plan that was saved is made as it was shown, or not at all."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.api import Host
from kvmnet.errors import ConflictError
from kvmnet.host.paths import Paths
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]


@pytest.fixture(autouse=True)
def nothing_left(netns: None, paths: Paths) -> Iterator[None]:
    yield
    Host(paths).change(Host(paths).plan_destroy)


DOCUMENT = """\
version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24}}
vms: {a: {nics: [{network: lan}]}}
"""


@pytest.fixture
def saved(paths: Paths, tmp_path: Path) -> Path:
    sh("ip link add eth0 type veth peer name far && ip link set eth0 up")
    document, plan = tmp_path / "kvmnet.yaml", tmp_path / "change.plan"
    document.write_text(DOCUMENT)
    Host(paths).plan(document).save(plan)
    return plan


def test_it_is_made_on_a_host_that_stands_still(saved: Path, paths: Paths) -> None:
    assert Host(paths).apply_file(saved).steps
    assert not Host(paths).plan(saved.with_name("kvmnet.yaml")).steps


@pytest.mark.parametrize(("hand", "word"), [
    ("ip link add kvb-lan type bridge", "in its way: link kvb-lan"),
    ("ip link set eth0 mtu 1400", "link kvb-lan"),
])
def test_it_is_refused_when_the_change_would_be_another(saved: Path, paths: Paths, hand: str, word: str) -> None:
    """The second: nothing of the plan names the uplink's MTU, but the guests' follows from it."""
    sh(hand)
    with pytest.raises(ConflictError, match=word):
        Host(paths).apply_file(saved)
