"""The planner on a host that executes: whatever is there and whatever is wanted."""
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.linux.resources import Address, Link, Route, Sysctl
from kvmnet.engine.plan import Conflict, Create, Cycle, Delete, Step, Update, before_image, plan
from kvmnet.engine.resource import Absent, Key, Resource
from lib.worlds import FOREIGN, Machine, Refused, Things, documents

THEIRS: Things = {r.key: r for r in FOREIGN}


def machine(document: Things) -> Machine:
    return Machine({**THEIRS, **document}, set(document))


def undo(host: Machine, image: dict[Key, Resource | Absent]) -> None:
    host.fail_at = 0
    host.run(plan(host.state, image, host.ours & image.keys(), set(image)))


def until_failure(host: Machine, steps: tuple[Step, ...], at: int) -> None:
    """Run *steps* up to the one with number *at*, if there are so many."""
    host.fail_at, host.done = at, 0
    if at > len(steps):
        host.run(steps)
        return
    with pytest.raises(Refused, match="injected"):
        host.run(steps)


@st.composite
def claims(draw: st.DrawFn, document: Things) -> dict[Key, Resource | Absent]:
    """What is claimed of somebody else's things: settings, and their absence."""
    out: list[Resource | Absent] = []
    masters = ["", "br9", *(k.name for k in document if k.kind == "link" and k.name.startswith("kvb"))]
    if draw(st.booleans()):
        out.append(Link(name="eth0", mtu=draw(st.sampled_from([1500, 9000])), master=draw(st.sampled_from(masters))))
    if Key("link", "bond0") in document and draw(st.booleans()):
        out.append(Link(name="eth1", mtu=1500, master="bond0", bonded=True, up=True))
    if draw(st.booleans()):
        out.append(Sysctl(name="net/ipv4/ip_forward", value="1", dev=""))
    if draw(st.booleans()):
        out += [Absent(Key("address", "eth0 192.0.2.5/24")), Absent(Key("route", "default dev eth0"))]
    if draw(st.booleans()):
        out.append(Absent(Key("nft-table", "inet nothing")))
    return {r.key: r for r in out}


@given(documents())
def test_a_converged_host_needs_nothing(a: Things) -> None:
    host = machine(a)
    assert plan(host.state, a, host.ours) == ()


@given(documents(), documents(), st.data())
def test_a_plan_converges_and_nothing_foreign_changes(a: Things, b: Things, data: st.DataObject) -> None:
    host, claimed = machine(a), data.draw(claims(b))
    wanted = {**b, **claimed}
    host.run(plan(host.state, wanted, host.ours, set(claimed)))
    assert plan(host.state, wanted, host.ours, set(claimed)) == ()
    assert {k for k in host.ours if not host.state[k].permanent} == {k for k in b if not b[k].permanent}
    for key in THEIRS.keys() - claimed.keys():
        assert host.state[key] == THEIRS[key]


@given(documents(), documents(), st.data(), st.integers(1, 30))
def test_a_failure_at_any_step_is_undone_exactly(a: Things, b: Things, data: st.DataObject, at: int) -> None:
    host, claimed = machine(a), data.draw(claims(b))
    before, wanted = dict(host.state), {**b, **claimed}
    steps = plan(host.state, wanted, host.ours, set(claimed))
    image = dict(before_image(host.state, steps, host.ours))
    host.fail_at = at
    if at <= len(steps):
        with pytest.raises(Refused, match="injected"):
            host.run(steps)
    else:
        host.run(steps)
    undo(host, image)
    assert host.state == before, [(k, host.state.get(k), before.get(k)) for k in host.state.keys() | before.keys()
                                  if host.state.get(k) != before.get(k)]
    assert plan(host.state, image, host.ours & image.keys(), set(image)) == ()


@given(documents(), documents(), st.data(), st.integers(1, 30), st.integers(1, 30))
def test_the_undo_may_fail_too_and_be_run_again(a: Things, b: Things, data: st.DataObject, at: int,
                                                again: int) -> None:
    host, claimed = machine(a), data.draw(claims(b))
    before, wanted = dict(host.state), {**b, **claimed}
    steps = plan(host.state, wanted, host.ours, set(claimed))
    image = dict(before_image(host.state, steps, host.ours))
    until_failure(host, steps, at)
    until_failure(host, plan(host.state, image, host.ours & image.keys(), set(image)), again)
    undo(host, image)
    assert host.state == before, [(k, host.state.get(k), before.get(k)) for k in host.state.keys() | before.keys()
                                  if host.state.get(k) != before.get(k)]


@given(documents(), documents(), st.data(), st.integers(1, 30))
def test_a_run_after_a_crash_converges(a: Things, b: Things, data: st.DataObject, at: int) -> None:
    host, claimed = machine(a), data.draw(claims(b))
    wanted = {**b, **claimed}
    until_failure(host, plan(host.state, wanted, host.ours, set(claimed)), at)
    host.fail_at = 0
    host.run(plan(host.state, wanted, host.ours, set(claimed)))
    assert plan(host.state, wanted, host.ours, set(claimed)) == ()


@given(documents())
def test_destroy_leaves_what_was_there_before(a: Things) -> None:
    host = machine(a)
    host.run(plan(host.state, {}, host.ours))
    assert {k: r for k, r in host.state.items() if not (r.permanent and k in a)} == THEIRS


@given(documents(), st.sets(st.integers(0, 40)))
def test_strangers_in_the_way_are_all_named_and_can_be_adopted(a: Things, chosen: set[int]) -> None:
    strangers = {k for i, k in enumerate(sorted(a)) if i in chosen}
    host = Machine({**THEIRS, **a}, set(a) - strangers)
    if not strangers:
        assert plan(host.state, a, host.ours) == ()
        return
    with pytest.raises(Conflict) as conflict:
        plan(host.state, a, host.ours)
    assert set(conflict.value.keys) == strangers
    assert plan(host.state, a, host.ours, adopt=True) == ()


@given(documents())
def test_absent_removes_even_what_is_not_ours(a: Things) -> None:
    host = Machine({**THEIRS, **a}, set())
    gone = {k: Absent(k) for k, r in a.items() if not r.permanent}
    host.run(plan(host.state, gone, host.ours))
    assert not host.state.keys() & gone.keys()


def test_ports_of_a_bridge_that_is_made_again_are_attached_again() -> None:
    bridge = Link(name="kvb-a", type="bridge", master="", alias="kvmnet a")
    tap = Link(name="kvt-1", type="tap", master="kvb-a", alias="kvmnet t")
    seen: Things = {r.key: r for r in (replace(bridge, type="vlan"), tap)}
    steps = plan(seen, {r.key: r for r in (bridge, tap)}, set(seen))
    assert [(type(s), s.key.name) for s in steps] == [(Delete, "kvb-a"), (Create, "kvb-a"), (Update, "kvt-1")]


def test_ipv6_is_switched_on_before_an_address_comes() -> None:
    bridge = Link(name="kvb-a", type="bridge", master="", alias="kvmnet a")
    off = Sysctl(name="net/ipv6/conf/kvb-a/disable_ipv6", value="1", dev="kvb-a")
    address = Address(name="kvb-a 2001:db8::1/64", dev="kvb-a", flags=("nodad",))
    seen: Things = {r.key: r for r in (bridge, off)}
    steps = plan(seen, {r.key: r for r in (bridge, replace(off, value="0"), address)}, set(seen))
    assert [s.key for s in steps] == [off.key, address.key]


def test_what_changes_places_stands_together_at_the_end() -> None:
    """An address that moves from a NIC to a bridge: the gap is one run of steps, after everything else."""
    bridge = Link(name="kvb-a", type="bridge", master="", alias="kvmnet a")
    old = THEIRS[Key("address", "eth0 192.0.2.5/24")]
    way = THEIRS[Key("route", "default dev eth0")]
    assert isinstance(old, Address) and isinstance(way, Route)
    wanted: dict[Key, Resource | Absent] = {r.key: r for r in (
        bridge, Link(name="eth0", master="kvb-a"), Absent(old.key), Absent(way.key),
        replace(old, name="kvb-a 192.0.2.5/24", dev="kvb-a", replaces=old.name),
        replace(way, name="default dev kvb-a", dev="kvb-a", replaces=way.name),
        Link(name="kvt-9", type="tap", master="kvb-a", alias="kvmnet t"),
        Sysctl(name="net/ipv6/conf/kvb-a/accept_ra", value="2", dev="kvb-a"))}
    steps = plan(THEIRS, wanted, set(), {k for k in wanted if "eth0" in k.name})
    assert [(type(s).__name__, *s.key) for s in steps] == [
        ("Create", "link", "kvb-a"), ("Create", "sysctl", "net/ipv6/conf/kvb-a/accept_ra"),
        ("Create", "link", "kvt-9"),
        ("Delete", "route", "default dev eth0"), ("Delete", "address", "eth0 192.0.2.5/24"),
        ("Update", "link", "eth0"),
        ("Create", "address", "kvb-a 192.0.2.5/24"), ("Create", "route", "default dev kvb-a")]


def test_things_that_name_each_other_in_a_ring_are_a_bug_that_is_told() -> None:
    a, b = (Link(name=x, type="bridge", master=y, alias="kvmnet") for x, y in (("a", "b"), ("b", "a")))
    with pytest.raises(Cycle, match=r"link a -> link b -> link a|link b -> link a -> link b"):
        plan({}, {a.key: a, b.key: b}, set())


def test_a_lifetime_that_runs_is_no_difference() -> None:
    old = Address(name="kvb-a 2001:db8::1/64", dev="kvb-a", dynamic="ra", lifetime=7)
    assert plan({old.key: old}, {old.key: replace(old, lifetime=10)}, {old.key}) == ()


def test_the_undo_of_a_lost_bridge_gives_ports_their_settings_back() -> None:
    """Isolation is lost with the bridge, without a step of its own: ours and foreign ports alike."""
    bridge = Link(name="kvb-a", type="bridge", master="", alias="kvmnet a")
    ours = Link(name="kvt-1", type="tap", master="kvb-a", alias="kvmnet t", isolated=True, mtu=1500)
    theirs = Link(name="tap7", type="tap", master="kvb-a", alias="", isolated=True, mtu=1500)
    seen: Things = {r.key: r for r in (bridge, ours, theirs)}
    steps = plan(seen, {ours.key: replace(ours, master="", isolated=None)}, {bridge.key, ours.key})
    assert [s.key.name for s in steps] == ["kvb-a"]
    image = before_image(seen, steps, {bridge.key, ours.key})
    assert image[ours.key] == ours
    assert image[theirs.key] == Link(name="tap7", master="kvb-a", isolated=True)
