"""Changes that wait for their confirmation, and the timer that takes them back."""
from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.history import Change, Status
from kvmnet.engine.journal import Phase
from kvmnet.engine.transaction import Engine, Outcome, Recovery
from kvmnet.errors import ConflictError
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.host.process import uptime
from lib.fake import CODEC, FakeHost
from lib.fork import die, in_child

ETH0 = Link(name="eth0", type="physical", mtu=1500, master="", up=True)
LAN = Link(name="kvb-lan", type="bridge", mtu=1400, up=True, alias="kvmnet lan")
CHANGE = Change("x", "/etc/kvmnet.yaml")
LONG, SHORT = 60.0, 1.0


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host", [ETH0])


@pytest.fixture
def engine(host: FakeHost, paths: Paths) -> Iterator[Engine]:
    engine = Engine(host.drivers(), paths, CODEC, settle=0.2)
    yield engine
    journal = engine.journal
    if journal is not None and journal.timer is not None:
        journal.timer.terminate()


def go(engine: Engine, grace: float, probe: Callable[[str], None] = lambda point: None) -> Outcome:
    engine.probe = probe
    return engine.converge({LAN.key: LAN, ETH0.key: Link(name="eth0", mtu=1400)}, CHANGE,
                           borrowed={ETH0.key}, confirm=grace).outcome


def reverted(host: FakeHost) -> bool:
    return host.state == {ETH0.key: ETH0}


def gone(engine: Engine) -> bool:
    return not engine.paths.journal.exists()


def test_unconfirmed_it_is_taken_back(engine: Engine, host: FakeHost) -> None:
    assert go(engine, SHORT) is Outcome.UNCONFIRMED
    assert LAN.key in host.state
    wait_until(lambda: gone(engine), 20)
    assert reverted(host)
    assert engine.plan(engine.observe({}), {}).lent == {}
    wait_until(lambda: engine.history.revisions()[0].status is Status.ROLLED_BACK, 20)
    assert engine.history.revisions()[0].message == "not confirmed in time"
    wait_until(lambda: "revision 1: not confirmed in time; rolled back" in
               (engine.paths.run / "undo.log").read_text(), 20)


def test_confirmed_it_stays_and_the_timer_ends(engine: Engine, host: FakeHost) -> None:
    go(engine, LONG)
    journal = engine.journal
    assert journal is not None and journal.phase is Phase.UNCONFIRMED
    timer = journal.timer
    assert timer is not None and timer.alive()
    assert os.getsid(timer.pid) != os.getsid(0)
    assert engine.confirm() == 1
    assert gone(engine) and LAN.key in host.state
    assert engine.history.revisions()[0].status is Status.CONFIRMED
    wait_until(lambda: not timer.alive(), 20)
    assert engine.converge({}, CHANGE).outcome is Outcome.CONFIRMED
    assert reverted(host)


@pytest.mark.parametrize("point", ["armed", "journalled", "step 1", "step 2", "verified", "unconfirmed"])
def test_killed_command_is_taken_back_by_its_timer(engine: Engine, host: FakeHost, point: str) -> None:
    assert in_child(lambda: go(engine, SHORT, lambda p: die() if p == point else None)) == -signal.SIGKILL
    wait_until(lambda: gone(engine), 20)
    assert reverted(host)


def test_the_end_of_the_session_does_not_reach_the_timer(engine: Engine, host: FakeHost) -> None:
    def session() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it (nohup)
        go(engine, 3.0)  # time enough to look, on a busy machine too
        os.killpg(0, signal.SIGHUP)

    assert in_child(session) == -signal.SIGHUP
    assert LAN.key in host.state
    wait_until(lambda: gone(engine), 20)
    assert reverted(host)


def test_the_deadline_counts_from_the_end_of_a_long_apply(engine: Engine, host: FakeHost) -> None:
    begun = uptime()
    slow = {"step 1": lambda: wait_until(lambda: uptime() > begun + 2 * SHORT, 20)}
    assert go(engine, SHORT, lambda p: slow.get(p, lambda: None)()) is Outcome.UNCONFIRMED
    journal = engine.journal
    assert journal is not None and (journal.deadline or 0) > begun + 2 * SHORT
    assert LAN.key in host.state
    wait_until(lambda: gone(engine), 20)
    assert reverted(host)


def test_another_change_must_wait(engine: Engine, host: FakeHost) -> None:
    go(engine, LONG)
    with pytest.raises(ConflictError, match=r"waits for its confirmation \(\d+ s left\)"):
        engine.converge({}, CHANGE)
    assert engine.recover().what is Recovery.WAITING
    assert engine.revert() == 1
    assert reverted(host)


def test_nothing_to_confirm(engine: Engine) -> None:
    with pytest.raises(ConflictError, match="no change waits"):
        engine.confirm()
    with pytest.raises(ConflictError, match="no change waits"):
        engine.revert()


def kill_timer(engine: Engine) -> None:
    journal = engine.journal
    assert journal is not None and journal.timer is not None
    os.kill(journal.timer.pid, signal.SIGKILL)
    timer = journal.timer
    wait_until(lambda: not timer.alive(), 20)


def test_a_dead_timer_is_armed_again(engine: Engine, host: FakeHost) -> None:
    go(engine, 2.0)
    kill_timer(engine)
    found = engine.recover()
    assert found.what is Recovery.REARMED and found.left is not None and found.left > 0
    wait_until(lambda: gone(engine), 20)
    assert reverted(host)


def test_with_a_dead_timer_and_the_deadline_over_recover_rolls_back(engine: Engine, host: FakeHost) -> None:
    go(engine, LONG)
    kill_timer(engine)
    journal = engine.journal
    assert journal is not None
    replace(journal, deadline=uptime() - 1).write(engine.paths.journal)
    assert engine.recover().what is Recovery.ROLLED_BACK
    assert reverted(host)


def test_a_restart_of_the_host_discards_what_was_unconfirmed(engine: Engine, host: FakeHost) -> None:
    go(engine, LONG)
    kill_timer(engine)
    journal = engine.journal
    assert journal is not None
    replace(journal, boot="an earlier one").write(engine.paths.journal)
    made = len(host.steps)
    assert engine.recover().what is Recovery.DISCARDED
    assert len(host.steps) == made and gone(engine)
    assert engine.history.revisions()[0].status is Status.ROLLED_BACK
    assert engine.history.last_confirmed() is None


def test_a_restart_with_the_run_directory_lost_leaves_no_pending_row(engine: Engine) -> None:
    go(engine, LONG)
    kill_timer(engine)
    engine.paths.journal.unlink()
    engine.recover()
    assert engine.history.revisions()[0].status is Status.ROLLED_BACK
