"""How frames wait: what the kernel lacks, and queues of somebody else's."""
from __future__ import annotations

import pytest

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.tc.resources import Qdisc
from kvmnet.facts.model import Facts
from kvmnet.spec.checks import lacking
from kvmnet.spec.disciplines import FEATURES
from kvmnet.spec.load import loads

DOCUMENT = """version: 1
uplinks: {wan: {members: [e0, e1], qdisc: %s}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 10.0.0.0/24}
vms:
  a: {nics: [{network: lan, qdisc: fq}]}
"""


def said(kind: str, facts: Facts) -> dict[str, str]:
    return {p.path: p.message for p in lacking(loads(DOCUMENT % kind, "test").spec, facts) if p.path.endswith("qdisc")}


@pytest.mark.parametrize("kind", FEATURES)
def test_what_the_kernel_lacks_is_said_where_it_is_written(kind: str) -> None:
    found = said(kind, Facts(features={FEATURES[kind]: "no such module"} | {"tc-fq": "not built"}))
    assert found["vms.a.nics[0].qdisc"] == "this host has no fq: not built"
    assert found["uplinks.wan.qdisc"] == f"this host has no {kind}: {'not built' if kind == 'fq' else 'no such module'}"
    assert said(kind, Facts(features=dict.fromkeys(FEATURES.values(), ""))) == {}


def test_a_queue_of_somebody_else_is_named() -> None:
    links = {link.key: link for link in (Link(name="e0"), Link(name="e1"))}
    theirs = Qdisc(name="e1 8001:", dev="e1", parent="root", discipline="fq")
    ours = Qdisc(name="e0 6b76:", dev="e0", parent="root", discipline="cake")
    elsewhere = Qdisc(name="e9 8001:", dev="e9", parent="root", discipline="fq")
    facts = Facts(state={**links, **{q.key: q for q in (theirs, ours, elsewhere)}}, features=dict.fromkeys(FEATURES.values(), ""))
    assert said("cake", facts) == {"uplinks.wan.qdisc": "e1 has a queue that somebody else has set: fq 8001:"}
