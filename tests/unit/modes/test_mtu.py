"""MTUs of running guests: down live and from the top, up by making the card anew."""
from __future__ import annotations

from dataclasses import replace

import pytest

from kvmnet.cli.plan_text import plan_text
from kvmnet.compile import Compiled, compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.plan import Create, Delete, Step, Update, apply_to, plan
from kvmnet.engine.resource import Key, Resource, State
from kvmnet.facts.model import Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads

NIC = Link(name="eth1", type="physical", mtu=1500, mac="52:54:00:00:00:01", up=True, master="", alias="", bonded=False,
           most_mtu=9100)
CARD = Key(GuestNic.kind, "web/nic0")


def compiled(mtu: int, seen: State, nic: str = "") -> Compiled:
    document = loads(f"version: 1\nuplinks: {{wan: {{device: eth1, mtu: {mtu}}}, in: {{vlan: 7, on: wan}}}}\n"
                     "networks: {lan: {mode: bridge, uplink: in, subnet: 10.1.0.0/24, address: 10.1.0.1}}\n"
                     f"vms: {{web: {{run: {{image: tiny}}, nics: [{{network: lan{nic}}}]}}}}\n")
    facts = Facts(state=seen, running={"web": ("nic0",)})
    require(document, facts)
    return compile_spec(document.spec, facts, allocate(document.spec, {}))


def steps_to(mtu: int, before: State, nic: str = "") -> tuple[tuple[Step, ...], State]:
    out = compiled(mtu, before, nic)
    ours = {k for k in before if k != NIC.key}
    steps = plan(before, out.wanted, ours, out.borrowed)
    return steps, apply_to(before, steps)


@pytest.fixture
def standing() -> State:
    """The host at 1400, with the guest running."""
    first = {NIC.key: NIC}
    _, state = steps_to(1400, first)
    return state


def card(state: State) -> GuestNic:
    found: Resource = state[CARD]
    assert isinstance(found, GuestNic)
    return found


def named(steps: tuple[Step, ...]) -> list[str]:
    return [f"{type(s).__name__} {s.key.name}" for s in steps if s.key.kind in ("link", "guest-nic")]


def test_down_is_live_and_goes_from_the_guest_to_the_wire(standing: State) -> None:
    steps, after = steps_to(1300, standing)
    names = named(steps)
    assert names[:3] == ["Update web/nic0", "Update kvt-web-0", "Update kvu-in"], "a VLAN before what carries it"
    assert sorted(names[3:]) == ["Update eth1", "Update kvb-lan"]
    assert (card(after).host_mtu, card(after).mtu) == (1400, 1300)
    assert "replug" not in plan_text(steps) and "mtu 1400 -> 1300" in plan_text(steps)
    again, _ = steps_to(1300, after)
    assert again == ()


def test_up_to_what_the_card_has_is_live_and_goes_from_the_wire_to_the_guest(standing: State) -> None:
    _, low = steps_to(1300, standing)
    steps, after = steps_to(1400, low)
    names = named(steps)
    assert names[0] == "Update eth1" and names[-1] == "Update web/nic0" and len(names) == 5
    assert (card(after).host_mtu, card(after).mtu) == (1400, 1400)


def test_above_it_is_a_replug(standing: State) -> None:
    _, low = steps_to(1300, standing)
    steps, after = steps_to(9000, low)
    names = named(steps)
    assert (names[0], names[1], names[-1]) == ("Delete web/nic0", "Update eth1", "Create web/nic0")
    made = [s for s in steps if isinstance(s, (Create, Delete)) and s.key == CARD]
    assert len(made) == 2 and (card(after).host_mtu, card(after).mac) == (9000, card(low).mac)
    assert "web/nic0: replugged" in plan_text(steps)
    assert not [s for s in steps if s.key.kind == "nic-guard"], "its guard stays as it is"


def test_a_card_that_is_made_anew_for_another_reason_has_no_more_than_it_needs(standing: State) -> None:
    _, low = steps_to(1300, standing)
    _, after = steps_to(1300, low, ", packed: true")
    assert (card(after).host_mtu, card(after).packed) == (1300, True)


def test_other_changes_of_a_link_keep_their_place(standing: State) -> None:
    """Only steps that do nothing but lower it go first."""
    lowered = {**standing, Key("link", "kvb-lan"): replace(standing[Key("link", "kvb-lan")], up=False)}  # type: ignore[call-arg]
    steps, _ = steps_to(1300, lowered)
    bridge = next(s for s in steps if s.key.name == "kvb-lan" and s.key.kind == "link")
    assert isinstance(bridge, Update) and bridge.changes.keys() == {"mtu", "up"}
    assert named(steps)[:2] == ["Update web/nic0", "Update kvt-web-0"] and named(steps)[-1] == "Update kvb-lan"
