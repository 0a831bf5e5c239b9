"""A NIC of the host joins a bridge: nothing is lost on the way, minutes later, or on the way back."""
from __future__ import annotations

import contextlib
import difflib
import json
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import Link, Route
from kvmnet.engine.borrow import Original, release, remaining, remember
from kvmnet.engine.driver import StepFailed
from kvmnet.engine.plan import Step, before_image, plan
from kvmnet.engine.resource import Absent, Key, Resource, Wanted
from kvmnet.errors import ConflictError
from kvmnet.facts.model import Facts
from kvmnet.host.clock import wait_until
from kvmnet.modes.forwarding import every_device
from kvmnet.modes.uplink import take_uplink, uplink_sysctls
from lib.netns import named_netns, sh
from lib.router import advertising, watching

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]

NIC, BRIDGE, ISP = "eth9", "kvb-lan", f"isp{os.getpid()}-{secrets.token_hex(2)}"
PREFIX = "2001:db8:77::/64"
MOMENT = 2.5
"""Seconds: the move itself takes milliseconds; a question for a neighbour that is lost in it is asked again after one."""
"""Seconds that a move may be felt on a busy machine: less than a neighbour that has to be asked for again costs. (Alone: 1 ms.)"""


@pytest.fixture
def isp(netns: None) -> Iterator[str]:
    """The far end of the host's NIC, with an address of each family."""
    with named_netns(ISP) as name:
        sh(f"ip link add {NIC} type veth peer name isp0 netns {name} && ip link set {NIC} up && "
           f"ip -n {name} link set isp0 up && ip -n {name} addr add 10.50.0.1/24 dev isp0 && "
           f"ip -n {name} addr add 2001:db8:50::1/64 dev isp0 nodad && sysctl -qw net.ipv6.conf.{NIC}.accept_dad=0 &&"
           f"ip netns exec {name} sysctl -qw net.ipv6.conf.isp0.forwarding=1")
        wait_until(lambda: "fe80" in sh(f"ip -n {name} -6 addr show dev isp0 -tentative"), 20)
        yield name


def statics() -> None:
    """Static addresses and routes of every sort that move."""
    sh(f"ip addr add 10.50.0.2/24 brd + dev {NIC} && ip addr add 10.50.0.3/24 dev {NIC} label {NIC}:1 && "
       f"ip addr add 10.60.0.2/32 dev {NIC} && ip addr add 2001:db8:50::2/64 dev {NIC} nodad && "
       f"ip route add default via 10.50.0.1 proto static mtu 1400 && "
       f"ip route add 10.71.0.0/16 via 10.72.0.1 dev {NIC} onlink metric 7 && "
       f"ip route add default via 10.50.0.1 table 100 src 10.50.0.3 && ip rule add iif {NIC} table 100 && "
       f"ip -6 route add 2001:db8:99::/48 via 2001:db8:50::1 dev {NIC} metric 50")


@dataclass
class Host:
    """The parts of a transaction that matter here: what is wanted, what is lent."""

    driver: LinuxDriver = field(default_factory=lambda: LinuxDriver(uplink_sysctls(NIC, BRIDGE)))
    originals: dict[Key, Original] = field(default_factory=dict)

    def facts(self) -> Facts:
        return Facts(state=self.driver.observe({}).state, rules=tuple(sh("ip rule").splitlines()))

    def compile(self) -> tuple[dict[Key, Resource | Absent], set[Key], list[str]]:
        facts = self.facts()
        nic = facts.state[Key("link", NIC)]
        assert isinstance(nic, Link)
        resources, borrowed, notes = take_uplink(NIC, BRIDGE, facts)
        bridge = Link(name=BRIDGE, type="bridge", mac=nic.mac, mtu=nic.mtu, up=True, master="", stp=False,
                      forward_delay=0, alias="kvmnet network lan")
        return {r.key: r for r in (bridge, *resources)}, borrowed, notes

    def apply(self, wanted: Wanted, borrowed: set[Key]) -> tuple[Step, ...]:
        seen = self.driver.observe(wanted)
        lent = release(self.originals, wanted, seen.state)
        steps = plan(seen.state, lent.wanted, seen.ours, borrowed | lent.borrowed)
        self.originals = remember(self.originals, seen.state, steps, seen.ours, borrowed)
        self.driver.apply(steps, lambda _: None)
        after = self.driver.observe(wanted)
        left = plan(after.state, lent.wanted, after.ours, borrowed | lent.borrowed)
        assert left == (), [(s.key, getattr(s, "changes", "")) for s in left]
        self.originals = remaining(self.originals, wanted)
        return steps


def strip(text: str) -> list[Any]:
    """JSON of ``ip`` without lifetimes, counters and what follows from the order of making."""
    drop = {"valid_life_time", "preferred_life_time", "expires", "tentative", "operstate", "tso_max_size"}

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: clean(v) for k, v in value.items() if k not in drop and not k.endswith("timer")}
        if isinstance(value, list):
            alive = (v for v in value if not (isinstance(v, dict) and v.get("expires", 1) <= 0))
            return sorted((clean(v) for v in alive), key=lambda v: json.dumps(v, sort_keys=True))
        return value

    cleaned: list[Any] = clean(json.loads(text))
    return cleaned


def picture() -> list[Any]:
    return [strip(sh(f"ip -j -d {words}")) for words in
            ("addr", "-4 route show table main", "-6 route show table main", "rule")
            ] + [sh("ip -4 route show table 100", check=False)]


def test_static_addresses_and_routes_move_within_milliseconds_and_come_back(isp: str) -> None:
    statics()
    before, host = picture(), Host()
    wanted, borrowed, notes = host.compile()
    assert any("iif eth9" in n for n in notes)
    with watching(isp, "10.50.0.2") as gap4, watching(isp, "2001:db8:50::2") as gap6:
        wait_until(lambda: gap4.answers > 50 and gap6.answers > 50, 20)
        host.apply(wanted, borrowed)
        count4, count6 = gap4.answers, gap6.answers
        wait_until(lambda: gap4.answers > count4 + 50 and gap6.answers > count6 + 50, 20)
    print(f"\nlongest gap of the move: IPv4 {gap4.longest * 1000:.1f} ms, IPv6 {gap6.longest * 1000:.1f} ms")
    assert gap4.longest < MOMENT and gap6.longest < MOMENT
    shown = sh("ip route show table all; ip -6 route; ip addr show dev kvb-lan")
    for part in ("default via 10.50.0.1 dev kvb-lan proto static mtu 1400", "kvb-lan:1",
                 "default via 10.50.0.1 dev kvb-lan table 100", "src 10.50.0.3",
                 "10.71.0.0/16 via 10.72.0.1 dev kvb-lan metric 7 onlink",
                 "2001:db8:99::/48 via 2001:db8:50::1 dev kvb-lan metric 50", "10.60.0.2/32", "brd 10.50.0.255"):
        assert part in shown, part
    again, borrowed, _ = host.compile()
    assert host.apply(again, borrowed) == ()
    with watching(isp, "10.50.0.2") as gap4:
        wait_until(lambda: gap4.answers > 50, 20)
        host.apply({}, set())
        count4 = gap4.answers
        wait_until(lambda: gap4.answers > count4 + 50, 20)
    print(f"longest gap of the way back: {gap4.longest * 1000:.1f} ms")
    assert same(picture, before)


def test_a_failure_in_the_middle_of_the_move_is_undone(isp: str) -> None:
    statics()
    before, host = picture(), Host()
    wanted, borrowed, _ = host.compile()
    bad = Route(name="10.99.0.0/16 dev kvb-lan", dev=BRIDGE, dst="10.99.0.0/16", family=4, table="main", metric=0,
                via="172.31.0.1", src="", proto="static", flags=(), options="")
    wanted[bad.key] = bad
    seen = host.driver.observe(wanted)
    steps = plan(seen.state, wanted, seen.ours, borrowed)
    image = before_image(seen.state, steps, seen.ours)
    with pytest.raises(StepFailed):
        host.driver.apply(steps, lambda _: None)
    now = host.driver.observe(image)
    host.driver.apply(plan(now.state, image, now.ours & image.keys(), set(image)), lambda _: None)
    assert same(picture, before)


def global_address() -> str:
    """The autoconfigured address on the bridge or NIC."""
    found = [a for item in json.loads(sh("ip -j -6 addr")) for a in item.get("addr_info", ())
             if a.get("local", "").startswith("2001:db8:77:") and not a.get("tentative")]
    return str(found[0]["local"]) if found else ""


def ra_default(dev: str) -> bool:
    return f"dev {dev} proto ra" in sh("ip -6 route show default")


def test_advertised_addresses_and_routes_outlive_their_lifetime_on_the_bridge(isp: str) -> None:
    with advertising(isp, "isp0", PREFIX, lifetime=10):
        sh(f"ip addr add 10.50.0.2/24 dev {NIC}")
        address = wait_until(global_address, 20)
        wait_until(lambda: ra_default(NIC), 20)
        before, host = picture(), Host()
        wanted, borrowed, _ = host.compile()
        with watching(isp, address) as gap:
            sh(f"ip -n {isp} -6 route add {PREFIX} dev isp0")
            wait_until(lambda: gap.answers > 50, 20)
            host.apply(wanted, borrowed)
            count = gap.answers
            wait_until(lambda: gap.answers > count + 50, 20)
            moved = gap.longest
            deadline = 16.0
            with pytest.raises(TimeoutError):
                wait_until(lambda: global_address() != address or not ra_default(BRIDGE), deadline, 0.2)
        print(f"\nlongest gap of an advertised address: {moved * 1000:.1f} ms, in the {deadline:g} s "
              f"after it: {gap.longest * 1000:.1f} ms")
        assert moved < MOMENT and gap.longest < 5 and global_address() == address and ra_default(BRIDGE)
        assert not ra_default(NIC) and "2001:db8:77" not in sh(f"ip -6 route show dev {NIC}")
        again, borrowed, _ = host.compile()
        assert host.apply(again, borrowed) == ()
        host.apply({}, set())
        assert global_address() == address and ra_default(NIC)
        assert same(picture, before)
        with pytest.raises(TimeoutError):
            wait_until(lambda: global_address() != address or not ra_default(NIC), 12, 0.2)


def test_without_the_move_of_lifetimes_the_address_would_die(isp: str) -> None:
    """The control: the same NIC in a bridge that nobody prepared loses its advertised address."""
    with advertising(isp, "isp0", PREFIX, lifetime=6, every=2):
        wait_until(global_address, 20)
        sh(f"ip link add br0 type bridge && sysctl -qw net.ipv6.conf.br0.accept_ra=0 && ip link set br0 up && "
           f"ip link set {NIC} master br0")
        wait_until(lambda: not global_address(), 20, 0.2)


def test_ipv6_forwarding_keeps_the_advertised_default_route(isp: str) -> None:
    with advertising(isp, "isp0", PREFIX, lifetime=10):
        wait_until(lambda: global_address() and ra_default(NIC), 20)
        driver = LinuxDriver()
        settings = every_device(Facts(state=driver.observe({}).state), exempt=())
        wanted: dict[Key, Resource | Absent] = {s.key: s for s in settings}
        seen = driver.observe(wanted)
        steps = plan(seen.state, wanted, seen.ours, set(wanted))
        assert [s.key.name for s in steps] == [f"net/ipv6/conf/{NIC}/accept_ra", "net/ipv6/conf/all/forwarding"]
        driver.apply(steps, lambda _: None)
        assert ra_default(NIC)
        with pytest.raises(TimeoutError):
            wait_until(lambda: not ra_default(NIC) or not global_address(), 12, 0.2)


def test_ipv6_forwarding_alone_loses_it(isp: str) -> None:
    with advertising(isp, "isp0", PREFIX, lifetime=10):
        wait_until(lambda: global_address() and ra_default(NIC), 20)
        sh("sysctl -qw net.ipv6.conf.all.forwarding=1")
        assert not ra_default(NIC)


def test_an_address_from_dhcp_is_refused_and_its_daemon_named(isp: str) -> None:
    sh(f"ip addr add 10.50.0.9/24 dev {NIC} valid_lft 600 preferred_lft 600")
    facts = Facts(state=LinuxDriver().observe({}).state, dhcp_clients={NIC: "dhclient, pid 812"})
    with pytest.raises(ConflictError, match=r"10\.50\.0\.9/24 comes from DHCP.*by dhclient, pid 812") as refused:
        take_uplink(NIC, BRIDGE, facts)
    assert "bridge: NAME" in refused.value.hint


def test_an_existing_bridge_is_used_and_nothing_of_it_changes() -> None:
    sh("ip link add br0 type bridge && ip link set br0 mtu 1450 up && ip addr add 10.90.0.1/24 dev br0 &&"
       "ip link add eth7 address 02:00:00:00:00:07 type veth peer name eth6 && ip link set eth6 up &&"
       "ip link set eth7 master br0 mtu 1450 up && ip route add default via 10.90.0.254")
    before = settled()
    tap = Link(name="kvt-a-0", type="tap", mtu=1450, up=True, master="br0", alias="kvmnet nic a/nic0",
               addrgenmode="none", isolated=False, multi_queue=False, user=-1,
               mac="fe:00:00:00:00:01")  # a lower one would become the bridge's own
    host = Host()
    host.apply({tap.key: tap}, set())
    assert "master br0" in sh("ip link show kvt-a-0")
    assert same(lambda: settled("kvt-a-0"), before)
    host.apply({}, set())
    assert same(settled, before)


def settled(without: str = "") -> list[Any]:
    """The host's picture without one link."""
    return [[i for i in part if i.get("ifname") != without] if isinstance(part, list) else part
            for part in picture()]


def same(look: Callable[[], list[Any]], before: list[Any]) -> bool:
    """Whether the picture is as it was, once carriers have been told; prints what differs."""
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: look() == before, 20, 0.2)
    old, new = (json.dumps(p, indent=1, sort_keys=True).splitlines() for p in (before, look()))
    changed = list(difflib.unified_diff(old, new, "before", "now", lineterm="", n=4))
    print("\n".join(changed))
    return not changed
