"""The guard's attacks and what guests may, on Debian's kernel: the tables of tests/net, sent in one loop."""
from __future__ import annotations

import pytest

from kvmnet.policy.guard import nic_guard
from lib.guardlab import BRIDGE, HOST, PORTS
from lib.lab import Lab
from lib.lab_guard import refused_and_declared, under, without_and_with
from net.test_guard_attacks import ATTACKS, TARGETS
from net.test_guard_legitimate import LEGITIMATE, ROLES, TAP, G

pytestmark = pytest.mark.lab


@pytest.mark.parametrize("port", PORTS)
def test_nothing_leaks_that_passes_without_the_guard(lab: Lab, port: str) -> None:
    cases = {f"{name}, to {where}": attack(end) for name, attack in ATTACKS.items() for where, end in TARGETS.items()}
    without, leaks = lab.call(without_and_with, cases, port, timeout=900)
    sent = {case: 0 if case.rpartition(", to ")[0] in PORTS[port].never else len(frames)
            for case, frames in cases.items()}
    assert {case: without[case][case.rpartition(", to ")[2]] for case in cases} == sent
    assert {case: where for case, where in leaks.items() if any(where.values())} == {}


@pytest.mark.parametrize("level", ["full", "mac"])
def test_guests_may(lab: Lab, level: str) -> None:
    cases = {name: frames() for name, frames in LEGITIMATE.items()}
    guard = nic_guard(TAP, level, [G.mac], [G.ip4, G.ip6], bridge=BRIDGE, protected=[HOST.ip4, HOST.ip6])
    arrived = lab.call(under, guard, cases)
    assert {name: where["guest"] for name, where in arrived.items()} == {n: len(f) for n, f in cases.items()}


def test_what_is_declared_passes_and_needs_to_be_declared(lab: Lab) -> None:
    assert lab.call(refused_and_declared, ROLES) == {name: (0, len(frames)) for name, (_, frames) in ROLES.items()}
