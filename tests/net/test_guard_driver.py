"""The nftables driver on the real kernel: what is planned is what is seen afterwards."""
from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.wire import element
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import before_image, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.host.side import Begun
from kvmnet.policy.guard import guard_table, nic_guard
from kvmnet.policy.keeper import guard_keeper
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]

HOST = NftTable(name="inet kvmnet", text="""\
set reach { type ifname . ifname; elements = { "kvb-b" . "kvb-c", "kvb-a" . "kvb-b" }; }
set sources4 { type ifname . ipv4_addr; flags interval; elements = { "kvb-a" . 10.0.0.0/24, "kvb-b" . 10.1.0.0/24 }; }
chain forward {
type filter hook forward priority -10; policy accept;
ct state vmap { established : accept, related : accept, invalid : drop }
iifname . oifname @reach counter accept
}
""")
WIDE = nic_guard("kvt-wide", "full", ["02:00:00:00:00:02", "00:00:5e:00:01:01"], ["10.0.0.2", "fd00::2"],
                 ["10.0.4.0/22", "2001:db8:7::/64", "10.9.0.0/25", "10.9.0.128/25"], [10, 20],
                 ["router", "dhcp-server"], "kvb-lan", ["fe80::1", "10.0.0.1"])
PLAIN = nic_guard("kvt-a-0", "full", ["02:00:00:00:00:01"], ["10.0.0.1", "fd00::1"], bridge="kvb-lan")
LOOSE = nic_guard("kvt-b~1", "mac", ["02:00:00:00:00:03"], ["10.0.0.3"], bridge="kvb-lan", protected=["10.0.0.1"])
OPEN = nic_guard("kvt-c", "off", ["02:00:00:00:00:04"], [], bridge="kvb-lan")


def state(*resources: Resource) -> dict[Key, Resource]:
    return {r.key: r for r in resources}


def converge(driver: NftablesDriver, wanted: dict[Key, Resource]) -> int:
    """Apply, observe again; returns the number of steps. What is left to plan must be nothing."""
    seen = driver.observe(wanted)
    steps = plan(seen.state, wanted, seen.ours)
    if steps:
        driver.apply(steps, lambda n: None)
    again = driver.observe(wanted)
    assert plan(again.state, wanted, again.ours) == ()
    return len(steps)


def test_every_kind_of_guard_is_seen_as_it_was_wanted(paths: Paths) -> None:
    driver = NftablesDriver(paths)
    wanted = state(guard_table(), HOST, WIDE, PLAIN, LOOSE, OPEN)
    assert converge(driver, wanted) == 6
    assert converge(NftablesDriver(paths), wanted) == 0
    changed = nic_guard("kvt-wide", "mac", ["02:00:00:00:00:02"], ["10.0.0.9"], vlans=[10], bridge="kvb-b")
    assert converge(NftablesDriver(paths), state(guard_table(), HOST, changed, OPEN)) == 3
    assert converge(NftablesDriver(paths), {}) > 0
    assert sh("nft list ruleset") == ""
    assert not paths.guard.exists()


def test_a_changed_text_keeps_the_elements_and_what_the_kernel_learned(paths: Paths) -> None:
    driver = NftablesDriver(paths)
    converge(driver, state(guard_table(), PLAIN, OPEN))
    sh("nft add element bridge kvmnet learned '{ \"kvt-a-0\" . 0xfe800000000000001122334455667788 }'")
    sh(f"nft add element bridge kvmnet claimed '{{ {PLAIN.zone} . 0xfe800000000000001122334455667788 }}'")
    text = (guard_table().text or "") + "chain more { counter; }\n"
    changed = NftTable(name="bridge kvmnet", text=text)
    assert converge(driver, state(changed, PLAIN, OPEN)) == 1
    assert "0xfe800000000000001122334455667788" in sh("nft list set bridge kvmnet learned")
    assert converge(driver, state(changed, OPEN)) == 1
    assert "0xfe8" not in sh("nft list set bridge kvmnet learned") + sh("nft list set bridge kvmnet claimed")


def test_a_rule_deleted_by_another_hand_is_drift_that_can_be_read(paths: Paths) -> None:
    driver = NftablesDriver(paths)
    wanted = state(guard_table(), HOST, PLAIN)
    converge(driver, wanted)
    handle = sh("nft -a list chain bridge kvmnet pass | grep accept").split()[-1]
    sh(f"nft delete rule bridge kvmnet pass handle {handle}")
    seen = driver.observe(wanted)
    (step,) = plan(seen.state, wanted, seen.ours)
    lines = driver.table_diff(seen.state[step.key], guard_table())  # type: ignore[arg-type]
    assert [" ".join(line.split()) for line in lines] == ["+ meta mark set meta mark | 0x08000000 accept"]
    assert converge(driver, wanted) == 1
    sh("nft add element bridge kvmnet flow4 '{ \"kvt-a-0\" . 0x0200000000010800 . 0x0a000063 }'")
    assert converge(driver, wanted) == 1
    assert "0xa000063" not in sh("nft list table bridge kvmnet")
    sh("nft delete element inet kvmnet reach '{ \"kvb-b\" . \"kvb-c\" }'")
    assert converge(driver, wanted) == 1


def test_any_element_that_another_hand_takes_or_adds_is_mended(paths: Paths) -> None:
    wanted = state(guard_table(), HOST, WIDE, PLAIN, LOOSE, OPEN)
    converge(NftablesDriver(paths), wanted)
    pairs = sorted({pair for guard in (WIDE, PLAIN, LOOSE, OPEN) for pair in element(guard)})
    assert len(pairs) > 30
    for name, item in pairs:
        sh(f"nft 'delete element {name} {{ {item} }}'")
        assert converge(NftablesDriver(paths), wanted), (name, item)
    for name, item in (("own4", '"kvt-x" . 0x0a000009'), ("zone", '"kvt-x" : 7'), ("mac", '"kvt-a-0" . 0x020000000009'),
                       ("open", '"kvt-a-0"'), ("loose", '"kvt-a-0"'), ("vlans", '"kvt-a-0" . 7')):
        sh(f"nft 'add element bridge kvmnet {name} {{ {item} }}'")
        assert converge(NftablesDriver(paths), wanted), (name, item)
    assert converge(NftablesDriver(paths), wanted) == 0


def test_lost_memory_of_texts_costs_one_reload(paths: Paths) -> None:
    wanted = state(guard_table(), HOST, PLAIN)
    converge(NftablesDriver(paths), wanted)
    for file in (paths.guard / "texts").iterdir():
        file.unlink()
    assert converge(NftablesDriver(paths), wanted) == 2
    assert converge(NftablesDriver(paths), wanted) == 0


def test_a_change_cut_off_before_it_was_saved_is_saved_by_the_next_look(
        paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    converge(NftablesDriver(paths), state(guard_table(), PLAIN))
    driver, wanted = NftablesDriver(paths), state(guard_table(), OPEN)
    seen = driver.observe(wanted)

    def killed(fresh: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        driver.apply(plan(seen.state, wanted, seen.ours), lambda n: None)
    assert "kvt-a-0" in (paths.guard / "ruleset.nft").read_text()
    assert converge(NftablesDriver(paths), wanted) == 0
    sh(f"nft flush ruleset; nft -f {paths.guard}/ruleset.nft")
    assert converge(NftablesDriver(paths), wanted) == 0


def test_the_commands_that_are_shown_do_what_apply_does(paths: Paths) -> None:
    for before, after in (({}, state(guard_table(), HOST, WIDE)), (state(guard_table(), WIDE), state(guard_table(), LOOSE))):
        listings = []
        for by_hand in (True, False):
            driver = NftablesDriver(paths)
            converge(driver, {})
            converge(driver, before)
            seen = driver.observe(after)
            steps = plan(seen.state, after, seen.ours)
            (command,) = driver.commands(steps)
            if by_hand:
                subprocess.run(command.argv, input=command.stdin, text=True, check=True)
            else:
                driver.apply(steps, lambda n: None)
            listings.append(sorted(sh("nft list ruleset").splitlines()))
        assert listings[0] == listings[1]


def test_foreign_tables_are_seen_and_left_alone(paths: Paths) -> None:
    sh("nft -f - <<'E'\ntable ip filter { set s { type ipv4_addr; elements = { 1.2.3.4 } }\n"
       "chain FORWARD { type filter hook forward priority 0; policy drop; ip saddr @s counter accept\n}\n}\nE")
    before = sh("nft list ruleset")
    driver = NftablesDriver(paths)
    converge(driver, state(guard_table(), PLAIN))
    converge(driver, {})
    assert sh("nft list ruleset") == before


def test_a_text_that_nft_refuses_says_why_and_changes_nothing(paths: Paths) -> None:
    driver = NftablesDriver(paths)
    wanted = state(NftTable(name="inet kvmnet", text="chain x { nonsense; }\n"), guard_table())
    with pytest.raises(StepFailed, match="syntax error"):
        converge(driver, wanted)
    assert sh("nft list ruleset") == ""


def test_the_keeper_is_seen_restarted_and_ended(paths: Paths) -> None:
    driver = NftablesDriver(paths)
    wanted = state(guard_table(), PLAIN, guard_keeper())
    try:
        assert converge(driver, wanted) == 3
        assert "kvmnet-keeper" in sh("nft list tables")
        pid = (driver.holder.record() or {})["pid"]
        sh(f"kill -9 {pid}")
        wait_until(lambda: not driver.holder.alive(driver.holder.record() or {}), 20)
        assert converge(driver, wanted) == 1
        assert (driver.holder.record() or {})["pid"] != pid
    finally:
        converge(driver, {})
    assert sh("nft list ruleset") == ""


def test_a_keeper_waits_for_the_tables_of_one_that_was_killed(paths: Paths) -> None:
    driver = NftablesDriver(paths)
    wanted = state(guard_table(), PLAIN, guard_keeper())
    try:
        converge(driver, wanted)
        pid = (driver.holder.record() or {})["pid"]
        owner = int(sh(f"cat /proc/{pid}/task/{pid}/children"))
        os.kill(owner, signal.SIGSTOP)          # so its tables stand, for now
        sh(f"kill -9 {pid}")
        wait_until(lambda: not driver.holder.alive(driver.holder.record() or {}), 20)
        again = Begun(lambda: converge(NftablesDriver(paths), wanted))
        with suppress(TimeoutError):            # one that does not wait has begun by then, and would take the old tables for its own
            wait_until(lambda: not again.thread.is_alive(), 1)
        os.kill(owner, signal.SIGCONT)
        assert again.result() == 1
        wait_until(lambda: not Path(f"/proc/{owner}").exists(), 20)
        assert "kvmnet-keeper" in sh("nft list tables")
        assert converge(driver, wanted) == 0
    finally:
        converge(driver, {})


NICS = st.builds(
    nic_guard, st.sampled_from(["kvt-a", "kvt-b~1", "kvt-c"]), st.sampled_from(["full", "mac", "off"]),
    st.lists(st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02"]), min_size=1, max_size=2),
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fe80::1"]), max_size=3),
    st.lists(st.sampled_from(["10.1.0.0/24", "10.1.0.0/16", "10.2.0.0/31", "fd01::/64", "2001:db8::/33"]), max_size=3),
    st.lists(st.integers(1, 4094), max_size=2), st.lists(st.sampled_from(["router", "querier", "dhcp-server"]), max_size=2),
    st.sampled_from(["kvb-a", "kvb-b"]), st.lists(st.sampled_from(["10.0.0.1", "10.0.0.254", "fe80::1"]), max_size=2))
STATES = st.lists(NICS, max_size=3, unique_by=lambda g: g.name).flatmap(lambda guards: st.sampled_from([
    state(guard_table(), *guards), state(guard_table(), HOST, *guards), state(HOST), state()]))


@given(STATES, STATES)
@settings(max_examples=25, deadline=None, phases=[Phase.reuse, Phase.generate],
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_state_follows_any_other_and_can_be_taken_back(
        paths: Paths, first: dict[Key, Resource], second: dict[Key, Resource]) -> None:
    driver = NftablesDriver(paths)
    converge(driver, first)
    seen = driver.observe(second)
    steps = plan(seen.state, second, seen.ours)
    image = before_image(seen.state, steps, seen.ours)
    driver.apply(steps, lambda n: None)
    after = driver.observe(second)
    assert {k: r for k, r in after.state.items() if k in after.ours} == after.state
    assert after.state.keys() == second.keys()
    taken_back = plan(after.state, {**{k: after.state[k] for k in after.state}, **image}, after.ours)
    driver.apply(taken_back, lambda n: None)
    assert driver.observe(first).state == seen.state
    assert converge(driver, {}) >= 0
