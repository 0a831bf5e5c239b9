"""Faults that fill forums, on a host that nobody but its administrator configured: each stops real traffic, is found first, and the
printed cure brings the traffic back."""
from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kvmnet.doctor.explain.entry import Holds
from kvmnet.doctor.explain.match import explain
from kvmnet.doctor.finding import Finding
from kvmnet.doctor.rules.table import examine
from kvmnet.doctor.scene import read
from kvmnet.doctor.view import View
from kvmnet.doctor.why import Probe, why
from kvmnet.facts.capture import capture
from kvmnet.facts.later import later
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from lib import frames
from lib.dhcp import Client
from lib.documents import MACHINE
from lib.netns import inside, named_netns, new_netns, sh
from lib.qemu import Held
from lib.unpacked import on_path, unpacked

pytestmark = pytest.mark.net

G1, G2, U = (f"kvk-{os.getpid()}-{n}" for n in ("1", "2", "u"))
MAC1, MAC2, HOST_MAC = "02:66:00:00:00:11", "02:66:00:00:00:12", "02:66:00:00:00:01"
FIRST, SECOND, HOST, FAR, FLOATING, BEYOND = "10.66.0.11", "10.66.0.12", "10.66.0.1", "10.77.0.1", "10.77.0.50", "10.90.0.2"
WORLD = f"""
ip link add br0 address {HOST_MAC} type bridge; ip link set br0 up; ip addr add {HOST}/24 dev br0
for n in 1:{G1} 2:{G2}; do i=${{n%%:*}}; ns=${{n#*:}}; ip link add p$i type veth peer name eth0 address 02:66:00:00:00:1$i netns $ns; ip link set p$i master br0 up; ip -n $ns link set eth0 up; ip -n $ns addr add 10.66.0.1$i/24 dev eth0; ip -n $ns route add default via {HOST}; done
ip link add p3 type veth peer name p3x; ip link set p3 master br0 up; ip link set p3x up
ip link add u1 type veth peer name u0 netns {U}; ip addr add 10.77.0.2/24 dev u1; ip link set u1 up; ip -n {U} addr add {FAR}/24 dev u0; ip -n {U} link set u0 up; ip route add default via {FAR}
ip -n {U} route add 10.66.0.0/24 via 10.77.0.2; sysctl -qw net.ipv4.ip_forward=1; for ns in {G1} {G2}; do ip netns exec $ns sysctl -qw net.ipv6.conf.all.disable_ipv6=1; done
"""


@pytest.fixture(scope="module")
def iptables() -> Path:
    """Folder of a program that this machine need not have: fetched while its network is still there."""
    return unpacked("iptables", ("iptables", "libxtables12", "libip4tc2", "libip6tc2", "libnetfilter-conntrack3", "libnfnetlink0"))


@pytest.fixture(scope="module")
def world(iptables: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paths]:
    """Two guests on br0, a router outside behind u1."""
    folder = tmp_path_factory.mktemp("known")
    with new_netns(), ExitStack() as stack:
        for name in (G1, G2, U):
            stack.enter_context(named_netns(name))
        sh(WORLD)
        wait_until(lambda: pings(SECOND, netns=G1) and pings(FAR, netns=G2), 20)
        yield Paths(folder / "state", folder / "run")


def pings(target: str, *options: str, netns: str = "") -> bool:
    return subprocess.run([*(("ip", "netns", "exec", netns) if netns else ()), "ping", "-n", "-c", "1", "-W", "0.4", *options, target], capture_output=True, check=False).returncode == 0


def look(paths: Paths) -> tuple[Finding, ...]:
    """What the doctor says of a host that nothing else happens on."""
    return tuple(f for f in examine(View(capture(paths))) if f.code not in MACHINE)


# -- what traffic shows ----------------------------------------------------------------------------

def sender_seen() -> str:
    """Whom the second guest takes for the sender of what the first says."""
    with inside(G2):
        hears = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        hears.bind((SECOND, 7007))
    with inside(G1):
        speaks = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with hears, speaks:
        hears.settimeout(20)
        speaks.sendto(b"who", (SECOND, 7007))
        return str(hears.recvfrom(100)[1][0])


def connects(port: int = 7008) -> bool:
    """Whether the second guest reaches a server of the first by its public address."""
    with inside(G1):
        server = socket.create_server((FIRST, port))
    with inside(G2):
        asks = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with server, asks:
        asks.settimeout(0.6)
        with suppress(TimeoutError):
            asks.connect((FLOATING, port))
            return True
    return False


def leased(netns: str = G1, mac: str = MAC1, options: str = "", seconds: int = 1) -> str:
    return Client(netns, mac).lease4(options=options, seconds=seconds).get("ip", "")


TUNNEL = f"ip -n {U} link add vx1 mtu 1450 type vxlan id 7 dstport 4789 local {FAR} remote 10.77.0.2; ip -n {U} addr add {BEYOND}/24 dev vx1; ip -n {U} link set vx1 up;"
OWN_END = "ip link add vx0 {} type vxlan id 7 dstport 4789 local 10.77.0.2 {}; ip addr add 10.90.0.1/24 dev vx0; ip link set vx0 up;"
NO_TUNNEL = f"ip link del vx0; ip -n {U} link del vx1; ip link set u1 mtu 1500; ip -n {U} link set u0 mtu 1500; nft delete table inet host"
TWO_WAYS = (f"ip link add u2 type veth peer name u3 netns {U}; ip addr add 10.78.0.2/24 dev u2; ip link set u2 up; ip -n {U} addr add 10.78.0.1/24 dev u3; ip -n {U} link set u3 up;"
            f"ip -n {U} addr add 10.88.0.5/32 dev lo; ip -n {U} route replace 10.66.0.0/24 via 10.78.0.2; ip route add default via 10.78.0.1 dev u2 table 102; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.u2.rp_filter=0 net.ipv4.conf.u1.rp_filter=0;"
            f"ip netns exec {U} sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.u0.rp_filter=0 net.ipv4.conf.u3.rp_filter=0")
ONE_WAY = f"ip rule del table 102; ip link del u2; ip -n {U} addr del 10.88.0.5/32 dev lo; ip -n {U} route replace 10.66.0.0/24 via 10.77.0.2; sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.u1.rp_filter=0"


@dataclass(frozen=True)
class Case:
    code: str
    works: Callable[[], bool]
    inject: str
    ready: str = "true"
    """Makes what the fault needs, while all is well."""
    settle: str = "true"
    """What time does by itself, in a moment: an entry that ends."""
    after: str = "true"
    asked: tuple[str, str, Probe] | None = None
    """What ``why`` is asked; the doctor is when nothing."""
    told: Mapping[str, str] = field(default_factory=dict)
    """Words that the printed cure leaves to a person."""


CASES = {
    "overzealous-masquerade": Case(
        "masquerade-everywhere", lambda: sender_seen() == FIRST, "nft 'table ip bad { chain post { type nat hook postrouting priority 100; oifname != lo masquerade; }; }'",
        "sysctl -qw net.bridge.bridge-nf-call-iptables=1", after="nft delete table ip bad; sysctl -qw net.bridge.bridge-nf-call-iptables=0"),
    "vxlan-underlay-mtu-blackhole": Case(
        "tunnel-mtu", lambda: pings(BEYOND, "-M", "dont", "-s", "1472"), f"ip link set u1 mtu 1500; ip -n {U} link set u0 mtu 1500",
        f"ip link set u1 mtu 1600; ip -n {U} link set u0 mtu 1600; {TUNNEL} {OWN_END.format('mtu 1500', f'remote {FAR} df set')}", after=NO_TUNNEL),
    "tunnel-port-blocked": Case(
        "tunnel-blocked", lambda: pings(BEYOND), "nft 'table inet host { chain in { type filter hook input priority 0; policy drop; iifname { lo, vx0 } accept; tcp dport 4789 accept; }; }'",
        TUNNEL + OWN_END.format("mtu 1450", f"remote {FAR}"), after=NO_TUNNEL),
    "vxlan-flood-entry-missing": Case(
        "tunnel-without-peers", lambda: pings(BEYOND), f"bridge fdb del 00:00:00:00:00:00 dev vx0 dst {FAR}; bridge fdb flush dev vx0 dynamic 2>/dev/null; ip link set vx0 down; ip link set vx0 up; ip neigh flush dev vx0",
        TUNNEL + OWN_END.format("mtu 1450", "") + f"bridge fdb append 00:00:00:00:00:00 dev vx0 dst {FAR}", after=NO_TUNNEL, told={"ADDRESS_OF_THE_OTHER_HOST": FAR}),
    "hairpin-own-floating-ip": Case(
        "hairpin-nat", connects, "nft flush chain ip fip post",
        f"nft 'table ip fip {{ chain pre {{ type nat hook prerouting priority -100; ip daddr {FLOATING} dnat to {FIRST}; }}; chain post {{ type nat hook postrouting priority 100; iifname br0 oifname br0 ct status dnat masquerade; }}; }}'",
        after="nft delete table ip fip; nft delete table ip hairpin", asked=(SECOND, FLOATING, Probe("tcp", 7008))),
    "proxy-arp-hijack": Case(
        "proxy-arp", lambda: pings(SECOND, netns=G1),
        f"ip route add {SECOND}/32 dev u1; sysctl -qw net.ipv4.conf.br0.proxy_arp=1; ip -n {G1} neigh flush all; ip -n {G2} link set eth0 down; for i in $(seq 100); do ip netns exec {G1} ping -n -c 1 -W 0.2 {SECOND}; ip -n {G1} neigh show {SECOND} | grep -q {HOST_MAC} && break; done; ip -n {G2} link set eth0 up; ip -n {G2} route replace default via {HOST}",
        settle=f"ip -n {G1} neigh flush all", after=f"ip route del {SECOND}/32 dev u1; sysctl -qw net.ipv4.conf.br0.proxy_arp=0; ip -n {G1} neigh flush all", asked=(FIRST, f"p2@{SECOND}", Probe())),
    "rp-filter-strict-multihomed": Case(
        "reverse-path", lambda: pings(FIRST, "-I", "10.88.0.5", netns=U), "sysctl -qw net.ipv4.conf.all.rp_filter=1", TWO_WAYS, after=ONE_WAY),
    "ip-on-enslaved-nic": Case(
        "address-on-port", lambda: pings(FAR), "ip link set u1 master br0; ip neigh flush dev u1",
        after="ip link set u1 nomaster; ip addr del 10.77.0.2/24 dev br0; ip addr replace 10.77.0.2/24 dev u1; ip route replace default via 10.77.0.1"),
}


def first_finding(paths: Paths, case: Case) -> Finding:
    """The finding that comes first, once the host has come to rest: what follows from a carrier is told a moment later."""
    seen: list[tuple[Finding, ...]] = []

    def told() -> bool:
        facts = capture(paths)
        seen.append(why(read(facts), *case.asked).findings if case.asked else tuple(f for f in examine(View(facts)) if f.code not in MACHINE))
        return [f.code for f in seen[-1][:1]] == [case.code]
    with suppress(TimeoutError):
        wait_until(told, 20, 0.3)
    assert seen[-1] and seen[-1][0].code == case.code, seen[-1]
    return seen[-1][0]


@pytest.mark.parametrize("name", CASES)
def test_a_fault_stops_traffic_and_its_cure_brings_it_back(world: Paths, name: str) -> None:
    circle(world, CASES[name])


def circle(world: Paths, case: Case) -> None:
    """It works and nothing is found; it is broken, found first and mended as printed; it works and nothing is found."""
    try:
        sh(case.ready)
        wait_until(case.works, 20)
        assert case.code not in {f.code for f in look(world)}
        sh(case.inject)
        wait_until(lambda: not case.works(), 20)
        finding = first_finding(world, case)
        assert finding.evidence and finding.fix
        for command in finding.fix:
            for word, meant in case.told.items():
                command = command.replace(word, meant)
            sh(command)
        sh(case.settle)
        wait_until(case.works, 20)
        assert case.code not in {f.code for f in look(world)}
    finally:
        sh(case.after, check=False)
    wait_until(lambda: not look(world) and pings(SECOND, netns=G1) and pings(FAR, netns=G2), 20)


# -- what takes more than a command ----------------------------------------------------------------

def test_a_policy_of_dropping_what_is_forwarded(world: Paths, iptables: Path) -> None:
    """Docker's: whatever is not for its containers is lost, and DOCKER-USER is where the administrator says what else passes."""
    libraries = next(iptables.glob("usr/lib/*-linux-gnu*"))
    with on_path(iptables, XTABLES_LIBDIR=str(libraries / "xtables")):
        for name in ("iptables", "ip6tables"):    # as Debian's alternatives have it
            (iptables / "usr/sbin" / name).unlink(missing_ok=True)
            (iptables / "usr/sbin" / name).symlink_to("xtables-nft-multi")
        circle(world, Case("rule-drop", lambda: pings(FAR, netns=G1),
                           "iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -i docker0 -j ACCEPT; iptables -P FORWARD DROP",
                           after="nft delete table ip filter", asked=(FIRST, FAR, Probe())))

@contextmanager
def served(paths: Paths, file: Path, *options: str) -> Iterator[None]:
    """A DHCP server for br0, started by hand."""
    server = subprocess.Popen(["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--bind-interfaces", "--except-interface=lo", "--port=0", "--interface=br0", "--user=root",
                               f"--dhcp-leasefile={file}", "--no-ping", *options], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: bool(capture(paths)["dhcp_servers"]), 20)
        yield
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def leases(world: Paths, tmp_path: Path) -> Iterator[None]:
    with served(world, tmp_path / "leases", "--dhcp-range=10.66.0.100,10.66.0.150,1h"):
        wait_until(lambda: bool(leased(seconds=3)), 20)
        yield


@pytest.mark.parametrize(("code", "options", "lease", "given"), [
    ("pool-full", ("--dhcp-range=10.66.0.100,10.66.0.100,1h",), "10.66.0.100", "10.66.0.100"),
    ("reserved-is-leased", ("--dhcp-range=10.66.0.100,10.66.0.150,1h", f"--dhcp-host={MAC1},10.66.0.50"), "10.66.0.50", "10.66.0.50"),
])
def test_a_lease_of_who_is_gone(world: Paths, tmp_path: Path, code: str, options: tuple[str, ...], lease: str, given: str) -> None:
    """Its address is meant for another, or is the last one: who asks gets none, or not his own, until the lease is given back."""
    gone, file = "02:66:00:00:00:77", tmp_path / "leases"
    file.write_text(f"4000000000 {gone} {lease} * *\n")
    with served(world, file, *options):
        assert leased(seconds=1) != given
        finding, = look(world)
        assert finding.code == code and any(lease in e or "1 leases" in e for e in finding.evidence)
        sh(next(c for c in finding.fix if c.startswith("dhcp_release")).replace("ADDRESS", lease).replace("MAC", gone))
        wait_until(lambda: leased(seconds=3) == given, 20)


def test_a_reverse_path_rule_that_takes_requests_for_an_address(world: Paths, leases: None) -> None:
    try:
        sh("nft 'table inet rp { chain pre { type filter hook prerouting priority raw; iifname br0 ip saddr 0.0.0.0 counter drop; }; chain in { type filter hook input priority 0; iifname br0 tcp dport 22 drop; }; }'")
        assert not leased()
        finding, = look(world)
        assert finding.code == "input-dropped" and finding.where == "br0" and any("0.0.0.0" in e for e in finding.evidence)
        for command in finding.fix:
            sh(command)
        wait_until(leased, 20)
        assert look(world) == ()
        assert "udp dport 67 accept" in sh("nft list chain inet rp pre") and "accept" not in sh("nft list chain inet rp in").replace("policy accept", ""), "nothing else is opened"
    finally:
        sh("nft delete table inet rp", check=False)


CLONE = "-x 0x3d:ff1234567800020000ab11deadbeefdeadbeef"
"""The client id that systemd-networkd makes of a machine-id (RFC 4361)."""


def test_clones_with_one_machine_id(world: Paths, leases: None) -> None:
    """Two MACs, one client id, one address; the host hears now the one, now the other."""
    assert leased(seconds=20) != leased(G2, MAC2, seconds=20)
    address = leased(options=CLONE, seconds=20)
    assert address and leased(G2, MAC2, CLONE, 20) == address
    try:
        sh(f"ip -n {G1} addr add {address}/24 dev eth0; ip -n {G2} addr add {address}/24 dev eth0")
        for netns in (G1, G2):
            sh(f"ip -n {netns} neigh flush all")
        wait_until(lambda: pings(HOST, "-I", address, netns=G1), 20)
        facts = capture(world)
        sh(f"ip -n {G2} neigh flush all; ip netns exec {G2} ping -n -c 1 -W 0.4 -I {address} {HOST}", check=False)
        wait_until(lambda: MAC2 in sh(f"ip neigh show {address}"), 20)
        finding = next(f for f in examine(View(facts | {"later": later(facts, 0.01)})) if f.code not in MACHINE)
        assert finding.code == "address-moves" and address in finding.what and "machine-id" in finding.fix[0], finding
    finally:
        sh(f"for ns in {G1} {G2}; do ip -n $ns addr del {address}/24 dev eth0; ip -n $ns neigh flush all; done; ip neigh flush dev br0", check=False)


def test_frames_for_forgotten_machines_go_to_everybody(world: Paths) -> None:
    def overheard() -> bool:
        """Whether the second guest sees what the host sends to the first, which says nothing."""
        mark = os.urandom(8)
        with inside(G2):
            hears = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            hears.bind(("eth0", 3))
        with hears, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as speaks:
            speaks.bind(("br0", 0))
            hears.settimeout(20)
            for payload in (frames.ether(MAC1, HOST_MAC, 0x88B5, mark + bytes(40)), frames.ether(MAC2, HOST_MAC, 0x88B5, mark + b"last" + bytes(36))):
                speaks.send(payload)
            seen: list[bytes] = []
            while not seen or mark + b"last" not in seen[-1]:
                seen.append(hears.recv(2000))
        return any(f.startswith(frames.mac(MAC1)) and mark in f for f in seen)

    def forgotten() -> bool:
        return MAC1 not in sh("bridge fdb show br br0")
    try:
        wait_until(lambda: pings(HOST, netns=G1), 20)
        assert not overheard()
        sh("ip link set br0 type bridge ageing_time 100")
        wait_until(lambda: forgotten() and overheard(), 20)
        finding, = look(world)
        assert finding.code == "ageing-short" and finding.where == "br0"
        sh(finding.fix[0])
        wait_until(lambda: pings(HOST, netns=G1), 20)
        assert not overheard() and look(world) == ()
    finally:
        sh("ip link set br0 type bridge ageing_time 30000; ping -n -c 1 -W 0.4 10.66.0.11", check=False)


def test_a_mac_that_is_announced_before_its_guest_has_moved(world: Paths) -> None:
    """The host that the guest is to migrate to says that the guest is there already, again and again, while it still runs here."""
    early = frames.ether(frames.BROADCAST, MAC1, 0x0806, frames.arp(2, (MAC1, FIRST), (frames.BROADCAST, FIRST)))

    def announce() -> None:
        with inside(U):
            speaks = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            speaks.bind(("t4x", 0))
        with speaks:
            speaks.send(early)

    def at(port: str) -> bool:
        return f"{MAC1} dev {port} " in sh("bridge fdb show br br0")

    def reached() -> bool:
        """Whether the second guest reaches the first, which says nothing by itself."""
        return pings(FIRST, netns=G2)
    try:
        sh(f"ip addr flush dev u1; ip link set u1 master br0; ip -n {U} addr flush dev u0; ip -n {U} link add brU address 02:66:00:00:00:99 type bridge; ip -n {U} link set brU up; ip -n {U} link set u0 master brU;"
           f"ip -n {U} link add t4 type veth peer name t4x; ip -n {U} link set t4 master brU up; ip -n {U} link set t4x up; ip -n {G2} neigh replace {FIRST} lladdr {MAC1} dev eth0 nud permanent")
        wait_until(lambda: all("qdisc noop " not in (shown := sh(f"ip -n {U} link show {d}")) and "state UP" in shown for d in ("t4", "t4x", "u0")), 20)    # a carrier, and the queue that comes with it
        wait_until(lambda: pings(HOST, netns=G1) and at("p1") and reached(), 20)
        facts = capture(world)
        assert "mac-moves" not in {f.code for f in examine(View(facts | {"later": later(facts, 0.01)}))}
        announce()
        wait_until(lambda: at("u1"), 20)
        assert not reached()
        moved = next(f for f in examine(View(facts | {"later": later(facts, 0.01)})) if f.code not in MACHINE)
        assert moved.code == "mac-moves" and f"{MAC1} moved from p1 to u1" in moved.what, moved
        first = why(read(capture(world)), SECOND, f"p1@{FIRST}", Probe()).findings[0]
        assert first.code == "guest-learned-elsewhere" and "u1" in first.what, first
        cure = next(c for c in moved.fix if "TAP" in c)
        sh(f"ip netns exec {U} {cure.partition(': ')[2].replace('TAP', 't4')}")
        announce()
        wait_until(lambda: pings(HOST, netns=G1) and at("p1") and reached(), 20)
        facts = capture(world)
        announce()
        wait_until(reached, 20)
        assert [f for f in examine(View(facts | {"later": later(facts, 0.01)})) if f.code not in MACHINE] == []
    finally:
        sh(f"ip -n {G2} neigh flush nud permanent dev eth0; ip -n {U} link del brU; ip -n {U} link del t4; ip -n {U} addr replace {FAR}/24 dev u0; ip -n {U} route replace 10.66.0.0/24 via 10.77.0.2;"
           "ip link set u1 nomaster; ip addr replace 10.77.0.2/24 dev u1; ip route replace default via 10.77.0.1", check=False)


def test_a_guest_that_has_moved_here_and_was_not_announced(world: Paths) -> None:
    """The bridge has known it beyond the uplink, and it says nothing by itself yet."""
    mac = "02:66:00:00:00:21"

    def send(netns: str, dev: str, frame: bytes) -> None:
        with inside(netns):
            speaks = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            speaks.bind((dev, 0))
        with speaks:
            speaks.send(frame)

    def arrives() -> bool:
        """Whether what the second guest sends to it leaves by its tap; a broadcast behind it does."""
        mark = os.urandom(8)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as hears:
            hears.bind(("t1", 3))
            hears.settimeout(20)
            for target in (mac, frames.BROADCAST):
                send(G2, "eth0", frames.ether(target, MAC2, 0x88B5, mark + bytes(40)))
            seen = [hears.recv(2000)]
            while not (seen[-1].startswith(frames.mac(frames.BROADCAST)) and mark in seen[-1]):
                seen.append(hears.recv(2000))
        return any(f.startswith(frames.mac(mac)) and mark in f for f in seen)
    try:
        sh(f"ip addr flush dev u1; ip link set u1 master br0; ip tuntap add t1 mode tap; ip link set t1 address fe:66:00:00:00:21 master br0 up; ip -n {U} addr flush dev u0")
        with Held("t1", "-name", "web1", "-netdev", "tap,id=n0,ifname=t1,script=no,vhost=on", "-device", f"virtio-net-pci,netdev=n0,mac={mac}"):
            wait_until(lambda: look(world) == () and arrives(), 20)
            send(U, "u0", frames.ether(frames.BROADCAST, mac, 0x88B5, bytes(46)))     # as it was, before it came
            wait_until(lambda: f"{mac} dev u1 " in sh("bridge fdb show br br0"), 20)
            assert not arrives()
            finding, = look(world)
            assert finding.code == "guest-learned-elsewhere" and finding.where == "u1" and "behind t1" in finding.what
            sh(finding.fix[0])
            assert arrives() and look(world) == ()
    finally:
        sh(f"ip link del t1; ip link set u1 nomaster; ip addr replace 10.77.0.2/24 dev u1; ip route replace default via {FAR}; ip -n {U} addr replace {FAR}/24 dev u0; ip -n {U} route replace 10.66.0.0/24 via 10.77.0.2", check=False)


def test_a_device_that_no_iommu_lets_go(world: Paths) -> None:
    """What QEMU says when it is to have a PCI device of this machine, and what the machine shows of the cause."""
    device = next(iter(sorted(d.name for d in Path("/sys/bus/pci/devices").iterdir())), "")
    if not device or any(Path("/sys/kernel/iommu_groups").glob("*")):
        pytest.skip("for machines with PCI and without an IOMMU")
    said = subprocess.run(["qemu-system-x86_64", "-M", "q35", "-display", "none", "-nodefaults", "-S", "-device", f"vfio-pci,host={device}"], capture_output=True, text=True, check=False, timeout=60).stderr
    answer = explain(said.strip(), View(capture(world)))
    assert answer and answer.entry.name == "vfio: no iommu_group found", said
    first = answer.causes[0]
    assert first.what == "the IOMMU is off" and first.holds is Holds.SEEN and any("iommu=on" in c for c in first.cure), answer


def test_a_gateway_whose_mac_is_that_of_a_guest_that_ends(world: Paths) -> None:
    gateway, low = "10.80.0.1", "ip link add low address 00:66:00:00:00:01 type veth peer name lowx; ip link set low master br1 up; ip link set lowx up"

    def works() -> bool:
        return pings(gateway, netns=G1)
    try:
        sh(f"ip link add br1 type bridge; ip link add p8 address 02:66:00:00:00:88 type veth peer name eth8 netns {G1}; ip link set p8 master br1 up; ip addr add {gateway}/24 dev br1; ip link set br1 up; {low};"
           f"ip -n {G1} link set eth8 up; ip -n {G1} addr add 10.80.0.8/24 dev eth8")
        wait_until(works, 20)
        sh("ip link del low")
        assert not works()
        finding, = look(world)
        assert finding.code == "bridge-mac-floats" and finding.where == "br1"
        sh(f"{finding.fix[0]}; ip -n {G1} neigh flush dev eth8; {low}")    # the guest's entry ends by itself, in half a minute
        wait_until(works, 20)
        sh("ip link del low")
        assert "02:66:00:00:00:88" in sh("ip link show br1")      # that it is pinned says /sys, which shows another namespace here
        wait_until(works, 20)
    finally:
        sh("ip link del low; ip link del p8; ip link del br1", check=False)
