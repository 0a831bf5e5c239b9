"""The tiny guest configures its cards by itself: DHCPv4, DHCPv6, router advertisements, MTU."""
from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmnet.drivers.qemu.driver import GuestNicDriver
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.plan import Create
from kvmnet.guests.accel import Accel
from kvmnet.guests.image import Image, build
from kvmnet.guests.launch import execute, start, stop
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.spec.guests import Vm
from lib.netns import sh

pytestmark = pytest.mark.guest

MAC, LATE = "52:54:00:aa:00:01", "52:54:00:aa:00:02"


def card(name: str, mac: str, model: str) -> GuestNic:
    virtio = model == "virtio"
    return GuestNic(name=f"auto/{name}", vm="auto", tap=f"kvt-auto-{name}", model=model, mac=mac, link=True,
                    host_mtu=0, queues=1, rx_ring=256 if virtio else 0, tx_ring=256 if virtio else 0,
                    packed=False, offloads=None, vhost=False, bootindex=-1, pci="")


@pytest.fixture(scope="module")
def dnsmasq(host: Paths, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("dnsmasq")
    sh("ip addr add fd00:9::1/64 dev br0 nodad")
    server = subprocess.Popen([
        "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--interface=br0",
        "--bind-interfaces", f"--dhcp-leasefile={folder}/leases", "--user=root", "--log-dhcp",
        "--dhcp-range=10.9.0.100,10.9.0.150,255.255.255.0,1h", f"--dhcp-host={MAC},10.9.0.77,[fd00:9::77],auto",
        "--dhcp-option=option:mtu,1420", "--dhcp-option=option:router,10.9.0.1",
        "--dhcp-option=option:classless-static-route,192.0.2.0/24,10.9.0.9,0.0.0.0/0,10.9.0.1",
        "--dhcp-range=fd00:9::1000,fd00:9::1fff,64,1h", "--enable-ra", "--domain=lan.test", "--ra-param=br0,4,60",
        f"--log-facility={folder}/log"], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="module")
def auto(host: Paths, dnsmasq: None) -> Iterator[Paths]:
    for name in ("nic0", "nic1"):
        sh(f"ip tuntap add kvt-auto-{name} mode tap; ip link set kvt-auto-{name} master br0 up")
    vm = Vm.model_validate({"nics": [{"network": "lan"}], "run": {"memory": "256M"}})
    try:
        start("auto", vm, [card("nic0", MAC, "virtio")], host, Accel("tcg", "tests"), lambda line: None)
        yield host
    finally:
        stop("auto", host, 0.1)


def until(paths: Paths, script: str, timeout: float = 30.0) -> None:
    """Until the script succeeds in the guest."""
    try:
        wait_until(lambda: execute("auto", script, paths).code == 0, timeout, 0.2)
    except TimeoutError:
        state = execute("auto", "ip addr; ip route; ip -6 route; cat /etc/resolv.conf /run/dhcp*.log", paths)
        raise AssertionError(f"{script}\n{state.out}{state.err}") from None


def test_a_card_gets_its_reserved_addresses(auto: Paths) -> None:
    dev = f"$(nic {MAC})"
    until(auto, f"ip -4 addr show dev {dev} | grep -q 'inet 10.9.0.77/24'")
    until(auto, f"ip -6 addr show dev {dev} | grep -q 'inet6 fd00:9::77/128'")
    until(auto, "ip -6 route | grep -q '^default via fe80::'")


def test_options_are_obeyed(auto: Paths) -> None:
    dev = f"$(nic {MAC})"
    until(auto, f"grep -qx 1420 /sys/class/net/{dev}/mtu")
    until(auto, "ip route | grep -q '^default via 10.9.0.1 '")
    until(auto, "ip route | grep -q '^192.0.2.0/24 via 10.9.0.9 '")
    until(auto, "grep -qx 'nameserver 10.9.0.1' /etc/resolv.conf")
    until(auto, "nslookup auto.lan.test 10.9.0.1 | grep -q 10.9.0.77")
    until(auto, "ping6 -c1 -W2 fd00:9::1")
    assert execute("auto", "hostname", auto).out == "auto\n"


def test_a_card_that_comes_later_is_configured_too(auto: Paths) -> None:
    GuestNicDriver(auto).apply([Create(card("nic1", LATE, "e1000e"))], lambda n: None)
    until(auto, f"d=$(nic {LATE}) && ip -4 addr show dev $d | grep -q 'inet 10.9.0.1[0-5]'")


def test_the_image_is_made_once(tiny: Image, image_folder: Path) -> None:
    said: list[str] = []
    again = build(Paths(image_folder, image_folder), said.append)
    assert again == tiny or (again.kernel == tiny.kernel and not said)
    assert tiny.kernel.read_bytes()[:4] == b"\x7fELF", "QEMU boots the unpacked kernel by PVH"
    assert not list(image_folder.glob("work-*")), "no packages are left lying about"
