"""CPUs of a guest's threads: a resource of running guests whose document says something of them, and of no others."""
from __future__ import annotations

import pytest

from kvmnet.compile import compile_spec
from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.qemu.resources import GuestThreads
from kvmnet.engine.plan import Create, Delete, Step, apply_to, plan
from kvmnet.engine.resource import Key, State
from kvmnet.errors import HostCannot, SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec.allocate import allocate
from kvmnet.spec.checks import require
from kvmnet.spec.load import loads

LO = Link(name="lo", type="physical", mtu=65536, mac="00:00:00:00:00:00", up=True, master="", alias="")
KEY = Key(GuestThreads.kind, "web")


def steps_to(pin: str, before: State, *running: str) -> tuple[list[Step], State]:
    """Steps of threads, and what is there afterwards."""
    document = loads("version: 1\nnetworks: {lan: {mode: isolated, subnet: 10.1.0.0/24}}\n"
                     f"vms: {{web: {{run: {{image: tiny, cpus: 2{pin}}}, nics: [{{network: lan}}]}}}}\n")
    facts = Facts(state={LO.key: LO, **before}, running=dict.fromkeys(running, ("nic0",)), cpu_set="0-3", cpu_numbers=4)
    require(document, facts)
    out = compile_spec(document.spec, facts, allocate(document.spec, {}))
    steps = [s for s in plan(before, out.wanted, set(before), out.borrowed) if s.key == KEY]
    return steps, apply_to(before, steps)


def test_placed_while_it_runs_and_let_go() -> None:
    steps, state = steps_to(", pin: {vcpus: [2, 3], qemu: '1,0'}", {}, "web")
    assert [type(s) for s in steps] == [Create]
    assert state[KEY] == GuestThreads(name="web", vcpus=("2", "3"), vhost=("0-3",), qemu=("0-1",)), "complete: every CPU where nothing is said"
    assert steps_to(", pin: {vcpus: [2, 3], qemu: 0-1}", state, "web")[0] == []
    assert [type(s) for s in steps_to("", state, "web")[0]] == [Delete]


def test_nothing_of_guests_that_do_not_run_or_are_left_alone() -> None:
    assert steps_to(", pin: {vcpus: 2}", {})[0] == [] == steps_to("", {}, "web")[0]


@pytest.mark.parametrize(("pin", "error", "said"), [
    ("{vcpus: 4}", HostCannot, r"vms\.web\.run\.pin\.vcpus: there is no CPU 4 here"), ("{vhost: none}", SpecError, "a thread needs a CPU"),
])
def test_what_no_thread_can_have_is_refused(pin: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as refused:
        steps_to(f", pin: {pin}", {}, "web")
    assert said.replace("\\", "") in str(refused.value) or said in str(getattr(refused.value, "problems", ""))
