"""What error codes and lines of logs mean, and what a host shows of their causes."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from kvmnet.doctor.explain import paths as path_codes
from kvmnet.doctor.explain.entry import Answer, Holds
from kvmnet.doctor.explain.match import ENTRIES, explain, nearest, plain_error
from kvmnet.doctor.rules.table import RULES
from kvmnet.doctor.view import View


def view(**parts: Any) -> View:
    return View(parts)


def known(text: str, seen: View | None = None) -> Answer:
    answer = explain(text, seen)
    assert answer is not None, text
    return answer


def test_every_entry_is_whole() -> None:
    assert len({e.name for e in ENTRIES}) == len(ENTRIES)
    for entry in ENTRIES:
        assert entry.means and entry.source and entry.causes and entry.says, entry.name
        assert all(re.compile(pattern, re.I) for pattern in entry.says)
        assert any(cause.cure or cause.look or cause.what for cause in entry.causes), entry.name


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_an_entry_is_found_by_its_name(entry: Any) -> None:
    assert known(entry.name).entry is entry


@pytest.mark.parametrize(("line", "name"), [
    ("RTNETLINK answers: Operation not supported", "EOPNOTSUPP"),
    ("Error: Exchange full", "EXFULL"),
    ("RTNETLINK answers: File exists", "EEXIST"),
    ('Cannot find device "br9"', "ENODEV"),
    ("ping: connect: Network is unreachable", "ENETUNREACH"),
    ("From 10.0.0.1 icmp_seq=1 Destination Host Unreachable", "EHOSTUNREACH"),
    ("ping: sendmsg: No buffer space available", "ENOBUFS"),
    ("[ 12.3] nf_conntrack: nf_conntrack: table full, dropping packet", "nf_conntrack: table full, dropping packet"),
    ("neighbour: arp_cache: neighbor table overflow!", "neighbour table overflow"),
    ("br0: received packet on eth0 with own address as source address (addr:02:00:00:00:00:01, vlan:0)", "received packet with own address as source address"),
    ("br0: port 2(vnet3) entered blocking state", "entered blocking state"),
    ("qemu-system-x86_64: -netdev tap,id=n0: could not open /dev/net/tun: No such file or directory", "could not open /dev/net/tun"),
    ("could not configure /dev/net/tun (tap3): Device or resource busy", "could not configure /dev/net/tun: Device or resource busy"),
    ("could not configure /dev/net/tun (tap3): Invalid argument", "could not configure /dev/net/tun: Invalid argument"),
    ("vhost-net requested but could not be initialized", "vhost-net requested but could not be initialized"),
    ("error: Requested operation is not valid: network 'default' is not active", "network 'default' is not active"),
    ("error: internal error: Network is already in use by interface virbr0", "Network is already in use by interface"),
    ("Cannot get interface MTU on 'br7': No such device", "Cannot get interface MTU"),
    ("dnsmasq: failed to create listening socket for port 53: Address already in use", "failed to create listening socket for port 53"),
    ("dnsmasq-dhcp[1]: no address range available for DHCP request via br0", "no address range available for DHCP request"),
    ("dnsmasq-dhcp[1]: DHCPDISCOVER(br0) 52:54:00:00:00:01 no address available", "no address available"),
    ("not using configured address 10.0.0.5 because it is leased to 52:54:00:aa:bb:cc", "not using configured address because it is leased to"),
    ("DHCP packet received on eth1 which has no address", "DHCP packet received on X which has no address"),
    ("ovs-vsctl: could not open network device tap9 (No such device)", "could not open network device (No such device)"),
    ("00040|patch|INFO|bridge not found for localnet port 'wire' with network name 'physnet'; skipping", "bridge not found for localnet port"),
    ("00021|binding|INFO|Not claiming lport lp1, chassis c1 requested-chassis c2 pb->chassis c2", "Not claiming lport"), ("main|WARN|OVNSB commit failed, force recompute next time.", "OVNSB commit failed, force recompute"),
    ("00006|dpif_netlink|INFO|Generic Netlink family 'ovs_datapath' does not exist. The Open vSwitch kernel module is probably not loaded.", "The Open vSwitch kernel module is probably not loaded"),
    ("00123|timeval|WARN|Unreasonably long 1523ms poll interval (1200ms user, 310ms system)", "Unreasonably long poll interval"), ("00004|bridge|ERR|another ovs-vswitchd process is running, disabling this process (pid 71) until it goes away", "another ovs-vswitchd process is running"),
    ("ofproto_dpif_xlate|WARN|Translation failed (Recursion too deep), packet is dropped.", "Translation failed, packet is dropped"), ("tunnel(handler1)|WARN|receive tunnel port not found (udp,tun_id=0x1)", "receive tunnel port not found"),
    ("system@ovs-system: failed to add v1 as port: Device or resource busy", "could not add network device to ofproto"), ("ovs-vsctl: no bridge named br7", "No such bridge / because a bridge named X already exists"),
    ("ovn-appctl -t ovn-controller inc-engine/recompute", "inc-engine/recompute"), ("lr_in_admission: no match (implicit drop)", "lr_in_admission / own floating IP"),
    ("Error: Could not process rule: Operation not supported", "Could not process rule"),
    ("iptables: No chain/target/match by that name.", "No chain/target/match by that name"),
    ("bond0: Warning: No 802.3ad response from the link partner for any adapters in the bond", "bonding: No 802.3ad response from the link partner"),
    ("From 10.0.0.1 icmp_seq=1 Frag needed and DF set (mtu = 1400)", "EMSGSIZE"), ("From 10.0.0.1 icmp_seq=1 Packet filtered", "Packet filtered"),
    ("UDP: bad checksum. From 10.0.0.1:53 to 10.0.0.2:4444 ulen 20", "hw csum failure"), ("ping: example.org: Temporary failure in name resolution", "Temporary failure in name resolution"),
    ("br0: BPDU received on blocked port 2(vnet3)", "BPDU received on blocked port"),
    ("Error: Device does not allow enslaving to a bridge.", "Device does not allow enslaving to a bridge"),
    ("vfio 0000:01:00.0: no iommu_group found: No such file or directory", "vfio: no iommu_group found"),
    ("IPv4: martian source 10.0.0.9 from 10.1.0.1, on dev eth1", "martian source"),
    ("exit 13", "exit 13"), ("13", "exit 13"),
])
def test_lines_as_they_are_seen(line: str, name: str) -> None:
    assert known(line).entry.name == name


WRONG = {
    "ip_forward MTU": ("MTU mismatch", "changes no MTU"),
    "guest cannot ping": ("guest cannot ping", "tcp/80 changes nothing"),
    "qemu-guest-agent dma": ("qemu-guest-agent DMA", "read by no program"),
    "jitter buffer": ("jitter buffer", "hides the cause"),
    "e1000e": ("e1000e", "not accelerated by hardware"),
    "ENOBUFS": ("ENOBUFS", "netdev_max_backlog does not cure it"),
    "EOPNOTSUPP": ("EOPNOTSUPP", "driver of some version"),
    "net.ipv4.tcp_max_orphaned": ("too many orphaned sockets", "no sysctl named tcp_max_orphaned"),
    "active-backup": ("active-backup", "aggregates nothing"),
    "cfs_quota": ("CPU quota", "80 is invalid"),
}


@pytest.mark.parametrize("words", WRONG)
def test_the_ten_wrong_cures_are_called_wrong(words: str) -> None:
    answer = known(words)
    name, text = WRONG[words]
    assert answer.entry.name == name and text in answer.entry.wrong
    assert not any(word in " ".join(c.cure) for c in answer.causes for word in ("ip_forward=1 ", "dport 80", "tcp_max_orphaned"))


def test_without_a_host_nothing_is_claimed_of_it() -> None:
    assert {c.holds for c in known("ENOBUFS").causes} == {Holds.UNKNOWN}


def signs(text: str, seen: View) -> dict[Holds, list[str]]:
    found: dict[Holds, list[str]] = {}
    for cause in known(text, seen).causes:
        found.setdefault(cause.holds, []).append(cause.evidence)
    return found


LINK = {"ifindex": 1, "flags": ["UP", "LOWER_UP"], "mtu": 1500}
BRIDGE = LINK | {"ifname": "br0", "linkinfo": {"info_kind": "bridge"}}
COUNT, MOST = "net/netfilter/nf_conntrack_count", "net/netfilter/nf_conntrack_max"


@pytest.mark.parametrize(("text", "bad", "good"), [
    ("nf_conntrack: table full", view(sysctls={COUNT: "65000", MOST: "65536"}), view(sysctls={COUNT: "12", MOST: "65536"})),
    ("neighbor table overflow", view(sysctls={"net/ipv4/neigh/default/gc_thresh3": "4"}, neighbours=[{"dst": f"10.0.0.{n}"} for n in range(4)]),
     view(sysctls={"net/ipv4/neigh/default/gc_thresh3": "1024"}, neighbours=[{"dst": "10.0.0.1"}])),
    ("could not configure /dev/net/tun (t1): Device or resource busy", view(taps={"t1": {"pid": 7, "program": "qemu-system-x86_64", "queues": 1}}, links=[LINK | {"ifname": "t1"}]),
     view(taps={}, links=[LINK | {"ifname": "t1"}])),
    ("Exchange full", view(links=[BRIDGE, *(LINK | {"ifname": f"t{n}", "master": "br0"} for n in range(1023))]), view(links=[BRIDGE])),
    ("MTU mismatch", view(links=[BRIDGE, LINK | {"ifname": "t1", "mtu": 1400, "master": "br0"}]), view(links=[BRIDGE, LINK | {"ifname": "t1", "master": "br0"}])),
    ("failed to create listening socket for port 53", view(listening=[{"proto": "udp", "address": "0.0.0.0", "port": 53, "program": "unbound", "pid": 9}]), view(listening=[])),
    ("CPU quota", view(machine={"throttled": {"/g": {"guest": "web1", "periods": 100, "throttled": 40}}}), view(machine={"throttled": {"/g": {"guest": "web1", "periods": 100, "throttled": 0}}})),
    ("vhost-net requested but could not be initialized", view(features={"vhost-net": "/dev/vhost-net is missing"}), view(features={"vhost-net": ""})),
    ("e1000e", view(guests=[{"pid": 1, "name": "old", "argv": ["qemu", "-device", "e1000e,netdev=n0", "-netdev", "tap,id=n0"]}]),
     view(guests=[{"pid": 1, "name": "new", "argv": ["qemu", "-device", "virtio-net-pci,netdev=n0", "-netdev", "tap,id=n0"]}])),
    ("active-backup", view(links=[LINK | {"ifname": "bond0", "linkinfo": {"info_kind": "bond", "info_data": {"mode": "active-backup"}}}]), view(links=[BRIDGE])),
    ("can't add wlan0 to bridge br0: Operation not supported", view(links=[LINK | {"ifname": "wlan0"}, BRIDGE], machine={"wireless": ["wlan0"]}), view(links=[LINK | {"ifname": "wlan0"}, BRIDGE], machine={"wireless": []})),
    ("Network is unreachable", view(routes4=[]), None),
    ('Cannot find device "br9"', view(links=[BRIDGE]), view(links=[BRIDGE | {"ifname": "br9"}])),
])
def test_a_cause_is_seen_where_it_is_and_ruled_out_where_it_is_not(text: str, bad: View, good: View | None) -> None:
    assert Holds.SEEN in signs(text, bad)
    assert good is None or (Holds.SEEN not in signs(text, good) and Holds.RULED_OUT in signs(text, good))


def test_the_evidence_names_who_and_the_cure_what() -> None:
    answer = known("could not configure /dev/net/tun (t1): Device or resource busy", view(taps={"t1": {"pid": 7, "program": "qemu-system-x86_64", "queues": 1}}, links=[LINK | {"ifname": "t1"}]))
    assert answer.causes[0].evidence == "t1 is held by qemu-system-x86_64, pid 7" and answer.named == {"dev": "t1"}
    assert answer.causes[0].cure[0] == "kvmnet facts | jq '.taps[\"t1\"]'"


def test_what_is_ruled_out_stands_last() -> None:
    seen = view(sysctls={"net/ipv4/neigh/default/gc_thresh3": "4"}, neighbours=[{"dst": f"10.0.0.{n}"} for n in range(4)], qdiscs=[{"dev": "eth0", "kind": "fq", "drops": 0}])
    holds = [c.holds for c in known("ENOBUFS", seen).causes]
    assert holds[0] is Holds.SEEN and holds[-1] is Holds.RULED_OUT


@pytest.mark.parametrize("words", ["the flux capacitor is cold", "", "EFLUX", "\x00" * 50, "[(", "%s{dev}"])
def test_what_is_not_known_is_said_with_what_is_near(words: str) -> None:
    assert explain(words, None) is None
    assert nearest(words)


def test_a_word_that_begins_like_a_device_is_none() -> None:
    assert known("Device does not allow enslaving to a bridge.").named == {} and known("enp3s0: Device does not allow enslaving to a bridge.").named == {"dev": "enp3s0"}


def test_near_names() -> None:
    assert nearest("netdev_max_backlogs")[0] == "netdev_max_backlog"
    assert nearest("vhost net could not start")[0].startswith(("vhost-net", "unable to start vhost net"))
    assert plain_error("EXDEV") == "EXDEV (18): Invalid cross-device link" and plain_error("flux") == ""


def test_codes_of_findings_on_a_path_are_those_that_there_are() -> None:
    """`why` writes its codes where it finds them."""
    home = Path(path_codes.__file__).parents[2]
    text = "".join(file.read_text() for file in (*home.glob("doctor/*.py"), *home.glob("check/*.py")))
    stale = [code for code in path_codes.CODES if f'"{code}"' not in text and code not in ("rule-drop", "arp-drop")]
    assert not stale and "{'arp' if asked else 'rule'}-drop" in text
    assert known("why said port-isolated").entry.name == "port-isolated"


def test_one_fault_has_one_code() -> None:
    """What both find has the doctor's code and page."""
    assert not set(path_codes.CODES) & set(RULES)
