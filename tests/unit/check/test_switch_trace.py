"""What ofproto/trace of Open vSwitch 3.1 prints, read."""
from __future__ import annotations

import pytest

from kvmnet.check import switch_trace
from kvmnet.check.switch_trace import judged, settled, verdict
from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.host.run import ToolFailed

HEAD = 'Flow: icmp,in_port=v1\n\nbridge("br-int")\n----------------\n 0. in_port=v1, priority 100, cookie 0xc8ef7ac1\n    resubmit(,8)\n'
DROPPED = HEAD + " 9. reg0=0x8000/0x8000,metadata=0x2, priority 50, cookie 0x5ad90400\n    drop\n\nFinal flow: icmp\nMegaflow: recirc_id=0,eth,ip\nDatapath actions: drop\n"
PASSED = HEAD + '65. reg15=0x1, priority 100\n    output:v2\n\nbridge("br-ex")\n---------------\n 0. priority 0\n    NORMAL\n\nFinal flow: unchanged\nMegaflow: recirc_id=0\nDatapath actions: v2\n'
AGAIN = PASSED.replace("Datapath actions: v2", "Datapath actions: ct(commit,zone=1,nat(src=10.77.0.2)),recirc(0xf)")
FINDING = Finding(code="not-followed", severity=Severity.BLOCKS, where="v1", what="", certainty=Certainty.UNKNOWN, fix=("ovs-appctl ofproto/trace --names br-int 'in_port=v1,icmp,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02'",))
THERE, OUTSIDE = End("v2", Place.NIC, "10.0.0.2", "v2"), End("x", Place.OUTSIDE, "192.0.2.1")


def read(text: str) -> tuple[bool, tuple[str, ...], bool]:
    told = verdict(text)
    assert told
    return told.dropped, told.ports, told.sure


def test_a_trace_is_read() -> None:
    assert read(DROPPED) == (True, (), True) and read(PASSED) == (False, ("v2",), True)
    assert verdict(DROPPED).last == "br-int: 9. reg0=0x8000/0x8000,metadata=0x2, priority 50, cookie 0x5ad90400"  # type: ignore[union-attr]
    assert read(PASSED.replace("actions: v2", 'actions: ct_clear,set(eth(src=02:00:00:00:01:01)),"p-1.2",push_vlan(vid=5,pcp=0),u1')) == (False, ("p-1.2", "u1"), True)
    assert read(AGAIN + DROPPED) == (True, (), False), "after NAT the trace is of another packet"
    assert read(PASSED.replace("actions: v2", "actions: userspace(pid=0,controller(reason=1))")) == (False, (), False)
    assert verdict("no such bridge") is None


@pytest.mark.parametrize(("text", "end", "code", "severity", "certainty"), [
    (DROPPED, THERE, "switch-drop", Severity.BLOCKS, Certainty.PROVED), (AGAIN + DROPPED, THERE, "switch-drop", Severity.BLOCKS, Certainty.UNKNOWN),
    (PASSED, THERE, "not-followed", Severity.NOTE, Certainty.PROVED), (PASSED, OUTSIDE, "not-followed", Severity.NOTE, Certainty.PROVED),
    (PASSED.replace("actions: v2", "actions: v3"), THERE, "not-followed", Severity.BLOCKS, Certainty.UNKNOWN)])
def test_what_it_says_settles_the_finding(text: str, end: End, code: str, severity: Severity, certainty: Certainty) -> None:
    told = verdict(text)
    assert told
    found = judged(FINDING, told, end)
    assert (found.code, found.severity, found.certainty) == (code, severity, certainty) and found.evidence


def test_without_the_macs_or_the_switch_nothing_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(argv: object, timeout: float) -> str:
        raise ToolFailed(["ovs-appctl"], 1, "cannot connect")
    monkeypatch.setattr(switch_trace.host, "run", none)
    blind = FINDING.__class__(code="not-followed", severity=Severity.BLOCKS, where="v1", what="", fix=("ovs-appctl ofproto/trace --names br-int 'in_port=v1,icmp'",))
    assert settled(blind, THERE) is blind
    asked = settled(FINDING, THERE)
    assert asked.certainty is Certainty.UNKNOWN and "cannot connect" in asked.evidence[-1]
