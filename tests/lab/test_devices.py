"""VLAN-aware bridges, filters of tc, queues, VRFs and bonds of Debian's kernel: what the walk says of random frames is what becomes of them."""
from __future__ import annotations

import random
from collections import Counter

import pytest

from lib.devices import deal, differences, fire
from lib.lab import Lab

pytestmark = pytest.mark.lab

TURNS, FRAMES = 6, 60
MET = {"vlan-mismatch", "tc-filter", "rule-drop", "bond-dead", "netem-left", "route-error"}


def test_the_walk_is_the_kernels(lab: Lab) -> None:
    dice = random.Random(5)
    turns = [deal(dice, number * FRAMES, FRAMES) for number in range(TURNS)]
    found = lab.call(fire, turns, timeout=300)
    said: Counter[str] = Counter()
    assert list(differences(turns, found, said)) == []
    assert said.keys() >= MET and min(said[f"{way} {state}"] for way in ("bridge", "route", "up") for state in ("ok", "blocked")) > 10, said
