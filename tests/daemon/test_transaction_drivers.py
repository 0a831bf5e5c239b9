"""A whole document through every driver at once: killed between any two steps, the host is as it was."""
from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest

from kvmnet.compile import compile_spec
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.table import drivers
from kvmnet.engine.driver import Driver, Progress, StepFailed
from kvmnet.engine.history import Change
from kvmnet.engine.journal import Codec
from kvmnet.engine.plan import Step
from kvmnet.engine.resource import Key, Resource
from kvmnet.engine.transaction import Engine, Outcome, Recovery
from kvmnet.errors import ApplyFailed
from kvmnet.facts.model import Facts
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.spec.allocate import allocate
from kvmnet.spec.load import loads
from lib.fork import die, in_child
from lib.netns import sh

pytestmark = [pytest.mark.daemon, pytest.mark.usefixtures("outside")]

DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: fd00:100::/64}
  lab: {mode: isolated, subnet: 10.10.0.0/24}
vms:
  web1: {nics: [{network: lan, rate: {in: 100mbit, out: 50mbit}}, {network: lab}]}
  web2: {nics: [{network: lan}, {network: lab, ip: none, receives: copies}]}
mirrors:
  ids: {from: [web1/nic0], to: web2/nic1, direction: sent}
"""


@pytest.fixture
def outside(netns: None) -> Iterator[None]:
    """An uplink of somebody else's, with the default route."""
    sh("set -e; ip link add eth0 type veth peer name far; ip link set far addrgenmode none up;"
       "ip link set eth0 addrgenmode none up; ip addr add 192.0.2.5/24 dev eth0; ip route add default via 192.0.2.1;"
       "nft add table inet theirs; nft add chain inet theirs c; nft add rule inet theirs c counter")
    yield


class Stepwise:
    """A driver that gets its steps one at a time."""

    def __init__(self, inner: Driver, before: Callable[[], None]):
        self.inner, self.before, self.kinds = inner, before, inner.kinds
        self.unavailable, self.observe, self.commands = inner.unavailable, inner.observe, inner.commands

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        for step in steps:
            self.before()
            self.inner.apply([step], progress)


def engine(paths: Paths, before: Callable[[], None] | None = None) -> Engine:
    table: Sequence[Driver] = drivers(paths)
    if before is not None:
        table = [Stepwise(driver, before) for driver in table]
    return Engine(table, paths, Codec(to_json, from_json))


def at(number: int, act: Callable[[], None]) -> Callable[[], None]:
    """*act* before step *number*, once."""
    countdown = iter(range(number, -1, -1))
    return lambda: act() if next(countdown, None) == 0 else None


def refuse() -> None:
    raise StepFailed(None, "refused")


def converge(e: Engine, text: str) -> Outcome:
    spec = loads(text, "test").spec
    facts = Facts(state=e.observe({}).state)
    allocations = allocate(spec, e.history.allocations())
    compiled = compile_spec(spec, facts, allocations)
    return e.converge(compiled.wanted, Change(text, "test", allocations=allocations),
                      borrowed=compiled.borrowed).outcome


def host(e: Engine, settings: Sequence[Key]) -> dict[Key, Resource]:
    """All that the drivers see; *settings*: kernel settings to look at as well."""
    seen = e.observe({})
    everything = {r.key: r for r in map(from_json, ({"kind": k.kind, "name": k.name} for k in settings))
                  if isinstance(r, Resource)}
    e.dispatch.look_up(seen, everything)
    return seen.state


def processes(paths: Paths) -> list[str]:
    """What still runs with files of this run directory."""
    return [line for line in sh("ps axww -o args").splitlines() if str(paths.run) in line]


def comes_to(e: Engine, settings: Sequence[Key], before: dict[Key, Resource], where: object = "") -> None:
    """The host is as it was, as soon as what was killed is gone."""
    with suppress(TimeoutError):
        wait_until(lambda: host(e, settings) == before, 20, 0.2)
    assert host(e, settings) == before, where


def nobody_runs(paths: Paths) -> bool:
    """Whether all that was told to end has ended."""
    with suppress(TimeoutError):
        wait_until(lambda: not processes(paths), 20, 0.2)
    return not processes(paths)


def borrowed_settings(e: Engine) -> list[Key]:
    spec = loads(DOCUMENT, "test").spec
    compiled = compile_spec(spec, Facts(state=e.observe({}).state), allocate(spec, {}))
    return sorted(k for k in compiled.borrowed if k.kind == "sysctl")


def test_there_again_and_nothing_left(paths: Paths) -> None:
    e = engine(paths)
    settings = borrowed_settings(e)
    before = host(e, settings)
    theirs = sh("nft list table inet theirs")
    assert converge(e, DOCUMENT) is Outcome.CONFIRMED
    assert converge(e, DOCUMENT) is Outcome.UNCHANGED
    assert "kvmnet" in sh("nft list ruleset") and len(processes(paths)) >= 3
    e.converge({}, Change("", "destroy"))
    assert host(e, settings) == before and nobody_runs(paths)
    assert sh("nft list tables").split("\n")[:-1] == ["table inet theirs"]
    assert sh("nft list table inet theirs") == theirs


@pytest.mark.parametrize("part", range(3))
def test_killed_between_any_two_steps(paths: Paths, part: int) -> None:
    """Every third step each, the rest in the other two."""
    e = engine(paths)
    settings = borrowed_settings(e)
    before = host(e, settings)
    number = part
    while (died := in_child(lambda n=number: converge(engine(paths, at(n, die)), DOCUMENT))) == -signal.SIGKILL:
        assert e.recover().what is Recovery.ROLLED_BACK
        comes_to(e, settings, before, number)
        assert nobody_runs(paths), number
        number += 3
    assert died == 0 and number > 20
    number = part
    after = host(e, settings)
    while (died := in_child(lambda n=number: engine(paths, at(n, die)).converge({}, Change("", "")))) != 0:
        assert died == -signal.SIGKILL
        assert e.recover().what is Recovery.ROLLED_BACK
        comes_to(e, settings, after, number)
        number += 3
    comes_to(e, settings, before)
    assert nobody_runs(paths)


def test_refused_and_unconfirmed(paths: Paths) -> None:
    e = engine(paths)
    settings = borrowed_settings(e)
    before = host(e, settings)
    with pytest.raises(ApplyFailed, match="refused; rolled back"):
        converge(engine(paths, at(25, refuse)), DOCUMENT)
    comes_to(e, settings, before)
    compiled = compile_spec(loads(DOCUMENT, "test").spec, Facts(state=e.observe({}).state),
                            allocate(loads(DOCUMENT, "test").spec, {}))
    e.converge(compiled.wanted, Change(DOCUMENT, "test"), borrowed=compiled.borrowed, confirm=0.2)
    wait_until(lambda: not paths.journal.exists(), 20)
    comes_to(e, settings, before)
