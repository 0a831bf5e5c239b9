"""The transaction on the real kernel: killed or failing at every step, the host is as it was.

The Linux driver makes its steps in batches; here it gets them one at a time, so that every state
which a batch can stop at is reached.
"""
from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Address, Link, Sysctl, address_name, route, route_name
from kvmnet.engine.driver import Progress, StepFailed
from kvmnet.engine.history import Change
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Absent, Key, Resource, Wanted
from kvmnet.engine.transaction import Engine, Outcome, Recovery
from kvmnet.errors import ApplyFailed
from kvmnet.host.clock import wait_until
from kvmnet.host.lock import exclusive
from kvmnet.host.paths import Paths
from kvmnet.host.process import this_process
from lib.fake import CODEC
from lib.fork import die, in_child
from lib.netns import libc, new_netns, sh

pytestmark = pytest.mark.net

FORWARD = "net/ipv4/ip_forward"
CLONE_NEWNS = 0x00020000
UPLINK = Key("link", "eth0")
BORROWED = frozenset({UPLINK, Key("sysctl", FORWARD)})


class Stepwise(LinuxDriver):
    """The Linux driver, one step at a time."""

    def __init__(self, fault: Callable[[int, Step], None] = lambda number, step: None):
        super().__init__(ask=(FORWARD,))
        self.fault, self.made = fault, 0

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            self.fault(self.made, step)
            super().apply([step], progress)
            self.made += 1


def at(number: int, act: Callable[[], None]) -> Callable[[int, Step], None]:
    """*act* once, before step *number*."""
    left = [number]
    return lambda made, step: act() if made in left and left.remove(made) is None else None


def refuse() -> None:
    raise StepFailed(None, "refused")


def engine(paths: Paths, fault: Callable[[int, Step], None] = lambda number, step: None) -> Engine:
    return Engine([Stepwise(fault)], paths, CODEC, settle=2)


def host() -> dict[Key, Resource]:
    """Everything that the Linux driver sees here."""
    return LinuxDriver(ask=(FORWARD,)).observe({}).state


def bridge(name: str, mtu: int = 1400, up: bool = True) -> Link:
    return Link(name=name, type="bridge", mtu=mtu, mac="02:00:00:00:00:01", up=up, master="", addrgenmode="none",
                stp=False, alias=f"kvmnet network {name}")


def tap(name: str, master: str = "", multi_queue: bool = False) -> Link:
    return Link(name=name, type="tap", mtu=1400, up=True, master=master, multi_queue=multi_queue, user=-1,
                addrgenmode="none", alias=f"kvmnet nic {name}")


def want(*things: Resource | Absent) -> dict[Key, Resource | Absent]:
    return {r.key: r for r in things}


def small() -> Wanted:
    return want(bridge("kvb-a"), tap("kvt-1", "kvb-a"), tap("kvt-2", "kvb-a"))


def large() -> Wanted:
    """The uplink joins a bridge and its address moves there; a tap is made anew; a setting is borrowed."""
    here, there = "192.0.2.5/24", address_name("kvb-a", "192.0.2.5/24")
    way = route_name("default", family=4, dev="eth0")
    old = Address(name=address_name("eth0", here), dev="eth0")
    return want(
        bridge("kvb-a"), bridge("kvb-b", mtu=1300), tap("kvt-1", "kvb-b", multi_queue=True), tap("kvt-3", "kvb-a"),
        Link(name="eth0", master="kvb-a", mtu=1400), Absent(old.key), Absent(Key("route", way)),
        replace(route("default", dev="kvb-a", via="192.0.2.1"), replaces=way),
        Address(name=there, dev="kvb-a", scope="global", flags=(), peer="", replaces=old.name),
        Address(name=address_name("kvb-b", "10.0.0.1/24"), dev="kvb-b", scope="global", flags=(), peer=""),
        route("198.51.100.0/24", dev="kvb-b", via="10.0.0.2"), Sysctl(name=FORWARD, value="1"))


@pytest.fixture
def uplink(netns: None) -> Iterator[None]:
    """A NIC with an address and a default route, and a bridge that is somebody else's."""
    outfit()
    yield


def outfit() -> None:
    sh("set -e; ip link add eth0 mtu 1450 type veth peer name far; ip link set eth0 addrgenmode none;"
       "ip link set far addrgenmode none; ip link set far up; ip link set eth0 up; ip addr add 192.0.2.5/24 dev eth0;"
       "ip route add default via 192.0.2.1; ip link add br9 type bridge; ip link set br9 addrgenmode none up;"
       "ip link add d0 type veth peer name d1; ip link set d0 addrgenmode none; ip link set d1 addrgenmode none up;"
       "ip link set d0 master br9 up;"
       "sysctl -qw net.ipv4.ip_forward=0")
    wait_until(lambda: "LOWER_UP" in sh("ip link show br9"), 20)


def converge(e: Engine, wanted: Wanted, confirm: float | None = None) -> Outcome:
    return e.converge(wanted, Change(repr(sorted(wanted)), "test"), borrowed=BORROWED & wanted.keys(),
                      confirm=confirm).outcome


def steps_of(e: Engine, wanted: Wanted) -> int:
    return len(e.plan(e.observe(wanted), wanted, BORROWED & wanted.keys()).steps)


@pytest.mark.usefixtures("uplink")
def test_there_again_and_back(paths: Paths) -> None:
    before = host()
    assert converge(engine(paths), large()) is Outcome.CONFIRMED
    assert "10.0.0.1" in sh("ip addr show kvb-b") and "master kvb-a" in sh("ip link show eth0")
    assert sh("sysctl -n net.ipv4.ip_forward").strip() == "1"
    assert converge(engine(paths), large()) is Outcome.UNCHANGED
    converge(engine(paths), small())
    converge(engine(paths), {})
    assert host() == before


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize("start", [dict, small])
def test_refused_at_every_step(paths: Paths, start: Callable[[], Wanted]) -> None:
    converge(engine(paths), start())
    before = host()
    total = steps_of(engine(paths), large())
    assert total > 8
    for k in range(total):
        with pytest.raises(ApplyFailed, match="rolled back"):
            converge(engine(paths, at(k, refuse)), large())
        assert host() == before, k


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize("start", [dict, small])
def test_killed_at_every_step(paths: Paths, start: Callable[[], Wanted]) -> None:
    converge(engine(paths), start())
    before = host()
    for k in range(steps_of(engine(paths), large())):
        doomed = engine(paths, at(k, die))
        assert in_child(lambda e=doomed: converge(e, large())) == -signal.SIGKILL
        assert engine(paths).recover().what is Recovery.ROLLED_BACK
        assert host() == before, k
    converge(engine(paths), large())


@pytest.mark.usefixtures("uplink")
def test_killed_while_undoing_a_destroy(paths: Paths) -> None:
    converge(engine(paths), large())
    before = host()
    total = steps_of(engine(paths), {})
    for k in range(total):
        assert in_child(lambda n=k: converge(engine(paths, at(n, die)), {})) == -signal.SIGKILL
        in_child(lambda n=k: engine(paths, at(n // 2, die)).recover())
        engine(paths).recover()
        assert host() == before, k


@pytest.mark.usefixtures("uplink")
def test_unconfirmed_in_a_killed_command_is_taken_back(paths: Paths) -> None:
    before = host()
    total = steps_of(engine(paths), large())
    for k in (0, total // 2, total - 1):
        doomed = engine(paths, at(k, die))
        assert in_child(lambda e=doomed: converge(e, large(), confirm=0.3)) == -signal.SIGKILL
        taken_back(paths)
        assert host() == before, k
    assert in_child(lambda: converge(engine(paths), large(), confirm=4)) == 0
    assert Key("link", "kvb-b") in host()
    taken_back(paths)
    assert host() == before


def taken_back(paths: Paths) -> None:
    """Wait until the timer has put the journal away and, a moment later, let go of the writer's lock."""
    wait_until(lambda: not paths.journal.exists(), 20)
    with exclusive(paths.lock, "test", 20):
        pass


@pytest.mark.usefixtures("uplink")
def test_an_uplink_that_dies_while_unconfirmed(paths: Paths) -> None:
    """What is left to give back is given back; a NIC that is gone is no reason to fail."""
    converge(engine(paths), large(), confirm=60)
    sh("ip link del far")
    assert engine(paths).revert() == 1
    assert not {k for k in host() if k.name.startswith("kv")}
    assert sh("sysctl -n net.ipv4.ip_forward").strip() == "0"


@pytest.mark.usefixtures("uplink")
def test_destroy_after_the_uplink_died(paths: Paths) -> None:
    converge(engine(paths), large())
    sh("ip link del far")
    e = engine(paths)
    result = e.converge({}, Change("", "test"))
    assert UPLINK in result.gone
    assert not {k for k in host() if k.name.startswith("kv")}
    assert e.plan(e.observe({}), {}).steps == ()


@pytest.mark.usefixtures("uplink")
def test_the_timer_is_small(paths: Paths) -> None:
    """It is a fork that touches little: what it does not share with the command stays under 20 MB."""
    e = engine(paths)
    converge(e, small(), confirm=60)
    journal = e.journal
    assert journal is not None and journal.timer is not None and journal.timer != this_process()
    smaps = Path(f"/proc/{journal.timer.pid}/smaps_rollup").read_text()
    private = sum(int(line.split()[1]) for line in smaps.splitlines() if line.startswith("Private"))
    e.revert()
    assert private < 20_000, f"{private} kB"


goals = st.builds(
    lambda a, b, moved, taps: want(
        *([bridge("kvb-a", mtu=a)] if a else []), *([bridge("kvb-b", mtu=b)] if b else []),
        *(tap(f"kvt-{n}", {1: "kvb-a" if a else "", 2: "kvb-b" if b else ""}.get(m, ""), q)
          for n, (m, q) in enumerate(taps)),
        *([Link(name="eth0", master="kvb-a")] if a and moved else [Link(name="eth0", mtu=1500)] if moved else [])),
    st.sampled_from([0, 1300, 1400]), st.sampled_from([0, 1400]), st.booleans(),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=3))


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=goals, two=goals, data=st.data())
def test_whatever_is_wanted_and_wherever_it_is_killed(
        tmp_path_factory: pytest.TempPathFactory, one: Wanted, two: Wanted, data: st.DataObject) -> None:
    with new_netns():
        outfit()
        root = tmp_path_factory.mktemp("world")
        paths = Paths(root / "state", root / "run")
        nothing = host()
        converge(engine(paths), one)
        before = host()
        total = steps_of(engine(paths), two)
        if total:
            k = data.draw(st.integers(0, total - 1))
            assert in_child(lambda: converge(engine(paths, at(k, die)), two)) == -signal.SIGKILL
            engine(paths).recover()
            assert host() == before
        converge(engine(paths), two)
        assert converge(engine(paths), two) is Outcome.UNCHANGED
        converge(engine(paths), {})
        assert host() == nothing


def private_mounts() -> None:
    """What this process mounts, nobody else sees."""
    if libc.unshare(CLONE_NEWNS):
        raise OSError("unshare")
    sh("mount --make-rprivate /")


def fill(place: Path) -> None:
    with open(place / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while True:
            filler.write(bytes(512))


def test_a_full_disk_is_found_before_anything_is_changed(netns: None, tmp_path: Path) -> None:
    """A file system of 64 kB for the state, then for the run directory, in a mount namespace of its own."""
    outfit()
    before = host()

    def on_full_disk(full: str) -> None:
        private_mounts()
        paths = Paths(tmp_path / "state", tmp_path / "run")
        place = tmp_path / full
        place.mkdir(exist_ok=True)
        sh(f"mount -t tmpfs -o size=64k none {place}")
        try:
            engine(paths).history.begin(Change("", ""), {})
            fill(place)
            with pytest.raises(Exception, match="no space left on the disk") as caught:
                converge(engine(paths), large())
            assert type(caught.value).__name__ == "HostCannot"
            assert host() == before
            (place / "filler").unlink()
            assert engine(paths).recover().what is Recovery.NOTHING
        finally:
            sh(f"umount -l {place}")

    for full in ("state", "run"):
        assert in_child(lambda f=full: on_full_disk(f)) == 0


def test_a_disk_that_fills_up_meanwhile_does_not_stop_the_rollback(netns: None, tmp_path: Path) -> None:
    outfit()
    before = host()
    paths = Paths(tmp_path / "state", tmp_path / "run")

    def at_the_end(point: str) -> None:
        if point == "verified":
            fill(paths.state)
            fill(paths.run)

    def work() -> None:
        private_mounts()
        for place in (paths.state, paths.run):
            place.mkdir()
            sh(f"mount -t tmpfs -o size=128k none {place}")
        try:
            e = engine(paths)
            e.probe = at_the_end
            with pytest.raises(ApplyFailed, match="no space left on the disk; rolled back"):
                converge(e, large(), confirm=60)
            assert host() == before
            assert not paths.journal.exists()
        finally:
            sh(f"umount -l {paths.state} {paths.run}")

    assert in_child(work) == 0
    assert host() == before


@pytest.mark.usefixtures("uplink")
@pytest.mark.parametrize("reached", [1, 300, 800])
def test_killed_in_the_middle_of_a_batch(paths: Paths, reached: int) -> None:
    """The whole batch goes to one ``ip``, which outlives the killed command and is waited for."""
    before = host()
    many = want(bridge("kvb-a"), *(tap(f"kvt-{n}", "kvb-a") for n in range(1000)))
    batch = Engine([LinuxDriver(ask=(FORWARD,))], paths, CODEC, settle=2)
    pid = os.fork()
    if pid == 0:
        converge(batch, many)
        os._exit(0)
    try:
        wait_until(lambda: sh("ip -o link").count("kvt-") >= reached, 20, interval=0.001)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    found = batch.recover().what
    assert host() == before
    assert found is Recovery.ROLLED_BACK
