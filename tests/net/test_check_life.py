"""Probes leave nothing behind: after a check, after one that is interrupted, after one that is killed."""
from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kvmnet.check import prove as proving
from kvmnet.check.model import Verdict
from kvmnet.check.probe import design, placed, sweep
from kvmnet.check.prove import prove
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver
from kvmnet.errors import ConflictError, KvmnetError
from kvmnet.host.lock import exclusive
from kvmnet.host.paths import Paths
from lib.applied import Applied, applied
from lib.dnsmasq import pid_of
from lib.fork import die, in_child
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
networks:
  lan: {mode: isolated, subnet: 10.1.0.0/24, subnet6: "fd00:1::/64", stp: false}
vms:
  web1: {nics: [{network: lan}]}
"""


@pytest.fixture
def here(paths: Paths) -> Iterator[Applied]:
    with new_netns(), applied(DOCUMENT, paths) as found:
        yield found


def traces() -> str:
    """Everything of a probe that the kernel still has."""
    return sh("ip -o link | grep -F '~p' ; nft list ruleset | grep -F '~p'", check=False)


def place_and(here: Applied, then: object) -> None:
    with placed(design(here.subject, [here.compiled.segments["lan"]] * 2), here.engine.paths):
        assert "kvt-~p1" in traces() and "kvmnet-probe-1" in reservations(here)
        assert callable(then)
        then()


def reservations(here: Applied) -> str:
    return repr(DnsmasqDriver(here.engine.paths).observe({}).state)


def clean(here: Applied) -> bool:
    return traces() == "" and "kvmnet-probe" not in reservations(here) and here.left() == []


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_an_interrupted_check_leaves_nothing(here: Applied, ending: type[BaseException]) -> None:
    def interrupt() -> None:
        raise ending

    with pytest.raises(ending):
        place_and(here, interrupt)
    assert clean(here)


def test_what_a_killed_check_leaves_is_swept_by_the_next(here: Applied) -> None:
    server = pid_of(DnsmasqDriver(here.engine.paths), "lan")
    assert in_child(lambda: place_and(here, die)) == -signal.SIGKILL
    assert sh("ip -o link | grep -cF '~p'", check=False).strip() == "0"    # the taps died with it
    assert "~p" in traces() and "kvmnet-probe-1" in reservations(here)
    assert prove(here.subject, lambda *_: None).exit_code == 0
    assert clean(here)
    assert pid_of(DnsmasqDriver(here.engine.paths), "lan") == server


def test_sweep_alone_and_twice(here: Applied) -> None:
    assert in_child(lambda: place_and(here, die)) == -signal.SIGKILL
    assert sweep(here.engine.paths) == 3
    assert clean(here) and sweep(here.engine.paths) == 0


def test_what_a_killed_check_leaves_is_drift_that_an_apply_removes(here: Applied) -> None:
    assert in_child(lambda: place_and(here, die)) == -signal.SIGKILL
    assert {k.split()[0] for k in here.left()} == {"nic-guard", "reservation"}


def test_a_failure_half_way_leaves_nothing(here: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    sh("ip tuntap add kvt-~p2 mode tap")
    with pytest.raises(KvmnetError, match="a device of this name exists already"):
        place_and(here, lambda: None)
    sh("ip link del kvt-~p2")
    assert clean(here)


def test_a_second_writer_is_waited_for_and_named(here: Applied, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "LOCK_TIMEOUT", 0.1)
    with exclusive(here.engine.paths.lock, "kvmnet apply"), pytest.raises(ConflictError, match="kvmnet apply"):
        prove(here.subject, lambda *_: None)
    assert clean(here)


def test_the_lock_is_free_again(here: Applied) -> None:
    prove(here.subject, lambda *_: None)
    with exclusive(here.engine.paths.lock, "test"):
        pass


def test_a_term_signal_ends_a_check_cleanly(here: Applied) -> None:
    """Sent while the probes stand."""
    def check() -> None:
        def progress(text: str, done: int, total: int) -> None:
            if done == 1:
                assert "~p" in traces()
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(SystemExit):
            prove(here.subject, progress)

    assert in_child(check) == 0
    assert clean(here)


def test_a_probe_takes_no_address_of_a_guest_and_no_name(here: Applied) -> None:
    segment = here.compiled.segments["lan"]
    probes = design(here.subject, [segment] * 3)
    got = [a for p in probes for a in (p.ip, p.ip6, p.mac)]
    assert len(set(got)) == 9 and "" not in got
    assert not {n.ip for n in segment.nics} & set(got) and segment.address not in got


def test_the_server_is_not_restarted_by_a_check(here: Applied) -> None:
    before = pid_of(DnsmasqDriver(here.engine.paths), "lan")
    report = prove(here.subject, lambda *_: None)
    assert pid_of(DnsmasqDriver(here.engine.paths), "lan") == before
    assert not [c for c in report.claims if c.verdict is Verdict.FAIL]


def test_a_foreign_bridge_keeps_its_mac_and_mtu(paths: Paths) -> None:
    text = "version: 1\nnetworks:\n  ext: {mode: bridge, bridge: br9, subnet: 10.9.0.0/24}\n"
    with new_netns():
        sh("ip link add br9 type bridge; ip link add d0 type veth peer name d1; ip link set d0 address 52:00:00:00:00:09"
           " master br9; ip link set d0 up; ip link set d1 up; ip link set br9 up")
        before = sh("ip -o link show br9 | grep -o 'mtu [0-9]*\\|ether [^ ]*'")
        with applied(text, paths) as found:
            report = prove(found.subject, lambda *_: None)
            assert sh("ip -o link show br9 | grep -o 'mtu [0-9]*\\|ether [^ ]*'") == before
            assert report.exit_code == 0 and report.claims
