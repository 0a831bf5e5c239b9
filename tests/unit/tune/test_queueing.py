"""Disciplines of devices, and what is said of them."""
from __future__ import annotations

import pytest

from kvmnet.tune.queueing import queueing


def row(kind: str, handle: str = "0:", root: bool = True) -> dict[str, object]:
    return {"kind": kind, "handle": handle, "dev": "eth0", **({"root": True} if root else {"parent": ":1"})}


@pytest.mark.parametrize(("rows", "lacks", "value", "said"), [
    ([row("pfifo_fast")], "", "pfifo_fast", "tc qdisc replace dev eth0 root fq_codel"),
    ([row("pfifo_fast")], "no such module", "pfifo_fast", "nothing better here: no such module"),
    ([row("mq"), row("pfifo_fast", root=False), row("pfifo_fast", root=False)], "", "mq of pfifo_fast", "of each queue"),
    ([row("mq"), row("fq_codel", root=False)], "", "mq of fq_codel", "flows take turns"),
    ([row("noqueue")], "", "noqueue", "handed on at once"), ([row("cake", "8001:")], "", "cake", "flows take turns"),
    ([row("tbf", "6b76:"), row("fq_codel", root=False)], "", "tbf", "made for a rate of the document"),
    ([row("hfsc", "1:")], "", "hfsc", "somebody's own"), ([row("fq"), row("clsact", root=False)], "", "fq", "flows take turns"),
])
def test_each_is_named_with_what_it_means(rows: list[dict[str, object]], lacks: str, value: str, said: str) -> None:
    (what, is_now, meaning), = queueing(["eth0", "eth1"], rows, lacks)
    assert (what, is_now) == ("eth0: queueing", value) and said in meaning
