"""An uplink whose router is a real dnsmasq: advertisements with a lifetime of 10 s, and DHCP."""
from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Link
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Absent, Key, Resource
from kvmnet.errors import ConflictError
from kvmnet.facts.collect import facts_of
from kvmnet.host.clock import wait_until
from kvmnet.host.paths import Paths
from kvmnet.modes.uplink import take_uplink
from lib.frames import ICMP6, ether, icmp6, ip6, multicast_mac
from lib.netns import named_netns, sh

pytestmark = [pytest.mark.daemon, pytest.mark.net]

NIC, BRIDGE, ISP = "eth9", "kvb-lan", f"dns{os.getpid()}"
SCRIPT = """#!/bin/sh
[ "$1" = bound ] && ip addr add "$ip/$mask" dev "$interface" valid_lft "$lease" preferred_lft "$lease"
exit 0
"""


@contextmanager
def daemon(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def router(netns: None, tmp_path: Path) -> Iterator[str]:
    """The far end of the host's NIC, with dnsmasq for both families."""
    with named_netns(ISP) as name:
        sh(f"ip link add {NIC} type veth peer name isp0 netns {name} && ip link set {NIC} up && "
           f"ip -n {name} link set isp0 up && ip -n {name} addr add 10.50.0.1/24 dev isp0 && "
           f"ip -n {name} addr add 2001:db8:77::1/64 dev isp0 nodad && "
           f"ip netns exec {name} sysctl -qw net.ipv6.conf.isp0.forwarding=1")
        with daemon("ip", "netns", "exec", name, "dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0",
                    "--interface=isp0", "--bind-interfaces", "--enable-ra", "--dhcp-range=2001:db8:77::,ra-only,64,120",
                    "--ra-param=isp0,4,10", "--dhcp-range=10.50.0.100,10.50.0.120,2m", "--user=root",
                    f"--dhcp-leasefile={tmp_path}/leases", f"--pid-file={tmp_path}/pid"):
            yield name


def default_by(dev: str) -> bool:
    """Whether a default route from an advertisement stands on *dev* and has not run out."""
    return any(f"dev {dev} proto ra" in line and "expires -" not in line
               for line in sh("ip -6 route show default").splitlines())


def has_address(dev: str) -> bool:
    return "2001:db8:77:" in sh(f"ip -6 addr show dev {dev} scope global -tentative")


@contextmanager
def newcomers() -> Iterator[None]:
    """A machine that joins the segment every other second and asks for routers, from :: so that all hear the answer:
    in its first minute dnsmasq advertises each 5 to 19 s by itself (new_timeout() in radv.c), whatever it was told."""
    over = threading.Event()
    frame = ether(multicast_mac("ff02::2"), "02:00:00:00:00:99", 0x86DD,
                  ip6("::", "ff02::2", ICMP6, icmp6("::", "ff02::2", 133, bytes(4))))
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((NIC, 0))

        def ask() -> None:
            while not over.wait(2):
                wire.send(frame)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield
        finally:
            over.set()
            asking.join()


@pytest.mark.usefixtures("router")
def test_the_default_route_outlives_a_router_lifetime_of_10_s(paths: Paths) -> None:
    wait_until(lambda: has_address(NIC) and default_by(NIC), 30, 0.1)
    driver = LinuxDriver()
    facts = facts_of(driver.observe({}), paths, uplinks=[NIC])
    nic = facts.state[Key("link", NIC)]
    assert isinstance(nic, Link)
    resources, borrowed, _ = take_uplink(NIC, BRIDGE, facts)
    bridge = replace(Link(name=BRIDGE), type="bridge", mac=nic.mac, mtu=nic.mtu, up=True, master="", stp=False,
                     forward_delay=0, alias="kvmnet network lan")
    wanted: dict[Key, Resource | Absent] = {r.key: r for r in (bridge, *resources)}
    seen = driver.observe(wanted)
    driver.apply(plan(seen.state, wanted, seen.ours, borrowed), lambda _: None)
    assert has_address(BRIDGE) and default_by(BRIDGE) and not default_by(NIC)
    since = time.monotonic()
    with pytest.raises(TimeoutError), newcomers():
        wait_until(lambda: not (has_address(BRIDGE) and default_by(BRIDGE)), 14, 0.1)
        pytest.fail(f"lost after {time.monotonic() - since:.1f} s: {sh('ip -6 route; ip -6 addr')}")


@pytest.mark.usefixtures("router")
def test_a_lease_of_a_living_client_is_refused_by_its_name(paths: Paths, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    with daemon("busybox", "udhcpc", "-f", "-i", NIC, "-s", str(script)) as client:
        wait_until(lambda: "10.50.0." in sh(f"ip -4 addr show dev {NIC}"), 20, 0.1)
        facts = facts_of(LinuxDriver().observe({}), paths, uplinks=[NIC])
        assert facts.dhcp_clients == {NIC: f"udhcpc, pid {client.pid}"}
        with pytest.raises(ConflictError, match=rf"renewed on {NIC} by udhcpc, pid {client.pid}"):
            take_uplink(NIC, BRIDGE, facts)
