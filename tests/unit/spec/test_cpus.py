"""Sets of CPUs: one form, whoever wrote them, and the kernel's words for it."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.ethtool.resources import NicTuning
from kvmnet.engine.resource import Key
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import check, lacking
from kvmnet.spec.cpus import cpus, from_mask, in_turn, joined, lists, numbers, to_mask
from kvmnet.spec.guests import Run
from kvmnet.spec.load import loads


@given(st.sets(st.integers(0, 400)))
def test_masks_and_lists_say_the_same(some: set[int]) -> None:
    text = joined(some)
    assert numbers(text) == some and cpus(text) == text and from_mask(to_mask(text)) == text
    assert all(len(word) == 8 for word in to_mask(text).split(",")[1:]), "words of 32 bits"


@pytest.mark.parametrize(("written", "canonical"), [(3, "3"), ("0-3", "0-3"), ("3,1, 2,0", "0-3"), ("0-1,1-2,7", "0-2,7"), ("none", "none")])
def test_one_form(written: object, canonical: str) -> None:
    assert cpus(written) == canonical


@pytest.mark.parametrize("written", ["", "3-1", "all", "0x3", "-1", "9000", "1,,2", "0-"])
def test_what_names_no_cpu_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"write"):
        assert lists([written]) is None


def test_queues_in_turn_are_said_shortly() -> None:
    assert in_turn(["0", "1", "0", "1"]) == ("0", "1") == in_turn(["0", "1", "0", "1", "0"][:4])
    assert in_turn(["0", "1", "0"]) == ("0", "1") and in_turn(["0-3"] * 8) == ("0-3",) and in_turn(["0", "1", "2"]) == ("0", "1", "2")
    assert lists("0-1") == ("0-1",) == lists(["0-1", "1,0"]) and lists([0, 1]) == ("0", "1")


DOCUMENT = "version: 1\nuplinks:\n  w: {{device: eth0, steering: {}}}\n"


def said(steering: str, seen: NicTuning) -> list[str]:
    facts = Facts(state={Key(NicTuning.kind, "eth0"): seen}, cpu_numbers=4)
    return [f"{p.path}: {p.message}" for rule in (check, lacking) for p in rule(loads(DOCUMENT.format(steering)).spec, facts)]


def test_what_the_host_has_not_is_refused_with_its_place() -> None:
    seen = NicTuning(name="eth0", rps=("none",), most=("rps=2",))
    assert not [s for s in said("{receive: [0, 1-3]}", seen) if "steering" in s]
    for steering, told in (("{receive: 2-4}", "steering.receive: this machine has no CPU 4"),
                           ("{receive: [0, 1, 2]}", "steering.receive: eth0 has 2 of them, not 3"),
                           ("{send: 0}", "steering.send: eth0 has no transmit queues to choose from"),
                           ("{interrupts: 0}", "steering.interrupts: eth0 has no interrupts"),
                           ("{interrupts: none}", "steering.interrupts: an interrupt goes to a CPU")):
        assert any(told in s for s in said(steering, seen)), (steering, said(steering, seen))


def test_what_a_guest_was_started_with_is_kept_as_it_is() -> None:
    run = Run.model_validate({"cpus": 2, "pin": {"vcpus": [1, 0], "qemu": "1,0"}})
    assert Run.model_validate_json(run.model_dump_json()) == run and run.pin.vcpus == ("1", "0") and run.pin.qemu == ("0-1",)
