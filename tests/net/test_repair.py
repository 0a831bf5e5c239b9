"""Fixes of the doctor on the real kernel: made as one, taken back in time, on request, and when their writer is killed."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.doctor.mend import Change
from kvmnet.errors import ApplyFailed, ConflictError
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.repair import batches, keep, make, undo
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]
SETTING = "net.ipv4.conf.br0.proxy_arp"
FILE = Path("/proc/sys/net/ipv4/conf/br0/proxy_arp")
AGE = Change("ageing-short", "br0", ("ip", "link", "set", "br0", "type", "bridge", "ageing_time", "30000"), ("ip", "link", "set", "br0", "type", "bridge", "ageing_time", "100"))
ARP = Change("proxy-arp", "br0", ("sysctl", "-qw", f"{SETTING}=0"), ("sysctl", "-qw", f"{SETTING}=1"))


@pytest.fixture(autouse=True)
def host(netns: None) -> Iterator[None]:
    sh(f"ip link add br0 address 02:00:00:00:00:b0 type bridge ageing_time 100; ip link set br0 up; sysctl -qw {SETTING}=1")
    sh("for n in 1 2 3; do ip link add p$n type veth peer name g$n; ip link set p$n master br0 up; ip link set g$n up; done")
    yield


def state() -> tuple[str, bool]:
    """(proxy_arp, whether the bridge forgets quickly)."""
    return FILE.read_text().strip(), "ageing_time 100 " in sh("ip -d link show br0")


BAD, MENDED = ("1", True), ("0", False)


def test_made_and_taken_back_on_request(paths: Paths) -> None:
    assert state() == BAD
    make(paths, (AGE, ARP), lambda: ())
    assert state() == MENDED and undo(paths) is not None
    assert state() == BAD and undo(paths) is None


def test_what_is_not_confirmed_goes_back(paths: Paths) -> None:
    make(paths, (AGE, ARP), lambda: (), confirm=4)
    assert state() == MENDED
    with pytest.raises(ConflictError, match="wait for a confirmation"):
        make(paths, (ARP,), lambda: ())
    wait_until(lambda: state() == BAD, 60)
    wait_until(lambda: not batches(paths), 60)


def test_what_is_confirmed_stays(paths: Paths) -> None:
    make(paths, (AGE, ARP), lambda: (), confirm=600)
    assert keep(paths) and not keep(paths)
    assert state() == MENDED and [b.phase for b in batches(paths)] == ["kept"]


@pytest.mark.parametrize("fault", ["a command fails", "it does not help"])
def test_all_or_nothing(paths: Paths, fault: str) -> None:
    wrong = Change("x", "none0", ("ip", "link", "set", "none0", "mtu", "1500"), ("ip", "link", "set", "none0", "mtu", "1400"))
    changes, still_there = ((AGE, ARP, wrong), []) if fault == "a command fails" else ((AGE, ARP), ["proxy-arp (br0)"])
    with pytest.raises(ApplyFailed, match="none0" if fault == "a command fails" else "second look still finds proxy-arp"):
        make(paths, changes, lambda: still_there)
    assert state() == BAD and not batches(paths)


def test_a_killed_writer_is_undone(paths: Paths) -> None:
    program = ("import sys\nfrom kvmnet.doctor.mend import Change\nfrom kvmnet.host.paths import Paths\nfrom kvmnet.repair import make\n"
               f"make(Paths.from_environment(), ({ARP!r}, Change('x', 'y', ('sleep', '3'), ('true',))), lambda: ())\n")
    writer = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_until(lambda: state()[0] == "0", 60)
    finally:
        writer.kill()
        writer.wait()
    wait_until(lambda: state() == BAD and not batches(paths), 60)


def test_the_whole_command(paths: Paths) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-m", "kvmnet.cli.main", "doctor", *words], capture_output=True, text=True, check=False, env=os.environ, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout + done.stderr

    code, text = run("--fix", "--span", "0")
    assert code == 64 and "add --yes" in text and f"$ sysctl -qw {SETTING}=0   (back: sysctl -qw {SETTING}=1)" in text and state() == BAD
    code, text = run("--fix", "--span", "0", "--yes")
    assert code == 0 and "a second look finds none of them" in text and state() == MENDED
    code, text = run("--undo")
    assert code == 0 and f"$ sysctl -qw {SETTING}=1" in text and state() == BAD
    assert run("--fix", "--undo")[0] == 64 and run("--facts", "x", "--fix")[0] == 64 and run("--confirm", "5")[0] == 64
