"""tc's words: what is told, what is read back, and that the two are the same."""
from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.linux.words import lines_of as link_lines
from kvmnet.drivers.tc.resources import (
    MAJOR,
    STEP,
    TICKS,
    Detour,
    MacTable,
    Qdisc,
    Receiver,
    Sorter,
    TcClass,
    burst_of,
    in_steps,
    is_ours,
)
from kvmnet.drivers.tc.wire import (
    parse_classes,
    parse_counts,
    parse_filters,
    parse_leaf_counts,
    parse_qdiscs,
    parse_receivers,
    parse_sorters,
    with_matches,
)
from kvmnet.drivers.tc.words import lines_of
from kvmnet.engine.plan import Create, Delete, Update
from kvmnet.policy import shares
from kvmnet.policy.rates import bucket, usual_burst
from kvmnet.spec.disciplines import FEATURES, root_queue, uplink_queues
from kvmnet.spec.uplinks import Uplink
from kvmnet.spec.values import bit_rate, burst, dscps
from lib.bpf import run as run_bpf
from lib.frames import ether, ip4, ip6

TBF = Qdisc(name="kvt-a-0 6b76:", dev="kvt-a-0", parent="root", below="", of="", discipline="tbf", rate=123456, burst=262144, limit=1000001)
CODEL = Qdisc(name="kvt-a-0 6b77:", dev="kvt-a-0", parent="6b76:1", below="kvt-a-0 6b76:", of="", discipline="fq_codel", packets=1024,
              flows=128)
HTB = Qdisc(name="eth0 6b76:", dev="eth0", parent="root", below="", of="", discipline="htb", default=0x1f)
LEAF = TcClass(name="eth0 6b76:1a", qdisc="eth0 6b76:", parent="eth0 6b76:1", rate=1_234_000, ceil=2_000_000, burst=65536, cburst=102400,
               priority=3, quantum=3000)
DETOUR = Detour(name="kvt-a-0", dev="kvt-a-0", to="kvi-a-0", into="")
BEFORE = Detour(name="kvt-a-0 egress", dev="kvt-a-0", to="kvi-~i~acme", into="")
SORTER = Sorter(name="kvi-~lan 27655", qdisc="kvi-~lan 6c01:", program="40 0 0 12,6 0 0 1", into="kvi-~lan 6c01:10")
TABLE = MacTable(name="kvi-~lan", qdisc="kvi-~lan 6c01:")
RECEIVER = Receiver(name="kvi-~lan 52:54:00:00:0b:0a", table="kvi-~lan", node="a:fff", into="kvi-~lan 6c01:10")
IN_TABLE = "filter {} dev kvi-~lan parent 6c01: protocol all pref 28672"
CLASSED = Detour(name="kvt-a-0", dev="kvt-a-0", to="kvi-~o~acme", into="6c01:10")


@pytest.mark.parametrize(("step", "told"), [
    (Create(TBF), ["qdisc add dev kvt-a-0 root handle 6b76: tbf rate 123456kbit burst 262144b limit 1000001b"]),
    (Update(TBF, replace(TBF, rate=7)), ["qdisc change dev kvt-a-0 root handle 6b76: tbf rate 7kbit burst 262144b limit 1000001b"]),
    (Delete(TBF), ["qdisc del dev kvt-a-0 root handle 6b76:"]),
    (Create(CODEL), ["qdisc add dev kvt-a-0 parent 6b76:1 handle 6b77: fq_codel limit 1024 flows 128"]),
    (Create(root_queue("eth0", "fq_codel")), ["qdisc add dev eth0 root handle 6b76: fq_codel limit 10240 flows 1024"]),
    (Create(root_queue("eth0", "noqueue")), ["qdisc add dev eth0 root handle 6b76: noqueue"]),
    (Create(root_queue("eth0", "mq")), ["qdisc add dev eth0 root handle 6b76: mq"]),
    (Delete(root_queue("eth0", "cake")), ["qdisc del dev eth0 root handle 6b76:"]),
    (Create(HTB), ["qdisc add dev eth0 root handle 6b76: htb default 0x1f"]),
    (Create(LEAF), ["class add dev eth0 parent 6b76:1 classid 6b76:1a htb rate 1234000kbit ceil 2000000kbit burst 65536b cburst 102400b "
                    "prio 3 quantum 3000"]),
    (Update(LEAF, TcClass(name=LEAF.name, ceil=5)), [
        "class change dev eth0 parent 6b76:1 classid 6b76:1a htb rate 1234000kbit ceil 5kbit burst 65536b cburst 102400b prio 3 quantum 3000"]),
    (Delete(LEAF), ["class del dev eth0 classid 6b76:1a"]),
    (Create(DETOUR), ["qdisc replace dev kvt-a-0 clsact",
                      "filter replace dev kvt-a-0 ingress protocol all pref 27510 handle 800::800 u32 match u32 0 0 action mirred egress "
                      "redirect dev kvi-a-0"]),
    (Create(BEFORE), ["qdisc replace dev kvt-a-0 clsact",
                      "filter replace dev kvt-a-0 egress protocol all pref 27510 handle 1 bpf bytecode \"1,6 0 0 4294967295\" action mirred egress "
                      "redirect dev kvi-~i~acme"]),
    (Update(CLASSED, replace(CLASSED, into="6c01:11")), [
        "qdisc replace dev kvt-a-0 clsact",
        "filter replace dev kvt-a-0 ingress protocol all pref 27510 handle 800::800 u32 match u32 0 0 action skbedit priority 6c01:11 pipe "
        "action mirred egress redirect dev kvi-~o~acme"]),
    (Create(SORTER), ["filter replace dev kvi-~lan parent 6c01: protocol all pref 27655 handle 1 bpf bytecode \"2,40 0 0 12,6 0 0 1\" "
                      "classid 6c01:10"]),
    (Update(SORTER, Sorter(name=SORTER.name, into="kvi-~lan 6c01:11")), [
        "filter replace dev kvi-~lan parent 6c01: protocol all pref 27655 handle 1 bpf bytecode \"2,40 0 0 12,6 0 0 1\" classid 6c01:11"]),
    (Delete(SORTER), ["filter del dev kvi-~lan parent 6c01: protocol all pref 27655"]),
    (Create(TABLE), [IN_TABLE.format("del"), f"{IN_TABLE.format('add')} handle 1: u32 divisor 256",
                     f"{IN_TABLE.format('add')} handle 800::800 u32 ht 800:: match u32 0 0 hashkey mask 0x000000ff at -12 link 1:"]),
    (Delete(TABLE), [IN_TABLE.format("del")]),
    (Create(RECEIVER), [f"{IN_TABLE.format('replace')} handle 1:a:fff u32 ht 1:a: match u32 0x00000b0a 0xffffffff at -12 match u16 0x5254 0xffff "
                        "at -14 classid 6c01:10"]),
    (Delete(RECEIVER), [f"{IN_TABLE.format('del')} handle 1:a:fff u32"]),
    (Delete(BEFORE), ["filter del dev kvt-a-0 egress protocol all pref 27510"]),
    (Delete(DETOUR), ["filter del dev kvt-a-0 ingress protocol all pref 27510"])])
def test_what_is_told(step: Create | Update | Delete, told: list[str]) -> None:
    assert [str(line) for line in lines_of(step)] == told


SHOWN = json.loads("""[
 {"kind":"noqueue","handle":"0:","dev":"lo","root":true,"refcnt":2,"options":{}},
 {"kind":"tbf","handle":"6b76:","dev":"kvt-a-0","root":true,"refcnt":2,
  "options":{"rate":15432000,"burst":262143,"burst_raw":"40cce","lat":47813,"limit":1000001}},
 {"kind":"fq_codel","handle":"6b77:","dev":"kvt-a-0","parent":"6b76:1","options":{"limit":1024,"flows":128,"quantum":1514}},
 {"kind":"clsact","handle":"ffff:","dev":"kvt-a-0","parent":"ffff:fff1","options":{}},
 {"kind":"htb","handle":"6b76:","dev":"eth0","root":true,"refcnt":2,"options":{"r2q":10,"default":"0x1f","direct_packets_stat":0}},
 {"kind":"fq_codel","handle":"7001:","dev":"eth0","parent":"6b76:1a","options":{"limit":1024,"flows":128}},
 {"kind":"htb","handle":"1:","dev":"eth9","root":true,"refcnt":2,"options":{"r2q":10,"default":"0"}}]""")
CLASSES = """\
class htb 6b76:1 root rate 10Gbit ceil 10Gbit linklayer ethernet burst 0b/1 mpu 0b cburst 0b/1 mpu 0b level 7 buffer [00000333] cbuffer [00000333]
class htb 6b76:1a parent 6b76:1 leaf 7001: prio 3 quantum 3000 rate 1234Mbit ceil 2Gbit linklayer ethernet burst 65432b/1 mpu 0b \
cburst 102000b/1 mpu 0b level 0 buffer [000019e1] cbuffer [000018f6]
class fq_codel 7001:3f parent 7001:
class htb 1:2 root prio 0 rate 10Mbit ceil 10Mbit burst 1600b cburst 1600b buffer [00000333] cbuffer [00000333]
"""


def test_what_is_read_back_is_what_was_told() -> None:
    found = {q.name: q for q in parse_qdiscs(SHOWN)}
    leaf_queue = replace(CODEL, name="eth0 7001:", dev="eth0", parent="6b76:1a", below="eth0 6b76:", of="eth0 6b76:1a")
    assert found == {q.name: q for q in (TBF, CODEL, HTB, leaf_queue, Qdisc(name="eth9 1:", dev="eth9", parent="root", discipline="htb"))}
    assert [is_ours(name.split()[1]) for name in found] == [True, True, True, True, False]
    root, leaf = parse_classes("eth0", CLASSES)
    assert leaf == LEAF and (root.parent, root.rate, root.ceil, root.priority) == ("", 10_000_000, 10_000_000, None)


@pytest.mark.parametrize("kind", FEATURES)
def test_a_discipline_that_was_chosen_is_read_back(kind: str) -> None:
    options = {"limit": 10240, "flows": 1024, "quantum": 1514} if kind == "fq_codel" else {"bands": 3}
    shown = [{"kind": kind, "handle": "6b76:", "dev": "eth0", "root": True, "options": options},
             {"kind": "fq_codel", "handle": "0:", "dev": "eth0", "parent": "6b76:1", "options": {}}]
    assert list(parse_qdiscs(shown)) == [root_queue("eth0", kind)]


def test_how_the_frames_of_a_nic_wait_in_a_tree_is_its_own() -> None:
    leaves = {0x10: (64, 1000, 4), 0x11: (64, 1000, 4), shares.REST: (64, 1000, 4)}
    for inner, usual in (("fq_codel", "fq_codel"), ("", "bfifo")):
        made = [r for r in shares.tree("eth0", 0x6C01, 1000, leaves, {0x10: "cake", 0x11: ""}, inner, default=shares.REST) if isinstance(r, Qdisc)]
        assert {q.parent: q.discipline for q in made} == {"root": "htb", "6c01:10": "cake", "6c01:11": usual, f"6c01:{shares.REST:x}": usual}
        assert all((q.limit is None) == (q.discipline in ("cake", "htb", "fq_codel")) for q in made)


def test_which_nics_of_an_uplink_have_the_queue() -> None:
    def of(**words: object) -> list[str]:
        return [q.dev or "" for q in uplink_queues(Uplink.model_validate({"qdisc": "fq", **words}))]
    assert of(device="e0") == ["e0"] and of(members=["e0", "e1"], device="bond0") == ["e0", "e1"]
    assert of(device="e0", redundant={"e1": {}}) == ["e0", "e1"] and of(device="e0", vlan=9) == [] == of(on="wan", vlan=9)
    assert list(uplink_queues(Uplink(device="e0"))) == []


def test_a_detour_that_leads_elsewhere_is_none() -> None:
    action = {"order": 1, "kind": "mirred", "mirred_action": "redirect", "direction": "egress", "to_dev": "kvi-a-0"}
    rule = {"pref": 27510, "kind": "u32", "options": {"match": {"value": "0", "mask": "0"}, "actions": [action]}}
    other = {"pref": 5, "kind": "u32", "options": {"match": {"value": "0", "mask": "0"}, "actions": [action]}}
    head = {"pref": 27510, "kind": "u32", "options": {"fh": "800:", "ht_divisor": 1}}
    assert list(parse_filters("kvt-a-0", [head, other, rule])) == [DETOUR]
    assert list(parse_filters("kvt-a-0", [head, other])) == []
    program = {"pref": 27510, "kind": "bpf", "options": {
        "handle": "0x1", "bytecode": {"length": 1, "insns": [{"code": 6, "jt": 0, "jf": 0, "k": 4294967295}]},
        "actions": [{**action, "to_dev": "kvi-~i~acme"}]}}
    assert list(parse_filters("kvt-a-0", [program], "egress")) == [BEFORE]
    program["options"]["bytecode"]["insns"][0]["k"] = 0  # type: ignore[index]
    assert [d.to for d in parse_filters("kvt-a-0", [program], "egress")] == [""]
    for change in ({"to_dev": "*"}, {"mirred_action": "mirror"}, {"direction": "ingress"}, {"kind": "gact"}):
        wrong = {**rule, "options": {**rule["options"], "actions": [{**action, **change}]}}  # type: ignore[dict-item]
        assert [d.to for d in parse_filters("kvt-a-0", [wrong])] == [""]
    told = {**rule, "options": {**rule["options"], "actions": [  # type: ignore[dict-item]
        {"order": 1, "kind": "skbedit", "priority": "6c01:10"}, {**action, "to_dev": "kvi-~o~acme"}]}}
    assert list(parse_filters("kvt-a-0", [told])) == [CLASSED]
    part = {**rule, "options": {"match": {"value": "1", "mask": "ff"}, "actions": [action]}}
    assert [d.to for d in parse_filters("kvt-a-0", [part])] == [""]


def test_what_sorts_frames_into_classes_is_read_back() -> None:
    shown = {"pref": 27655, "kind": "bpf", "options": {"handle": "0x1", "flowid": "6c01:10", "bytecode": {"length": 2, "insns": [
        {"code": 40, "jt": 0, "jf": 0, "k": 12}, {"code": 6, "jt": 0, "jf": 0, "k": 1}]}}}
    head = {"pref": 27655, "kind": "bpf", "chain": 0}
    assert list(parse_sorters("kvi-~lan 6c01:", [head, {**shown, "pref": 5}, shown])) == [SORTER]


LISTED = """[{"pref":28672,"kind":"u32","options":{"fh":"1:","ht_divisor":256}},
 {"pref":28672,"kind":"u32","options":{"fh":"1:a:fff","key_ht":"1","bkt":"a","flowid":"6c01:10","match":{"value":"b0a","mask":"ffffffff","offmask":"","off":-12},
  "match":{"value":"5254","mask":"ffff","offmask":"","off":-16}}},
 {"pref":28672,"kind":"u32","options":{"fh":"800:","ht_divisor":1}},
 {"pref":28672,"kind":"u32","options":{"fh":"800::800","link":"1:","match":{"value":"0","mask":"0","offmask":"","off":0},"hash_mask":"ff","hash_off":-12}}]"""


def test_a_table_of_macs_is_read_back_whole_or_not_at_all() -> None:
    listed = json.loads(LISTED, object_pairs_hook=with_matches)
    assert list(parse_receivers("kvi-~lan 6c01:", listed)) == [TABLE, RECEIVER]
    zero = json.loads(LISTED.replace("1:a:fff", "1::fff"), object_pairs_hook=with_matches)
    assert [r.node for r in parse_receivers("kvi-~lan 6c01:", zero) if isinstance(r, Receiver)] == ["0:fff"], "as tc writes bucket 0"
    assert list(parse_receivers("kvi-~lan 6c01:", listed[:-1])) == [], "nothing leads into it"
    assert list(parse_receivers("kvi-~lan 6c01:", listed[1:])) == []


@pytest.mark.parametrize(("code", "wanted"), [(46, True), (10, True), (11, False), (0, False)])
def test_a_class_is_told_by_the_dscp(code: int, wanted: bool) -> None:
    program = [[int(word) for word in line.split()] for line in shares.dscp_program((10, 46)).split(",")]
    for ecn in range(4):
        four = bytearray(ether("02:00:00:00:00:01", "02:00:00:00:00:02", 0x0800, ip4("10.0.0.1", "10.0.0.2", 17, b"")))
        four[15] = code << 2 | ecn
        six = bytearray(ether("02:00:00:00:00:01", "02:00:00:00:00:02", 0x86DD, ip6("fd00::1", "fd00::2", 17, b"")))
        six[14:16] = (0x6000 | (code << 2 | ecn) << 4 | 0xF).to_bytes(2, "big")
        assert [run_bpf(program, bytes(frame)) == 0xFFFFFFFF for frame in (four, six)] == [wanted, wanted]
        four[12:14] = b"\x08\x06"
        assert run_bpf(program, bytes(four)) == 0


def test_counts_are_those_of_our_roots() -> None:
    shown = [{**item, "bytes": 10, "drops": 2, "backlog": 7, "overlimits": 3} for item in SHOWN]
    counts = parse_counts(shown)
    assert counts.keys() == {"kvt-a-0", "eth0"} and counts["kvt-a-0"] == (10, 2, 7, 3)
    assert parse_leaf_counts(shown) == {"eth0 6b76:1a": (10, 2, 7, 3)}, "of classes alone"


@given(st.integers(64, 200_000_000), st.integers(1, 2**26 // STEP), st.booleans())
def test_a_burst_comes_back_from_ticks(rate: int, steps: int, up: bool) -> None:
    """iproute2 up to 6.x cuts what it computes to whole ticks, later versions round it up."""
    ticks = steps * STEP / (rate * 125) * TICKS
    assert burst_of(rate, int(ticks) + up) == steps * STEP


@pytest.mark.parametrize(("text", "kilobits"), [("64kbit", 64), ("1500kbit", 1500), ("10MBIT", 10_000), ("2gbit", 2_000_000),
                                               ("1234mbit", 1_234_000), ("200gbit", 200_000_000)])
def test_rates(text: str, kilobits: int) -> None:
    assert bit_rate(text) == kilobits


@pytest.mark.parametrize(("text", "why"), [("10", "not a rate"), ("1.5gbit", "not a rate"), ("10mbps", "not a rate"), ("1kbit", "out of range"),
                                         ("201gbit", "out of range"), ("1234567kbit", "in whole mbit, e.g. 1234mbit"), (True, "not a rate")])
def test_no_rates(text: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        bit_rate(text)


def test_bursts() -> None:
    assert (burst("64k"), burst("1m"), burst("5000"), burst(8192)) == (65536, 1048576, 8192, 8192)
    for wrong in ("100", "65m", "x", None):
        with pytest.raises(ValueError, match=r"amount of data|out of range"):
            burst(wrong)


def test_a_bucket_is_complete_and_its_burst_grows_with_the_rate() -> None:
    (plain,) = bucket("kvt-a-0", 100_000, None)
    root, queue = bucket("kvt-a-0", 100_000, 65536, "fq_codel")
    assert queue == CODEL and [q.packets for q in bucket("kvt-a-0", 100_000, None, "cake")] == [None, None]
    assert (plain.burst, root.burst, root.limit, queue.name) == (131072, 65536, in_steps(625_000), f"kvt-a-0 {MAJOR + 1:x}:")
    bursts = [usual_burst(rate) for rate in (64, 50_000, 1_000_000, 10_000_000, 100_000_000)]
    assert bursts == sorted(bursts) and bursts[0] == 16384 and bursts[1] == 131072 and all(b % STEP == 0 for b in bursts)
    assert in_steps(1) == STEP


def test_classes_of_a_network_keep_their_numbers() -> None:
    """A NIC more changes nothing for those that are there, unless it meets one of them."""
    few, more = (shares.numbers((f"kvt-{i}-0" for i in range(n)), shares.MINORS) for n in (100, 101))
    assert len(set(more.values())) == 101 and set(more.values()) <= set(shares.MINORS)
    assert sum(more[name] != number for name, number in few.items()) <= 1
    tight = shares.numbers((f"n{i}" for i in range(8)), range(5, 13))
    assert sorted(tight.values()) == list(range(5, 13))


def test_priorities_in_a_vlan_tag_are_told_one_by_one() -> None:
    before = Link(name="kvu-v", type="vlan", vlan_qos=("7:3", "8:4"))
    (line,) = link_lines(Update(before, Link(name="kvu-v", vlan_qos=("7:5", "9:1"))))
    assert str(line) == "link set dev kvu-v type vlan egress-qos-map 7:5 8:0 9:1"
    (line,) = link_lines(Update(before, Link(name="kvu-v", vlan_qos=())))
    assert str(line) == "link set dev kvu-v type vlan egress-qos-map 7:0 8:0"
    (line,) = link_lines(Update(before, Link(name="kvu-v", vlan_qos_in=("3:7",))))
    assert str(line) == "link set dev kvu-v type vlan ingress-qos-map 3:7"


def test_marks_are_maps_of_nics_and_a_chain_for_each_mark() -> None:
    (marks,) = shares.Shares(marks={"kvt-b": "none_10", "kvt-a": "all_0"}, queues={"kvt-a": 0x6B760010}, members={"kvt-a": "lan"},
                          classes={"lan": ("ip dscp { 10 } meta priority set 0x6b760011",)}).tables()
    assert list(shares.Shares().tables()) == []
    text = marks.text or ""
    assert 'elements = { "kvt-a" : jump all_0, "kvt-b" : jump none_10 }' in text and '"kvt-a" : 6b76:10' in text
    assert "chain none_10 {\nip dscp 0 ip dscp set 10\nip6 dscp 0 ip6 dscp set 10\n}" in text
    assert "chain all_0 {\nip dscp set 0\nip6 dscp set 0\n}" in text and '"kvt-a" : jump c_lan' in text


def test_what_nics_receive_is_known_by_its_destination() -> None:
    (table,) = shares.Shares(receivers={("kvb-lan", "10.0.0.2"): 0x6C010010, ("kvb-lan", "fd00::2"): 0x6C010010}).tables()
    assert table.name == "inet kvmnet-marks"
    assert 'elements = { "kvb-lan" . 10.0.0.2 : 6c01:10 }' in (table.text or "") and 'elements = { "kvb-lan" . fd00::2 : 6c01:10 }' in (table.text or "")


def test_classes_of_what_comes_in_are_told_where_the_host_sends_it() -> None:
    (table,) = shares.Shares(received={"kvb-lan": "lan"}, inner={"lan": ("ip dscp { 10 } meta priority set 0x6c010011",)}).tables()
    text = table.text or ""
    assert table.name == "inet kvmnet-marks" and 'elements = { "kvb-lan" : jump c_lan }' in text and "oifname vmap @classed" in text
    assert text.index("@inward6\noifname vmap @classed") > 0, "classes go before NICs"


@pytest.mark.parametrize(("value", "codes"), [("ef", (46,)), ([10, "AF11", "cs3"], (10, 24)), (0, (0,))])
def test_dscps(value: object, codes: tuple[int, ...]) -> None:
    assert dscps(value) == codes
