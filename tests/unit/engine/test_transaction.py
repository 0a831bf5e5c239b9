"""One transaction at a time, on a host that executes."""
from __future__ import annotations

import errno
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.linux.resources import Address, Link
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.history import Change, Status
from kvmnet.engine.plan import Create, Delete, Step
from kvmnet.engine.resource import Absent, Key, Resource, Wanted
from kvmnet.engine.transaction import Doing, Engine, Event, Outcome, Recovery
from kvmnet.errors import ApplyFailed, ConflictError, HostCannot, KvmnetError, RollbackFailed
from kvmnet.host.paths import Paths
from lib.fake import CODEC, GUESTS, LINUX, FakeDriver, FakeHost
from lib.fork import die, in_child

ETH0 = Link(name="eth0", type="physical", mtu=1500, master="", up=True)
ETH0_IP = Address(name="eth0 192.0.2.5/24", dev="eth0")
LAN = Link(name="kvb-lan", type="bridge", mtu=1400, up=True, alias="kvmnet lan")
LAN_IP = Address(name="kvb-lan 10.0.0.1/24", dev="kvb-lan")
TAP = Link(name="kvt-a", type="tap", mtu=1400, master="kvb-lan", alias="kvmnet a/0")
NIC = GuestNic(name="a/0", vm="a", tap="kvt-a", model="virtio", link=True)


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


def test_a_second_writer_is_refused_and_told_who_is_first(engine: Engine, host: FakeHost, paths: Paths) -> None:
    other = Engine(host.drivers(), paths, CODEC)
    with engine.writing("kvmnet apply lan.yaml"), pytest.raises(ConflictError) as caught:
        other.converge(want(LAN), change())
    assert f"pid {os.getpid()} (kvmnet apply lan.yaml) since " in str(caught.value)
    assert caught.value.exit_code == 12
    assert other.observe({}).state == host.state
    assert other.converge(want(LAN), change()).outcome is Outcome.CONFIRMED


def test_a_writer_that_was_killed_holds_no_lock(engine: Engine, host: FakeHost) -> None:
    assert in_child(lambda: engine.converge(want(LAN), change(), listen=die)) == -signal.SIGKILL
    assert engine.converge(want(LAN), change()).outcome is Outcome.CONFIRMED


def test_a_missing_tool_stops_only_what_needs_it(host: FakeHost, paths: Paths) -> None:
    lacking = [FakeDriver(host, LINUX), FakeDriver(host, GUESTS, "qemu not found: apt-get install qemu-system-x86")]
    engine = Engine(lacking, paths, CODEC, settle=0)
    with pytest.raises(HostCannot, match="apt-get install qemu-system-x86"):
        engine.converge(want(TAP, NIC), change())
    assert host.steps == [] and engine.history.revisions() == []
    assert engine.converge(want(LAN), change()).outcome is Outcome.CONFIRMED


def test_what_cannot_be_seen_or_removed_is_not_left_behind(engine: Engine, host: FakeHost, paths: Paths) -> None:
    """A destroy that does not see half of the host must not say that it removed everything."""
    engine.converge(want(LAN, TAP, NIC), change())
    before, made = host.state, len(engine.history.revisions())
    for blind in ([FakeDriver(host, LINUX, "ip not found"), FakeDriver(host, GUESTS)],
                  [FakeDriver(host, LINUX), FakeDriver(host, GUESTS, "qemu not found")]):
        with pytest.raises(HostCannot, match="not found"):
            Engine(blind, paths, CODEC, settle=0).converge({}, change("destroy"))
    assert host.state == before and len(engine.history.revisions()) == made


def test_the_undo_of_a_dead_writer_needs_its_tools_too(engine: Engine, host: FakeHost, paths: Paths) -> None:
    engine.converge(want(LAN, TAP, NIC), change())
    engine.probe = lambda point: die() if point == "step 1" else None
    assert in_child(lambda: engine.converge({}, change())) == -signal.SIGKILL
    lacking = [FakeDriver(host, LINUX), FakeDriver(host, GUESTS, "qemu not found")]
    with pytest.raises(RollbackFailed, match="qemu not found"):
        Engine(lacking, paths, CODEC, settle=0).converge({}, change())
    Engine(host.drivers(), paths, CODEC, settle=0).recover()
    assert host.state == want(ETH0, ETH0_IP, LAN, TAP, NIC)


class Bug(RuntimeError):
    """What no driver should raise."""


@pytest.mark.parametrize("error", [Bug("oops"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_an_unexpected_error_is_rolled_back_and_raised_again(
        engine: Engine, host: FakeHost, paths: Paths, error: BaseException) -> None:
    before = host.state

    def fault(step: Step) -> None:
        if step.key == TAP.key and isinstance(step, Create):
            raise error

    host.fault = fault
    with pytest.raises(type(error)) as caught:
        engine.converge(want(LAN, TAP), change())
    assert caught.value is error
    assert host.state == before and not paths.journal.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_that_is_told_to_end_rolls_back_first(engine: Engine, host: FakeHost, number: int) -> None:
    before = host.state
    ready: set[str] = set()

    def told(point: str) -> None:
        if point == "step 1" or ready:
            ready.add(point)
            os.kill(os.getpid(), number)

    def work() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it (nohup)
        engine.probe = told
        host.fault = lambda step: os.kill(os.getpid(), number) if ready else None
        engine.converge(want(LAN, TAP), change())

    assert in_child(work) == 1
    assert host.state == before
    assert engine.recover().what is Recovery.NOTHING


def test_what_was_being_made_needs_its_tools_to_be_undone(engine: Engine, host: FakeHost, paths: Paths) -> None:
    """Without its tool a guest's NIC cannot be seen: that must not be taken for its absence."""
    engine.probe = lambda point: die() if point == "step 3" else None
    assert in_child(lambda: engine.converge(want(LAN, TAP, NIC), change())) == -signal.SIGKILL
    lacking = [FakeDriver(host, LINUX), FakeDriver(host, GUESTS, "qemu not found")]
    with pytest.raises(RollbackFailed, match="qemu not found"):
        Engine(lacking, paths, CODEC, settle=0).recover()
    assert NIC.key in host.state and paths.journal.exists()


def test_a_command_under_nohup_is_not_ended_by_a_hangup(engine: Engine, host: FakeHost) -> None:
    def work() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        engine.probe = lambda point: os.kill(os.getpid(), signal.SIGHUP)
        engine.converge(want(LAN, TAP), change())

    assert in_child(work) == 0
    assert TAP.key in host.state


def test_a_disk_full_in_a_driver_is_an_error_of_the_change(engine: Engine, host: FakeHost) -> None:
    def fault(step: Step) -> None:
        if step.key == TAP.key:
            raise OSError(errno.ENOSPC, "No space left on device", "/run/kvmnet/x")

    host.fault = fault
    with pytest.raises(ApplyFailed, match=r"^/run/kvmnet/x: No space left on device; rolled back"):
        engine.converge(want(LAN, TAP), change())


def test_a_host_that_does_not_become_as_wanted_is_brought_back(engine: Engine, host: FakeHost) -> None:
    before = host.state
    make = host.make

    def clamping(step: Step) -> None:
        make(step)
        if step.key == TAP.key and TAP.key in host.state:
            host.put({**host.state, TAP.key: replace(TAP, mtu=1280)})

    host.make = clamping  # type: ignore[method-assign]
    with pytest.raises(ApplyFailed, match=r"still differs: update link kvt-a \(mtu 1280 -> 1400\)"):
        engine.converge(want(LAN, TAP), change())
    assert host.state == before


def test_a_rollback_that_fails_leaves_the_journal(engine: Engine, host: FakeHost, paths: Paths) -> None:
    before = host.state

    def fault(step: Step) -> None:
        if step.key == TAP.key or isinstance(step, Delete):
            raise StepFailed(step.key, "no")

    host.fault = fault
    with pytest.raises(RollbackFailed, match="link kvt-a: no; the host could not be brought back") as caught:
        engine.converge(want(LAN, TAP), change())
    assert caught.value.exit_code == 14 and "kvmnet recover" in caught.value.hint
    assert paths.journal.exists() and engine.history.revisions()[0].status is Status.FAILED
    host.fault = lambda step: None
    assert engine.recover().what is Recovery.ROLLED_BACK
    assert host.state == before and engine.history.revisions()[0].status is Status.ROLLED_BACK


def test_a_host_that_moved_since_the_plan_is_refused(engine: Engine, host: FakeHost) -> None:
    wanted = want(LAN, Link(name="eth0", mtu=1400))
    seen = engine.plan(engine.observe(wanted), wanted, {ETH0.key}).fingerprint
    host.put({**host.state, ETH0.key: replace(ETH0, up=False)})
    again = engine.plan(engine.observe(wanted), wanted, {ETH0.key}).fingerprint
    assert again.digest == seen.digest, "what nobody claims may move"
    host.put({**host.state, ETH0.key: replace(ETH0, mtu=9000)})
    with pytest.raises(ConflictError, match="moved since the plan was made: link eth0"):
        engine.converge(wanted, change(), borrowed={ETH0.key}, expected=seen)
    assert host.steps == []
    host.put({**host.state, ETH0.key: ETH0})
    assert engine.converge(wanted, change(), borrowed={ETH0.key}, expected=seen).outcome is Outcome.CONFIRMED


def test_a_damaged_database_is_found_before_the_host_is_changed(engine: Engine, host: FakeHost, paths: Paths) -> None:
    paths.state.mkdir()
    paths.database.write_bytes(b"rubbish " * 1000)
    with pytest.raises(KvmnetError, match="damaged"):
        engine.converge(want(LAN), change())
    assert host.steps == [] and not paths.journal.exists()


def test_a_database_lost_before_the_commit_rolls_back(engine: Engine, host: FakeHost, paths: Paths) -> None:
    before = host.state
    engine.probe = lambda point: paths.database.write_bytes(b"rubbish " * 1000) if point == "verified" else None  # type: ignore[assignment, return-value]
    with pytest.raises(ApplyFailed, match=r"database is damaged.*rolled back"):
        engine.converge(want(LAN), change())
    assert host.state == before and not paths.journal.exists()


def test_only_what_can_have_changed_is_looked_at_again(host: FakeHost, paths: Paths) -> None:
    linux, guests = FakeDriver(host, LINUX), FakeDriver(host, GUESTS)
    engine = Engine([linux, guests], paths, CODEC, settle=0)
    engine.converge(want(LAN, TAP), change())
    assert (linux.looks, guests.looks) == (2, 1)
    engine.converge(want(LAN, TAP, NIC), change())
    assert (linux.looks, guests.looks) == (3, 3)


def test_steps_reach_their_drivers_in_runs(engine: Engine) -> None:
    steps = engine.plan(engine.observe({}), want(LAN, TAP, NIC, LAN_IP)).steps
    assert [[s.key.kind for s in run] for _, run in engine.dispatch.runs(steps)] == [
        ["link", "address", "link"], ["guest-nic"]]
    assert [c.argv[0] for c in engine.dispatch.commands(steps)] == ["fake"] * 4


def test_progress_is_told(engine: Engine) -> None:
    events: list[Event] = []
    engine.converge(want(LAN, TAP), change(), listen=events.append)
    assert events == [Event(Doing.OBSERVE), Event(Doing.APPLY, 0, 2), Event(Doing.APPLY, 1, 2),
                      Event(Doing.APPLY, 2, 2), Event(Doing.VERIFY)]
