"""Faults that are made for real, on a host that kvmnet did not configure: found by ``doctor``, and gone with its printed cure. Those that stop traffic
in a way that is worth to be seen are in test_known_faults.py."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvmnet.doctor.finding import Finding
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.view import View
from kvmnet.facts.capture import capture
from kvmnet.facts.later import later
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib.netns import named_netns, new_netns, sh
from lib.qemu import Held

pytestmark = pytest.mark.net

MAC1, MAC2 = "02:00:00:00:00:11", "02:00:00:00:00:12"
MACHINE = {"backlog-overflow", "cpu-stolen", "interrupts-on-one-cpu", "frames-come-back", "log-complains", "port-overflow"}
"""What other people's load on this machine may cause."""
G1, G2, UP = (f"kvd-{os.getpid()}-{n}" for n in ("1", "2", "u"))
WORLD = f"""
ip link add br0 address 02:00:00:00:00:b0 type bridge; ip link set br0 up; ip addr add 10.66.0.1/24 dev br0
ip link add p1 address fe:00:00:00:00:11 type veth peer name e netns {G1}; ip link add p2 address fe:00:00:00:00:12 type veth peer name e netns {G2}
ip link set p1 master br0 up; ip link set p2 master br0 up
ip -n {G1} link set e address {MAC1} up; ip -n {G1} addr add 10.66.0.11/24 dev e; ip -n {G1} addr add fd66::11/64 dev e nodad
ip -n {G2} link set e address {MAC2} up; ip -n {G2} addr add 10.66.0.12/24 dev e
ip link add u1 type veth peer name u0 netns {UP}; ip link set u1 up; ip addr add 10.77.0.2/24 dev u1
ip -n {UP} link set u0 up; ip -n {UP} addr add 10.77.0.1/24 dev u0; ip route add default via 10.77.0.1
ip tuntap add t1 mode tap; ip link set t1 address fe:00:00:00:00:21 master br0 up
sysctl -qw net.ipv4.ip_forward=1
"""


@dataclass(frozen=True)
class Fault:
    code: str
    inject: str
    mend: str = ""
    """What mends it where the printed cure leaves a choice to a person; '' to run that as it is printed."""
    after: str = ""
    """Clears up what the fault needed."""
    where: str = ""


DROPS = "nft 'table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }'"
REJECTS = ("nft 'table inet ours { chain forward { type filter hook forward priority -10; iifname br0 accept; oifname br0 accept; }; }';"
           "nft 'table inet theirs { chain f { type filter hook forward priority 10; ct state established accept; iifname br0 reject; }; }'")
FAULTS = [
    Fault("forward-dropped", DROPS, "nft insert rule ip filter FORWARD iifname br0 accept; nft insert rule ip filter FORWARD oifname br0 accept", "nft delete table ip filter"),
    Fault("forward-dropped", REJECTS, "", "nft delete table inet ours; nft delete table inet theirs"),
    Fault("bridge-netfilter", f"sysctl -qw net.bridge.bridge-nf-call-iptables=1; {DROPS}", "sysctl -qw net.bridge.bridge-nf-call-iptables=0", "nft delete table ip filter"),
    Fault("forwarding-off", "nft 'table ip n { chain post { type nat hook postrouting priority 100; oifname u1 masquerade; }; }'; sysctl -qw net.ipv4.ip_forward=0", "", "nft delete table ip n"),
    Fault("stp-delay", "ip link set br0 type bridge stp_state 1 forward_delay 1500", "", "ip link set br0 type bridge stp_state 0"),
    Fault("mtu-island", "ip link set p2 mtu 1400", ""),
    Fault("way-out-mtu", "ip link set u1 mtu 1400", "ip link set u1 mtu 1500"),
    Fault("bridge-ring", "ip link add w1 type veth peer name w2; for w in w1 w2; do ip link set $w master br0; ip link set $w type bridge_slave flood off mcast_flood off bcast_flood off learning off; ip link set $w up; done", "", "ip link del w1"),
    Fault("proxy-arp", "sysctl -qw net.ipv4.conf.br0.proxy_arp=1", ""),
    Fault("address-on-port", "ip addr add 10.81.0.2/24 dev p2", "", "ip addr del 10.81.0.2/24 dev br0"),
    Fault("subnet-overlap", "ip addr add 10.66.0.9/16 dev u1", "ip addr del 10.66.0.9/16 dev u1"),
    Fault("prefix-without-route", "ip route del 10.66.0.0/24 dev br0", ""),
    Fault("address-twice", "ip addr add 10.66.0.1/32 dev u1", "ip addr del 10.66.0.1/32 dev u1"),
    Fault("gateway-silent", "ip neigh replace 10.77.0.1 dev u1 nud failed", "ip neigh del 10.77.0.1 dev u1"),
    Fault("route-without-link", f"ip -n {UP} link set u0 down", f"ip -n {UP} link set u0 up"),
    Fault("ra-ignored", "sysctl -qw net.ipv6.conf.all.forwarding=1; sysctl -qw net.ipv6.conf.u1.accept_ra=1; ip addr add fd77::5/64 dev u1 valid_lft 1000 preferred_lft 1000", "", "ip addr del fd77::5/64 dev u1; sysctl -qw net.ipv6.conf.all.forwarding=0"),
    Fault("route-error", "ip route add blackhole 10.66.0.77", ""),
    Fault("route-error", "ip rule add from 10.66.0.0/24 prohibit priority 9", ""),
    Fault("ipsec-policy", "ip xfrm policy add dir fwd src 10.66.0.0/24 dst 0.0.0.0/0 action block", ""),
    Fault("queue-too-slow", "tc qdisc add dev p1 root handle 1: htb default 10; tc class add dev p1 parent 1: classid 1:10 htb rate 8bit 2>/dev/null", ""),
    Fault("port-down", "ip link set br0 down", "", "ip route replace default via 10.77.0.1"),
    Fault("duplicate-mac", f"ip -n {G1} link set e address 52:54:00:12:34:56; ip -n {G2} link set e address 52:54:00:12:34:56; ip netns exec {G1} ping -c1 -w20 10.66.0.1; ip netns exec {G2} ping -c1 -w20 10.66.0.1",
          f"ip -n {G1} link set e address {MAC1}; ip -n {G2} link set e address {MAC2}; ip neigh flush dev br0"),
]
SERVED = "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --bind-interfaces --except-interface=lo --port=0 --interface=br0 --dhcp-leasefile={file} --dhcp-range={range},1h {more}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    folder = tmp_path_factory.mktemp("doctor")
    with new_netns(), ExitStack() as stack:
        for name in (G1, G2, UP):
            stack.enter_context(named_netns(name))
        sh(WORLD.replace("\n", ";").replace(";;", ";").strip(";"))
        paths = Paths(folder / "state", folder / "run")
        wait_until(lambda: not any(a.get("tentative") for link in capture(paths)["links"] for a in link["addr_info"]), 20)
        yield paths


def look(paths: Paths) -> tuple[Finding, ...]:
    return tuple(f for f in examine(View(capture(paths))) if f.code not in MACHINE)


def found(paths: Paths, code: str) -> list[Finding]:
    return [f for f in look(paths) if f.code == code]


def appears(paths: Paths, code: str) -> Finding:
    """The first finding of *code*: carriers and what follows from them are told a moment after their cause."""
    return wait_until(lambda: found(paths, code), 20, 0.2)[0]


def goes(paths: Paths, code: str) -> None:
    wait_until(lambda: not found(paths, code), 20, 0.2)


def healthy(paths: Paths) -> None:
    """Nothing is found but that t1 waits for a guest, and is told so."""
    wait_until(lambda: {f.code for f in look(paths)} <= {"tap-idle"}, 20, 0.2)


def test_a_healthy_host_has_nothing(world: Paths) -> None:
    wait_until(lambda: {f.code for f in look(world)} == {"tap-idle"}, 20, 0.2)


DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
  fabric: {device: eth1, addresses: [198.51.100.1/24]}
  plain: {device: eth2}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: fd00:100::/64}
  public: {mode: routed, uplink: wan, subnet: 203.0.113.0/28}
  cell: {mode: isolated, subnet: 10.10.2.0/24}
  flat: {mode: bridge, uplink: plain}
  blue: {mode: vxlan, uplink: fabric, subnet: 10.30.0.0/24, vxlan: {vni: 7, peers: [198.51.100.2]}}
vms:
  web: {nics: [{network: lan}, {network: public}, {network: blue, ip: 10.30.0.9}]}
  app: {nics: [{network: cell}, {network: flat, ip: 10.40.0.9}, {network: lan}]}
"""


def test_what_kvmnet_makes_is_healthy_in_every_mode(paths: Paths, tmp_path: Path) -> None:
    (tmp_path / "kvmnet.yaml").write_text(DOCUMENT)
    with new_netns():
        for name in ("eth0", "eth1", "eth2"):
            sh(f"ip link add {name} type veth peer name far-{name}; ip link set {name} up; ip link set far-{name} up")
        sh("ip addr add 192.0.2.10/24 dev eth0; ip route add default via 192.0.2.1")
        try:
            sh(f"{sys.executable} -m kvmnet.cli.main apply {tmp_path / 'kvmnet.yaml'} --yes --reach none")
            wait_until(lambda: look(paths) == (), 20, 0.2)
            sh("ip link set kvt-app-2 mtu 1280")    # the control: one wrong thing in it is found
            assert [f.code for f in look(paths)] == ["mtu-island"] and look(paths)[0].fix == ("kvmnet apply",)
        finally:
            sh(f"{sys.executable} -m kvmnet.cli.main destroy --yes --reach none", check=False)


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{n}-{f.code}" for n, f in enumerate(FAULTS)])
def test_a_fault_is_found_and_mended_by_its_cure(world: Paths, fault: Fault) -> None:
    assert not found(world, fault.code)
    try:
        sh(fault.inject)
        finding = appears(world, fault.code)
        assert finding.evidence and finding.fix
        sh(fault.mend or "; ".join(finding.fix))
        goes(world, fault.code)
    finally:
        sh(fault.after, check=False)
    healthy(world)


def test_a_machine_with_two_places_moves(world: Paths) -> None:
    """The MAC of one guest at the port of another, between the two looks."""
    sh(f"ip netns exec {G1} ping -c1 -w20 10.66.0.1")
    facts = capture(world)
    assert "mac-moves" not in [f.code for f in examine(View(facts | {"later": later(facts, 0.01)}))]
    sh(f"ip -n {G2} link set e address {MAC1}; ip netns exec {G2} ping -c1 -w20 10.66.0.1; ip neigh replace 10.66.0.11 lladdr 02:00:00:00:00:99 dev br0")
    moved = [f for f in examine(View(facts | {"later": later(facts, 0.01)})) if f.code in ("mac-moves", "address-moves")]
    sh(f"ip -n {G2} link set e address {MAC2}; ip neigh flush dev br0")
    assert [(f.code, f.where) for f in moved] == [("mac-moves", "br0"), ("address-moves", "br0")]
    assert f"{MAC1} moved from p1 to p2" in moved[0].what


def test_an_address_that_another_has_is_not_used(world: Paths) -> None:
    sh("ip addr add fd66::11/64 dev br0")
    sh(appears(world, "duplicate-detected").fix[-1])
    goes(world, "duplicate-detected")


def test_a_guest_that_lost_its_bridge_and_one_that_is_known_elsewhere(world: Paths) -> None:
    mac = "02:00:00:00:00:21"
    with Held("t1", "-name", "web1", "-netdev", "tap,id=n0,ifname=t1,script=no", "-device", f"e1000e,netdev=n0,mac={mac}") as guest:
        wait_until(lambda: {f.code for f in look(world)} == {"emulated-card"}, 20, 0.2)
        sh(f"bridge fdb replace {mac} dev p2 master static sticky")
        elsewhere = appears(world, "guest-learned-elsewhere")
        sh(elsewhere.fix[0])
        sh("ip link set t1 nomaster")
        detached = appears(world, "tap-detached")
        assert detached.where == "t1" and "qemu-system-x86_64, pid" in detached.evidence[0]
        sh("; ".join(detached.fix).replace("BRIDGE", "br0"))
        sh("ip link set t1 carrier off")
        sh(appears(world, "tap-carrier-off").fix[0])
        os.kill(guest.process.pid, signal.SIGSTOP)
        sh(appears(world, "guest-stopped").fix[0])
        sh("ip link set t1 txqueuelen 0")
        sh(appears(world, "queue-too-small").fix[0])
        sh(f"ip link set t1 address {mac}")
        same = appears(world, "tap-has-guest-mac")
        sh(same.fix[0])
        sh("ip link set t1 down")
        down = appears(world, "port-down")
        sh(down.fix[0])
        wait_until(lambda: {f.code for f in look(world)} == {"emulated-card"}, 20, 0.2)
    wait_until(lambda: {f.code for f in look(world)} == {"tap-idle"}, 20)


@pytest.mark.parametrize(("code", "range", "more", "lease"), [
    ("range-off-subnet", "10.67.0.10,10.67.0.50,255.255.255.0", "", ""),
    ("", "10.66.0.100,10.66.0.150", f"--dhcp-host={MAC1},10.66.0.120", f"{MAC1} 10.66.0.120"),
])
def test_what_is_wrong_with_a_dhcp_server(world: Paths, tmp_path: Path, code: str, range: str, more: str, lease: str) -> None:
    file = tmp_path / "leases"
    file.write_text("".join(f"4000000000 {row} * *\n" for row in lease.split("|") if row))
    server = subprocess.Popen(SERVED.format(file=file, range=range, more=more), shell=True)
    try:
        wait_until(lambda: bool(capture(world)["dhcp_servers"]), 20)
        wait_until(lambda: {f.code for f in look(world)} - {"tap-idle"} == ({code} if code else set()), 20, 0.2)
        if not code:    # the very same server behind a rule that drops what guests ask of it
            sh("nft 'table inet strict { chain in { type filter hook input priority 0; policy drop; iifname lo accept; }; }'")
            dropped, = found(world, "input-dropped")
            sh("; ".join(dropped.fix))
            assert not found(world, "input-dropped")
            sh(f"ip neigh replace 10.66.0.120 lladdr {MAC2} dev br0 nud permanent")
            wrong, = found(world, "wrong-neighbour")
            sh(wrong.fix[0])
            assert not found(world, "wrong-neighbour")
            server.send_signal(signal.SIGSTOP)
            sh(appears(world, "server-dead").fix[0])
            goes(world, "server-dead")
    finally:
        sh("nft delete table inet strict", check=False)
        server.terminate()
        server.wait(20)


def test_a_resolver_on_every_address(world: Paths) -> None:
    code = "import socket,sys\ns=socket.socket(2,2)\ns.bind(('0.0.0.0',53))\nprint(flush=True)\nsys.stdin.read()"
    listener = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with suppress(BrokenPipeError):
        assert listener.stdout and listener.stdout.readline()
        finding, = found(world, "resolver-everywhere")
        listener.communicate(b"")
        assert str(listener.pid) in finding.evidence[0] and not found(world, "resolver-everywhere")
