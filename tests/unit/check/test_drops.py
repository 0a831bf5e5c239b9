"""Traces of skb:kfree_skb as kernels print them: which drops are those of our packets."""
from __future__ import annotations

from kvmnet.doctor.explain.paths import CODES
from kvmnet.doctor.reasons import REASONS, confirms
from kvmnet.doctor.rules.table import RULES
from kvmnet.host.drops import Dropped, drops

OURS, OTHERS = "ffff88825c541000", "ffff88825c541f00"


def line(event: str, at: float = 10.0, pid: int = 7, cpu: int = 1, comm: str = "python") -> str:
    return f"          {comm}-{pid}   [{cpu:03}] b.s1. {at:.6f}: {event}"


def received(skb: str = OURS, dev: str = "kvp-1b") -> str:
    return f"netif_receive_skb: dev={dev} skbaddr={skb} len=84"


def freed(skb: str = OURS, reason: str = "IP_RPFILTER", where: str = "ip_rcv_finish_core+0x1c4/0x3f0", sk: str = " rx_sk=0000000000000000") -> str:
    return f"kfree_skb: skbaddr={skb}{sk} protocol=2048 location={where} reason: {reason}"


def test_a_buffer_is_ours_from_its_arrival_on() -> None:
    assert drops([line(received()), line(freed(), 10.0001)], "kvp-1b") == [Dropped("IP_RPFILTER", "ip_rcv_finish_core")]


def test_linux_6_1_prints_less() -> None:
    for where in ("ffffffff9a1b2c3d", "0000000012ab34cd", "0xffffffff81a0b1c2"):
        assert drops([line(received()), line(freed(sk="", where=where), 10.0001)], "kvp-1b") == [Dropped("IP_RPFILTER", "")]


def test_a_buffer_that_became_another_packets_is_not_ours() -> None:
    for other in (line(freed(OTHERS), 10.0001), line(freed(), 10.0001, pid=8), line(freed(), 10.0001, cpu=0), line(freed(), 10.5), line(freed(), 10.0001, comm="a b-c", pid=9)):
        assert drops([line(received()), other], "kvp-1b") == []
    assert drops([line(received(dev="kvp-2b")), line(freed(), 10.0001)], "kvp-1b") == []
    assert drops([line(received()), line(freed(), 10.0001), line(freed(reason="OTHERHOST"), 10.0002)], "kvp-1b") == [Dropped("IP_RPFILTER", "ip_rcv_finish_core")]


def test_a_slow_machine_may_take_its_time_within_our_own_send() -> None:
    begin, end = line("tracing_mark_write: kvmnet sends"), line("tracing_mark_write: kvmnet has sent", 10.6)
    assert drops([begin, line(received()), line(freed(), 10.5), end], "kvp-1b") == [Dropped("IP_RPFILTER", "ip_rcv_finish_core")]
    assert drops([begin, line(received()), end, line(freed(), 10.5)], "kvp-1b") == drops([begin, line(received()), line(freed(), 10.5, cpu=0), end], "kvp-1b") == []


def test_what_this_process_sends_is_dropped_between_its_marks() -> None:
    begin, end = line("tracing_mark_write: kvmnet sends", comm="kvmnet"), line("tracing_mark_write: kvmnet has sent", comm="kvmnet")
    assert drops([line(freed()), begin, line(freed(reason="NETFILTER_DROP"), pid=8), line(freed(reason="IP_OUTNOROUTES", where="ip_send+0x1/0x2")), end, line(freed(reason="XDP"))], "") == [Dropped("IP_OUTNOROUTES", "ip_send")]


def test_what_is_no_event_is_passed_over() -> None:
    assert drops(["# tracer: nop", "", "CPU:1 [LOST 44 EVENTS]", line("kfree_skb: skbaddr=?")], "kvp-1b") == []


def test_reasons_confirm_findings_that_there_are() -> None:
    named = {code for codes, _ in REASONS.values() for code in codes}
    assert named <= set(CODES) | set(RULES)
    assert confirms("NEIGH_FAILED", "gateway-silent") and not confirms("NEIGH_FAILED", "rule-drop") and not confirms("A_NEW_ONE", "rule-drop")
