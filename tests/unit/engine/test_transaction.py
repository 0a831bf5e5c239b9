"""One transaction at a time, on a host that executes."""
from __future__ import annotations

from pathlib import Path

import pytest

from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.history import Change, Status
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Absent, Key, Resource, Wanted
from kvmnet.engine.transaction import Engine, Outcome, Recovery
from kvmnet.errors import ApplyFailed, ConflictError
from kvmnet.host.paths import Paths
from lib.fake import CODEC, FakeHost

ETH0 = Link(name="eth0", type="physical", mtu=1500, master="", up=True)
ETH0_IP = Address(name="eth0 192.0.2.5/24", dev="eth0")
LAN = Link(name="kvb-lan", type="bridge", mtu=1400, up=True, alias="kvmnet lan")
LAN_IP = Address(name="kvb-lan 10.0.0.1/24", dev="kvb-lan")
TAP = Link(name="kvt-a", type="tap", mtu=1400, master="kvb-lan", alias="kvmnet a/0")


def want(*things: Resource | Absent) -> Wanted:
    return {r.key: r for r in things}


def change(text: str = "x") -> Change:
    return Change(document=text, source="/etc/kvmnet.yaml")


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host", [ETH0, ETH0_IP])


@pytest.fixture
def engine(host: FakeHost, paths: Paths) -> Engine:
    return Engine(host.drivers(), paths, CODEC, settle=0.2)


def test_apply_makes_what_is_wanted_and_records_it(engine: Engine, host: FakeHost, paths: Paths) -> None:
    result = engine.converge(want(LAN, LAN_IP, TAP), change())
    assert result.outcome is Outcome.CONFIRMED
    assert host.state == want(ETH0, ETH0_IP, LAN, LAN_IP, TAP)
    assert not paths.journal.exists()
    [row] = engine.history.revisions()
    assert (row.number, row.status, row.summary) == (1, Status.CONFIRMED, {"create": 3, "update": 0, "delete": 0})


def test_applying_again_changes_nothing_and_records_nothing(engine: Engine, host: FakeHost) -> None:
    engine.converge(want(LAN), change())
    made = len(host.steps)
    assert engine.converge(want(LAN), change()).outcome is Outcome.UNCHANGED
    assert len(host.steps) == made
    assert len(engine.history.revisions()) == 1
    assert engine.converge(want(LAN), change("another text")).revision == 2


def test_a_refused_step_rolls_back(engine: Engine, host: FakeHost, paths: Paths) -> None:
    before = host.state

    def refuse(step: Step) -> None:
        if step.key == TAP.key:
            raise StepFailed(step.key, "Operation not supported", "modprobe tun")

    host.fault = refuse
    with pytest.raises(ApplyFailed, match="link kvt-a: Operation not supported; rolled back") as caught:
        engine.converge(want(LAN, TAP), change())
    assert caught.value.hint == "modprobe tun"
    assert host.state == before
    assert not paths.journal.exists()
    assert engine.history.revisions()[0].status is Status.ROLLED_BACK


def test_destroy_gives_back_what_was_borrowed(engine: Engine, host: FakeHost, paths: Paths) -> None:
    before = host.state
    wanted = want(LAN, Link(name="eth0", mtu=1400, master="kvb-lan"), Absent(ETH0_IP.key),
                  Address(name="kvb-lan 192.0.2.5/24", dev="kvb-lan"))
    engine.converge(wanted, change(), borrowed={ETH0.key})
    assert host.state[ETH0.key] == Link(name="eth0", type="physical", mtu=1400, master="kvb-lan", up=True)
    assert ETH0_IP.key not in host.state
    engine.converge({}, change(""))
    assert host.state == before
    assert engine.plan(engine.observe({}), {}).lent == {}


def test_a_stranger_in_the_way_is_a_conflict(engine: Engine, host: FakeHost) -> None:
    host.put({**host.state, Key("link", "kvb-lan"): Link(name="kvb-lan", type="bridge", mtu=1500)})
    with pytest.raises(ConflictError, match="link kvb-lan"):
        engine.converge(want(LAN), change())
    assert engine.converge(want(LAN), change(), adopt=True).outcome is Outcome.CONFIRMED


def test_nothing_to_recover(engine: Engine) -> None:
    assert engine.recover().what is Recovery.NOTHING
