"""import of a running host: what exists, whose it is, and a document whose plan is empty."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmnet.adopt.importing import import_host
from kvmnet.adopt.model import Outcome, Source
from kvmnet.adopt.sources import FORMATS
from kvmnet.api import Host
from kvmnet.host.paths import Paths
from kvmnet.spec.load import loads
from lib.netns import sh
from lib.tap import Tap
from lib.world import HOST, HOST6, ROUTER, ROUTER6, snapshot, steady, unchanged, world

pytestmark = pytest.mark.net

HOLD = """
import fcntl, os, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))
os.dup2(fd, 33)
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(tap: str, *words: str, program: Path) -> Iterator[int]:
    """A process named like QEMU that holds *tap* open as descriptor 33."""
    if not program.exists():
        program.symlink_to(sys.executable)
    process = subprocess.Popen([program, "-c", HOLD, tap, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kvmnet.cli.main", *words], capture_output=True, text=True,
                          check=False, timeout=60)


def foreign_host() -> None:
    """An uplink, the host's bridge with an address, and bridges of libvirt and Docker."""
    sh("ip link add wan0 type veth peer name far0; ip addr add 192.0.2.2/24 dev wan0; ip link set wan0 mtu 1400 up; "
       "ip link set far0 up; ip route add default via 192.0.2.1")
    sh("ip link add br0 type bridge forward_delay 0; ip addr add 198.51.100.2/24 dev br0; ip link set br0 up")
    sh("ip link add virbr0 type bridge; ip addr add 192.168.122.1/24 dev virbr0")
    sh("ip link add br-0123456789ab type bridge; ip link add veth9 type veth peer name ceth9; "
       "ip link set veth9 master br-0123456789ab")
    sh("nft add table ip filter; sysctl -qw net.ipv4.ip_forward=1")


def test_a_foreign_bridge_with_a_guest_of_somebody_elses(netns: None, paths: Paths, tmp_path: Path) -> None:
    foreign_host()
    with holding("vnet0", "-name", "guest=web1,debug-threads=on", "-uuid", "1234", "-netdev",
                 '{"type":"tap","fd":"33","id":"n0"}', "-device",
                 "virtio-net-pci,netdev=n0,mac=52:54:00:AA:BB:01", program=tmp_path / "qemu-system-x86_64") as pid:
        sh("ip link set vnet0 master br0 up")
        steady()
        before = snapshot()
        found = import_host(Host(paths))
        unchanged(before)  # import only reads
        assert f"vnet0: QEMU, pid {pid}, uuid 1234" in found.text
        assert 'web1: {nics: [{network: br0, model: virtio, mac: "52:54:00:aa:bb:01"}]}' in found.text
    spec = loads(found.text).spec
    assert {n: (u.device, u.mtu) for n, u in spec.uplinks.items()} == {"wan0": ("wan0", 1400)}
    assert {n: (w.mode.value, w.bridge) for n, w in spec.networks.items()} == {"br0": ("bridge", "br0")}
    words = {e.path: (e.outcome, e.words) for e in found.elements}
    assert words["link virbr0"] == (Outcome.FOREIGN, "bridge of libvirt")
    assert words["link br-0123456789ab"] == (Outcome.FOREIGN, "bridge of Docker")
    assert words["link veth9"][0] is Outcome.FOREIGN
    assert words["nft-table ip filter"][0] is Outcome.FOREIGN
    assert words["address wan0 192.0.2.2/24"] == (Outcome.MAPPED, "uplinks.wan0.addresses")
    assert words["route default dev wan0"] == (Outcome.MAPPED, "uplinks.wan0.routes or gateway")
    assert words["address br0 198.51.100.2/24"][0] is Outcome.KEPT
    assert words["sysctl net/ipv4/ip_forward"][0] is Outcome.KEPT
    assert found.changes == ()


def test_every_thing_that_is_seen_is_an_element(netns: None, paths: Paths) -> None:
    foreign_host()
    sh("ip tuntap add mode tun name tun9")
    host = Host(paths)
    found = import_host(host)
    told = {e.path for e in found.elements}
    seen = {str(k) for k in host.engine.observe({}).state if k.kind in ("link", "address", "route", "nft-table")}
    assert seen <= told, seen - told
    assert "link tun9" in {e.path for e in found.of(Outcome.UNSUPPORTED)}


def test_a_host_with_uplinks_only_has_an_empty_plan(netns: None, paths: Paths, tmp_path: Path) -> None:
    sh("ip link add wan0 type veth peer name far0; ip addr add 192.0.2.2/24 dev wan0; ip link set wan0 mtu 1400 up")
    file = tmp_path / "host.yaml"
    done = cli("import", "-o", str(file))
    assert done.returncode == 0 and "nothing to do" in done.stderr, done.stderr
    assert cli("plan", str(file)).returncode == 0
    sh("ip link set wan0 mtu 1450")
    assert cli("plan", str(file)).returncode == 2, "the plan is empty because the document is right, not by chance"


def test_a_tap_that_no_qemu_holds(netns: None, paths: Paths) -> None:
    sh("ip link add br0 type bridge")
    with Tap("tap7"):
        sh("ip link set tap7 master br0")
        found = import_host(Host(paths))
    element = next(e for e in found.elements if e.path == "link tap7")
    assert f"pid {os.getpid()}" in element.words and "on br0" in element.words


DOCUMENT = """
version: 1
uplinks:
  wan: {device: eth0}
networks:
  lan:
    mode: nat
    uplink: wan
    subnet: 192.168.100.0/24
    subnet6: fd00:100::/64
    mtu: 1400
    allow: [{port: 2222}]
    neigh_suppress: true
    dhcp: {lease: 1h}
    forwards: [{port: 8080, to: web, to_port: 80}, {port: 8081, to: web, to_port: 80, address: 192.0.2.2}]
  public: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, limits: {receive: {syn: 5/s}}}
  lab: {mode: isolated, subnet: 10.10.0.0/24, peers: [store], stp: true, stp_options: {priority: 4096, hello: 1}, querier: true}
  store: {mode: isolated, subnet: 10.10.1.0/24, dhcp: {enabled: false}, dns: {enabled: false}, ra: "off", snooping: false}
vms:
  web:
    nics:
      - {network: lan, ip: 192.168.100.10}
      - {network: lab, guard: mac, trunk: [10, 20]}
  app: {nics: [{network: lan, mtu: 1300, extra: {addresses: [192.168.100.77, 192.168.100.128/28]},
                limits: {send: {packets: 500/s, concurrent: 50}, storms: {unknown: 9/s}, burst: 4}}]}
  srv: {nics: [{network: public, isolated: true}, {network: store, guard: "off"}]}
"""


def test_an_applied_document_is_what_import_writes() -> None:
    with world() as net:
        net.apply(DOCUMENT)
        found = import_host(net.host)
        assert found.text == DOCUMENT and found.origin.startswith("revision ")
        assert found.changes == ()


def test_without_its_history_the_document_is_read_back() -> None:
    with world() as net:
        net.apply(DOCUMENT)
        assert net.drift() == []
        with lost_history(net.paths):
            found = import_host(Host(net.paths))
            assert found.origin == "marks on this host"
            assert found.changes == (), (found.changes, found.text)
            sh("ip link set kvb-lan type bridge no_linklocal_learn 0")
            assert import_host(Host(net.paths)).changes == ("update link kvb-lan",), "a difference is seen"
            sh("ip link set kvb-lan down")  # takes its IPv6 address with it: the guests' are outside of everything then
            broken = import_host(Host(net.paths))
            assert broken.changes is None and broken.of(Outcome.UNSUPPORTED)
            assert "kvmnet would refuse" in broken.text
            spec = loads(found.text).spec
            assert spec.vms["web"].nics[0].ip == "192.168.100.10"
            assert spec.networks["lan"].mode == "nat" and len(spec.networks["lan"].forwards) == 2


BRIDGED = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  office: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1}
  old: {mode: bridge, bridge: br7}
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, address: 192.168.100.254, dns: {upstream: [9.9.9.9], domain: corp.example}}
vms:
  a: {nics: [{network: office, ip: 192.0.2.50}, {network: old, mac: "52:54:00:00:00:07", ip: none, ip6: none}]}
  b: {owner: nobody, nics: [{network: lan, hostname: bee}]}
"""


def test_bridges_on_the_uplink_and_adopted_ones_are_read_back_and_exported() -> None:
    with world() as net:
        sh("ip link add br7 type bridge; ip link set br7 up")
        net.apply(BRIDGED)
        assert net.drift() == []
        done = cli("export", "--to", "netplan")
        assert done.returncode == 0, done.stderr
        layout = FORMATS["netplan"].parse([Source("x", done.stdout)])
        assert [(b.name, b.ports) for b in layout.bridges] == [("br-office", ("eth0",))]
        assert {(a.dev, a.cidr) for a in layout.addresses} == {("br-office", f"{HOST}/24"), ("br-office", f"{HOST6}/64")}
        assert {(r.dev, r.dst, r.via) for r in layout.routes} == {
            ("br-office", "0.0.0.0/0", ROUTER), ("br-office", "::/0", ROUTER6)}
        with lost_history(net.paths):
            found = import_host(Host(net.paths))
            assert found.changes == (), (found.changes, found.text)
            spec = loads(found.text).spec
            assert {n: w.mode.value for n, w in spec.networks.items()} == {"office": "bridge", "br7": "bridge", "lan": "nat"}


MACVTAPS = """
version: 1
uplinks: {wan: {device: eth0}, spare: {device: eth1}}
networks:
  office: {mode: macvtap, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, address: 192.0.2.250, pool: 192.0.2.100-192.0.2.150, allow: [{port: 8080}]}
  far: {mode: macvtap, macvtap: private, uplink: spare, subnet: 10.5.0.0/24}
vms:
  a: {nics: [{network: office, ip: 192.0.2.50}, {network: far, ip: 10.5.0.2, guard: mac}]}
  b: {owner: nobody, nics: [{network: office, hostname: bee}]}
"""


def test_macvtaps_are_read_back() -> None:
    with world() as net:
        sh("ip link add eth1 type veth peer name far; ip link set eth1 up; ip link set far up")
        net.apply(MACVTAPS)
        assert net.drift() == []
        with lost_history(net.paths):
            found = import_host(Host(net.paths))
            assert found.changes == (), (found.changes, found.text)
            spec = loads(found.text).spec
            assert {n: w.macvtap.value for n, w in spec.networks.items() if w.macvtap} == {"office": "bridge", "on-eth1": "private"}
            assert spec.vms["b"].owner == "nobody"


@contextmanager
def lost_history(paths: Paths) -> Iterator[None]:
    lost = paths.database.with_name("lost")
    paths.database.rename(lost)
    try:
        yield
    finally:
        paths.database.unlink(missing_ok=True)
        lost.rename(paths.database)


@pytest.mark.parametrize("target", ["netplan", "networkd", "nmstate"])
def test_what_is_exported_is_imported_again(netns: None, paths: Paths, tmp_path: Path, target: str) -> None:
    sh("ip link add wan0 type veth peer name far0; ip addr add 192.0.2.2/24 dev wan0; ip link set wan0 mtu 1400 up; "
       "ip link set far0 up; ip route add default via 192.0.2.1 metric 50")
    file = tmp_path / "host.yaml"
    file.write_text("version: 1\nuplinks: {wan: {device: wan0, mtu: 1400}}\nnetworks: {office: {mode: bridge, uplink: wan}}\n")
    done = cli("export", "--to", target, "-o", str(tmp_path / "etc"), str(file))
    assert done.returncode == 0, done.stderr
    back = cli("import", "--from", target, "--json", str(tmp_path / "etc"))
    assert back.returncode == 0, back.stderr
    data = json.loads(back.stdout)
    assert not data["unsupported"]
    assert loads(data["document"]).spec.networks["br-office"].bridge == "br-office"
    layout = FORMATS[target].parse([*map(source, sorted((tmp_path / "etc").iterdir()))])
    assert [a.cidr for a in layout.addresses] == ["192.0.2.2/24"]
    assert [(r.dst, r.via, r.metric) for r in layout.routes] == [("0.0.0.0/0", "192.0.2.1", 50)]


def source(file: Path) -> Source:
    return Source(str(file), file.read_text())


def test_a_wrong_call_says_what_to_do(netns: None, paths: Paths) -> None:
    done = cli("import", "/etc/netplan")
    assert done.returncode == 1 and "--from netplan" in done.stderr
    done = cli("export", "--to", "netplan")
    assert done.returncode == 1 and "Traceback" not in done.stderr
