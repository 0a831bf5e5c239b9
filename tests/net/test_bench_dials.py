"""Kernel settings that hold for the turns of a configuration: set, given back, also by a process outside when this one is killed."""
from __future__ import annotations

import ctypes
import os
from pathlib import Path
from signal import SIGKILL

import pytest

from kvmnet.bench.dials import PROC_SYS, Dials, Whose, machine_values, outlived, refuse_of_machine, whose
from kvmnet.errors import HostCannot, KvmnetError
from kvmnet.host.clock import wait_until
from kvmnet.host.run import ToolFailed, run
from lib.fork import die, in_child
from lib.netns import CLONE_NEWNET, libc, new_netns

pytestmark = pytest.mark.net

PROBING, WINDOW = "net.ipv4.tcp_mtu_probing", "net.ipv4.tcp_rmem"


def value(name: str) -> str:
    return " ".join((PROC_SYS / name.replace(".", "/")).read_text().split())


def test_set_for_the_body_and_given_back() -> None:
    with new_netns():
        before = value(PROBING), value(WINDOW)
        wanted = {PROBING: "2", WINDOW: "4096 90000 5000000"}
        with Dials().turned(wanted):
            assert (value(PROBING), value(WINDOW)) == tuple(wanted.values()) != before
        assert (value(PROBING), value(WINDOW)) == before
        with pytest.raises(ToolFailed), Dials().turned({PROBING: "2", WINDOW: "no number"}):
            raise AssertionError("never entered")
        assert (value(PROBING), value(WINDOW)) == before, "also when one of them is refused"


def elsewhere(answer: Path) -> None:
    """Of a "machine", this namespace, a setting is changed from another one, as bench does it; then it is killed."""
    home, values = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC), machine_values([PROBING])
    with outlived(values):
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        own, dials = value(PROBING), Dials(home, values)
        with dials.turned({PROBING: "2"}):
            assert value(PROBING) == own, "its own is not touched"
            answer.write_text(run(["nsenter", f"--net=/proc/{os.getpid()}/fd/{home}", "sysctl", "-n", PROBING]))
            die()


def test_of_the_machine_it_is_given_back_when_it_is_killed(tmp_path: Path) -> None:
    with new_netns():
        before = value(PROBING)
        assert in_child(lambda: elsewhere(tmp_path / "answer")) == -SIGKILL
        assert (tmp_path / "answer").read_text().strip() == "2" != before
        wait_until(lambda: value(PROBING) == before, 60)


def test_whose_a_setting_is() -> None:
    assert whose(PROBING, "1") is Whose.NAMESPACE
    with pytest.raises(HostCannot, match="cannot be set in a namespace"):
        whose("net.ipv4.tcp_congestion_control", "illinois-that-nobody-has")
    with new_netns(), pytest.raises(HostCannot, match="no such setting"):
        whose("net.core.netdev_budget", "600")


def test_what_is_the_machine_s_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: True)    # in whatever namespace this runs, the machine has it
    assert whose("net.core.netdev_budget", "600") is Whose.MACHINE, "tried in a namespace, which has none"
    wanted = {PROBING: {"1", "2"}, "net.core.netdev_budget": {"600"}}
    with pytest.raises(KvmnetError, match=r"net\.core\.netdev_budget: of the whole machine"):
        refuse_of_machine(wanted, allowed=False)
    assert refuse_of_machine(wanted, allowed=True) == ["net.core.netdev_budget"]
