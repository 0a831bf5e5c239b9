"""Whatever is wanted, whatever fails and wherever it is killed: the host is as it was or as wanted."""
from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.drivers.linux.resources import Address, Link, Route, Sysctl
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.history import Change, Status
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Absent, Key, Resource, diff
from kvmnet.engine.transaction import Engine, Outcome
from kvmnet.errors import ApplyFailed
from kvmnet.host.paths import Paths
from lib.fake import CODEC, FakeHost
from lib.fork import die, in_child

ETH0_IP = Address(name="eth0 192.0.2.5/24", dev="eth0", scope="global")
DEFAULT = Route(name="default dev eth0", dev="eth0", dst="default", via="192.0.2.1")
FORWARD = Sysctl(name="net/ipv4/ip_forward", value="0")
FOREIGN = (
    Link(name="eth0", type="physical", mtu=1500, master="", up=True),
    Link(name="eth1", type="physical", mtu=9000, master="br9", up=True),
    Link(name="br9", type="bridge", mtu=1500, master="", up=True),
    ETH0_IP, DEFAULT, FORWARD,
)
Goal = tuple[dict[Key, Resource | Absent], frozenset[Key]]

MTUS = st.sampled_from([1400, 1500, 9000])


@st.composite
def goals(draw: st.DrawFn) -> Goal:
    """A wanted state and its claims on somebody else's things."""
    things: list[Resource | Absent] = []
    borrowed: list[Resource] = []
    bridges = draw(st.lists(st.sampled_from(["kvb-a", "kvb-b"]), unique=True, max_size=2))
    for name in bridges:
        things.append(Link(name=name, type="bridge", mtu=draw(MTUS), up=True, master="", alias=f"kvmnet {name}"))
        things.append(Address(name=f"{name} 10.0.0.1/24", dev=name, scope="global"))
    for name in draw(st.lists(st.sampled_from(["kvt-1", "kvt-2", "kvt-3"]), unique=True)):
        things.append(Link(name=name, type="tap", mtu=draw(MTUS), up=True, alias=f"kvmnet {name}",
                           multi_queue=draw(st.booleans()), master=draw(st.sampled_from(["", *bridges]))))
        if draw(st.booleans()):
            things.append(GuestNic(name=f"vm/{name}", vm="vm", tap=name, link=True,
                                   model=draw(st.sampled_from(["virtio", "e1000e"]))))
    if draw(st.booleans()):
        borrowed.append(Sysctl(name=FORWARD.name, value="1"))
    claims = draw(st.sampled_from(["none", "mtu", "both"]))
    if claims == "mtu" or (claims == "both" and not bridges):
        borrowed.append(Link(name="eth0", mtu=draw(MTUS)))
    elif claims == "both":
        home = bridges[0]
        borrowed.append(Link(name="eth0", mtu=draw(st.none() | MTUS), master=home))
        things += [Absent(ETH0_IP.key), Absent(DEFAULT.key),
                   Address(name=f"{home} 192.0.2.5/24", dev=home, scope="global")]
    return {r.key: r for r in (*things, *borrowed)}, frozenset(r.key for r in borrowed)


class World:
    """A host, its directories, and engines that act on it."""

    def __init__(self, root: Path):
        self.root = root
        self.host = FakeHost(root / "host", FOREIGN)
        self.paths = Paths(root / "state", root / "run")

    def engine(self, probe: Callable[[str], None] | None = None) -> Engine:
        return Engine(self.host.drivers(), self.paths, CODEC, settle=0, probe=probe)

    def converge(self, goal: Goal, probe: Callable[[str], None] | None = None, confirm: float | None = None) -> Outcome:
        change = Change(repr(sorted(goal[0])), "test")
        return self.engine(probe).converge(goal[0], change, borrowed=goal[1], confirm=confirm).outcome

    def copy(self, to: Path) -> World:
        shutil.copytree(self.root, to)
        other = World.__new__(World)
        other.root, other.paths = to, Paths(to / "state", to / "run")
        other.host = FakeHost.__new__(FakeHost)
        other.host.path, other.host.fault, other.host.steps = to / "host", lambda step: None, []
        return other


@contextmanager
def worlds() -> Iterator[World]:
    root = Path(tempfile.mkdtemp(prefix="kvmnet-world-", dir="/dev/shm"))
    try:
        (root / "0").mkdir()
        yield World(root / "0")
    finally:
        shutil.rmtree(root)


def fulfilled(state: dict[Key, Resource], goal: Goal) -> bool:
    return all(key not in state if isinstance(r, Absent) else key in state and not diff(state[key], r)
               for key, r in goal[0].items())


def strangers(world: World, *claimed: Goal) -> dict[Key, Resource]:
    touched = {key for goal in claimed for key in goal[0]}
    return {r.key: world.host.state[r.key] for r in FOREIGN if r.key not in touched and r.key in world.host.state}


@settings(max_examples=60, deadline=None)
@given(goals(), goals())
def test_converges_is_idle_the_second_time_and_leaves_nothing(one: Goal, two: Goal) -> None:
    with worlds() as world:
        before = world.host.state
        for goal in (one, two):
            foreign = strangers(world, one, two)
            world.converge(goal)
            assert fulfilled(world.host.state, goal)
            assert set(world.host.ours) <= goal[0].keys()
            assert foreign == strangers(world, one, two)
            steps = len(world.host.steps)
            assert world.converge(goal) is Outcome.UNCHANGED
            assert len(world.host.steps) == steps
        world.converge(({}, frozenset()))
        assert world.host.state == before
        assert not world.paths.journal.exists()


@settings(max_examples=60, deadline=None)
@given(goals(), goals())
def test_going_there_and_back_is_as_never_gone(one: Goal, two: Goal) -> None:
    with worlds() as world:
        world.converge(one)
        before = world.host.state
        world.converge(two)
        world.converge(one)
        assert world.host.state == before


@settings(max_examples=25, deadline=None)
@given(goals(), goals())
def test_a_failure_at_any_step_is_rolled_back(one: Goal, two: Goal) -> None:
    with worlds() as start:
        start.converge(one)
        before = start.host.state
        total = len(start.engine().plan(start.engine().observe(two[0]), *two).steps)
        for k in range(total):
            world = start.copy(start.root.parent / f"fail{k}")
            countdown = iter(range(k, -1, -1))

            def fault(step: Step, left: Iterator[int] = countdown) -> None:
                if next(left, None) == 0:
                    raise StepFailed(step.key, "no")

            world.host.fault = fault
            with pytest.raises(ApplyFailed):
                world.converge(two)
            assert world.host.state == before
            assert not world.paths.journal.exists()
            assert world.engine().history.revisions(1)[0].status is Status.ROLLED_BACK
            world.host.fault = lambda step: None
            world.converge(({}, frozenset()))
            assert {r.key: r for r in FOREIGN} == world.host.state


@settings(max_examples=15, deadline=None)
@given(goals(), goals())
def test_killed_anywhere_it_recovers(one: Goal, two: Goal) -> None:
    with worlds() as start:
        start.converge(one)
        before = start.host.state
        points: list[str] = []
        trial = start.copy(start.root.parent / "trial")
        trial.converge(two, points.append)
        after = trial.host.state
        for number, point in enumerate(points):
            world = start.copy(start.root.parent / f"kill{number}")
            died = in_child(lambda w=world, p=point: w.converge(two, lambda here: die() if here == p else None))
            assert died == -signal.SIGKILL
            world.engine().recover()
            assert world.host.state == (after if point == "committed" else before), point
            assert not list(world.paths.run.glob("*.json")) or point == "committed" or world.paths.originals.exists()
            world.converge(two)
            assert world.host.state == after
            world.converge(({}, frozenset()))
            assert {r.key: r for r in FOREIGN} == world.host.state, point


@settings(max_examples=10, deadline=None)
@given(goals(), goals(), st.data())
def test_killed_again_while_rolling_back(one: Goal, two: Goal, data: st.DataObject) -> None:
    with worlds() as world:
        world.converge(one)
        before = world.host.state
        steps = len(world.engine().plan(world.engine().observe(two[0]), *two).steps)
        if not steps:
            return
        at = data.draw(st.integers(1, steps))
        assert in_child(lambda: world.converge(two, lambda p: die() if p == f"step {at}" else None)) == -signal.SIGKILL
        left = data.draw(st.integers(0, at))
        countdown = iter(range(left, -1, -1))
        world.host.fault = lambda step: die() if next(countdown, None) == 0 else None
        in_child(lambda: world.engine().recover())
        world.host.fault = lambda step: None
        world.engine().recover()
        assert world.host.state == before
        assert not world.paths.journal.exists()


def test_every_point_is_passed() -> None:
    """The kill tests are worth something only if these points exist."""
    with worlds() as world:
        points: list[str] = []
        wanted: Goal = ({r.key: r for r in (Link(name="kvb-a", type="bridge", alias="kvmnet", mtu=1500),
                                            Link(name="eth0", mtu=1400))}, frozenset({Key("link", "eth0")}))
        world.converge(wanted, points.append)
        assert points == ["journalled", "lent", "step 1", "step 2", "verified", "recorded", "committed"]
        assert world.paths.originals.exists()
