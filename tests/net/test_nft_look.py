"""A look at nftables that was kept is as good as a new one, and is not used after any change by anybody."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Sysctl
from kvmnet.drivers.nftables import driver as module
from kvmnet.drivers.nftables import texts
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.nftables.texts import Texts
from kvmnet.engine.dispatch import Dispatch
from kvmnet.engine.driver import Seen
from kvmnet.engine.plan import Create, Step, plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from kvmnet.host.netlink import generation, tables
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import guard_table, nic_guard
from kvmnet.policy.keeper import HELD, guard_keeper
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]

HOST = NftTable(name="inet kvmnet", text='set reach { type ifname; elements = { "kvb-a", "kvb-b" }; }\nchain forward {\n'
                                         "type filter hook forward priority -10; policy accept;\niifname @reach counter accept\n}\n")
GUARDS = [nic_guard(f"kvt-{n}", "full", [f"02:00:00:00:00:0{n}"], [f"10.0.0.{n}", "2001:db8::1"], ["10.9.0.0/24"], [10], ["router"],
                    "kvb-a", ["10.0.0.99"]) for n in range(1, 4)]
WANTED: dict[Key, Resource] = {r.key: r for r in (guard_table(), HOST, *GUARDS)}
DEVICE = 'table netdev other { chain c { type filter hook ingress device "d0" priority 0; }; }'


@pytest.fixture
def stands(paths: Paths) -> Paths:
    """Guards, and somebody else's table, as one look saw them."""
    sh("ip link add d0 type dummy 2>/dev/null || ip link add d0 type veth peer name d1")
    sh(f"nft 'table ip foreign {{ set s {{ type ipv4_addr; }}; chain c {{ counter; }}; }}; {DEVICE}'")
    driver = NftablesDriver(paths)
    driver.apply(plan(driver.observe(WANTED).state, WANTED, set()), lambda n: None)
    assert left(NftablesDriver(paths).observe(WANTED)) == []
    return paths


def left(seen: Seen) -> list[Key]:
    return [step.key for step in plan(seen.state, WANTED, seen.ours)]


@contextmanager
def without_nft(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refused(*asked: object, **rest: object) -> str:
        raise AssertionError(asked)
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", refused)
        patch.setattr(module, "tables", refused)
        patch.setattr(texts, "run", refused)
        yield


def seen_anew(paths: Paths) -> Seen:
    """A look without anything that was kept."""
    (paths.guard / "look.json").unlink(missing_ok=True)
    return NftablesDriver(paths).observe(WANTED)


def test_while_nothing_changes_nft_is_not_asked_and_nothing_is_missing(stands: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    with without_nft(monkeypatch):
        kept = NftablesDriver(stands).observe(WANTED)
    fresh = seen_anew(stands)
    assert (kept.state, kept.ours) == (fresh.state, fresh.ours) and {g.key for g in GUARDS} <= kept.ours
    sh("nft list ruleset; nft -c add table ip nothing")    # neither makes a change
    with without_nft(monkeypatch):
        NftablesDriver(stands).observe(WANTED)


CHANGES = {
    "an element goes": ("nft delete element bridge kvmnet mac '{ \"kvt-1\" . 0x20000000001 }'", True),
    "an element comes": ("nft add element bridge kvmnet loose '{ \"kvt-2\" }'", True),
    "a flow goes": ("nft flush set bridge kvmnet flow4", True),
    "a set of the host's table": ("nft flush set inet kvmnet reach", True),
    "a rule goes": ("nft flush chain inet kvmnet forward", True),
    "a rule comes": ("nft add rule bridge kvmnet prerouting accept", True),
    "a table goes": ("nft delete table bridge kvmnet", True),
    "somebody else's rule": ("nft add rule ip foreign c drop", False),
    "somebody else's table": ("nft add table ip6 fresh", False),
    "all goes": ("nft flush ruleset", True),
    "the memberships": ("echo '[]' > FOLDER/members.json", False),
    "a change that was cut off": ("printf x > FOLDER/changing", False),
}


def test_after_any_change_nft_is_asked(stands: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    for what, (command, ours) in CHANGES.items():
        sh(command.replace("FOLDER", str(stands.guard)))
        with without_nft(monkeypatch), pytest.raises(AssertionError):
            NftablesDriver(stands).observe(WANTED)
        driver = NftablesDriver(stands)
        found = driver.observe(WANTED)
        steps = plan(found.state, WANTED, found.ours)
        assert bool(steps) == ours, what
        assert found.state == seen_anew(stands).state, what
        if steps:
            driver.apply(steps, lambda n: None)
        NftablesDriver(stands).observe(WANTED)
        with without_nft(monkeypatch):
            assert left(NftablesDriver(stands).observe(WANTED)) == [], what


def test_a_chain_goes_with_its_device(stands: Paths) -> None:
    """Up to Linux 6.15 the kernel removes it without a transaction."""
    sh("ip link del d0")
    assert NftablesDriver(stands).observe(WANTED).state == seen_anew(stands).state


def test_damage_is_never_kept(stands: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    sh("nft flush set bridge kvmnet flow4")
    for _ in range(2):
        with without_nft(monkeypatch), pytest.raises(AssertionError):
            NftablesDriver(stands).observe(WANTED)
        assert left(NftablesDriver(stands).observe(WANTED))


def test_a_table_goes_with_its_owner(stands: Paths) -> None:
    """The kernel removes it without a transaction."""
    with subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as owner:
        assert owner.stdin
        owner.stdin.write("add table ip owned { flags owner; }\n")
        owner.stdin.flush()
        wait_until(lambda: "ip owned" in sh("nft list tables"), 30)
        held = NftablesDriver(stands).observe(WANTED)
        assert Key(NftTable.kind, "ip owned") in held.state and held.state == NftablesDriver(stands).observe(WANTED).state
        owner.stdin.close()
    wait_until(lambda: "ip owned" not in sh("nft list tables"), 30)
    assert Key(NftTable.kind, "ip owned") not in NftablesDriver(stands).observe(WANTED).state


def test_another_namespace_is_another_host(stands: Paths) -> None:
    """One with the same number of changes, as every fresh one has."""
    one, other = (sh(f"unshare -n {sys.executable} -c 'from kvmnet.host.netlink import generation; print(generation())'") for _ in range(2))
    assert "number=" in one and "number=" in other and one != other
    assert repr(generation()) == repr(generation()) not in (one.strip(), other.strip(), "None")


@pytest.mark.parametrize("spoil", [lambda f: f.write_text(f.read_text()[:-9]), lambda f: f.write_text(f.read_text().partition("\n")[0] + "\n{}"),
                                   lambda f: f.write_text("")])
def test_a_file_that_cannot_be_read_is_none(spoil: Callable[[Path], int], stands: Paths) -> None:
    spoil(stands.guard / "look.json")
    assert left(NftablesDriver(stands).observe(WANTED)) == []


def test_what_the_kernel_learned_is_not_lost_by_it(stands: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets write it, which is no change that the kernel counts: it is asked for before a table is replaced, or a NIC goes."""
    learned = '"kvt-1" . 0xfe800000000000001122334455667788'
    sh(f"nft add element bridge kvmnet learned '{{ {learned} }}'")
    NftablesDriver(stands).observe(WANTED)
    driver = NftablesDriver(stands)
    with without_nft(monkeypatch):
        seen = driver.observe(WANTED)
    more = NftTable(name="bridge kvmnet", text=f"{guard_table().text}chain more {{ counter; }}\n")
    driver.apply(plan(seen.state, {**WANTED, more.key: more}, seen.ours), lambda n: None)
    assert learned in sh("nft list set bridge kvmnet learned") and learned in (stands.guard / "ruleset.nft").read_text()


LOADED = (guard_table(), HOST, NftTable(name="netdev kvmnet", text="chain drops { counter drop; }\n"))
UNHELD: dict[Key, Resource] = {r.key: r for r in (*LOADED, *GUARDS)}
KEPT: dict[Key, Resource] = {**UNHELD, guard_keeper().key: guard_keeper()}


def made(paths: Paths, monkeypatch: pytest.MonkeyPatch, wanted: dict[Key, Resource], behind: str = "") -> tuple[NftablesDriver, list[str]]:
    """All of it, step by step as a transaction makes it, and the programs that were run for it. ``behind``: what somebody does after each load."""
    ran: list[str] = []
    plainly = module.run

    def run(argv: list[str], **rest: Any) -> str:
        ran.append(" ".join(argv))
        out = plainly(argv, **rest)
        if behind and argv[:2] == ["nft", "-f"]:
            sh(behind)
        return out
    with monkeypatch.context() as patch:
        for place in (module, texts):
            patch.setattr(place, "run", run)
        driver = NftablesDriver(paths)
        steps = plan(driver.observe(wanted).state, wanted, set())
        Dispatch([driver, LinuxDriver()]).apply([step for part in by_kind(steps) for step in part], lambda n: None)
        assert driver.ahead
        driver.ahead.thread.join()
    return driver, ran


def by_kind(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Something else behind each kind, so that the driver is given its steps in parts."""
    for number, kind in enumerate(("guard-keeper", "nft-table", "nic-guard")):
        yield [step for step in steps if step.key.kind == kind]
        yield [Create(Sysctl(name="net/ipv4/ip_forward", value=str(number % 2)))]


@pytest.fixture
def gone(paths: Paths) -> Iterator[None]:
    """The keeper's end."""
    yield
    NftablesDriver(paths).holder.stop()


@pytest.mark.usefixtures("gone")
def test_what_nft_makes_of_a_text_is_seen_where_it_was_loaded(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what it makes of it in an empty namespace, also beside elements, and with a keeper that makes its tables meanwhile. The look
    ahead is the only one."""
    driver, ran = made(paths, monkeypatch, KEPT)
    monkeypatch.setattr(driver, "found", None)
    seen = driver.observe(KEPT)
    assert plan(seen.state, KEPT, seen.ours) == ()
    assert not [line for line in ran if line.startswith("unshare")] and ran.count("nft -s -t list ruleset") == 1
    assert {t.name: driver.texts.listing_of(t) for t in LOADED} == {t.name: Texts(paths.guard / "none").loaded(t) for t in LOADED}
    assert "kvt-1" in sh("nft list set bridge kvmnet mac") and set(HELD) < tables()


@pytest.mark.usefixtures("gone")
def test_a_table_that_somebody_changed_meanwhile_is_none_of_ours(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, ran = made(paths, monkeypatch, KEPT, behind="nft add rule inet kvmnet forward drop")
    seen = driver.observe(KEPT)
    assert [step.key for step in plan(seen.state, KEPT, seen.ours)] == [HOST.key]
    assert len([line for line in ran if line.startswith("unshare")]) == len(LOADED)
    assert {t.name: driver.texts.listing_of(t) for t in LOADED} == {t.name: Texts(paths.guard / "none").loaded(t) for t in LOADED}


@pytest.mark.parametrize("what", ["", "an element goes", "a rule comes", "a table goes", "the memberships", "a change that was cut off"])
def test_what_changes_after_a_look_ahead_is_seen(what: str, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    driver, _ = made(paths, monkeypatch, UNHELD)
    command, ours = CHANGES.get(what, ("true", False))
    sh(command.replace("FOLDER", str(paths.guard)))
    asked: list[str] = []
    plainly = driver.found
    monkeypatch.setattr(driver, "found", lambda: asked.append(what) or plainly())
    seen = driver.observe(UNHELD)
    assert (bool(plan(seen.state, UNHELD, seen.ours)), asked) == (ours, [what] if what else [])
