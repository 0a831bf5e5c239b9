"""Filters of tc as iproute2 prints them, judged for one packet."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.doctor.filters import judge
from kvmnet.doctor.packet import TCP, made
from kvmnet.facts.capture import with_matches

Json = dict[str, Any]
PACKET = made(("52:54:00:00:00:02", "52:54:00:00:00:01"), "10.0.0.1", "10.0.0.2", TCP, (40000, 443))


def gact(word: str, **more: Any) -> Json:
    return {"order": 1, "kind": "gact", "control_action": {"type": word}, "prob": {"random_type": "none", "control_action": {"type": "pass"}, "val": 0}} | more


def mirred(action: str, to: str = "ifb0") -> Json:
    return {"order": 1, "kind": "mirred", "mirred_action": action, "direction": "egress", "to_dev": to, "control_action": {"type": "stolen" if action == "redirect" else "pipe"}}


def row(kind: str, *actions: Json, protocol: str = "all", **options: Any) -> Json:
    return {"protocol": protocol, "pref": 10, "kind": kind, "chain": 0, "options": options | ({"actions": list(actions)} if actions else {})}


def flower(*actions: Json, **keys: Any) -> Json:
    return row("flower", *actions, handle=1, keys=keys)


def u32(*matches: tuple[str, str, int], actions: tuple[Json, ...] = (gact("drop"),), **options: Any) -> Json:
    return row("u32", *actions, protocol="ip", match={"value": "0", "mask": "0"}, matches=[{"value": v, "mask": m, "offmask": "", "off": o} for v, m, o in matches], **options)


DROP = row("matchall", gact("drop"))
BPF = row("bpf", handle="0x1", bpf_name="cls.o", **{"direct-action": "true"})
CASES: dict[str, tuple[str, list[Json]]] = {
    "nothing": ("pass", []),
    "the head of a list is no filter": ("pass", [{"protocol": "all", "pref": 10, "kind": "matchall", "chain": 0}, row("u32", fh="800:", ht_divisor=1)]),
    "all": ("drop", [DROP]),
    "of another protocol": ("pass", [row("matchall", gact("drop"), protocol="ipv6")]),
    "of this protocol": ("drop", [row("matchall", gact("drop"), protocol="ip")]),
    "the first decides": ("pass", [row("matchall", gact("pass")), DROP]),
    "continue asks the next": ("drop", [row("matchall", gact("continue")), DROP]),
    "pipe does not, at the end": ("pass", [row("matchall", mirred("mirror")), DROP]),
    "pipe goes to the next action": ("drop", [row("matchall", mirred("mirror"), gact("drop"))]),
    "redirected": ("away", [row("matchall", mirred("redirect"))]),
    "u32 on address and port": ("drop", [u32(("a000002", "ffffffff", 16), ("60000", "ff0000", 8), ("1bb", "ffff", 20))]),
    "u32 on another port": ("pass", [u32(("a000002", "ffffffff", 16), ("1bc", "ffff", 20))]),
    "u32 beyond the packet": ("pass", [u32(("1", "ff", 400))]),
    "u32 with a table": ("unknown", [u32(("0", "0", 0), link="1:")]),
    "flower": ("drop", [flower(gact("drop"), eth_type="ipv4", ip_proto="tcp", dst_ip="10.0.0.0/24", dst_port=443, src_mac="52:54:00:00:00:01")]),
    "flower, a range": ("drop", [flower(gact("drop"), ip_proto="tcp", dst_port="400-500")]),
    "flower, another source": ("pass", [flower(gact("drop"), src_ip="10.0.0.9", tcp_flags="2")]),
    "flower, what nobody knows": ("unknown", [flower(gact("drop"), tcp_flags="2/2")]),
    "both ways end the same": ("drop", [flower(gact("drop"), tcp_flags="2/2"), DROP]),
    "a doubt about a pass": ("unknown", [flower(gact("pass"), tcp_flags="2/2"), DROP]),
    "bpf": ("unknown", [BPF]),
    "by chance": ("unknown", [row("matchall", gact("drop", prob={"random_type": "netrand", "control_action": {"type": "pass"}, "val": 10}))]),
    "another chain": ("unknown", [row("matchall", gact("goto chain"))]),
    "the packet is changed": ("unknown", [row("matchall", {"order": 1, "kind": "pedit"})]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_a_packet(name: str) -> None:
    end, rows = CASES[name]
    assert judge(rows, PACKET).end == end


def test_a_policer_lets_it_pass_and_is_named() -> None:
    found = judge([row("matchall", {"order": 1, "kind": "police", "control_action": {"type": "reclassify"}}), DROP], PACKET)
    assert found.end == "pass" and "police" in found.limits[0]


def test_every_match_of_u32_is_kept() -> None:
    """tc repeats the key."""
    assert with_matches([("order", 1), ("match", {"off": 16}), ("match", {"off": 8})]) == {"order": 1, "match": {"off": 8}, "matches": [{"off": 16}, {"off": 8}]}


def test_where_it_goes_is_told() -> None:
    found = judge([row("matchall", mirred("redirect", "eth9"))], PACKET)
    assert found.to == "eth9" and found.text == "protocol all pref 10 matchall : mirred redirect to eth9"
