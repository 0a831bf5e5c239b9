"""The command dies at any step of the driver's work: afterwards a plan brings everything to what is wanted."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kvmnet.drivers.dnsmasq import driver as subject
from kvmnet.drivers.dnsmasq.driver import DnsmasqDriver, leases
from kvmnet.drivers.dnsmasq.process import all_processes
from kvmnet.engine.resource import Key, Resource
from lib.dhcp import client
from lib.dns import Answer, ask
from lib.dnsmasq import apply, make_bridge, nic, segment, wanted

pytestmark = pytest.mark.daemon
MAC, OTHER = "52:54:00:00:00:01", "52:54:00:00:00:02"
DOORS = ((subject, "write"), (subject, "release"), (subject, "drop"), (subject, "prepare"), (subject, "remove"),
         (subject.process, "start"), (subject.process, "stop"), (subject.process, "reload"))
"""Functions by which the driver changes the host."""


class Killed(BaseException):
    """What the test raises in place of a kill."""


def dying_at(monkeypatch: pytest.MonkeyPatch, step: int, work: Callable[[], object]) -> bool:
    """Run *work*, which dies when it comes to its *step*-th change; whether it did."""
    left = step

    def guarded(door: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise Killed
            return door(*args, **named)
        return call

    with monkeypatch.context() as patch:
        for module, name in DOORS:
            patch.setattr(module, name, guarded(getattr(module, name)))
        try:
            work()
        except Killed:
            return True
    return False


def states() -> tuple[dict[Key, Resource], ...]:
    """One after the other: made, addresses exchanged, configuration changed, gone."""
    first = [nic(MAC, "10.1.0.10", "web1"), nic(OTHER, "10.1.0.11", "web2")]
    swapped = [nic(MAC, "10.1.0.11", "web1"), nic(OTHER, "10.1.0.10", "web2")]
    return (wanted(segment(first)), wanted(segment(swapped)),
            wanted(segment(swapped, dhcp={"ntp": ["10.1.0.3"]})), {})


@pytest.mark.parametrize("then", ("on", "back"))
@pytest.mark.parametrize("number", range(4), ids=("made", "exchanged", "configured", "gone"))
def test_death_at_every_step(driver: DnsmasqDriver, monkeypatch: pytest.MonkeyPatch, number: int, then: str) -> None:
    """Either the same is wanted again, or something with fewer reservations."""
    make_bridge(segment())
    path = states()
    step, died = 1, True
    while died:
        apply(driver, {})
        for state in path[:number]:
            apply(driver, state)
        if number == 1:
            with client("kvb-lan", MAC) as guest:
                assert guest.lease4()["ip"] == "10.1.0.10"
        target = path[number]
        died = dying_at(monkeypatch, step, lambda want=target: apply(driver, want))  # type: ignore[misc]
        if then == "back":
            target = wanted(segment([nic(OTHER, "10.1.0.12", "web2")], dhcp={"ntp": ["10.1.0.4"]}))
            apply(driver, target)
            assert ask("10.1.0.1", "web2.lan") == Answer(0, ["10.1.0.12"])
            step += 1
            continue
        apply(driver, target)
        assert len(all_processes()) == bool(target)
        if target:
            ip = "10.1.0.10" if number == 0 else "10.1.0.11"
            assert ask("10.1.0.1", "web1.lan") == Answer(0, [ip])
            assert [x for x in leases(driver.paths, "lan") if x.ip == "10.1.0.10" and number == 1] == []
        step += 1
    assert step > 3, "no change was interrupted"
