"""Real faults on a working set-up: each breaks it, is found first, and the printed fix mends it."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from kvmnet.check.passage import ask, prove
from kvmnet.check.second_look import seek
from kvmnet.doctor.finding import Severity
from kvmnet.doctor.scene import read
from kvmnet.doctor.trip import State
from kvmnet.doctor.why import Probe, Report, why
from kvmnet.facts.capture import capture
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import named_netns, new_netns, sh

pytestmark = pytest.mark.net

G1, G2, U = (f"kvw-{os.getpid()}-{n}" for n in ("1", "2", "u"))
FIRST, SECOND, HOST, WAY_OUT, FAR, PUBLIC = "10.66.0.11", "10.66.0.12", "10.66.0.1", "10.77.0.2", "10.77.0.1", "9.9.9.9"
MACS = {"p1": "02:66:00:00:00:11", "p2": "02:66:00:00:00:12"}


PING, PING6 = Probe(), Probe(version=6)


@dataclass(frozen=True)
class Fault:
    code: str
    """Of the finding that must come first."""
    inject: str
    to: str = SECOND
    source: str = FIRST
    probe: Probe = PING
    mends: bool = True
    """Whether the printed fix can be run as it is."""


def ping(netns: str, target: str, *, six: bool = False) -> bool:
    return subprocess.run(["ip", "netns", "exec", netns, "ping", *(["-6"] if six else []), "-n", "-c", "1", "-W", "0.3", target], capture_output=True, check=False).returncode == 0


def restore() -> None:
    """Everything as it was at first, whatever a fault has done to it. A port takes a state once it has a carrier."""
    sh("ip rule show | grep -q '^0:' || ip rule add pref 0 lookup local")
    sh("sysctl -qw net.ipv6.icmp.echo_ignore_all=0 net.ipv4.conf.br0.route_localnet=0; ip link set p2 type bridge_slave proxy_arp off; bridge link set dev p2 mcast_flood on; ip route del 10.66.0.12/32 dev u1; ip route del 10.66.0.11/32 dev br0; ip addr del 10.66.0.1/32 dev br0", check=False)
    sh("tc qdisc del dev p2 root; ip xfrm policy flush; ip nexthop flush; ip link set br0 type bridge ageing_time 30000; ip route replace 10.66.0.0/24 dev br0 src 10.66.0.1; ip neigh flush nud permanent dev u1", check=False)
    sh("tc qdisc del dev p1 clsact; ip link set br0 arp on; ip link set u1 arp on; ip addr del 10.77.0.50/32 dev u1; ip link del w0; ip link del u2; ip rule del priority 100; ip rule del priority 50; ip route flush table 77; ip route flush type blackhole; ip neigh flush all; ip link set u1 nomaster", check=False)
    sh(f"sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 net.ipv4.ip_forward=1 net.ipv4.icmp_echo_ignore_all=0 net.ipv4.conf.br0.arp_ignore=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.u1.rp_filter=0 net.ipv4.conf.u1.forwarding=1 net.ipv6.conf.br0.disable_ipv6=0;"
       "ip -6 addr replace fd66::1/64 dev br0 nodad; ip link set br0 type bridge stp_state 0; ip neigh flush nud permanent dev br0; ip addr replace 10.66.0.1/24 dev br0; ip route replace local 10.66.0.1 dev br0 table local src 10.66.0.1 proto kernel scope host; ip addr replace 10.77.0.2/24 dev u1; ip link set u1 up; ip route replace default via 10.77.0.1;"
       f"ip -n {G1} neigh flush all; ip -n {G2} neigh flush all; ip -n {U} neigh flush all")
    for number, netns in ((1, G1), (2, G2)):
        sh(f"ip -n {netns} link set eth0 up; ip -n {netns} route replace default via 10.66.0.1; ip -n {netns} -6 addr replace fd66::1{number}/64 dev eth0 nodad; ip -n {netns} -6 route replace default via fd66::1;"
           f"ip link set p{number} master br0 up; bridge fdb del {MACS[f'p{number}']} dev p{number} master 2>/dev/null; bridge link set dev p{number} isolated off learning on flood on bcast_flood on")
    wait_until(lambda: all(subprocess.run(["bridge", "link", "set", "dev", p, "state", "3"], capture_output=True, check=False).returncode == 0 for p in MACS), 20)
    sh("nft 'flush ruleset; add table ip mine; add chain ip mine post { type nat hook postrouting priority 100; }; add rule ip mine post ip saddr 10.66.0.0/24 oifname \"u1\" masquerade'")
    wait_until(lambda: ping(G1, SECOND) and ping(G1, FAR) and ping(G2, FAR) and ping(G1, "fd66::1", six=True) and ping(G2, "fd66::1", six=True), 20)


@pytest.fixture(scope="module")
def place() -> Iterator[Paths]:
    """Two guests on br0, a network outside behind u1, the host routes with NAT."""
    with new_netns(), named_netns(G1), named_netns(G2), named_netns(U), TemporaryDirectory() as folder:
        sh("ip link add br0 address 02:66:00:00:00:01 type bridge; ip -6 addr add fd66::1/64 dev br0 nodad; ip link set br0 up")
        for number, netns in ((1, G1), (2, G2)):
            sh(f"ip link add p{number} type veth peer name eth0 address 02:66:00:00:00:1{number} netns {netns}; ip -n {netns} addr add 10.66.0.1{number}/24 dev eth0")
        sh(f"ip link add u1 type veth peer name u0 netns {U}; ip -n {U} addr add 10.77.0.1/24 dev u0; ip -n {U} addr add {PUBLIC}/32 dev u0; ip -n {U} link set u0 up")
        restore()
        yield Paths(Path(folder), Path(folder))


def look(place: Paths, fault: Fault) -> Report:
    return why(read(capture(place)), fault.source, fault.to, fault.probe)


def look_for(place: Paths, fault: Fault) -> Report:
    """The first look that finds the fault first, or the last: a carrier and what follows from it are told a moment later."""
    seen: list[Report] = []

    def found() -> bool:
        seen.append(look(place, fault))
        return [f.code for f in seen[-1].findings[:1]] == [fault.code]

    with suppress(TimeoutError):
        wait_until(found, 20, 0.3)
    return seen[-1]


NOWHERE = ("192.0.2.7", "10.77.0.9")
"""Addresses that nobody has."""
FAULTS = {
    "docker-forward-policy-drop": Fault("rule-drop", "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; add chain ip filter DOCKER-USER; add rule ip filter FORWARD jump DOCKER-USER'", to=FAR, mends=False),
    "br-netfilter-drops-bridged": Fault("bridge-netfilter", "sysctl -qw net.bridge.bridge-nf-call-iptables=1; nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'"),
    "nft-accept-not-final": Fault("rule-drop", "nft 'add table inet ours; add chain inet ours forward { type filter hook forward priority -10; }; add rule inet ours forward iifname br0 accept;" "add table inet wall; add chain inet wall forward { type filter hook forward priority 10; }; add rule inet wall forward ct state established accept; add rule inet wall forward iifname br0 reject with icmpx type admin-prohibited'", to=FAR),
    "forwarding-off": Fault("forwarding-off", "sysctl -qw net.ipv4.ip_forward=0", to=FAR),
    "port-isolated": Fault("port-isolated", "bridge link set dev p1 isolated on; bridge link set dev p2 isolated on"),
    "port-down": Fault("port-down", "ip link set p2 down"),
    "tap-detached": Fault("tap-detached", "ip link set p1 nomaster", source=f"p1@{FIRST}"),
    "no-carrier": Fault("no-carrier", f"ip -n {G2} link set eth0 down", mends=False),
    "stp-forward-delay-dhcp": Fault("port-state", "ip link set br0 type bridge stp_state 1 forward_delay 1500; ip link set p2 nomaster; ip link set p2 master br0", to=f"p2@{SECOND}"),
    "fdb-learned-on-wrong-port": Fault("guest-learned-elsewhere", f"ip link add w0 type veth peer name w1; ip link set w0 master br0 up; ip link set w1 up; bridge fdb replace {MACS['p2']} dev w0 master static sticky", to=f"p2@{SECOND}"),
    "flood-off": Fault("port-no-flood", f"bridge fdb del {MACS['p2']} dev p2 master; bridge link set dev p2 flood off learning off bcast_flood off; ip -n {G1} neigh flush all; ip -n {G2} neigh flush all", to=f"p2@{SECOND}"),
    "arp-dropped": Fault("arp-drop", f"nft 'add table bridge wall; add chain bridge wall c {{ type filter hook forward priority 0; }}; add rule bridge wall c ether type arp drop'; ip -n {G1} neigh flush all; ip -n {G2} neigh flush all"),
    "stale-neighbour-after-move": Fault("wrong-neighbour", f"ip neigh replace {SECOND} lladdr 02:de:ad:00:00:01 dev br0 nud permanent", source="host", to=f"p2@{SECOND}"),
    "no-route": Fault("no-route", "ip route del default", to="192.0.2.7", mends=False),
    "blackhole": Fault("route-error", "ip route add blackhole 10.77.0.1", to=FAR),
    "policy-rule": Fault("route-error", "ip rule add from 10.66.0.0/24 prohibit priority 100", to=FAR, mends=False),
    "uplink-down": Fault("link-down", "ip link set u1 down", to="10.77.0.9", mends=False),
    "ip-on-enslaved-nic": Fault("address-on-port", "ip link set u1 master br0; ip neigh flush dev u1", to=FAR, mends=False),
    "set-of-addresses": Fault("rule-drop", "nft 'add table inet wall; add set inet wall bad { type ipv4_addr; flags interval; elements = { 10.66.0.8/29 }; }; add chain inet wall c { type filter hook prerouting priority -150; }; add rule inet wall c ip saddr @bad drop'", to=FAR),
    "answers-dropped": Fault("rule-drop", "nft 'add table inet wall; add chain inet wall c { type filter hook forward priority 0; }; add rule inet wall c iifname \"u1\" ct state established drop'", to=FAR),
    "input-closed": Fault("rule-drop", "nft 'add table inet wall; add chain inet wall c { type filter hook input priority 0; policy drop; }; add rule inet wall c tcp dport 22 accept'", to="host"),
    "netdev-ingress": Fault("rule-drop", "nft 'add table netdev wall; add chain netdev wall c { type filter hook ingress device \"p1\" priority 0; }; add rule netdev wall c ip daddr 10.66.0.12 drop'"),
    "six-forward": Fault("bridge-netfilter", "sysctl -qw net.bridge.bridge-nf-call-ip6tables=1; nft 'add table ip6 filter; add chain ip6 filter FORWARD { type filter hook forward priority 0; policy drop; }'", to="fd66::12", source="fd66::11", probe=PING6),
    "echo-ignored": Fault("echo-ignored", "sysctl -qw net.ipv4.icmp_echo_ignore_all=1", to="host"),
    "rp-filter-strict-multihomed": Fault("reverse-path", "sysctl -qw net.ipv4.conf.u1.rp_filter=1; ip link add u2 type veth peer name u3; ip link set u2 up; ip link set u3 up; ip route add 10.77.0.1/32 dev u2; ip rule add fwmark 7 table 77 priority 50; ip route add 10.77.0.0/24 dev u1 table 77; nft 'add table ip m; add chain ip m c { type filter hook prerouting priority -150; }; add rule ip m c iifname br0 meta mark set 7'", to=FAR, mends=False),
    "redirected-to-a-dead-device": Fault("tc-filter", "ip link add w0 type veth peer name w1; tc qdisc add dev p1 clsact; tc filter add dev p1 ingress protocol ip pref 9 u32 match ip dst 10.77.0.0/16 action mirred egress redirect dev w0", to=FAR),
    "table-with-a-gateway-of-before": Fault("gateway-silent", "ip route add default via 10.77.0.99 dev u1 table 77; ip rule add from 10.66.0.0/24 to 10.77.0.1 lookup 77 priority 100; ip neigh replace 10.77.0.99 dev u1 nud failed", to=FAR, mends=False),
    "forwarding-of-one-device-off": Fault("forwarding-off", "sysctl -qw net.ipv4.conf.u1.forwarding=0", to=FAR),
    "no-arp": Fault("arp-off", f"ip link set br0 arp off; ip -n {G1} neigh flush all", to="host"),
    "no-arp-by-the-uplink": Fault("arp-off", "ip link set u1 arp off", to=FAR),
    "no-ipv6-on-the-bridge": Fault("ipv6-disabled", "sysctl -qw net.ipv6.conf.br0.disable_ipv6=1", source="p1@fd66::11", to="fd66::1", probe=PING6, mends=False),
    "source-of-before": Fault("nat-not-own", "nft 'flush chain ip mine post; add rule ip mine post ip saddr 10.66.0.0/24 oifname \"u1\" snat to 10.77.0.50'", to=FAR),
    "masquerade-by-the-wrong-uplink": Fault("no-nat", "nft 'flush chain ip mine post; add rule ip mine post oifname \"eth0\" masquerade'", to=PUBLIC),
    "notrack": Fault("no-nat", "nft 'add table ip wall; add chain ip wall raw { type filter hook prerouting priority -300; }; add rule ip wall raw iifname \"br0\" notrack'", to=FAR, mends=False),
    "answers-are-marked-away": Fault("route-error", "ip route add unreachable default table 77; ip rule add fwmark 7 table 77 priority 100; nft 'add table ip m; add chain ip m c { type filter hook prerouting priority -150; }; add rule ip m c iifname \"u1\" meta mark set 7'", to=FAR, mends=False),
    "a-set-with-the-guest-in-it": Fault("rule-drop", "nft 'add table netdev wall; add set netdev wall quarantine { type ether_addr; elements = { 02:66:00:00:00:11 }; }; add chain netdev wall c { type filter hook ingress device \"p1\" priority 0; }; add rule netdev wall c ether saddr @quarantine meta protocol ip drop'", to="host", mends=False),
    "ttl-too-low": Fault("ttl-expired", "nft 'add table ip t; add chain ip t c { type filter hook prerouting priority -300; }; add rule ip t c iifname br0 ip ttl set 1'", to=FAR, mends=False),
    "zone-of-one-direction": Fault("ct-zone-apart", "nft 'add table inet z; add chain inet z c { type filter hook prerouting priority -300; }; add rule inet z c iifname br0 ct zone set 5'", to=FAR, mends=False),
    "route-of-the-guests-gone": Fault("wrong-segment", "ip route del 10.66.0.0/24 dev br0", to=FAR),
    "queue-without-room": Fault("queue-too-small", "tc qdisc replace dev p2 root pfifo limit 0"),
    "rate-without-its-unit": Fault("queue-too-slow", f"tc qdisc add dev p2 root handle 1: htb default 10; tc class add dev p2 parent 1: classid 1:10 htb rate 8bit burst 1b cburst 1b 2>/dev/null; ping -c 2 -i 0.2 -W 0.1 {SECOND} >/dev/null; true", to=f"p2@{SECOND}"),
    "rule-by-protocol": Fault("route-error", "ip rule add ipproto icmp blackhole priority 100", to=FAR),
    "arp-ignored": Fault("arp-ignored", f"sysctl -qw net.ipv4.conf.br0.arp_ignore=8; ip -n {G1} neigh flush all", to=FAR),
    "ipsec": Fault("ipsec-policy", f"ip xfrm policy add dir fwd src {FIRST}/32 dst {FAR}/32 action block", to=FAR),
    "bridge-learns-nothing": Fault("port-no-flood", "ip link set br0 type bridge ageing_time 0; bridge link set dev p2 flood off", to=f"p2@{SECOND}"),
    "written-neighbour": Fault("wrong-neighbour", f"ip neigh replace {FIRST} lladdr 02:de:ad:00:00:02 dev br0 nud permanent", to=FAR),
    "question-lost-at-the-uplink": Fault("arp-drop", "nft 'add table netdev f; add chain netdev f c { type filter hook egress device \"u1\" priority 0; }; add rule netdev f c ether type arp drop'; ip neigh flush dev u1", to=FAR),
    "next-hop-that-swallows": Fault("route-error", "ip nexthop add id 5 blackhole; ip route add 10.77.0.1 nhid 5", to=FAR),
    "ingress-of-family-inet": Fault("rule-drop", "nft 'add table inet wall; add chain inet wall c { type filter hook ingress device \"p1\" priority 0; }; add rule inet wall c ip daddr 10.66.0.12 drop'"),
    "forwarded-to-another-device": Fault("rule-drop", "ip link add w0 type veth peer name w1; ip link set w0 up; ip link set w1 up; nft 'add table netdev wall; add chain netdev wall c { type filter hook ingress device \"p1\" priority 0; }; add rule netdev wall c ip daddr 10.66.0.12 fwd to \"w0\"'"),
    "arp-of-the-host-itself": Fault("arp-drop", f"ip -n {G1} neigh flush all; nft 'add table arp wall; add chain arp wall c {{ type filter hook output priority 0; policy drop; }}'", to="host"),
    "port-that-the-bridge-answers-for": Fault("port-no-flood", f"ip -n {G1} neigh flush all; ip -n {G2} neigh flush all; ip link set p2 type bridge_slave proxy_arp on", to=f"p2@{SECOND}"),
    "written-as-the-hosts-own": Fault("guest-learned-elsewhere", f"bridge fdb replace {MACS['p2']} dev p2 master", to=f"p2@{SECOND}"),
    "echo6-ignored": Fault("echo-ignored", "sysctl -qw net.ipv6.icmp.echo_ignore_all=1", source="p1@fd66::11", to="fd66::1", probe=PING6),
    "translated-to-loopback": Fault("loopback-target", "nft 'add table ip l; add chain ip l c { type nat hook prerouting priority -100; }; add rule ip l c iifname br0 ip daddr 10.66.0.1 icmp type echo-request dnat to 127.0.0.1'", to="host"),
    "marked-by-a-chain-of-type-route": Fault("route-error", "ip route add blackhole default table 77; ip rule add fwmark 9 table 77 priority 100; nft 'add table ip m; add chain ip m c { type route hook output priority 0; }; add rule ip m c ip daddr 10.77.0.1 meta mark set 9'", source="host", to=FAR),
    "a-route-that-is-preferred": Fault("wrong-segment", "ip route add 10.66.0.12/32 dev u1", source="host", to=f"p2@{SECOND}"),
    "default-route-without-a-gateway": Fault("route-without-gateway", "ip route replace default dev br0", to=PUBLIC, mends=False),
    "neighbours-asked-through-bridge-netfilter": Fault("bridge-netfilter", f"sysctl -qw net.bridge.bridge-nf-call-ip6tables=1; nft 'add table ip6 wall; add chain ip6 wall c {{ type filter hook forward priority 0; }}; add rule ip6 wall c icmpv6 type nd-neighbor-solicit drop'; ip -n {G1} -6 neigh flush all; ip -n {G2} -6 neigh flush all", to="fd66::12", source="fd66::11", probe=PING6),
    "address-without-its-subnet": Fault("wrong-segment", "ip addr add 10.66.0.1/32 dev br0; ip addr del 10.66.0.1/24 dev br0; ip route del 10.66.0.0/24 dev br0; true", to=FAR, source=f"p1@{FIRST}"),
    "table-local-emptied": Fault("address-not-local", "ip route del local 10.66.0.1 table local dev br0", to="host"),
    "rule-of-table-local-gone": Fault("address-not-local", "ip rule del pref 0", to="host"),
    "vlan-less-mark": Fault("rule-drop", "nft 'add table inet wall; add chain inet wall m { type filter hook prerouting priority -200; }; add rule inet wall m iifname br0 meta mark set 0x10; add chain inet wall c { type filter hook forward priority 0; }; add rule inet wall c meta mark & 0xf0 == 0x10 drop'", to=FAR),
}


@pytest.mark.parametrize(("source", "to", "probe"), [
    (FIRST, SECOND, Probe()), (FIRST, FAR, Probe()), (FIRST, "host", Probe()), ("host", SECOND, Probe()), ("p1", "p2", Probe()), ("host", FIRST, Probe("tcp", 22)),
    (FIRST, "outside", Probe("udp", 53)), ("fd66::11", "fd66::12", PING6), (FAR, "host", Probe()), ("p1", "192.0.2.9", Probe("tcp", 443)), (MACS["p1"], "host", Probe()),
], ids=lambda x: str(x))
def test_nothing_is_found_where_nothing_is_wrong(place: Paths, source: str, to: str, probe: Probe) -> None:
    report = look(place, Fault("", "", to, source, probe))
    assert report.state is State.OK and not report.findings, report.findings
    assert len(report.there) > 2 and len(report.back) > 2


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_first_and_mended(place: Paths, name: str) -> None:
    fault = FAULTS[name]
    asked = {FIRST: G1, "host": ""}.get(fault.source, G1)
    target = fault.to.rpartition("@")[2].replace("host", HOST)

    def works() -> bool:
        if asked:
            return ping(asked, target, six=fault.probe.version == 6)
        return subprocess.run(["ping", "-n", "-c", "1", "-W", "0.3", target], capture_output=True, check=False).returncode == 0

    if target not in NOWHERE:
        wait_until(works, 20)
    try:
        sh(fault.inject)
        assert not works()
        report = look_for(place, fault)
        assert report.findings and report.findings[0].code == fault.code, report.findings
        first = report.findings[0]
        assert report.state is State.BLOCKED and first.severity is Severity.BLOCKS and first.evidence and first.why
        assert {f.code for f in report.findings if f.severity is Severity.BLOCKS} <= {fault.code, "neighbour-silent", "gateway-silent", "guest-unseen", "no-route"}, report.findings
        if fault.mends:
            assert first.fix
            for command in dict.fromkeys(c for finding in report.findings if finding.severity is Severity.BLOCKS for c in finding.fix):
                sh(command)
            wait_until(works, 20)
    finally:
        restore()


@pytest.mark.parametrize(("source", "to", "probe"), [(FIRST, SECOND, PING), (FIRST, FAR, PING), ("host", SECOND, PING), (FIRST, "host", Probe("tcp", 22)), ("fd66::11", "fd66::12", PING6), ("host", FAR, Probe("tcp", 81))],
                         ids=lambda x: str(x))
def test_a_packet_goes_there_and_comes_back(place: Paths, source: str, to: str, probe: Probe) -> None:
    scene = read(capture(place))
    proved = prove(scene, why(scene, source, to, probe))
    assert proved.live.answered and not proved.live.ended and 1 <= proved.live.sent <= 3, str(proved.live)
    assert scene.links.keys() == {link["ifname"] for link in capture(place)["links"]} and "why-probe" not in sh("nft list tables")
    assert {f.code for f in proved.findings if f.severity is not Severity.NOTE} == ({"nobody-listens"} if probe.protocol == "tcp" else set()) and proved.live.refused is (probe.protocol == "tcp")


@pytest.mark.parametrize("name", ["nft-accept-not-final", "input-closed", "set-of-addresses", "answers-dropped", "br-netfilter-drops-bridged"])
def test_a_packet_confirms_which_rule_ended_it(place: Paths, name: str) -> None:
    fault = FAULTS[name]
    try:
        sh(fault.inject)
        scene = read(capture(place))
        proved = prove(scene, why(scene, fault.source, fault.to, fault.probe))
        first = proved.findings[0]
        assert not proved.live.answered and first.code == fault.code and first.evidence[-1].startswith("confirmed"), (str(proved.live), first)
    finally:
        restore()


def test_a_packet_shows_that_a_limit_is_reached(place: Paths) -> None:
    try:
        sh("nft 'add table inet wall; add chain inet wall c { type filter hook forward priority 0; policy drop; }; add rule inet wall c iifname \"u1\" accept; add rule inet wall c limit rate 1/day burst 1 packets accept'")
        scene = read(capture(place))
        report = why(scene, FIRST, FAR, PING)
        assert report.state is State.OK and {f.code for f in report.findings} == {"limited"}
        ping(G1, FAR)
        first = prove(scene, report).findings[0]
        assert (first.code, first.where, first.severity) == ("rule-drop", "inet wall c", Severity.BLOCKS), first
    finally:
        restore()


def test_a_packet_settles_what_nobody_can_tell(place: Paths) -> None:
    try:
        sh("nft 'add table inet wall; add chain inet wall c { type filter hook forward priority 0; policy drop; }; add rule inet wall c quota 100 mbytes accept'")
        scene = read(capture(place))
        report = why(scene, FIRST, FAR, PING)
        assert report.state is State.UNKNOWN
        proved = prove(scene, report)
        assert proved.live.answered and proved.state is State.OK and any("refuted" in e for f in proved.findings for e in f.evidence)
    finally:
        restore()


def test_the_kernel_says_why_it_drops_what_nothing_else_explains(place: Paths) -> None:
    """A policy of IPsec that was not read; the reason is, where this kernel gives one."""
    try:
        sh(f"ip xfrm policy add dir fwd src {FIRST}/32 dst {FAR}/32 action block")
        scene = read(capture(place) | {"xfrm": ""})
        report = why(scene, FIRST, FAR, PING)
        assert report.state is State.OK and not ping(G1, FAR)
        proved = prove(scene, report)
        first = proved.findings[0]
        if proved.live.untold:
            assert first.code == "no-answer" and "not given by this kernel" in str(proved.live)
        else:
            assert (first.code, first.severity) == ("kernel-drop", Severity.BLOCKS) and "IPsec" in first.what, (proved.findings, str(proved.live))
    finally:
        sh("ip xfrm policy flush")
        restore()


def test_the_kernel_says_nothing_of_what_arrives(place: Paths) -> None:
    scene = read(capture(place))
    assert prove(scene, why(scene, FIRST, FAR, PING)).live.dropped == []


def test_a_neighbour_that_somebody_wrote_is_suspected_where_no_answer_comes(place: Paths) -> None:
    try:
        mac = sh(f"ip -n {U} -j link show u0").partition('"address":"')[2][:17]
        for lladdr, state, severity in ((mac, State.OK, Severity.NOTE), ("02:de:ad:00:00:02", State.BLOCKED, Severity.BLOCKS)):
            sh(f"ip neigh replace {FAR} lladdr {lladdr} dev u1 nud permanent")
            scene = read(capture(place))
            report = why(scene, FIRST, FAR, PING)
            assert report.state is State.OK
            proved = prove(scene, report)
            first = proved.findings[0]
            assert (proved.state, first.code, first.severity) == (state, "neighbour-written", severity), (proved.findings, str(proved.live))
    finally:
        restore()


def test_what_a_packet_does_without_is_not_refuted_by_it(place: Paths) -> None:
    """A packet is sent to a MAC, past the question who has it; and what a device shows has yet to pass the host's own rules."""
    try:
        sh("bridge link set dev p2 mcast_flood off; ip link set br0 type bridge mcast_snooping 0")
        report = prove(scene := read(capture(place)), why(scene, "fd66::11", "fd66::12", PING6))
        assert report.live.answered and report.live.known is False and report.findings[0].code == "port-no-flood" and report.state is State.BLOCKED, (report.findings, str(report.live))
        sh("bridge link set dev p2 mcast_flood on; nft 'add table ip wall; add chain ip wall c { type filter hook input priority 0; }; add rule ip wall c iifname u1 icmp type echo-reply drop'")
        report = proved(place, "host", FAR)
        assert report.live.back == ["u1"] and not report.live.answered and report.state is State.BLOCKED and report.findings[0].code == "rule-drop", (report.findings, str(report.live))
    finally:
        sh("ip link set br0 type bridge mcast_snooping 1", check=False)
        restore()


def test_who_answered_is_told_from_who_was_asked(place: Paths) -> None:
    """A rule's reset is not the far end's, another machine's word not the router's, and an answer to another MAC none that comes."""
    right = sh("ip -j link show u1").partition('"address":"')[2][:17]
    try:
        sh("nft 'add table ip wall; add chain ip wall c { type filter hook forward priority 0; }; add rule ip wall c tcp dport 81 reject with tcp reset'")
        report = prove(scene := read(capture(place)), why(scene, FIRST, FAR, Probe("tcp", 81)))
        assert not report.live.answered and report.state is State.BLOCKED and report.findings[0].code == "rule-drop", (report.findings, str(report.live))
        sh(f"nft delete table ip wall; ip -n {G2} addr add {HOST}/32 dev eth0")
        report = proved(place, FIRST, FAR)
        assert [f.code for f in report.blocking] == ["address-twice"] and f"{MACS['p2']} behind p2" in report.findings[0].what, (report.findings, str(report.live))
        sh(f"ip -n {G2} addr del {HOST}/32 dev eth0; ip -n {U} neigh replace {WAY_OUT} lladdr 02:de:ad:00:00:03 dev u0 nud permanent")
        report = proved(place, FIRST, FAR)
        assert [(f.code, f.where) for f in report.blocking] == [("answer-astray", "u1")] and report.live.back == ["u1"], (report.findings, str(report.live))
        sh(f"ip -n {U} neigh replace {WAY_OUT} lladdr {right} dev u0 nud permanent")
        assert proved(place, FIRST, FAR).findings == ()
    finally:
        sh(f"ip -n {U} neigh flush nud permanent dev u0; ip -n {G2} addr del {HOST}/32 dev eth0", check=False)
        restore()


def test_what_carries_the_frames_of_a_tunnel(place: Paths) -> None:
    """A machine on the guests' segment behind a VXLAN: the host's own routes and rules below it are walked, too."""
    beyond = "10.66.0.13"
    try:
        sh(f"ip link add vx0 type vxlan id 7 dstport 4789 local 10.77.0.2 remote {FAR}; ip link set vx0 master br0 up; ip -n {U} link add vx0 type vxlan id 7 dstport 4789 local {FAR} remote 10.77.0.2; ip -n {U} link set vx0 up; ip -n {U} addr add {beyond}/24 dev vx0")
        wait_until(lambda: ping(G1, beyond), 20)
        sh(f"ping -n -c 1 -W 5 {beyond}")
        assert look(place, Fault("", "", f"vx0@{beyond}")).findings == ()
        for code, inject in (("route-error", f"ip route add blackhole {FAR}/32"), ("rule-drop", "nft 'add table inet wall; add chain inet wall c { type filter hook input priority 0; policy drop; }; add rule inet wall c tcp dport 4789 accept'"),
                             ("tunnel-source", "ip link set vx0 down; ip link set vx0 type vxlan id 7 local 10.77.0.3; ip link set vx0 up")):
            sh(inject)
            assert not ping(G1, beyond)
            report = look(place, Fault("", "", f"vx0@{beyond}"))
            assert report.findings[0].code == code and report.state is State.BLOCKED, (code, report.findings)
            if code != "tunnel-source":
                sh(report.findings[0].fix[0])
                wait_until(lambda: ping(G1, beyond), 20)
    finally:
        sh(f"ip link del vx0; ip -n {U} link del vx0; ip route del blackhole {FAR}/32", check=False)
        restore()


def test_unusual_and_healthy(place: Paths) -> None:
    """A container routed to by a device of its own, a virtual address of VRRP on a macvlan, and a smaller MTU beyond that senders are told of."""
    try:
        sh(f"ip link add w0 type veth peer name c0 netns {G2}; ip link set w0 up; sysctl -qw net.ipv4.conf.w0.proxy_arp=1; ip route add 10.88.0.5 dev w0; ip -n {G2} link set c0 up; ip -n {G2} addr add 10.88.0.5/32 dev c0; ip -n {G2} route add 169.254.1.1 dev c0; ip -n {G2} route add {FIRST} via 169.254.1.1 dev c0;"
           "ip link add vrrp link br0 address 00:00:5e:00:01:33 type macvlan mode private; ip addr add 10.66.0.254/32 dev vrrp; ip link set vrrp up; ip link set u1 mtu 1400")
        wait_until(lambda: ping(G1, "10.88.0.5"), 20)
        sh(f"ip -n {G2} route del {FIRST}")
        scene = read(capture(place))
        assert why(scene, FIRST, "w0@10.88.0.5", PING).findings == () and why(scene, "w0@10.88.0.5", FIRST, PING).findings == ()
        assert {(f.code, f.severity) for f in why(scene, FIRST, FAR, PING).findings} == {("way-out-mtu", Severity.NOTE)}
        assert {f.severity for f in prove(scene, why(scene, FIRST, FAR, PING)).findings} == {Severity.NOTE}
        sh("nft 'add table ip wall; add chain ip wall c { type filter hook output priority 0; }; add rule ip wall c icmp type destination-unreachable drop'")     # the control
        assert {(f.code, f.severity) for f in look(place, Fault("", "", FAR)).findings} == {("way-out-mtu", Severity.DEGRADES)}
    finally:
        sh("ip link del w0; ip link del vrrp; ip link set u1 mtu 1500", check=False)
        restore()


def test_a_source_that_nobody_answers_for(place: Paths) -> None:
    """A guest with an address of the uplink's own prefix, routed: without proxy ARP nobody there finds it."""
    def works() -> bool:
        return subprocess.run(["ip", "netns", "exec", G1, "ping", "-n", "-c", "1", "-W", "0.3", "-I", "10.77.0.20", FAR], capture_output=True, check=False).returncode == 0
    try:
        sh(f"ip -n {G1} addr add 10.77.0.20/32 dev eth0; ip route add 10.77.0.20/32 dev br0")
        assert not works()
        report = proved(place, "p1@10.77.0.20", FAR)
        assert [f.code for f in report.blocking] == ["source-unanswered"] and why(read(capture(place)), "p1@10.77.0.20", FAR, PING).state is State.OK, (report.findings, str(report.live))
        sh(report.findings[0].fix[0])
        wait_until(works, 20)
        assert proved(place, "p1@10.77.0.20", FAR).findings == ()
    finally:
        sh(f"ip neigh del proxy 10.77.0.20 dev u1; ip -n {G1} addr del 10.77.0.20/32 dev eth0; ip route del 10.77.0.20/32 dev br0", check=False)
        restore()


def test_a_queue_that_keeps_what_a_filter_sends_there(place: Paths) -> None:
    try:
        sh("tc qdisc add dev p2 root handle 1: htb default 1; tc class add dev p2 parent 1: classid 1:1 htb rate 1gbit; tc class add dev p2 parent 1: classid 1:2 htb rate 8bit; tc filter add dev p2 parent 1: protocol ip prio 1 u32 match ip protocol 1 0xff flowid 1:2")
        subprocess.run(["ping", "-n", "-c", "3", "-i", "0.2", "-W", "0.1", SECOND], capture_output=True, check=False)    # what it has saved up
        report = proved(place, FIRST, f"p2@{SECOND}")
        assert (report.findings[0].code, report.findings[0].where) == ("queue-keeps", "p2") and "p2" not in report.live.seen, (report.findings, str(report.live))
    finally:
        restore()


def proved(place: Paths, source: str, to: str) -> Report:
    scene = read(capture(place))
    return prove(scene, why(scene, source, to, PING))


NO_NAT, DEFAULT = "nft flush chain ip mine post", f"ip -n {G1} route replace default via {HOST}"
SILENCES = {
    "far-end-knows-no-way": ("no-way-back", FIRST, NO_NAT, f"ip -n {U} route add 10.66.0.0/24 via {WAY_OUT}", f"ip -n {U} route del 10.66.0.0/24"),
    "route-with-another-source": ("no-way-back", "host", f"{NO_NAT}; ip route add {FAR}/32 dev u1 src {HOST}", f"ip -n {U} route add 10.66.0.0/24 via {WAY_OUT}", f"ip -n {U} route del 10.66.0.0/24; ip route del {FAR}/32 dev u1"),
    "translated-to-nowhere": ("no-way-back", FIRST, f"{NO_NAT}; nft 'add rule ip mine post oifname \"u1\" snat to 198.51.100.7'", f"ip -n {U} route add 198.51.100.7/32 via {WAY_OUT}", f"ip -n {U} route del 198.51.100.7/32"),
    "guest-without-a-route": ("guest-without-route", FIRST, f"ip -n {G1} route del default", DEFAULT, ""),
    "guest-with-a-neighbour-of-before": ("guest-wrong-neighbour", FIRST, f"ip -n {G1} neigh replace {HOST} lladdr 02:de:ad:00:00:09 dev eth0 nud permanent", f"ip -n {G1} neigh del {HOST} dev eth0", ""),
    "guest-with-a-prefix-too-wide": ("guest-other-prefix", FIRST, f"ip -n {G1} route add 10.77.0.0/16 dev eth0", f"ip -n {G1} route del 10.77.0.0/16 dev eth0", ""),
    "guest-with-a-router-of-before": ("guest-gateway-silent", FIRST, f"ip -n {G1} route replace default via 10.66.0.77", DEFAULT, ""),
}
"""Faults of which the host itself shows nothing -> code, who asks, how to inject and to mend it, and to clear up. Without an agent in the guest."""


@pytest.mark.parametrize("name", SILENCES)
def test_what_the_host_does_not_show_packets_do(place: Paths, name: str) -> None:
    code, source, inject, mend, after = SILENCES[name]
    def works() -> bool:
        return subprocess.run(["ping", "-n", "-c", "1", "-W", "0.3", FAR], capture_output=True, check=False).returncode == 0 if source == "host" else ping(G1, FAR)

    wait_until(works, 20)
    try:
        sh(inject)
        assert not works()
        report = proved(place, source, FAR)
        first = report.findings[0]
        assert report.state is State.BLOCKED and first.code == code and first.evidence and first.fix and [f.code for f in report.blocking] == [code], (report.findings, str(report.live))
        assert why(read(capture(place)), source, FAR, PING).state is State.OK
        sh(mend)
        wait_until(works, 20)
    finally:
        sh(after, check=False)
        restore()


def test_a_port_that_takes_frames_of_the_host_alone(place: Paths) -> None:
    """As at a hosting provider: the guest is on a bridge with the uplink, and the switch drops what is not from the host's MAC."""
    there = "10.66.0.77"
    try:
        sh(f"ip addr flush dev u1; ip link set u1 master br0; ip -n {U} addr add {there}/24 dev u0")
        wait_until(lambda: ping(G1, there), 20)
        sh(f"ping -n -c 1 -W 5 {there}")
        assert proved(place, FIRST, there).findings == ()
        sh(f"ip netns exec {U} nft 'add table netdev f; add chain netdev f c {{ type filter hook ingress device \"u0\" priority 0; }}; add rule netdev f c ether saddr != 02:66:00:00:00:01 drop'")
        assert not ping(G1, there)
        report = proved(place, FIRST, there)
        assert [f.code for f in report.blocking] == ["sender-refused"] and report.findings[0].where == "u1", (report.findings, str(report.live))
    finally:
        sh(f"ip netns exec {U} nft flush ruleset; ip -n {U} addr del {there}/24 dev u0; ip link set u1 nomaster", check=False)
        restore()


def test_a_route_of_which_one_next_hop_is_dead(place: Paths) -> None:
    """Which flows fall to it only the kernel knows: unknown, until a packet shows it."""
    targets = [f"198.51.100.{n}" for n in range(1, 25)]
    try:
        sh("; ".join(f"ip -n {U} addr add {t}/32 dev u0" for t in targets))
        sh("ip neigh replace 10.77.0.99 dev u1 nud failed; ip route add 198.51.100.0/24 nexthop via 10.77.0.1 dev u1 nexthop via 10.77.0.99 dev u1")
        by = {t: sh(f"ip route get {t} from {FIRST} iif br0") for t in targets}
        living, dead = ([t for t in targets if f"via {via} " in by[t]] for via in ("10.77.0.1", "10.77.0.99"))
        assert living and dead
        for target, passes in ((living[0], True), (dead[0], False)):
            assert ping(G1, target) is passes
            scene = read(capture(place))
            report = why(scene, FIRST, target, PING)
            assert report.state is State.UNKNOWN and [f.code for f in report.findings] == ["multipath-hop"]
            first = prove(scene, report).findings[0]
            assert first.code == "multipath-hop" and first.severity is (Severity.DEGRADES if passes else Severity.BLOCKS), first
        sh(report.findings[0].fix[0])
        assert ping(G1, dead[0]) and why(read(capture(place)), FIRST, dead[0], PING).state is State.OK
    finally:
        sh("ip route del 198.51.100.0/24", check=False)
        restore()


def test_guests_are_found_on_a_bridge_on_which_the_host_has_nothing(place: Paths) -> None:
    try:
        sh("ip addr flush dev br0; ip neigh flush all")
        scene = read(capture(place))
        rows = seek(scene, (FIRST, SECOND, "10.66.0.99"))
        assert {(r["dst"], r["dev"], r["lladdr"]) for r in rows} == {(FIRST, "br0", MACS["p1"]), (SECOND, "br0", MACS["p2"])}
        report = why(read(capture(place) | {"neighbours": rows}), FIRST, SECOND, PING)
        assert report.state is State.OK and (report.source.dev, report.target.dev) == ("p1", "p2")
        sh("bridge link set dev p1 isolated on; bridge link set dev p2 isolated on")
        assert [f.code for f in why(read(capture(place) | {"neighbours": rows}), FIRST, SECOND, PING).findings] == ["port-isolated"]
    finally:
        restore()


def test_a_reason_confirms_what_was_found(place: Paths) -> None:
    try:
        sh("sysctl -qw net.ipv4.conf.br0.rp_filter=1")
        scene = read(capture(place))
        proved = prove(scene, why(scene, "p1@10.99.0.5", FAR, PING))
        found = next(f for f in proved.findings if f.code == "reverse-path")
        assert proved.live.untold or any("confirmed" in e and "IP_RPFILTER" in e for e in found.evidence), (found, str(proved.live))
    finally:
        sh("sysctl -qw net.ipv4.conf.br0.rp_filter=0")
        restore()


def test_a_silent_guest_is_told_from_a_blocked_one(place: Paths) -> None:
    try:
        sh(f"ip netns exec {G2} sysctl -qw net.ipv4.icmp_echo_ignore_all=1")
        scene = read(capture(place))
        report = why(scene, FIRST, SECOND, PING)
        proved = prove(scene, report)
        assert report.state is State.OK and proved.live.seen == ["p1", "p2"], str(proved.live)
        assert proved.findings[0].code == "no-answer" and proved.findings[0].where == "p2"
    finally:
        sh(f"ip netns exec {G2} sysctl -qw net.ipv4.icmp_echo_ignore_all=0")


def test_a_guest_that_nobody_heard_is_asked_for(place: Paths) -> None:
    try:
        sh("ip neigh flush all")
        report = why(read(capture(place)), FIRST, "10.66.0.99", PING)
        assert report.state is State.UNKNOWN and {(f.code, f.where) for f in report.findings} == {("guest-unseen", FIRST), ("guest-unseen", "10.66.0.99")}
        assert ask(report)
        scene = read(capture(place))
        assert why(scene, FIRST, HOST, PING).state is State.OK
        assert why(scene, FIRST, "10.66.0.99", PING).state is State.BLOCKED
    finally:
        restore()


def test_the_command(place: Paths, tmp_path: Path) -> None:
    def cli(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "kvmnet.cli.main", *words], capture_output=True, text=True, check=False, timeout=60,
                              env={**os.environ, "KVMNET_STATE_DIR": str(place.state), "KVMNET_RUN_DIR": str(place.run)})
    file = tmp_path / "host.json"
    file.write_text(cli("facts").stdout)
    clear = cli("why", FIRST, SECOND, "--facts", str(file))
    assert clear.returncode == 0 and "nothing on this host is in the way" in clear.stdout, clear.stderr
    try:
        sh("bridge link set dev p1 isolated on; bridge link set dev p2 isolated on")
        blocked = cli("why", FIRST, SECOND, "--json", "--prove")
        assert blocked.returncode == 1 and json.loads(blocked.stdout)["findings"][0]["code"] == "port-isolated" and json.loads(blocked.stdout)["live"]["sent"] == 3
        assert cli("why", FIRST, SECOND, "--facts", str(file)).returncode == 0
    finally:
        restore()
    for words, code in ((("why", "nobody", SECOND), 1), (("why", FIRST, SECOND, "--tcp", "1", "--udp", "1"), 64), (("why", FIRST, SECOND, "--prove", "--facts", str(file)), 64)):
        done = cli(*words)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    damaged = json.loads(file.read_text())
    damaged["routes4"] = [{"dst": 7}, 5]
    file.write_text(json.dumps(damaged))
    assert "damaged" in cli("why", FIRST, FAR, "--facts", str(file)).stderr
    file.write_text("{")
    assert "capture" in cli("why", FIRST, FAR, "--facts", str(file)).stderr
