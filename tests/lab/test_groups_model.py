"""Random rules and random packets on Debian's kernel, with bridge conntrack: frames and verdicts are made out here."""
from __future__ import annotations

import pytest

from lib.lab import Lab
from lib.verdicts import Trial
from lib.volley import fire

pytestmark = pytest.mark.lab
FEATURES = {"bridge-conntrack": ""}


def test_kernel_and_reference_agree(lab: Lab) -> None:
    trial = Trial.dealt(FEATURES, policies=20, packets=1020)
    assert "ct state established,related" in trial.rounds[0].script
    found, _ = lab.call(fire, trial.ground(), trial.rounds, timeout=900)
    trial.judge(found, least=20_000)
