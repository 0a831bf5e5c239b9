"""mode bridge, MTU, and life beside a foreign firewall: with packets, and given back exactly."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from kvmnet.host.clock import wait_until
from lib.netns import named_netns, sh
from lib.world import (
    HOST,
    HOST6,
    NEVER,
    OUTSIDE,
    OUTSIDE6,
    ROUTER,
    ROUTER6,
    World,
    same,
    snapshot,
    steady,
    unchanged,
    world,
)

pytestmark = pytest.mark.net

BRIDGED = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  office: {mode: bridge, uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1, pool: 192.0.2.50-192.0.2.99}
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24}
vms:
  desk: {nics: [{network: office, ip: 192.0.2.50, extra: {addresses: ["2001:db8:1::50"]}}]}
  app: {nics: [{network: lan}]}
"""
ADOPTED = """
version: 1
networks:
  prod: {mode: bridge, bridge: br9}
vms:
  one: {nics: [{network: prod, ip: 192.0.2.60}]}
  two: {nics: [{network: prod, ip: 192.0.2.61}]}
"""


@pytest.fixture(params=[0, 1], ids=["", "call-iptables"])
def net(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(request.param) as made:
        yield made


def test_the_uplink_joins_a_bridge_and_comes_back(net: World) -> None:
    sh("ip addr add 192.0.2.77/24 dev eth0; ip route add 10.77.0.0/16 via 192.0.2.1 proto static metric 7")
    net.service(net.outside, "outside", 80)
    net.service(net.here, "host", 22)
    before = snapshot()
    net.apply(BRIDGED)
    assert net.drift() == []
    assert "master kvb-office" in sh("ip link show eth0")
    assert net.here.tcp(OUTSIDE, 80) == f"outside {HOST}" and net.here.tcp(OUTSIDE6, 80) == f"outside {HOST6}"
    assert net.outside.tcp(HOST, 22) == net.outside.tcp("192.0.2.77", 22) == f"host {ROUTER}"
    assert net.outside.tcp(HOST6, 22) == f"host {ROUTER6}"

    desk, app = net.guest("desk"), net.guest("app")
    net.service(desk, "desk", 80)
    desk.use("192.0.2.50/24", "2001:db8:1::50/64", via=ROUTER, via6=ROUTER6)
    app.use(f"{app.ip}/24", via="192.168.100.1")
    assert desk.tcp(OUTSIDE, 80) == "outside 192.0.2.50" and desk.tcp(OUTSIDE6, 80) == "outside 2001:db8:1::50"
    assert net.outside.tcp("192.0.2.50", 80) == f"desk {ROUTER}" and net.here.tcp("192.0.2.50", 80) == f"desk {HOST}"
    assert desk.pings(HOST) and desk.tcp(HOST, 22, NEVER) == desk.tcp("192.0.2.77", 22, NEVER) == ""
    assert app.tcp(OUTSIDE, 80) == f"outside {HOST}", "the nat network leaves by the bridge"
    assert app.tcp("192.0.2.50", 80) == f"desk {HOST}"
    sh(f"ip -n {desk.netns} addr flush dev eth0 scope global")
    desk.use("192.0.2.88/24", via=ROUTER)
    assert desk.tcp(OUTSIDE, 80, NEVER) == "", "an address that is not its own"

    net.destroy()
    steady()
    unchanged(before)


def test_a_detached_uplink_is_attached_again_with_the_hosts_addresses() -> None:
    with world() as net:
        before = snapshot()
        net.service(net.outside, "outside", 80)
        net.apply(BRIDGED)
        sh("ip link set eth0 nomaster")
        assert net.here.tcp(OUTSIDE, 80, NEVER) == "" and net.drift() == ["update link eth0"]
        net.apply(BRIDGED)
        assert net.drift() == [] and net.here.tcp(OUTSIDE, 80) == f"outside {HOST}"
        sh("ip link set eth0 nomaster")
        net.destroy()
        steady()
        unchanged(before)


def test_a_bridge_of_the_host_is_used_as_it_is(net: World) -> None:
    sh("ip link add br9 type bridge forward_delay 0; ip link set br9 up")
    sh("ip addr flush dev eth0; ip link set eth0 master br9; ip addr add 192.0.2.2/24 dev br9")
    sh(f"ip route add default via {ROUTER}")
    sh("ip tuntap add theirs mode tap; ip link set theirs master br9 up")
    net.service(net.outside, "outside", 80)
    steady()
    before = snapshot()
    net.apply(ADOPTED)
    one, two = net.guest("one").use("192.0.2.60/24", via=ROUTER), net.guest("two").use("192.0.2.61/24", via=ROUTER)
    net.service(two, "two", 80)
    assert one.tcp(OUTSIDE, 80) == "outside 192.0.2.60" and one.tcp("192.0.2.61", 80) == "two 192.0.2.60"
    now = snapshot()
    same(*({"links": [x for x in shot["links"] if x["ifname"] in ("br9", "eth0", "theirs", "lo")],
            "routes": [r for r in shot["routes"] if "kvt-" not in r], "forwarding":
            [x for x in shot["forwarding"] if "kvt-" not in x]} for shot in (before, now)))
    sh(f"ip -n {one.netns} addr flush dev eth0 scope global")
    one.use("192.0.2.62/24")
    assert one.tcp("192.0.2.61", 80, NEVER) == "", "guarded on a foreign bridge too"
    net.destroy()
    steady()
    unchanged(before)


def test_the_mtu_of_the_uplink_is_lent_and_told_to_guests() -> None:
    with world() as net:
        before = snapshot()
        net.apply(BRIDGED.replace("device: eth0", "device: eth0, mtu: 1400"))
        links = {x["ifname"]: x for x in json.loads(sh("ip -j link"))}
        assert {links[n]["mtu"] for n in ("eth0", "kvb-office", "kvb-lan", "kvt-app-0", "kvt-desk-0")} == {1400}
        app = net.guest("app")
        assert app.lease()["mtu"] == "1400"
        assert app.pings(OUTSIDE, 1400 - 28) and not app.pings(OUTSIDE, 1400 - 27, timeout=1)
        net.apply(BRIDGED.replace("device: eth0", "device: eth0, mtu: 1300"))
        assert "mtu 1300" in sh("ip link show eth0") and "mtu 1300" in sh("ip link show kvb-lan")
        net.destroy()
        unchanged(before)


def test_routing_needs_no_switch_of_the_whole_host() -> None:
    with world() as net:
        net.apply(BRIDGED.replace("office: {mode: bridge", "office: {mode: routed").replace(", gateway: 192.0.2.1", "")
                  .replace("192.0.2.", "198.51.100.").replace('"2001:db8:1::50"', ""))
        net.service(net.outside, "outside", 80)
        app = net.guest("app").use("192.168.100.2/24", via="192.168.100.1")
        assert sh("sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding").split() == ["0", "0"]
        assert app.tcp(OUTSIDE, 80) == f"outside {HOST}"


DOCKER = """
table ip filter {
  chain DOCKER-USER { counter return; }
  chain FORWARD { type filter hook forward priority filter; policy drop; counter jump DOCKER-USER; }
}
table inet corporate {
  chain input {
    type filter hook input priority filter; policy drop
    ct state established,related accept
    iifname "lo" accept
  }
}
"""
CURES = (
    "nft insert rule ip filter DOCKER-USER iifname '\"kvb-*\"' accept",
    "nft insert rule ip filter DOCKER-USER oifname '\"kvb-*\"' accept",
    "nft insert rule inet corporate input iifname '\"kvb-*\"' accept",
)


def test_a_foreign_firewall_that_drops_our_traffic_is_named_with_its_cure() -> None:
    with world() as net:
        net.apply(BRIDGED)
        net.service(net.outside, "outside", 80)
        app = net.guest("app").use("192.168.100.2/24", via="192.168.100.1")
        assert app.tcp(OUTSIDE, 80) and app.lease()
        sh(f"nft -f - <<'EOF'\n{DOCKER}\nEOF")
        sh("nft 'add rule inet corporate input icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept'")
        foreign = sh("nft -s list table ip filter; nft -s list table inet corporate")
        assert app.tcp(OUTSIDE, 80, NEVER) == "" and app.name("app.lan", "192.168.100.1", NEVER) == ""
        notes = net.plan(BRIDGED).notes
        docker, corporate = (next(n for n in notes if n.startswith(t)) for t in ("ip filter", "inet corporate"))
        assert "FORWARD (policy drop) drops what lan sends outside" in docker and "iptables -I DOCKER-USER" in docker
        assert "DHCP of lan, DNS of lan" in corporate and CURES[2] in corporate
        assert "DOCKER-USER" in net.cli("status").stdout and "DOCKER-USER" in net.cli("plan", net.write(BRIDGED)).stdout
        net.apply(BRIDGED.replace("version: 1", "version: 1  # again"))
        assert sh("nft -s list table ip filter; nft -s list table inet corporate") == foreign, "named, never touched"
        for command in CURES:
            sh(command)
        assert not [n for n in net.plan(BRIDGED).notes if "drops" in n]
        assert wait_until(lambda: app.tcp(OUTSIDE, 80, NEVER), 20) == f"outside {HOST}" and app.lease()


def test_with_bridge_netfilter_on_a_foreign_firewall_also_stops_guests_among_themselves() -> None:
    with world(call_iptables=1) as net:
        net.apply(ADOPTED.replace("bridge: br9", "uplink: wan, subnet: 192.0.2.0/24, gateway: 192.0.2.1")
                  .replace("networks:", "uplinks: {wan: {device: eth0}}\nnetworks:"))
        one, two = net.guest("one").use("192.0.2.60/24"), net.guest("two").use("192.0.2.61/24")
        net.service(two, "two", 80)
        assert one.tcp("192.0.2.61", 80)
        sh("nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'")
        assert one.tcp("192.0.2.61", 80, NEVER) == ""
        document = net.host.current()
        assert document is not None
        (note,) = (n for n in net.host.plan_document(document).notes if n.startswith("ip filter"))
        assert "guests of prod send each other" in note and "iptables -I FORWARD -i kvb-+ -j ACCEPT" in note
        sh("nft insert rule ip filter FORWARD iifname '\"kvb-*\"' accept")
        assert one.tcp("192.0.2.61", 80) == "two 192.0.2.60"


def test_two_hosts_on_one_machine_do_not_meet() -> None:
    """Each namespace with its own directories is a host of its own, also by the names of its things."""
    with world() as first, named_netns(f"kvt-far-{os.getpid()}") as far:
        first.apply(BRIDGED)
        with world() as second:
            second.apply(BRIDGED)
            assert second.drift() == []
            second.destroy()
        assert first.drift() == [] and "kvb-lan" in sh("ip link") and "kvb" not in sh(f"ip -n {far} link")
