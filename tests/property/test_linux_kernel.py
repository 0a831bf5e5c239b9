"""The planner's properties on the real kernel: bridges, taps, addresses, routes and settings."""
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.plan import before_image, plan
from kvmnet.engine.resource import Key, Resource, State, Wanted
from lib.netns import new_netns, sh
from lib.worlds import Things, documents

pytestmark = pytest.mark.net

DRIVER = LinuxDriver()
SETTINGS = settings(max_examples=30, derandomize=True, database=None, phases=[Phase.reuse, Phase.generate], deadline=None,
                    suppress_health_check=list(HealthCheck))
STRANGERS = ("ip link add eth0 address 52:54:00:00:00:01 type veth peer name far0 && ip link set far0 up &&"
             "ip link set eth0 up && ip addr add 192.0.2.5/24 dev eth0 && ip route add default via 192.0.2.1 &&"
             "ip link add br9 address 52:54:00:00:00:02 type bridge && ip link set br9 up &&"
             "ip link add eth1 type veth peer name far1 && ip link set eth1 master br9 && ip link set eth1 up")


def converge(wanted: Wanted) -> None:
    """Apply *wanted*, and see that nothing is left to do."""
    seen = DRIVER.observe(wanted)
    DRIVER.apply(plan(seen.state, wanted, seen.ours), lambda _: None)
    again = DRIVER.observe(wanted)
    left = plan(again.state, wanted, again.ours)
    assert left == (), [(s.key, getattr(s, "changes", "")) for s in left]


def undo(image: Wanted) -> None:
    seen = DRIVER.observe(image)
    DRIVER.apply(plan(seen.state, image, seen.ours & image.keys(), set(image)), lambda _: None)


def foreign(intent: Wanted) -> dict[Key, Resource]:
    seen = DRIVER.observe(intent)
    return {k: r for k, r in seen.state.items() if k not in seen.ours and k.kind != "sysctl"}


def comparable(state: State) -> dict[Key, Resource]:
    """Without what the kernel draws by lot for a tap that names no MAC: a new one has another."""
    return {k: replace(r, mac=None) if isinstance(r, Link) and r.type == "tap" else r for k, r in state.items()}


def differences(now: State, before: State) -> list[tuple[Resource | None, Resource | None]]:
    """What is not as it was: (now, before)."""
    new, old = comparable(now), comparable(before)
    return [(new.get(k), old.get(k)) for k in new.keys() | old.keys() if new.get(k) != old.get(k)]


@SETTINGS
@given(documents(daemons=False), documents(daemons=False))
def test_any_two_documents_one_after_the_other(a: Things, b: Things) -> None:
    with new_netns():
        sh(STRANGERS)
        theirs = foreign({})
        converge(a)
        before = DRIVER.observe(a)
        steps = plan(before.state, b, before.ours)
        image = before_image(before.state, steps, before.ours)
        converge(b)
        assert foreign({}) == theirs
        undo(image)
        assert differences(DRIVER.observe(a).state, before.state) == []
        converge({})
        assert DRIVER.observe({}).state == theirs


@SETTINGS
@given(documents(daemons=False), documents(daemons=False), st.integers(0, 20))
def test_a_change_that_stops_anywhere_is_undone_or_finished(a: Things, b: Things, at: int) -> None:
    with new_netns():
        sh(STRANGERS)
        theirs = foreign({})
        converge(a)
        before = DRIVER.observe(a)
        steps = plan(before.state, b, before.ours)
        DRIVER.apply(steps[:at], lambda _: None)
        undo(before_image(before.state, steps, before.ours))
        assert differences(DRIVER.observe(a).state, before.state) == []
        seen = DRIVER.observe(b)
        DRIVER.apply(plan(seen.state, b, seen.ours)[:at], lambda _: None)
        converge(b)
        assert foreign({}) == theirs
