"""The Linux driver on the real kernel, in a namespace of its own."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from kvmnet.drivers.linux.driver import LinuxDriver
from kvmnet.drivers.linux.resources import (
    Address,
    Link,
    ProxyNeighbour,
    Route,
    Sysctl,
    address_name,
    proxy_name,
    route,
)
from kvmnet.engine.driver import Seen, StepFailed
from kvmnet.engine.plan import Step, before_image, plan
from kvmnet.engine.resource import Absent, Key, Resource, Wanted
from lib.netns import sh

pytestmark = [pytest.mark.net, pytest.mark.usefixtures("netns")]

DRIVER = LinuxDriver()


def done(_: int) -> None:
    """Progress that nobody watches."""


def wanted(*resources: Resource | Absent) -> dict[Key, Resource | Absent]:
    return {r.key: r for r in resources}


def converge(want: Wanted, borrowed: frozenset[Key] = frozenset()) -> tuple[Step, ...]:
    """Plan and apply *want*, and see that nothing is left to do."""
    seen = DRIVER.observe(want)
    steps = plan(seen.state, want, seen.ours, borrowed)
    DRIVER.apply(steps, done)
    again = DRIVER.observe(want)
    left = plan(again.state, want, again.ours, borrowed)
    assert left == (), [(s.key, getattr(s, "changes", "")) for s in left]
    return steps


def restore(image: Wanted) -> None:
    """Plan back to *image*; what it does not name is left alone."""
    seen = DRIVER.observe(image)
    DRIVER.apply(plan(seen.state, image, seen.ours & image.keys()), done)


def bridge(name: str = "kvb-a", **settings: object) -> Link:
    return replace(Link(name=name, type="bridge", mtu=1400, mac="02:00:00:00:00:01", up=True, master="",
                        alias="kvmnet network a", stp=False, forward_delay=0, addrgenmode="none",
                        nf_call_iptables=False), **settings)


def tap(name: str = "kvt-a-0", **settings: object) -> Link:
    return replace(Link(name=name, type="tap", mtu=1400, up=True, master="kvb-a", guard=name, keeper="bridge hold",
                        alias="kvmnet nic a/nic0", multi_queue=False, user=-1, addrgenmode="none", isolated=False,
                        learning=True, flood=True, mcast_flood=True, hairpin=False, bpdu_guard=False,
                        neigh_suppress=False), **settings)


def host_address(cidr: str = "192.168.1.1/24", dev: str = "kvb-a", **settings: object) -> Address:
    v4 = ":" not in cidr
    return replace(Address(name=address_name(dev, cidr), dev=dev, scope="global", label=dev if v4 else "",
                           broadcast="", peer="", flags=() if v4 else ("nodad",), dynamic=""), **settings)


def test_a_network_with_everything_converges_and_destroy_leaves_nothing() -> None:
    empty = DRIVER.observe({}).state
    converge(wanted(
        bridge(), tap(), tap("kvt-b-0", isolated=True, multi_queue=True, user=65534, flood=False),
        host_address(), host_address("2001:db8::1/64"),
        route("10.9.0.0/16", dev="kvb-a", via="192.168.1.9"), route("default", dev="kvb-a", via="192.168.1.2"),
        route("2001:db8:9::/48", dev="kvb-a", via="2001:db8::9", table="100", metric=7),
        route("default", dev="kvb-a", via="fe80::1"),
        ProxyNeighbour(name=proxy_name("kvb-a", "192.168.1.77"), dev="kvb-a", address="192.168.1.77"),
        Sysctl(name="net/ipv6/conf/kvb-a/accept_ra", value="0", dev="kvb-a")))
    assert "isolated on" in sh("bridge -d link show dev kvt-b-0")
    assert "proto 87" in sh("ip route show default")
    converge({})
    assert DRIVER.observe({}).state == empty


CHANGES: Mapping[str, Callable[[], list[Resource]]] = {
    "bridge mtu": lambda: [bridge(mtu=1300), tap(mtu=1300)],
    "bridge mac": lambda: [bridge(mac="02:00:00:00:00:09"), tap()],
    "stp": lambda: [bridge(stp=True, forward_delay=1500), tap()],
    "netfilter": lambda: [bridge(nf_call_iptables=True), tap()],
    "alias": lambda: [bridge(alias="kvmnet network other"), tap(alias='kvmnet nic a/x "quoted"')],
    "guard": lambda: [bridge(), tap(guard="", keeper="")],
    "port down": lambda: [bridge(), tap(up=False)],
    "detached": lambda: [bridge(), tap(master="", isolated=None, learning=None, flood=None, mcast_flood=None,
                                       hairpin=None, bpdu_guard=None, neigh_suppress=None)],
    "port flags": lambda: [bridge(), tap(isolated=True, learning=False, hairpin=True, bpdu_guard=True,
                                         neigh_suppress=True)],
    "queues": lambda: [bridge(), tap(multi_queue=True)],
    "owner": lambda: [bridge(), tap(user=1)],
    "txqlen": lambda: [bridge(), tap(txqlen=500)],
    "another bridge": lambda: [bridge(), bridge("kvb-b", mac="02:00:00:00:00:02"), tap(master="kvb-b", isolated=True)],
    "nothing": list,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_converges_and_its_before_image_restores(change: str) -> None:
    start = wanted(bridge(), tap())
    converge(start)
    seen = DRIVER.observe(start)
    steps = converge(wanted(*CHANGES[change]()))
    restore(before_image(seen.state, steps, seen.ours))
    assert DRIVER.observe(start).state == seen.state


def test_ports_come_back_with_their_flags_when_their_bridge_is_made_again() -> None:
    isolated = tap(isolated=True)
    converge(wanted(bridge(), isolated))
    sh("ip link del kvb-a")
    converge(wanted(bridge(), isolated))
    assert "isolated on" in sh("bridge -d link show dev kvt-a-0")


def test_foreign_things_are_seen_as_foreign() -> None:
    sh("ip link add eth9 type veth peer name eth8; ip link add br7 type bridge; ip link set br7 up;"
       "ip addr add 10.5.0.1/24 dev br7; ip route add 10.6.0.0/16 via 10.5.0.9; ip neigh add proxy 10.5.0.3 dev br7")
    before = DRIVER.observe({})
    assert {"link br7", "address br7 10.5.0.1/24", "route 10.6.0.0/16 dev br7", "proxy-neighbour br7 10.5.0.3"} \
        <= {str(k) for k in before.state}
    assert not before.ours
    converge(wanted(bridge(), tap()))
    converge({})
    assert DRIVER.observe({}).state == before.state


def test_a_failing_line_names_its_resource_and_says_what_the_kernel_said() -> None:
    with pytest.raises(StepFailed) as failed:
        converge(wanted(bridge(), tap(mtu=99999)))
    assert failed.value.key == Key("link", "kvt-a-0")
    assert "mtu greater than device maximum" in failed.value.detail and failed.value.hint


def test_a_gateway_out_of_reach_is_explained() -> None:
    with pytest.raises(StepFailed) as failed:
        converge(wanted(bridge(), host_address(), route("10.0.0.0/8", dev="kvb-a", via="172.16.0.1")))
    assert failed.value.key == Key("route", "10.0.0.0/8 dev kvb-a") and "add an address" in failed.value.hint


def test_a_deleted_thing_that_is_gone_already_is_no_failure() -> None:
    converge(wanted(bridge(), tap(), tap("kvt-b-0")))
    seen = DRIVER.observe({})
    steps = plan(seen.state, {}, seen.ours)
    sh("ip link del kvt-a-0")
    DRIVER.apply(steps, done)
    assert not DRIVER.observe({}).ours


def test_many_links_go_together_and_a_foreign_link_in_the_group_stays() -> None:
    converge(wanted(bridge(), *(tap(f"kvt-{i}") for i in range(40))))
    sh("ip link add eth9 type veth peer name eth8; ip link set eth9 group 27510")
    seen = DRIVER.observe({})
    steps = plan(seen.state, {}, seen.ours)
    DRIVER.apply(steps, done)
    after = DRIVER.observe({})
    assert not after.ours and Key("link", "eth9") in after.state


def test_the_commands_shown_do_the_same_by_hand() -> None:
    want = wanted(bridge(), tap(isolated=True), host_address(), route("10.0.0.0/8", dev="kvb-a", via="192.168.1.2"),
                  Sysctl(name="net/ipv4/conf/kvb-a/forwarding", value="1", dev="kvb-a"))
    seen = DRIVER.observe(want)
    import subprocess
    for command in DRIVER.commands(plan(seen.state, want, seen.ours)):
        subprocess.run(command.argv, input=command.stdin, text=True, check=True)
    again: Seen = DRIVER.observe(want)
    assert plan(again.state, want, again.ours) == ()


def test_a_link_name_with_a_dot_is_one_part_of_a_sysctl_path() -> None:
    dotted = bridge("kvb-a.b")
    converge(wanted(dotted, Sysctl(name="net/ipv4/conf/kvb-a.b/forwarding", value="1", dev="kvb-a.b")))
    assert sh("cat /proc/sys/net/ipv4/conf/kvb-a.b/forwarding").strip() == "1"


def test_a_route_of_each_sort_is_read_and_made_again() -> None:
    sh("ip link add kvb-a type bridge; ip link set kvb-a up alias kvmnet; ip addr add 10.0.0.1/24 dev kvb-a;"
       "ip -6 addr add 2001:db8::1/64 dev kvb-a nodad;"
       "ip route add default via 10.0.0.2 metric 5 mtu 1400 advmss 1300;"
       "ip route add 10.9.0.0/16 proto 87 nexthop via 10.0.0.3 dev kvb-a nexthop via 10.0.0.4 dev kvb-a weight 2;"
       "ip route add blackhole 10.8.0.0/16 proto 87;"
       "ip route add 10.7.0.0/16 dev kvb-a table 100 onlink via 99.0.0.1 src 10.0.0.1;"
       "ip route add 10.66.0.0/16 dev kvb-a tos 4 initcwnd 10;"
       "ip -6 route add default via fe80::1 dev kvb-a pref high; ip -6 route add unreachable 2001:db8:7::/48 proto 87")
    seen = DRIVER.observe({})
    routes: dict[Key, Resource | Absent] = {k: r for k, r in seen.state.items() if isinstance(r, Route)}
    assert len(routes) == 7
    rest: dict[Key, Resource | Absent] = {k: seen.state[k] for k in seen.ours if k not in routes}
    converge(rest)
    assert not any(isinstance(r, Route) for r in DRIVER.observe({}).state.values())
    converge({**rest, **routes})
    assert DRIVER.observe({}).state == seen.state


def test_a_bridge_keeps_the_mtu_that_is_its_usual_one_when_a_smaller_port_joins() -> None:
    converge(wanted(bridge(mtu=1500)))
    converge(wanted(bridge(mtu=1500), tap(mtu=1400)))
    assert "mtu 1500" in sh("ip link show kvb-a")
    sh("ip link add br5 type bridge && ip link set br5 mtu 1500 && ip link set kvt-a-0 master br5")
    assert "mtu 1400" in sh("ip link show br5"), "the kernel has changed: the detour is not needed any more"


def test_isolation_that_went_with_the_bridge_comes_back_with_the_undo() -> None:
    converge(wanted(bridge(), tap(isolated=True)))
    seen = DRIVER.observe({})
    alone = tap(master="", isolated=None, learning=None, flood=None, mcast_flood=None, hairpin=None, bpdu_guard=None,
                neigh_suppress=None)
    steps = converge(wanted(alone))
    assert [str(s.key) for s in steps] == ["link kvb-a"]
    restore(before_image(seen.state, steps, seen.ours))
    assert "isolated on" in sh("bridge -d link show dev kvt-a-0")
