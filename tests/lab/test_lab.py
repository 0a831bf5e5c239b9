"""The lab itself: what it says is what happened in it, it ends in time, and nothing of it reaches this machine."""
from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import pytest

from lib.lab import Lab, LabFailed, Result, boot
from lib.lab_image import build, image_folder

pytestmark = pytest.mark.lab


def test_a_program_answers_as_it_would_here(lab: Lab) -> None:
    assert lab.run("echo out; echo err >&2; exit 3") == Result(3, "out\n", "err\n")
    assert lab.sh("uname -r").strip() != os.uname().release
    assert lab.python("import kvmnet.api, sys; sys.exit(4)").code == 4
    assert lab.call(os.path.realpath, "/proc/self/../version") == "/proc/version"
    assert lab.get(__file__) == Path(__file__).read_bytes()
    with pytest.raises(AssertionError, match="exit 1: no such thing"):
        lab.sh("echo no such thing; false")


def test_what_takes_too_long_is_ended_with_all_its_children(lab: Lab) -> None:
    began = monotonic()
    late = lab.run("echo begun; sleep 600 & sleep 600", 5)
    assert late.late and late.code == 128 + 9 and late.out == "begun\n" and monotonic() - began < 25
    lab.run("setsid sleep 601 >/dev/null 2>&1 &")
    lab.clear()
    assert "sleep" not in lab.sh("cat /proc/[0-9]*/comm")


def test_it_writes_to_its_own_memory(lab: Lab) -> None:
    mark = Path(f"/etc/kvmnet-lab-{os.getpid()}")
    lab.put(b"x\0y", str(mark))
    assert lab.get(str(mark)) == b"x\0y" and not mark.exists()


def test_a_namespace_shows_its_own_devices_and_goes_with_the_test(lab: Lab) -> None:
    with lab.netns("one", "two"):
        lab.sh("ip link add v0 type veth peer name v1 netns two", netns="one")
        assert lab.sh("ls -d /sys/class/net/*/", netns="two").split() == ["/sys/class/net/lo/", "/sys/class/net/v1/"]
        lab.sh("ip netns add three", netns="one")
        assert {"one", "two", "three"} <= set(lab.sh("ip netns | cut -d' ' -f1").split())
    assert lab.sh("ip netns") == ""


def test_a_lab_whose_kernel_dies_says_so_and_is_over(lab: Lab) -> None:
    with boot(build(image_folder(), lambda line: None)) as doomed:
        with pytest.raises(LabFailed, match="sysrq_handle_crash"):
            doomed.run("echo c > /proc/sysrq-trigger")
        assert doomed.process.poll() is not None
        with pytest.raises(LabFailed, match=r"has ended|cannot be heard"):
            doomed.run("true")
