"""Findings: their order and what programs get."""
from __future__ import annotations

from dataclasses import replace

from kvmnet.doctor.finding import Certainty, Finding, Severity, ranked

ONE = Finding(code="port-isolated", severity=Severity.BLOCKS, where="t1", what="isolated", certainty=Certainty.LIKELY)


def test_the_worst_and_surest_comes_first_and_nothing_twice() -> None:
    sure, risk = replace(ONE, where="t2", certainty=Certainty.PROVED), replace(ONE, where="t0", severity=Severity.RISK)
    assert ranked([risk, ONE, sure, ONE]) == (sure, ONE, risk)


def test_what_is_equally_bad_stays_in_its_order() -> None:
    first, second = replace(ONE, where="z"), replace(ONE, where="a")
    assert ranked([first, second]) == (first, second)


def test_json_is_plain() -> None:
    assert ONE.to_json()["severity"] == "blocks" and ONE.to_json()["certainty"] == "likely"
