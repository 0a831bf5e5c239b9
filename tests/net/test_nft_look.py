"""A look at nftables that was kept is as good as a new one, and is not used after any change by anybody."""
from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmnet.drivers.nftables import driver as module
from kvmnet.drivers.nftables.driver import NftablesDriver, Texts
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.engine.driver import Seen
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key, Resource
from kvmnet.host.clock import wait_until
from kvmnet.host.netlink import generation
from kvmnet.host.paths import Paths
from kvmnet.policy.guard import guard_table, nic_guard
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
    assert len(one.strip()) == 32 == len(other.strip()) and one != other
    assert generation() == generation() not in (one.strip(), other.strip(), "")


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


def learned(paths: Paths, monkeypatch: pytest.MonkeyPatch, behind: str = "") -> tuple[dict[str, str], list[str]]:
    """What stands for each text after it was loaded, and the programs that were run for it. ``behind``: what somebody does after it."""
    ran: list[str] = []
    plainly = module.run

    def run(argv: list[str], **rest: str) -> str:
        ran.append(" ".join(argv))
        out = plainly(argv, **rest)
        if behind and argv[:2] == ["nft", "-f"]:
            sh(behind)
        return out
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", run)
        driver = NftablesDriver(paths)
        wanted = {r.key: r for r in (*LOADED, *GUARDS)}
        driver.apply(plan(driver.observe(wanted).state, wanted, set()), lambda n: None)
    return {table.name: driver.texts.listing_of(table) for table in LOADED}, ran


def test_what_nft_makes_of_a_text_is_seen_where_it_was_loaded(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what it makes of it in an empty namespace, also beside elements."""
    there, ran = learned(paths, monkeypatch)
    assert not [line for line in ran if line.startswith("unshare")]
    assert there == {table.name: Texts(paths.guard / "none").loaded(table) for table in LOADED}
    assert "kvt-1" in sh("nft list set bridge kvmnet mac") and left(NftablesDriver(paths).observe(WANTED)) == [Key("nft-table", "netdev kvmnet")]


def test_a_table_that_somebody_changed_meanwhile_is_none_of_ours(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    there, ran = learned(paths, monkeypatch, behind="nft add rule inet kvmnet forward drop")
    assert len([line for line in ran if line.startswith("unshare")]) == len(LOADED)
    assert there == {table.name: Texts(paths.guard / "none").loaded(table) for table in LOADED}
    assert Key("nft-table", "inet kvmnet") in left(NftablesDriver(paths).observe(WANTED))
