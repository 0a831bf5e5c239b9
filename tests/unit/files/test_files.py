"""Files among other services' configuration, in a directory of the test's own."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from kvmnet.drivers.files import driver as subject
from kvmnet.drivers.files.driver import FileDriver, etc_directory, services_in_use
from kvmnet.drivers.files.resources import NETWORK_MANAGER, NETWORKD, UNMANAGED, File, unmanaged
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Conflict, plan
from kvmnet.engine.resource import Key
from kvmnet.host.paths import Paths

PATHS = Paths(Path("/var/lib/kvmnet"), Path("/run/kvmnet"))
BOTH = {f.key: f for f in unmanaged((NETWORK_MANAGER, NETWORKD))}


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMNET_ETC_DIR", str(tmp_path))
    return tmp_path


def apply(want: Mapping[Key, File], adopt: bool = False) -> int:
    driver = FileDriver(PATHS)
    seen = driver.observe(want)
    steps = plan(seen.state, want, seen.ours, adopt=adopt)
    driver.apply(steps, lambda done: None)
    after = driver.observe(want)
    assert plan(after.state, want, after.ours) == ()
    return len(steps)


def test_make_keep_and_remove(etc: Path) -> None:
    assert (apply(BOTH), apply(BOTH)) == (2, 0)
    keyfile = (etc / "NetworkManager/conf.d/kvmnet.conf").read_text()
    assert "match-device=interface-name:kvt-*;interface-name:kvb-*;interface-name:kvp-*;interface-name:kvi-*\nmanaged=0\n" in keyfile
    network = (etc / "systemd/network/00-kvmnet.network").read_text()
    assert "Name=kvt-* kvb-* kvp-* kvi-*\n" in network and "Unmanaged=yes" in network
    (etc / "systemd/network/00-kvmnet.network").write_text(network.replace("yes", "no"))
    assert apply(BOTH) == 1
    assert apply({}) == 2
    assert not list(etc.rglob("*kvmnet*"))


def test_foreign_file_is_a_conflict_and_stays(etc: Path) -> None:
    theirs = etc / "NetworkManager/conf.d/kvmnet.conf"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[main]\n")
    with pytest.raises(Conflict):
        apply(BOTH)
    assert apply({}) == 0
    assert theirs.read_text() == "[main]\n"
    assert apply(BOTH, adopt=True) == 2


def test_services_in_use(etc: Path) -> None:
    assert services_in_use(PATHS) == frozenset()
    (etc / "NetworkManager").mkdir()
    (etc / "systemd/system/multi-user.target.wants").mkdir(parents=True)
    assert services_in_use(PATHS) == {NETWORK_MANAGER}
    (etc / "systemd/system/multi-user.target.wants/systemd-networkd.service").symlink_to("/nowhere")
    assert services_in_use(PATHS) == {NETWORK_MANAGER, NETWORKD}


def test_reload_of_what_runs_on_this_machine(etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [c.argv[0] for c in FileDriver(PATHS).commands(plan({}, BOTH, set()))] == ["tee", "tee"]
    monkeypatch.setattr(subject, "ETC", etc)
    name = str(etc / "x")
    file = File(name=name, content="x")
    monkeypatch.setitem(UNMANAGED, NETWORKD, file)
    monkeypatch.setitem(subject.SERVICES, NETWORKD, subject.Service(lambda _: True, etc, ("false",)))
    with pytest.raises(StepFailed):
        FileDriver(PATHS).apply(plan({}, {file.key: file}, set()), lambda done: None)
    monkeypatch.setitem(subject.SERVICES, NETWORKD, subject.Service(lambda _: True, etc, ("rm", name)))
    FileDriver(PATHS).apply(plan({}, {file.key: file}, set()), lambda done: None)
    assert not (etc / "x").exists()


def test_json_there_and_back() -> None:
    assert [from_json(to_json(f)) for f in BOTH.values()] == list(BOTH.values())


def test_a_second_host_on_the_machine_has_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVMNET_ETC_DIR", raising=False)
    assert etc_directory(PATHS) == Path("/etc")
    assert etc_directory(Paths(tmp_path, tmp_path / "run")) == tmp_path / "etc"
