"""The keeper: whatever flushes the guard opens nothing, and the guard is back in milliseconds."""
from __future__ import annotations

import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.keeper import REMEMBER_EVERY, start_time
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.engine.plan import Step, Update, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import guard_table
from kvmnet.policy.keeper import guard_keeper
from lib.frames import UDP, ether, ip4
from lib.guardlab import ATTACKER, OUTSIDE, VICTIM, Lab, lab
from lib.netns import new_netns, sh

pytestmark = pytest.mark.net
KEEPER = Key("guard-keeper", "guard")
HOST_TABLE = NftTable(name="inet kvmnet", text="chain input {\ntype filter hook input priority 0; policy accept;\n}\n")


@pytest.fixture
def wired() -> Iterator[Lab]:
    with new_netns(), lab() as made:
        yield made


@pytest.fixture
def driver(wired: Lab, paths: Paths) -> Iterator[NftablesDriver]:
    made = NftablesDriver(paths)
    apply(made, everything(wired))
    yield made
    apply(made, {})
    assert "kvmnet" not in sh("nft list ruleset")


def everything(wired: Lab) -> dict[Key, Resource]:
    return {r.key: r for r in (guard_table(), HOST_TABLE, guard_keeper(), *wired.guards)}


def apply(driver: NftablesDriver, wanted: dict[Key, Resource]) -> tuple[Step, ...]:
    seen = driver.observe(wanted)
    steps = plan(seen.state, wanted, seen.ours)
    if steps:
        driver.apply(steps, lambda n: None)
    return steps


def keeper_pid(driver: NftablesDriver) -> int:
    return int(str((driver.holder.record() or {})["pid"]))


def packet(source: str) -> bytes:
    return ether(OUTSIDE.mac, source, 0x0800, ip4(VICTIM.ip4, OUTSIDE.ip4, UDP, bytes(8)))


def under_flood(wired: Lab, command: str, times: int) -> tuple[int, list[float]]:
    """Run *command* so many times while spoofed frames flood, with an honest one after every 20.

    Returns how many spoofed frames arrived, and for each run the seconds without an honest one.
    """
    spoofed, nonce = packet(ATTACKER.mac), os.urandom(12)
    honest, mark = packet(VICTIM.mac), os.urandom(12)
    leaked, outages = 0, []

    def arrived() -> bool:
        nonlocal leaked
        for _ in range(20):
            wired.attacker.send(spoofed + nonce)
        wired.victim.send(honest + mark)
        wired.outside.seen.clear()
        leaked += wired.outside.got(nonce)
        return wired.outside.got(mark) > 0

    wait_until(arrived, 20, 0)
    for _ in range(times):
        process = subprocess.Popen(command, shell=True)
        deadline = time.monotonic() + 30
        lost: float | None = None
        outage, after = 0.0, 0
        while process.poll() is None or after < 50:
            now = time.monotonic()
            assert now < deadline, "honest frames do not pass again"
            if arrived():
                outage += now - lost if lost is not None else 0
                lost, after = None, after + (process.returncode is not None)
            elif lost is None:
                lost = now
        outages.append(outage)
    return leaked, outages


def test_twenty_flushes_leak_nothing_and_cut_honest_traffic_for_milliseconds(
        wired: Lab, driver: NftablesDriver, capsys: pytest.CaptureFixture[str]) -> None:
    leaked, outages = under_flood(wired, "nft flush ruleset", 20)
    with capsys.disabled():
        print(f"\n20 flushes: leaked {leaked}, honest traffic cut for "
              f"{1000 * statistics.median(outages):.1f} ms (median), {1000 * max(outages):.1f} ms (most)")
    assert leaked == 0
    assert sum(outage > 0 for outage in outages) > 4, "the flush was not felt: the test proves nothing"
    assert max(outages) < 10
    assert apply(driver, everything(wired)) == ()
    driver.holder.stop()
    wired.outside.forget()
    nonce = os.urandom(12)
    sh("nft flush ruleset")
    wired.attacker.send(packet(ATTACKER.mac) + nonce)
    wired.outside.wait(nonce)


def test_a_restart_of_the_firewall_service_opens_nothing(wired: Lab, driver: NftablesDriver) -> None:
    """Debian's nftables.service runs ``flush ruleset`` at stop, and again in the file it loads."""
    leaked, _ = under_flood(wired, "nft flush ruleset; nft -f - <<E\nflush ruleset\ntable inet filter {\n"
                                   "chain input { type filter hook input priority 0; }\n}\nE", 5)
    assert leaked == 0
    assert "table inet filter" in sh("nft list tables")
    assert apply(driver, everything(wired)) == ()


def test_a_deleted_table_comes_back(wired: Lab, driver: NftablesDriver) -> None:
    leaked, _ = under_flood(wired, "nft delete table bridge kvmnet", 3)
    assert leaked == 0
    leaked, _ = under_flood(wired, "nft delete table inet kvmnet", 1)
    wait_until(lambda: "inet kvmnet\n" in sh("nft list tables"), 20)
    assert apply(driver, everything(wired)) == ()


def test_a_killed_keeper_opens_nothing_and_is_restored(wired: Lab, driver: NftablesDriver) -> None:
    first = keeper_pid(driver)
    leaked, outages = under_flood(wired, f"kill -9 {first}", 1)
    assert (leaked, outages) == (0, [0.0])
    wait_until(lambda: "kvmnet-keeper" not in sh("nft list tables"), 20)
    (step,) = apply(driver, everything(wired))
    assert isinstance(step, Update) and step.key == KEEPER
    assert keeper_pid(driver) != first
    leaked, _ = under_flood(wired, "nft flush ruleset", 3)
    assert leaked == 0


def test_a_killed_owner_of_the_tables_is_replaced_by_the_keeper(wired: Lab, driver: NftablesDriver) -> None:
    (owner,) = sh(f"pgrep -P {keeper_pid(driver)}").split()
    os.kill(int(owner), signal.SIGKILL)
    wait_until(lambda: sh(f"pgrep -P {keeper_pid(driver)}", check=False).split() not in ([], [owner]), 20)
    wait_until(lambda: sh("nft list tables").count("kvmnet-keeper") == 2, 20)
    assert apply(driver, everything(wired)) == ()


def test_a_flush_does_not_forget_whose_a_link_local_is(wired: Lab, driver: NftablesDriver) -> None:
    address = "0xfe800000000000001122334455667788"
    zone = wired.guards[1].zone
    sh(f"nft add element bridge kvmnet learned '{{ \"kvt-victim\" . {address} }}'")
    sh(f"nft add element bridge kvmnet claimed '{{ {zone} . {address} }}'")
    wait_until(lambda: (driver.paths.guard / "memory.nft").exists(), 2 * REMEMBER_EVERY)
    sh("nft flush ruleset")
    wait_until(lambda: "bridge kvmnet\n" in sh("nft list tables"), 20)
    assert address in sh("nft list set bridge kvmnet learned")
    assert address in sh("nft list set bridge kvmnet claimed")
    del wired.guards[1]
    apply(driver, everything(wired))
    sh("nft flush ruleset")
    wait_until(lambda: "bridge kvmnet\n" in sh("nft list tables"), 20)
    assert address not in sh("nft list set bridge kvmnet learned") + sh("nft list set bridge kvmnet claimed")


def test_of_two_keepers_one_wins(wired: Lab, driver: NftablesDriver) -> None:
    first = keeper_pid(driver)
    second = subprocess.run(driver.holder.argv("x"), capture_output=True, text=True, timeout=20)
    assert second.returncode == 3 and "another keeper" in second.stdout
    assert keeper_pid(driver) == first and driver.holder.alive(driver.holder.record() or {})


def test_the_keeper_leaves_session_and_terminal(driver: NftablesDriver) -> None:
    pid = keeper_pid(driver)
    assert os.getsid(pid) == pid
    assert str(Path(f"/proc/{pid}/fd/0").readlink()) == "/dev/null"
    began = start_time(pid)
    os.kill(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGINT)
    sh("nft flush ruleset")
    wait_until(lambda: "bridge kvmnet\n" in sh("nft list tables"), 20)
    assert began and start_time(pid) == began


def test_what_is_destroyed_stays_away(wired: Lab, driver: NftablesDriver) -> None:
    """The keeper does not bring back what the driver takes away, not even with the keeper left alone."""
    apply(driver, {KEEPER: guard_keeper()})
    sh("nft 'table inet other { }'; nft delete table inet other")
    assert sorted(sh("nft list tables").split("\n")) == ["", "table bridge kvmnet-keeper", "table inet kvmnet-keeper"]
