"""An uplink that disappears: before the change, in its middle, and afterwards; and a kill at any point."""
from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.api import Host
from kvmnet.engine.history import Status
from kvmnet.errors import ApplyFailed, ConflictError, HostCannot
from kvmnet.host.clock import wait_until
from kvmnet.status import problems, status
from lib.fork import die, in_child
from lib.netns import named_netns, new_netns, sh
from lib.world import ROUTER, World, connect, snapshot, unchanged, world

pytestmark = pytest.mark.net

BRIDGED = """
version: 1
uplinks: {wan: {device: eth0}}
networks: {lan: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24}}
vms: {a: {nics: [{network: lan, ip: 192.0.2.9}]}}
"""


@pytest.fixture
def net() -> Iterator[World]:
    with world() as made:
        yield made


def test_between_plan_and_apply(net: World) -> None:
    planned = net.plan(BRIDGED)
    sh("ip link del eth0")
    before = snapshot()
    with pytest.raises(ConflictError, match=r"the host moved since the plan was made: .*eth0"):
        net.host.apply(planned)
    unchanged(before)
    with pytest.raises(HostCannot, match="this host has no device eth0"):
        net.plan(BRIDGED)


@pytest.mark.parametrize("point", ["journalled", "verified"])
def test_in_the_middle(net: World, point: str) -> None:
    """What hung on it cannot come back; everything else is as it was, and nothing of ours is left."""
    net.host.engine.probe = lambda p: sh("ip link del eth0") and None if p == point else None
    with pytest.raises(ApplyFailed) as failed:
        net.host.apply(net.plan(BRIDGED), within=1)
    told = str(failed.value)
    assert "rolled back" in told and f"{ROUTER} does not answer now either" in told
    assert "eth0" in told if point == "journalled" else "no answer to ARP" in told
    found = snapshot()
    assert [link["ifname"] for link in found["links"]] == ["lo"] and found["nft"] == {}
    assert net.host.history()[0].status is Status.ROLLED_BACK and not net.paths.journal.exists()


def test_later_status_and_plan_say_it(net: World) -> None:
    net.apply(BRIDGED)
    sh("ip link del eth0")
    found = status(net.host)
    assert found is not None and found.uplinks[0].state == "missing" and found.uplinks[0].members == {"eth0": "missing"}
    assert "uplink wan (eth0) is missing" in problems(found)
    assert any("this host has no device eth0" in note for note in found.notes)
    shown = net.cli("status").stdout
    assert "attention: uplink wan (eth0) is missing" in shown
    planned = net.cli("plan", net.write(BRIDGED))
    assert planned.returncode == 11 and "uplinks.wan.device: this host has no device eth0" in planned.stderr
    assert net.cli("destroy", "--yes").returncode == 0, "what is left goes all the same"
    assert [link["ifname"] for link in snapshot()["links"]] == ["lo"]


POINTS = ("journalled", "lent", "verified", "reached", "recorded")


@pytest.mark.parametrize("confirm", [None, 60.0], ids=["alone", "confirm"])
def test_killed_anywhere_the_undo_process_brings_it_back(net: World, confirm: float | None) -> None:
    """No command and no operator: with the change of a way out an undo process is there from the journal on."""
    before = snapshot()
    count = len(net.plan(BRIDGED).steps)
    for point in (*POINTS[:2], *(f"step {n}" for n in (1, count // 2, count)), *POINTS[2:]):
        if point == "recorded" and confirm:
            continue  # kvmnet confirm would record it
        killed = []

        def work(point: str = point) -> None:
            def probe(here: str) -> None:
                if here == point or (point.startswith("step ") and here.startswith("step ")
                                     and int(here[5:]) >= int(point[5:])):
                    die()

            net.host.engine.probe = probe
            net.apply(BRIDGED, confirm=confirm)

        killed.append(in_child(work))
        assert killed == [-signal.SIGKILL], point
        wait_until(lambda: not net.paths.journal.exists(), 40)
        unchanged(before)
        assert Host(net.paths).recover().startswith("nothing to recover"), point
    log = Path(net.paths.run / "undo.log").read_text()
    assert log.count("kvmnet stopped before it was done; rolled back") == 7 + (confirm is None), log


def test_after_a_restart_of_the_host_the_last_confirmed_revision_is_made(net: World) -> None:
    """Killed with its undo process in the middle of a change, then the power fails."""
    net.apply("version: 1\nuplinks: {wan: {device: eth0, mtu: 1400}}\n")

    def work() -> None:
        def probe(here: str) -> None:
            if here == "verified":
                timer = net.host.engine.journal.timer  # type: ignore[union-attr]
                os.kill(timer.pid, signal.SIGKILL)  # type: ignore[union-attr]
                die()

        net.host.engine.probe = probe
        net.apply(BRIDGED)

    assert in_child(work) == -signal.SIGKILL
    journal = json.loads(net.paths.journal.read_text())
    net.paths.journal.write_text(json.dumps(journal | {"boot": "the one before"}))
    with named_netns(f"kvt-boot-{os.getpid()}") as upstream, new_netns():
        connect(upstream)
        before = snapshot()
        booted = net.cli("boot", "--json")
        assert booted.returncode == 0, booted.stderr
        assert json.loads(booted.stdout)["outcome"] == "confirmed" and "mtu 1400" in sh("ip link show eth0")
        assert [r.status for r in Host(net.paths).history()] == [Status.CONFIRMED, Status.ROLLED_BACK, Status.CONFIRMED]
        assert Host(net.paths).apply(Host(net.paths).plan_destroy()).steps
        unchanged(before)
