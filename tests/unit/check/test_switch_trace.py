"""What ofproto/trace of Open vSwitch 3.1 prints, read."""
from __future__ import annotations

import pytest

from kvmnet.check import logical_flow, switch_trace
from kvmnet.check.switch_trace import judged, settled, through, verdict
from kvmnet.doctor.ends import End, Place
from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.scene import Scene
from kvmnet.doctor.trip import Hop
from kvmnet.host.run import ToolFailed

HEAD = 'Flow: icmp,in_port=v1\n\nbridge("br-int")\n----------------\n 0. in_port=v1, priority 100, cookie 0xc8ef7ac1\n    resubmit(,8)\n'
DROPPED = HEAD + " 9. reg0=0x8000/0x8000,metadata=0x2, priority 50, cookie 0x5ad90400\n    drop\n\nFinal flow: icmp\nMegaflow: recirc_id=0,eth,ip\nDatapath actions: drop\n"
PASSED = HEAD + '65. reg15=0x1, priority 100\n    output:v2\n\nbridge("br-ex")\n---------------\n 0. priority 0\n    NORMAL\n\nFinal flow: unchanged\nMegaflow: recirc_id=0\nDatapath actions: v2\n'
AGAIN = PASSED.replace("Datapath actions: v2", "Datapath actions: ct(commit,zone=1,nat(src=10.77.0.2)),recirc(0xf)")
FINDING = Finding(code="not-followed", severity=Severity.BLOCKS, where="v1", what="", certainty=Certainty.UNKNOWN, fix=("ovs-appctl ofproto/trace --names br-int 'in_port=v1,icmp,dl_src=02:00:00:00:00:01,dl_dst=02:00:00:00:00:02'",))
SCENE = Scene({"links": []})
THERE, OUTSIDE = End("v2", Place.NIC, "10.0.0.2", "v2"), End("x", Place.OUTSIDE, "192.0.2.1")


def read(text: str) -> tuple[bool, tuple[str, ...], bool]:
    told = verdict(text)
    assert told
    return told.dropped, told.ports, told.sure


def test_a_trace_is_read() -> None:
    assert read(DROPPED) == (True, (), True) and read(PASSED) == (False, ("v2",), True)
    assert verdict(DROPPED).last == "br-int: 9. reg0=0x8000/0x8000,metadata=0x2, priority 50, cookie 0x5ad90400"  # type: ignore[union-attr]
    assert read(PASSED.replace("actions: v2", 'actions: ct_clear,set(eth(src=02:00:00:00:01:01)),"p-1.2",push_vlan(vid=5,pcp=0),u1')) == (False, ("p-1.2", "u1"), True)
    assert read(AGAIN.replace("nat(src=10.77.0.2)", "nat(src)") + DROPPED) == (True, (), True)
    assert read(AGAIN + DROPPED) == (True, (), False), "after NAT the trace is of another packet"
    assert read(PASSED.replace("actions: v2", "actions: userspace(pid=0,controller(reason=1))")) == (False, (), False)
    assert verdict("no such bridge") is None


@pytest.mark.parametrize(("text", "end", "code", "severity", "certainty"), [
    (DROPPED, THERE, "switch-drop", Severity.BLOCKS, Certainty.PROVED), (AGAIN + DROPPED, THERE, "switch-drop", Severity.BLOCKS, Certainty.UNKNOWN),
    (PASSED.replace("actions: v2", "actions: v3"), THERE, "not-followed", Severity.BLOCKS, Certainty.UNKNOWN)])
def test_what_it_says_settles_the_finding(text: str, end: End, code: str, severity: Severity, certainty: Certainty) -> None:
    told = verdict(text)
    assert told
    found = judged(SCENE, FINDING, told, end)
    assert isinstance(found, Finding)
    assert (found.code, found.severity, found.certainty) == (code, severity, certainty) and found.evidence


@pytest.mark.parametrize(("tags", "actions", "code", "fix"), [
    ((10, 20), "v3", "switch-astray", "ovs-vsctl set port v2 tag=10"), ((None, 20), "v3,br0", "switch-astray", "ovs-vsctl clear port v2 tag"), ((None, None), "v3", "switch-astray", "ovs-appctl ofproto/trace"),
    ((10, 20), "genev_sys_6081", "not-followed", "ovs-appctl ofproto/trace"), ((10, 20), "userspace(pid=0,controller(reason=1)),v3", "not-followed", "ovs-appctl ofproto/trace")])
def test_what_goes_to_other_ports_of_the_switch_goes_astray(tags: tuple[int | None, int | None], actions: str, code: str, fix: str) -> None:
    ports = [{"name": name, "tag": tag} for name, tag in (("v1", tags[0]), ("v2", tags[1]), ("v3", None), ("br0", None))]
    told = verdict(PASSED.replace("actions: v2", f"actions: {actions}"))
    assert told
    found = judged(Scene({"links": [], "switches": [{"name": "br0", "ports": ports}]}), FINDING, told, THERE)
    assert isinstance(found, Finding) and found.code == code and found.fix[0].startswith(fix), found


@pytest.mark.parametrize("end", [THERE, OUTSIDE])
def test_what_passes_is_a_hop(monkeypatch: pytest.MonkeyPatch, end: End) -> None:
    monkeypatch.setattr(switch_trace.host, "run", lambda argv, timeout: PASSED)
    first, second = through(SCENE, [Hop("v1", "port", findings=[FINDING])], end)
    assert first.findings == [] and (second.where, second.what) == ("br-ex", "bridge") and "hands it to v2" in second.words


def test_without_the_macs_or_the_switch_nothing_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(argv: object, timeout: float) -> str:
        raise ToolFailed(["ovs-appctl"], 1, "cannot connect")
    monkeypatch.setattr(switch_trace.host, "run", none)
    blind = FINDING.__class__(code="not-followed", severity=Severity.BLOCKS, where="v1", what="", fix=("ovs-appctl ofproto/trace --names br-int 'in_port=v1,icmp'",))
    assert settled(SCENE, blind, THERE) is blind
    asked = settled(SCENE, FINDING, THERE)
    assert isinstance(asked, Finding) and asked.certainty is Certainty.UNKNOWN and "cannot connect" in asked.evidence[-1]


LOGICAL = [[{"_uuid": "05ad9040-1", "priority": 50, "match": "reg0[15] == 1", "external_ids": {"stage-name": "ls_in_apply_port_sec"}}, {"_uuid": "f215a3c9-2", "priority": 1900, "match": 'outport == "lp2"', "external_ids": {"stage-name": "ls_out_acl", "stage-hint": "0a1b2c3d"}},
            {"_uuid": "aaaaaaaa-3", "priority": 0, "match": "1", "external_ids": {"stage-name": "lr_new_stage"}}]]


@pytest.mark.parametrize(("cookie", "what", "why", "told", "look"), [
    ("0x5ad9040", "ls_in_apply_port_sec", "port security", "priority 50, match reg0[15] == 1", "ovn-nbctl lsp-get-port-security lp1"), ("0xf215a3c9", "ls_out_acl", "an ACL", "made of the row 0a1b2c3d...", "ovn-nbctl list acl 0a1b2c3d"),
    ("0xaaaaaaaa", "lr_new_stage", "lr_new_stage has no flow", "priority 0", "ovs-appctl ofproto/trace")])
def test_a_cookie_leads_to_the_logical_flow(monkeypatch: pytest.MonkeyPatch, cookie: str, what: str, why: str, told: str, look: str) -> None:
    monkeypatch.setattr(logical_flow, "select", lambda remote, database, tables: LOGICAL)
    found = logical_flow.stage("unix:x", f"br-int: 9. metadata=0x2, priority 50, cookie {cookie}")
    assert found
    explained = logical_flow.explained(FINDING, found, ("lp1", "lp2"))
    assert explained.fix[0].startswith(look) and what in explained.what and why in explained.why and told in explained.evidence[-1]


def test_a_flow_that_is_not_of_ovn_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(remote: str, database: str, tables: object) -> list[list[dict[str, str]]]:
        raise ToolFailed(["ovsdb-client"], -14, "")
    monkeypatch.setattr(logical_flow, "select", lambda remote, database, tables: LOGICAL)
    assert logical_flow.stage("unix:x", "br0: 0. tcp,tp_dst=23, priority 50") is None and logical_flow.stage("", "cookie 0xf215a3c9") is None and logical_flow.stage("unix:x", "cookie 0xbbbbbbbb") is None
    monkeypatch.setattr(logical_flow, "select", silent)
    assert logical_flow.stage("unix:x", "cookie 0xf215a3c9") is None
