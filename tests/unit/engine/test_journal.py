"""What lies on disk while a change is under way: formats, damage, other boots and namespaces."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.engine.borrow import Original, load_originals, save_originals
from kvmnet.engine.history import Change
from kvmnet.engine.journal import Image, Journal, Phase, read_journal
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Absent, Key, Resource
from kvmnet.engine.transaction import Engine, Recovery
from kvmnet.errors import ConflictError, KvmnetError, RollbackFailed
from kvmnet.host.paths import Paths
from kvmnet.host.process import Process, boot_id, namespace_id
from lib.fake import CODEC, FakeHost

ETH0 = Link(name="eth0", type="physical", mtu=1500, master="", up=True)
LAN = Link(name="kvb-lan", type="bridge", mtu=1400, alias="kvmnet lan")
LAN_IP = Address(name="kvb-lan 10.0.0.1/24", dev="kvb-lan", flags=("nodad", "noprefixroute"))

FIRST_FORMAT: dict[str, Any] = {
    "format": 1, "id": "0123", "phase": "applying", "started": "2025-01-01T00:00:00+00:00", "boot": "?",
    "writer": {"pid": 1, "start": 1},
    "before": {"absent": {"link": ["kvb-lan"]}, "present": [{"kind": "link", "name": "eth0", "mtu": 1500}]},
}
"""The least that the first format holds. Every later version must read it."""


def test_an_image_survives_the_file(paths: Paths) -> None:
    seen: dict[Key, Resource] = {r.key: r for r in (ETH0, LAN, LAN_IP)}
    ours = {LAN.key, LAN_IP.key}
    wanted = {ETH0.key: Link(name="eth0", mtu=9000), Key("link", "kvt-x"): Link(name="kvt-x", type="tap")}
    image = Image.of(seen, plan(seen, wanted, ours, {ETH0.key}), ours)
    assert image.wanted == {LAN.key: LAN, LAN_IP.key: LAN_IP, ETH0.key: Link(name="eth0", mtu=1500),
                            Key("link", "kvt-x"): Absent(Key("link", "kvt-x"))}
    assert image.partial == {ETH0.key}
    journal = Journal(id="7", phase=Phase.UNCONFIRMED, started="now", boot=boot_id(), namespace=1,
                      writer=Process(1, 2), before=image.encode(CODEC), timer=Process(3, 4), deadline=5.5,
                      grace=6, revision=7)
    journal.write(paths.journal)
    read = read_journal(paths.journal)
    assert read is not None and read.image(paths.journal, CODEC) == image
    assert replace(read, before={}) == replace(journal, before={})
    assert paths.journal.stat().st_mode & 0o777 == 0o600


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host", [replace(ETH0, mtu=1400), LAN])


@pytest.fixture
def engine(host: FakeHost, paths: Paths) -> Engine:
    paths.run.mkdir(parents=True, exist_ok=True)
    return Engine(host.drivers(), paths, CODEC, settle=0)


def lay(engine: Engine, **changes: Any) -> None:
    engine.paths.journal.write_text(json.dumps({**FIRST_FORMAT, "boot": boot_id(), **changes}))


def test_a_journal_of_the_first_format_is_rolled_back(engine: Engine, host: FakeHost) -> None:
    lay(engine)
    assert engine.recover().what is Recovery.ROLLED_BACK
    assert host.state == {ETH0.key: ETH0}


def test_the_next_command_recovers_first(engine: Engine, host: FakeHost) -> None:
    lay(engine)
    engine.converge({}, Change("x", "y"))
    assert host.state == {ETH0.key: ETH0}
    assert not engine.paths.journal.exists()


def test_a_newer_format_is_refused(engine: Engine, host: FakeHost) -> None:
    lay(engine, format=2)
    with pytest.raises(KvmnetError, match="format 2, this kvmnet reads up to 1"):
        engine.converge({}, Change("x", "y"))
    assert host.steps == [] and engine.paths.journal.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", '{"format": "x"}', '{"format": 1}', "\x00\x01",
                                  json.dumps({**FIRST_FORMAT, "phase": "asleep"}),
                                  json.dumps({**FIRST_FORMAT, "writer": {"nose": 1}}),
                                  json.dumps({**FIRST_FORMAT, "before": 3}),
                                  json.dumps({**FIRST_FORMAT, "deadline": "soon"})])
def test_a_damaged_journal_says_what_to_do(engine: Engine, host: FakeHost, text: str) -> None:
    engine.paths.journal.write_text(text)
    with pytest.raises(KvmnetError, match="cannot be read") as caught:
        engine.converge({}, Change("x", "y"))
    assert f"mv {engine.paths.journal}" in caught.value.hint
    assert host.steps == [] and engine.paths.journal.read_text() == text


@pytest.mark.parametrize("before", [{"absent": {}}, {"absent": {}, "present": [{"kind": "teapot", "name": "x"}]},
                                    {"absent": {}, "present": [{"kind": "link", "name": "x", "colour": 1}]},
                                    {"absent": 1, "present": []}])
def test_an_image_that_is_not_understood_is_left_alone(engine: Engine, host: FakeHost, before: object) -> None:
    lay(engine, before=before)
    with pytest.raises(KvmnetError, match="cannot be read"):
        engine.recover()
    assert host.steps == [] and engine.paths.journal.exists()


def test_a_journal_of_another_namespace_is_not_touched(engine: Engine, host: FakeHost) -> None:
    lay(engine, namespace=namespace_id() + 1)
    with pytest.raises(ConflictError, match="another network namespace"):
        engine.recover()
    assert host.steps == [] and engine.paths.journal.exists()


def test_a_borrowed_uplink_that_vanished_does_not_stop_the_rollback(engine: Engine, host: FakeHost) -> None:
    lay(engine, before={**FIRST_FORMAT["before"], "partial": [["link", "eth0"]]})
    host.put({LAN.key: LAN})
    assert engine.recover().what is Recovery.ROLLED_BACK
    assert host.state == {}


def test_what_cannot_be_rolled_back_stays_for_the_next_try(engine: Engine, host: FakeHost) -> None:
    lay(engine)

    def stuck(step: object) -> None:
        raise OSError(5, "Input/output error")

    host.fault = stuck
    with pytest.raises(RollbackFailed, match=r"Input/output error; still off: .*link kvb-lan") as caught:
        engine.recover()
    assert "kvmnet recover" in caught.value.hint and caught.value.exit_code == 14
    host.fault = lambda step: None
    assert engine.recover().what is Recovery.ROLLED_BACK


def test_originals_count_for_this_boot_and_namespace_only(paths: Paths) -> None:
    lent = {ETH0.key: Original(Link(name="eth0", mtu=1500)), LAN_IP.key: Original(LAN_IP, whole=True)}
    save_originals(paths.originals, lent, CODEC)
    assert load_originals(paths.originals, CODEC) == lent
    data = json.loads(paths.originals.read_text())
    for change in ({"boot": "earlier"}, {"namespace": 1}):
        paths.originals.write_text(json.dumps({**data, **change}))
        assert load_originals(paths.originals, CODEC) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1}', '{"format": 9}', '{"format": null}'])
def test_damaged_originals_say_what_to_do(paths: Paths, text: str) -> None:
    paths.run.mkdir(parents=True, exist_ok=True)
    paths.originals.write_text(text)
    with pytest.raises(KvmnetError) as caught:
        load_originals(paths.originals, CODEC)
    assert caught.value.hint
