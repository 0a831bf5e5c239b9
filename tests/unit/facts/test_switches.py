"""What ovs-vsctl 3.1 prints of a switch, read."""
from __future__ import annotations

from kvmnet.facts.switches import parsed, switches

PRINTED = """{"data":[["br-int",["set",[["uuid","5d"],["uuid","6e"],["uuid","7f"]]],"secure","netdev"],["br-ex",["uuid","8a"],["set",[]],""]],"headings":["name","ports","fail_mode","datapath_type"]}
{"data":[[["uuid","5d"],"br-int",["uuid","a1"]],[["uuid","6e"],"v1",["uuid","a2"]],[["uuid","7f"],"bond",["set",[["uuid","a3"],["uuid","a4"]]]],[["uuid","8a"],"br-ex",["uuid","a5"]]],"headings":["_uuid","name","interfaces"]}
{"data":[[["uuid","a1"],"br-int","internal",65534,["set",[]]],[["uuid","a2"],"v1","",1,["set",[]]],[["uuid","a3"],"e0","",-1,"could not open network device e0 (No such device)"],[["uuid","a4"],"e1","",["set",[]],["set",[]]],[["uuid","a5"],"br-ex","internal",65534,["set",[]]]],"headings":["_uuid","name","type","ofport","error"]}
"""


def test_bridges_have_their_ports_and_bonds_their_members() -> None:
    inner, outer = parsed(PRINTED)
    assert (inner["name"], inner["fail_mode"], inner["datapath"]) == ("br-int", "secure", "netdev") and (outer["fail_mode"], outer["datapath"]) == ("", "system")
    assert [p["name"] for p in inner["ports"]] == ["br-int", "v1", "e0", "e1"] and [p["name"] for p in outer["ports"]] == ["br-ex"]
    assert inner["ports"][2] == {"name": "e0", "type": "", "ofport": -1, "error": "could not open network device e0 (No such device)"}


def test_a_host_without_a_switch_is_not_asked() -> None:
    assert switches([{"program": "dnsmasq", "pid": 1, "argv": []}]) == []
