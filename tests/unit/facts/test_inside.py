"""What a guest's script wrote, read; and a guest that runs no programs."""
from __future__ import annotations

import json

from kvmnet.drivers.qemu.qmp import Refusal, Reply
from kvmnet.facts.guests import negotiated, opened
from kvmnet.facts.inside import MARK, interfaces, parse

TINY = f"""{MARK} link eth0
mac 52:54:00:F8:dc:70
mtu 1500
flags 0x1003
carrier 1
set 0
driver virtio_net
queues 2
features 1111010111111111111101110000110010000000100000000000000000000000
{MARK} addr
1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever
2: eth0    inet 10.6.0.9/24 brd 10.6.0.255 scope global eth0\\       valid_lft forever preferred_lft forever
2: eth0    inet6 fd00:6::9/64 scope global dadfailed tentative \\       valid_lft forever preferred_lft forever
2: eth0    inet6 fe80::5054:ff:fef8:dc70/64 scope link tentative \\       valid_lft forever preferred_lft forever
3: br-a1@if7    inet 172.17.0.1/16 scope global br-a1\\       valid_lft forever
{MARK} route4
default via 10.6.0.1 dev eth0  metric 102 
10.6.0.0/24 dev eth0 scope link  src 10.6.0.9 
blackhole 10.9.0.0/16
{MARK} route6
fd00:6::/64 dev eth0  metric 256  expires 0sec
default via fe80::1 dev eth0  metric 1024  expires 0sec
multicast ff00::/8 dev eth0  metric 256 
default proto static metric 20
	nexthop via fe80::2 dev eth0 weight 1
{MARK} rule
0:\tfrom all lookup local 
32766:\tfrom all lookup main 
{MARK} neigh
10.6.0.1 dev eth0 lladdr 02:C3:af:2e:d5:f3 ref 1 used 0/0/0 probes 4 REACHABLE
10.6.0.7 dev eth0  used 0/0/0 probes 3 FAILED
{MARK} tools
ip
{MARK} listen tcp
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 16 1
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1
   2: 0900060A:0016 0100060A:D431 01 00000000:0A 0A 00:00000000 00000000     0        0 18 1
{MARK} listen udp
{MARK} resolver
search lan
nameserver 10.6.0.1

{MARK} nft
{{"nftables": [{{"metainfo": {{}}}}, {{"rule": {{"comment": "password=hunter2"}}}}]}}
{MARK} end
"""


def test_what_a_guest_wrote() -> None:
    found = parse(TINY)
    card, = found["links"]
    assert (card["name"], card["mac"], card["up"], card["carrier"], card["mac_set"], card["mtu"], card["queues"], card["driver"]) == ("eth0", "52:54:00:f8:dc:70", True, True, False, 1500, 2, "virtio_net")
    assert {"mq", "host_tso4", "csum", "version_1"} <= set(card["features"]) and "packed" not in card["features"]
    assert [(a["local"], a["prefixlen"], a["failed"]) for a in card["addresses"]] == [("10.6.0.9", 24, False), ("fd00:6::9", 64, True)]
    assert [(r["dst"], r["via"], r["type"], r["metric"]) for r in found["routes"]] == [
        ("default", "10.6.0.1", "unicast", 102), ("10.6.0.0/24", "", "unicast", 0), ("10.9.0.0/16", "", "blackhole", 0), ("fd00:6::/64", "", "unicast", 256), ("default", "fe80::1", "unicast", 1024)]
    assert [(n["ip"], n["mac"], n["state"]) for n in found["neighbours"]] == [("10.6.0.1", "02:c3:af:2e:d5:f3", "REACHABLE"), ("10.6.0.7", "", "FAILED")]
    assert [(s["proto"], s["address"], s["port"]) for s in found["listening"]] == [("tcp", "0.0.0.0", 22), ("tcp", "127.0.0.1", 8080)]
    assert found["resolvers"] == ["10.6.0.1"] and found["rules"] == 2
    assert "hunter2" not in json.dumps(found) and len(found["nft"]) == 2


def test_what_a_guest_has_no_tool_for_is_missing_not_empty() -> None:
    found = parse(f"{MARK} link eth0\nmac 52:54:00:00:00:01\nmtu 1500\nflags 0x1002\ncarrier \n{MARK} resolver\n{MARK} end\n")
    card, = found["links"]
    assert card["up"] is False and card["carrier"] is None and "addresses" not in card and "queues" not in card
    assert "routes" not in found and "neighbours" not in found and "nft" not in found


def test_queues_and_offloads_as_ethtool_prints_them() -> None:
    more = f"""{MARK} channels eth0
Channel parameters for eth0:
Pre-set maximums:
RX:		n/a
Combined:	4
Current hardware settings:
RX:		n/a
Combined:	1
{MARK} offloads eth0
Features for eth0:
rx-checksumming: on [fixed]
tx-checksumming: off
	tx-checksum-ipv4: off [fixed]
tcp-segmentation-offload: off
"""
    card, = parse(TINY.replace(f"{MARK} addr", more + f"{MARK} addr"))["links"]
    assert card["channels"] == {"most": 4, "now": 1} and card["offloads"] == {"rx-checksum": True, "tx-checksum": False, "tso": False}


def test_an_agent_that_runs_nothing_tells_addresses() -> None:
    rows = [{"name": "Ethernet 2", "hardware-address": "52:54:00:00:00:0A", "ip-addresses": [{"ip-address": "10.0.0.5", "prefix": 24, "ip-address-type": "ipv4"}]}, {"name": "lo"}]
    assert interfaces(rows) == {"links": [{"name": "Ethernet 2", "mac": "52:54:00:00:00:0a", "addresses": [{"local": "10.0.0.5", "prefixlen": 24}]}]}


def test_what_qemu_says_was_negotiated() -> None:
    status = {"started": True, "host-features": {"dev-features": ["VIRTIO_NET_F_MQ: Multiqueue", "VIRTIO_NET_F_CSUM: x"], "transports": ["VIRTIO_F_VERSION_1: y"]}, "guest-features": {"dev-features": ["VIRTIO_NET_F_CSUM: x"]}}
    assert negotiated(Reply(1, status)) == {"offered": ["csum", "mq", "version_1"], "taken": ["csum"]}
    assert negotiated(Reply(1, status | {"started": False})) == {} == negotiated(Refusal(1, "no such device"))
    assert opened(Reply(1, [{"label": "agent", "frontend-open": True}])) and not opened(Reply(1, [{"label": "agent", "frontend-open": False}, {"label": "monitor", "frontend-open": True}]))
