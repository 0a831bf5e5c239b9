"""Random rules and random packets: the kernel's verdict is the reference's, with the back end that this kernel has.

``flows.Judge``, which the reference asks about first packets, is itself held against the words of the design in
tests/unit/policy/test_flows.py. The lab's kernel gets the same in tests/lab/test_groups_model.py.
"""
from __future__ import annotations

import pytest

from kvmnet.facts.features import features
from lib.known import KEPT
from lib.verdicts import Trial
from lib.volley import fire

pytestmark = pytest.mark.net


def test_kernel_and_reference_agree() -> None:
    trial = Trial.dealt(features(KEPT), policies=100, packets=300)
    found, _ = fire(trial.ground(), trial.rounds)
    trial.judge(found, least=30_000)
