"""What an outside hand changes is shown by plan and mended by apply; what is foreign is left alone."""
from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kvmnet.errors import ConflictError
from kvmnet.host.clock import wait_until
from kvmnet.host.process import Process
from lib.netns import named_netns, sh
from lib.tap import Tap
from lib.world import HOST, NEVER, OUTSIDE, World, same, snapshot, steady, unchanged, world

pytestmark = pytest.mark.net

DOCUMENT = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, subnet6: "fd00:100::/64"}
  pub: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, proxy: true}
vms:
  a: {nics: [{network: lan}]}
  b: {nics: [{network: lan}]}
  c: {nics: [{network: pub}]}
"""
SMALLER = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: nat, uplink: wan, subnet: 192.168.100.0/24, mtu: 1400, dns: {enabled: false}}
vms:
  a: {nics: [{network: lan, guard: mac}]}
"""


@pytest.fixture(scope="module")
def net() -> Iterator[World]:
    with world() as made:
        made.apply(DOCUMENT)
        for name in ("a", "b"):
            guest = made.guest(name)
            guest.use(f"{guest.ip}/24", via="192.168.100.1")
        made.service(made.outside, "outside", 80)
        yield made


def one_element(name: str) -> str:
    """The text of one element of a set of the guard."""
    listed = sh(f"nft list set bridge kvmnet {name}")
    found = re.search(r"elements = \{ ([^,}]+)", listed)
    assert found, listed
    return found[1].strip()


def kill_dnsmasq(net: World) -> None:
    pids = [int(f.read_text().split()[0]) for f in net.paths.dnsmasq("lan").glob("*pid*")]
    assert pids
    for pid in pids:
        sh(f"kill -9 {pid}")
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}/exe").exists(), 20)


def kill_keeper(net: World) -> None:
    record = json.loads((net.paths.guard / "keeper.json").read_text())
    Process(record["pid"], int(record["start"])).terminate()
    wait_until(lambda: "kvmnet-keeper" not in sh("nft list tables"), 20)


def delete_table(net: World) -> None:
    kill_keeper(net)
    sh("nft delete table inet kvmnet")


def delete_element(net: World) -> None:
    sh(f"nft delete element bridge kvmnet mac '{{ {one_element('mac')} }}'")


HANDS: dict[str, tuple[str | Callable[[World], None], str]] = {
    "rules flushed": ("nft flush chain inet kvmnet host", "update nft-table inet kvmnet"),
    "rule added": ("nft insert rule inet kvmnet host accept", "update nft-table inet kvmnet"),
    "set element of the host's table deleted":
        ("nft flush set inet kvmnet services", "update nft-table inet kvmnet"),
    "guard's rules flushed": ("nft flush chain bridge kvmnet prerouting", "update nft-table bridge kvmnet"),
    "guard element deleted":
        (delete_element, "update nic-guard"),
    "guard opened": ("nft 'add element bridge kvmnet open { \"kvt-a-0\" }'", "update nic-guard kvt-a-0"),
    "port detached": ("ip link set kvt-a-0 nomaster", "update link kvt-a-0"),
    "port down": ("ip link set kvt-b-0 down", "update link kvt-b-0"),
    "port flags": ("bridge link set dev kvt-a-0 hairpin on", "update link kvt-a-0"),
    "bridge mtu": ("ip link set kvb-lan mtu 1300", "update link kvb-lan"),
    "address removed": ("ip addr del 192.168.100.1/24 dev kvb-lan", "create address kvb-lan 192.168.100.1/24"),
    "address added": ("ip addr add 172.31.0.1/24 dev kvb-lan", "delete address kvb-lan 172.31.0.1/24"),
    "IPv6 address removed": ("ip addr del fd00:100::1/64 dev kvb-lan", "create address kvb-lan fd00:100::1/64"),
    "proxy entry removed": ("ip neigh del proxy 198.51.100.2 dev eth0", "create proxy-neighbour eth0 198.51.100.2"),
    "forwarding off": ("sysctl -qw net.ipv4.conf.kvb-lan.forwarding=0", "update sysctl net/ipv4/conf/kvb-lan/forwarding"),
    "forwarding of the uplink off":
        ("sysctl -qw net.ipv4.conf.eth0.forwarding=0", "update sysctl net/ipv4/conf/eth0/forwarding"),
    "dnsmasq killed": (kill_dnsmasq, "dnsmasq lan"),
    "keeper killed": (kill_keeper, "guard-keeper guard"),
    "host's table deleted with the keeper dead":
        (delete_table, "create nft-table inet kvmnet"),
    "bridge deleted": ("ip link del kvb-lan", "create link kvb-lan"),
}


@pytest.mark.parametrize("what", HANDS)
def test_drift_is_shown_and_mended(net: World, what: str) -> None:
    hand, expected = HANDS[what]
    a = net.guest("a")
    assert net.drift() == []
    if callable(hand):
        hand(net)
    else:
        sh(hand)
    assert expected in "\n".join(net.drift())
    result = net.apply(DOCUMENT)
    assert result.steps and result.revision is not None
    assert net.drift() == []
    if what == "bridge deleted":
        sh(f"ip -n {a.netns} neigh flush dev eth0")
    assert wait_until(lambda: a.tcp(OUTSIDE, 80, NEVER), 20) == f"outside {HOST}"
    assert a.lease()["ip"] == a.ip


def test_a_flushed_ruleset_comes_back_by_itself(net: World) -> None:
    sh("nft flush ruleset")
    wait_until(lambda: net.drift() == [], 20)
    assert net.guest("a").tcp(OUTSIDE, 80) == f"outside {HOST}"


def test_change_then_revert_restores() -> None:
    with world() as net:
        net.apply(DOCUMENT)
        before = remade(snapshot())
        net.apply(SMALLER)
        assert net.drift() == [] and remade(snapshot()) != before
        assert net.apply(DOCUMENT).steps and net.drift() == []
        unchanged(before, lambda: remade(snapshot()))
        net.apply(SMALLER)
        net.host.apply(net.host.plan_revision())
        unchanged(before, lambda: remade(snapshot()))


def remade(shot: dict[str, Any]) -> dict[str, Any]:
    """Without what a tap that was made again has anew: the kernel draws its MAC by lot."""
    for link in shot["links"]:
        if link["ifname"].startswith("kvt-"):
            del link["address"]
    return shot


# -- what is not ours ------------------------------------------------------------------------------

FOREIGN = """
ip link add br-other type bridge forward_delay 0 && ip link set br-other up && ip addr add 10.99.0.1/24 dev br-other
ip tuntap add tapx mode tap && ip link set tapx master br-other up
ip tuntap add kv-t mode tap
ip addr add 192.0.2.77/32 dev eth0
ip route add 10.77.0.0/16 via 192.0.2.1 proto static
ip -6 route add 2001:db8:77::/48 via 2001:db8:1::1 metric 50
ip rule add from 10.99.0.0/24 lookup 99 && ip route add default via 192.0.2.1 table 99
ip neigh add proxy 192.0.2.200 dev eth0
nft add table inet mine; nft 'add chain inet mine c { type filter hook forward priority 5; }'; nft add rule inet mine c counter
nft add table ip nat; nft 'add chain ip nat post { type nat hook postrouting priority 100; }'
nft 'add rule ip nat post ip saddr 10.99.0.0/24 oifname "eth0" masquerade'
sysctl -qw net.ipv6.conf.br-other.accept_ra=0
"""


def test_destroy_leaves_nothing_of_ours_and_changes_nothing_of_others() -> None:
    with world() as net, ExitStack() as stack:
        for line in FOREIGN.strip().splitlines():
            sh(line)
        other = stack.enter_context(named_netns(f"kvt-foreign-{os.getpid()}"))
        sh(f"ip link add v0 type veth peer name eth0 netns {other}; ip link set v0 master br-other up; "
           f"ip -n {other} addr add 10.99.0.2/24 dev eth0; ip -n {other} link set eth0 up; "
           f"ip -n {other} route add default via 10.99.0.1; sysctl -qw net.ipv4.conf.br-other.forwarding=1 "
           "net.ipv4.conf.eth0.forwarding=1")
        net.service(net.outside, "outside", 80)
        wait_until(lambda: sh(f"ip netns exec {other} curl -s -m 1 telnet://{OUTSIDE}:80", check=False), 20)
        steady()
        before = snapshot()
        foreign = sh("nft list table inet mine; nft list table ip nat")
        net.apply(DOCUMENT)
        assert sh(f"ip netns exec {other} curl -s -m 2 telnet://{OUTSIDE}:80") == f"outside {HOST}", "they still pass"
        now = snapshot()
        same(*({"links": [x for x in shot["links"] if not x["ifname"].startswith("kv")]} for shot in (before, now)))
        assert set(before["routes"]) <= set(now["routes"]) and now["rules"] == before["rules"]
        net.destroy()
        unchanged(before)
        assert foreign.count("chain") == sh("nft list table inet mine; nft list table ip nat").count("chain")
        assert [p for p in net.paths.run.rglob("*") if "dnsmasq" in str(p) and p.is_file()] == []
        assert net.host.current() is None


def test_an_object_that_bears_our_name_is_a_conflict() -> None:
    with world() as net:
        sh("ip link add kvb-lan type bridge; ip tuntap add kvt-a-0 mode tap; ip link set kvb-lan alias 'somebody else'")
        before = snapshot()
        with pytest.raises(ConflictError) as wrong:
            net.apply(DOCUMENT)
        assert "kvb-lan" in str(wrong.value) and "kvt-a-0" in str(wrong.value) and "--adopt" in wrong.value.hint
        unchanged(before)
        assert net.apply(DOCUMENT, adopt=True).steps and net.drift() == []
        net.destroy()
        assert "kvb-lan" not in sh("ip link") and "kvt-a-0" not in sh("ip link")


def test_a_busy_tap_of_an_unmarked_guest_is_not_taken() -> None:
    with world() as net, Tap("kvt-a-0"):
        done = net.cli("apply", "--yes", net.write(DOCUMENT))
        assert done.returncode == 12 and "kvt-a-0" in done.stderr and "Traceback" not in done.stderr
