"""A disturbance ends with the body, with the process however it ends, and when its time is over."""
from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from kvmnet.host.clock import wait_until
from kvmnet.host.put_back import Command, lit
from kvmnet.host.run import ToolFailed
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net
DOWN, UP = (Command(("ip", "link", "set", "dev", "v0", state)) for state in ("down", "up"))


@pytest.fixture(autouse=True)
def pair() -> Iterator[None]:
    with new_netns():
        sh("ip link add v0 type veth peer name v1; ip link set v0 up; ip link set v1 up")
        yield


def is_up() -> bool:
    return "UP" in sh("ip -j link show dev v0").partition('"flags":[')[2].partition("]")[0].split('"')


def test_it_lasts_as_long_as_the_body() -> None:
    with lit([UP], 5) as fuse:
        assert is_up()
        with fuse.disturbed([DOWN]):
            assert not is_up()
        assert is_up()


def test_an_error_ends_it() -> None:
    with pytest.raises(ZeroDivisionError), lit([UP], 5) as fuse, fuse.disturbed([DOWN]):
        assert 1 / 0
    assert is_up()


def test_what_cannot_be_made_is_undone() -> None:
    with pytest.raises(ToolFailed), lit([UP], 5) as fuse, fuse.disturbed([DOWN, Command(("ip", "link", "set", "nothing", "up"))]):
        raise AssertionError
    assert is_up()


def child(act: Callable[[], object], seconds: float) -> int:
    """A process that has taken v0 down, and then does *act*; its pid."""
    pid = os.fork()
    if pid == 0:
        with lit([UP], seconds) as fuse, fuse.disturbed([DOWN]):
            act()
        os._exit(0)
    return pid


def test_killed_in_the_middle(seconds: float = 60) -> None:
    pid = child(signal.pause, seconds)
    wait_until(lambda: not is_up(), 20)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    wait_until(is_up, 20)


def test_stopped_for_longer_than_its_time() -> None:
    pid = child(signal.pause, 1)
    wait_until(lambda: not is_up(), 20)
    os.kill(pid, signal.SIGSTOP)
    wait_until(is_up, 20)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_nothing_is_undone_that_was_not_begun() -> None:
    with lit([DOWN], 60):
        pass
    sh("ip link set v1 mtu 1400")
    assert is_up()
