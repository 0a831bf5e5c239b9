"""Rules about bridges of Open vSwitch that somebody has made. Pure. What their flows do with a packet the switch itself is asked (doctor/vfs.py)."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.doctor.finding import Certainty, Finding, Severity
from kvmnet.doctor.view import Json, View

OF_THE_HOST = ("", "system")
"""Types of interfaces that are devices of the host's; others the switch makes itself."""
REWRITTEN = ("ovn-appctl -t ovn-controller inc-engine/recompute", "ovs-appctl bridge/reconnect {bridge}")
"""What has OVN reckon the flows of a host anew, and then write them all: the first alone writes what has changed only, and of a flow that somebody else took away ovn-controller does not know."""


def switch_silent(view: View) -> Iterator[Finding]:
    """The database of Open vSwitch has bridges, and ovs-vswitchd does not run or does not answer. What the datapath knows goes on for a while, new flows and changes of ports do not come to it; a datapath in user space stands still."""
    down = sorted((s for s in view.rows("switches") if s.get("state")), key=lambda s: str(s["name"]))
    if down:
        state, names = down[0]["state"], ", ".join(s["name"] for s in down)
        yield Finding(code="switch-silent", severity=Severity.BLOCKS, where=down[0]["name"], what=f"ovs-vswitchd {'does not run' if state == 'dead' else 'does not answer'}, and {names} {'needs' if len(down) == 1 else 'need'} it",
                      why="It makes the flows of the datapath: nobody else does.", evidence=("no process ovs-vswitchd in this network namespace" if state == "dead" else f"ovs-ofctl dump-aggregate {down[0]['name']}: no answer",), fix=("systemctl restart openvswitch-switch",), certainty=Certainty.PROVED if state == "dead" else Certainty.LIKELY)


def switch_port_stale(view: View) -> Iterator[Finding]:
    """The database of Open vSwitch has a port whose device is gone: ports outlive taps and reboots. A guest that comes back under that name may stay cut off, and each start of the switch complains."""
    for switch in view.rows("switches"):
        for port in switch["ports"]:
            name = port["name"]
            if port["error"] or (port["type"] in OF_THE_HOST and name not in view.links):
                yield Finding(code="switch-port-stale", severity=Severity.DEGRADES, where=name, what=f"{name} is a port of {switch['name']} in the database of Open vSwitch, and there is no such device" if name not in view.links else f"{switch['name']} cannot use its port {name}",
                              why="Nothing is sent to it, and nothing comes from it.", evidence=(f"ovs-vsctl list interface {name}: ofport {port['ofport']}, error {port['error'] or 'none'}", f"ip link show {name}: {'there' if name in view.links else 'no such device'}"),
                              fix=(f"ovs-vsctl --if-exists del-port {switch['name']} {name}   # and add-port anew, when its guest is there",))


def switch_without_flows(view: View) -> Iterator[Finding]:
    """A bridge of Open vSwitch has no flows and fail_mode secure: it drops everything. Flows are not in its database, and are gone after a restart until their controller (ovn-controller, an agent) writes them again."""
    for switch in view.rows("switches"):
        if found := empty(switch):
            yield found


def empty(switch: Json) -> Finding | None:
    """A bridge that drops everything; only where guests or wires are on it."""
    if switch["fail_mode"] != "secure" or switch["flows"] != 0 or all(p["type"] == "internal" for p in switch["ports"]):
        return None
    name, controllers = switch["name"], switch.get("controllers") or ()
    fix = tuple(c.format(bridge=name) for c in REWRITTEN) if switch.get("ovn") else (f"ovs-appctl bridge/reconnect {name}   # its controller writes its flows when it comes anew",) if controllers else (
        f"ovs-ofctl add-flow {name} priority=0,actions=NORMAL   # an ordinary switch, until what wrote its flows writes them again",)
    return Finding(code="switch-without-flows", severity=Severity.BLOCKS, where=name, what=f"{name} has no flows: it drops everything", why="With fail_mode secure nothing passes that no flow lets pass; flows are lost with a restart of the switch.",
                   evidence=(f"ovs-ofctl dump-aggregate {name}: flow_count=0", f"ovs-vsctl get-fail-mode {name}: secure", f"ovs-vsctl get-controller {name}: {', '.join(controllers) or 'none'}"), fix=fix)
