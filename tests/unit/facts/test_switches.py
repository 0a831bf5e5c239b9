"""What the tools of Open vSwitch 3.1 and OVN 23.03 print, read."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from kvmnet.doctor.rules.ovn import ovn_controller_away
from kvmnet.doctor.view import View
from kvmnet.errors import HostCannot
from kvmnet.facts import ovn, ovsdb, switches
from kvmnet.host.run import ToolFailed

PRINTED = """{"data":[["br-int",["set",[["uuid","5d"],["uuid","6e"],["uuid","7f"]]],"secure","netdev",["set",[]]],["br-ex",["uuid","8a"],["set",[]],"",["uuid","c1"]]],"headings":["name","ports","fail_mode","datapath_type","controller"]}
{"data":[[["uuid","5d"],"br-int",["uuid","a1"],["set",[]]],[["uuid","6e"],"v1",["uuid","a2"],20],[["uuid","7f"],"bond",["set",[["uuid","a3"],["uuid","a4"]]],["set",[]]],[["uuid","8a"],"br-ex",["uuid","a5"],["set",[]]]],"headings":["_uuid","name","interfaces","tag"]}
{"data":[[["uuid","a1"],"br-int","internal",65534,["set",[]],["map",[]],["map",[]]],[["uuid","a2"],"v1","",1,["set",[]],["map",[]],["map",[["iface-id","lp1"],["vm-password","hunter2"]]]],[["uuid","a3"],"e0","",-1,"could not open network device e0 (No such device)",["map",[]],["map",[]]],[["uuid","a4"],"e1","",["set",[]],["set",[]],["map",[]],["map",[]]],[["uuid","a5"],"br-ex","internal",65534,["set",[]],["map",[["psk","hunter2"],["peer","p2"]]],["map",[]]]],"headings":["_uuid","name","type","ofport","error","options","external_ids"]}
{"data":[[["uuid","c1"],"tcp:127.0.0.1:6653"]],"headings":["_uuid","target"]}
{"data":[[["map",[["system-id","c1"],["ovn-remote","ssl:192.0.2.1:6642"],["ovn-bridge-mappings","physnet:br-ex, other:br2"],["token","hunter2"]]]]],"headings":["external_ids"]}
{"data":[["/etc/ovs/key.pem","/etc/ovs/cert.pem","/etc/ovs/ca.pem"]],"headings":["private_key","certificate","ca_cert"]}
"""
SERVERS = ({"program": "ovs-vswitchd", "argv": ["ovs-vswitchd"]}, {"program": "ovn-controller", "argv": ["ovn-controller"]},
           {"program": "ovsdb-server", "argv": ["ovsdb-server", "--remote=punix:/run/ovn/ovnnb_db.sock", "/var/lib/ovn/ovnnb_db.db"]})
SOUTH = [{"rows": [{"_uuid": ["uuid", "c0"], "name": "c1", "other_config": ["map", [["ovn-bridge-mappings", "physnet:br-ex"]]]}, {"_uuid": ["uuid", "c9"], "name": "c9", "other_config": ["map", []]}]},
         {"rows": [{"_uuid": ["uuid", "00ab12cd-1"], "logical_port": "lp1", "type": "", "datapath": ["uuid", "d1"], "chassis": ["uuid", "c0"], "up": True, "mac": "02:00:00:00:00:01 10.0.0.5", "options": ["map", []]},
                   {"_uuid": ["uuid", "e2"], "logical_port": "lp2", "type": "", "datapath": ["uuid", "d1"], "chassis": ["uuid", "c9"], "up": True, "mac": ["set", []], "options": ["map", []]},
                   {"_uuid": ["uuid", "e3"], "logical_port": "wire", "type": "localnet", "datapath": ["uuid", "d1"], "chassis": ["set", []], "up": False, "mac": "unknown", "options": ["map", [["network_name", "physnet"]]]}]}]
NORTH = [{"rows": [{"name": "r", "nat": ["uuid", "n1"], "ports": ["set", [["uuid", "p1"], ["uuid", "p2"]]], "options": ["map", []]}, {"name": "plain", "nat": ["set", []], "ports": ["set", []], "options": ["map", []]}]},
         {"rows": [{"_uuid": ["uuid", "n1"], "type": "snat", "external_ip": "192.0.2.7", "logical_ip": "10.0.0.0/24"}]},
         {"rows": [{"_uuid": ["uuid", "p1"], "name": "in", "networks": "10.0.0.1/24", "gateway_chassis": ["set", []], "ha_chassis_group": ["set", []]}, {"_uuid": ["uuid", "p2"], "name": "out", "networks": "192.0.2.2/24", "gateway_chassis": ["uuid", "g"], "ha_chassis_group": ["set", []]}]}]


class Tools:
    """Answers of the tools, by their first words; an exception is raised."""

    def __init__(self, **answers: Any):
        self.answers = {"vsctl": PRINTED, "dump-aggregate": "NXST_AGGREGATE reply: packet_count=1 byte_count=2 flow_count=7\n", "fdb/show": " port  VLAN  MAC                Age\n    1     0  02:00:00:00:00:07    3\nLOCAL     0  02:00:00:00:00:08    1\n",
                        "table=0": " cookie=0xab12cd, table=0, priority=100,in_port=1 actions=resubmit(,8)\n", "table=65": " cookie=0x0, table=65, priority=0 actions=drop\n",
                        "OVN_Southbound": json.dumps(SOUTH), "OVN_Northbound": json.dumps(NORTH), "connection-status": "connected\n"} | answers
        self.asked: list[Sequence[str]] = []

    def __call__(self, argv: Sequence[str], *, timeout: float) -> str:
        self.asked.append(argv)
        told = next(answer for word, answer in self.answers.items() if any(word in w for w in argv))
        if isinstance(told, Exception):
            raise told
        return str(told)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    made = Tools()
    monkeypatch.setattr(switches.host, "run", made)
    monkeypatch.setattr(switches.host, "missing", lambda *tools: None)
    return made


def test_bridges_have_their_ports_and_bonds_their_members() -> None:
    inner, outer = switches.parsed(PRINTED).bridges
    assert (inner["name"], inner["fail_mode"], inner["datapath"], inner["ovn"]) == ("br-int", "secure", "netdev", True)
    assert (outer["fail_mode"], outer["datapath"], outer["ovn"], outer["controllers"]) == ("", "system", False, ["tcp:127.0.0.1:6653"])
    assert [p["name"] for p in inner["ports"]] == ["br-int", "v1", "e0", "e1"] and [p["name"] for p in outer["ports"]] == ["br-ex"]
    assert inner["ports"][2] == {"name": "e0", "type": "", "ofport": -1, "error": "could not open network device e0 (No such device)", "peer": "", "iface_id": "", "tag": None}
    assert inner["ports"][1]["iface_id"] == "lp1" and inner["ports"][1]["tag"] == 20 and outer["ports"][0]["peer"] == "p2"


def test_a_host_without_a_switch_is_not_asked(tools: Tools) -> None:
    assert switches.switches([{"program": "dnsmasq", "pid": 1, "argv": []}]) == {"switches": [], "ovn": None} and tools.asked == []


def test_what_ovn_wants_and_what_came_of_it(tools: Tools) -> None:
    told = switches.switches(SERVERS)
    found = told["ovn"]
    assert (found["chassis"], found["bridge"], found["mappings"], found["controller"], found["mapped"], found["reasons"]) == ("c1", "br-int", {"physnet": "br-ex", "other": "br2"}, "connected", ["c1"], [])
    assert [(p["name"], p["here"], p["enters"], p["leaves"], p["network"]) for p in found["ports"]] == [("lp1", True, 1, 0, ""), ("wire", False, 0, 0, "physnet")]
    assert found["routers"] == [{"name": "r", "chassis": "", "nat": [{"type": "snat", "external": "192.0.2.7", "inner": "10.0.0.0/24"}], "ports": [{"name": "in", "networks": ["10.0.0.1/24"], "gateway": False}, {"name": "out", "networks": ["192.0.2.2/24"], "gateway": True}]}]
    assert [(s["flows"], s["state"], s["learned"]) for s in told["switches"]] == [(7, "", []), (7, "", [])]
    queried = next(a for a in tools.asked if "ssl:192.0.2.1:6642" in a)
    assert "--private-key=/etc/ovs/key.pem" in queried and "hunter2" not in json.dumps(told) and "key.pem" not in json.dumps(told)
    assert all(any(w.startswith("--timeout=") for w in a) for a in tools.asked)


def test_a_switch_that_is_dead_or_silent_is_asked_once(tools: Tools) -> None:
    dead = switches.switches([{"program": "ovsdb-server", "argv": ["ovsdb-server", "--remote=punix:/run/openvswitch/db.sock"]}])
    assert [s["state"] for s in dead["switches"]] == ["dead", "dead"] and not any("dump-aggregate" in a for a in tools.asked)
    tools.answers["dump-aggregate"] = ToolFailed(["ovs-ofctl"], -14, "")
    silent = switches.switches(SERVERS[:1])
    assert [(s["state"], s["flows"]) for s in silent["switches"]] == [("silent", None)] * 2 and sum("dump-aggregate" in a for a in tools.asked) == 1


def test_a_database_that_does_not_answer_is_a_reason_and_no_ports(tools: Tools) -> None:
    tools.answers |= {"OVN_Southbound": ToolFailed(["ovsdb-client"], 1, "connection refused"), "OVN_Northbound": '[{"error":"unknown table","details":"no NAT"}]'}
    found = switches.switches(SERVERS)["ovn"]
    assert found["ports"] is None and found["routers"] == [] and any("connection refused" in r for r in found["reasons"]) and any("unknown table" in r for r in found["reasons"])


@pytest.mark.parametrize(("failed", "told"), [(ToolFailed(["ovn-appctl"], -14, ""), "silent"), (ToolFailed(["ovn-appctl"], 1, "cannot read pidfile"), None), (HostCannot("ovn-appctl not found"), None)])
def test_a_controller_that_cannot_be_asked_is_not_called_silent(tools: Tools, failed: Exception, told: str | None) -> None:
    """As in a container, whose tools and run directory the host has not."""
    tools.answers["connection-status"] = failed
    found = switches.switches(SERVERS)["ovn"]
    assert found["controller"] == told and len(found["reasons"]) == 1
    assert {f.code for f in ovn_controller_away(View({"ovn": found}))} == ({"ovn-controller-away"} if told else set())


def test_settings_of_one_chassis_come_first() -> None:
    assert ovn.setting({"system-id": "c1", "ovn-remote": "a", "ovn-remote-c1": "b"}, "ovn-remote") == "b" and ovn.mappings("") == {}
    assert ovsdb.several(ovsdb.value(["set", []])) == [] and ovsdb.several(["a"]) == ["a"]
