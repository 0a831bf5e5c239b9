"""Disciplines of devices, and what is said of them."""
from __future__ import annotations

import pytest

from kvmnet.spec.knobs import Profile
from kvmnet.spec.load import loads
from kvmnet.tune.queueing import queueing, queues


def row(kind: str, handle: str = "0:", root: bool = True) -> dict[str, object]:
    return {"kind": kind, "handle": handle, "dev": "eth0", **({"root": True} if root else {"parent": ":1"})}


@pytest.mark.parametrize(("rows", "lacks", "value", "said"), [
    ([row("pfifo_fast")], "", "pfifo_fast", "qdisc: fq_codel of the uplink"),
    ([row("pfifo_fast")], "no such module", "pfifo_fast", "nothing better here: no such module"),
    ([row("mq"), row("pfifo_fast", root=False), row("pfifo_fast", root=False)], "", "mq of pfifo_fast", "of each queue"),
    ([row("mq"), row("fq_codel", root=False)], "", "mq of fq_codel", "flows take turns"),
    ([row("noqueue")], "", "noqueue", "handed on at once"), ([row("cake", "8001:")], "", "cake", "flows take turns"),
    ([row("tbf", "6b76:"), row("fq_codel", root=False)], "", "tbf", "as the document says"),
    ([row("hfsc", "1:")], "", "hfsc", "somebody's own"), ([row("fq"), row("clsact", root=False)], "", "fq", "flows take turns"),
])
def test_each_is_named_with_what_it_means(rows: list[dict[str, object]], lacks: str, value: str, said: str) -> None:
    (what, is_now, meaning), = queueing(["eth0", "eth1"], rows, lacks)
    assert (what, is_now) == ("eth0: queueing", value) and said in meaning


@pytest.mark.parametrize(("rows", "uplink", "rest", "profile", "proposed"), [
    ([row("pfifo_fast")], "", "", Profile.LATENCY, ["uplinks.wan.qdisc"]), ([row("pfifo_fast")], "", "", Profile.THROUGHPUT, []),
    ([row("mq"), row("pfifo_fast", root=False)], "", "", Profile.LATENCY, []), ([row("noqueue")], "", "", Profile.ROUTER, []),
    ([row("pfifo_fast")], ", qdisc: cake", "", Profile.ROUTER, []), ([row("pfifo", "6b76:")], "", "", Profile.ROUTER, []),
    ([row("pfifo_fast")], "", ", rate: {out: 1gbit}", Profile.DENSITY, [])])
def test_a_line_of_a_nic_is_proposed_to_be_none(rows: list[dict[str, object]], uplink: str, rest: str, profile: Profile, proposed: list[str]) -> None:
    spec = loads(f"version: 1\nuplinks: {{wan: {{device: eth0{uplink}}}}}\nnetworks:\n  lan: {{mode: bridge, uplink: wan, subnet: 10.0.0.0/24, "
                 f"address: 10.0.0.2, gateway: 10.0.0.1, pool: 10.0.0.50-10.0.0.60{rest}}}\n", "test").spec
    found = list(queues(profile, spec, rows, "no such module"))
    assert [p.name for p in found] == proposed and all(p.lacking == "no such module" for p in found)
    assert {(p.now, p.proposed) for p in found} <= {("pfifo_fast", "fq_codel")}
