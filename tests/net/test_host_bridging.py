"""Spanning tree and multicast of a network's own bridge, on the running kernel: by the frames of its guests."""
from __future__ import annotations

import json
import struct

import pytest

from kvmnet.host.clock import wait_until
from lib.frames import IGMP, UDP, ether, icmp, ip, ip4, llc, udp
from lib.netns import sh
from lib.settled import lines
from lib.tap import Tap
from lib.world import world

pytestmark = pytest.mark.net

MACS = {"a": "52:54:00:00:07:01", "b": "52:54:00:00:07:02", "c": "52:54:00:00:07:03"}
GROUP, GROUP_MAC = "239.1.1.1", "01:00:5e:01:01:01"


def document(options: str, guard: str = "full") -> str:
    vms = ", ".join(f"{vm}: {{nics: [{{network: lan, mac: '{mac}', ip: 10.7.0.{i}, guard: {guard}}}]}}"
                    for i, (vm, mac) in enumerate(MACS.items(), 11))
    return (f"version: 1\nnetworks: {{lan: {{mode: isolated, subnet: 10.7.0.0/24, subnet6: 'fd00:7::/64', {options}}}}}\n"
            f"vms: {{{vms}}}\n")


def bridge() -> dict[str, object]:
    found: dict[str, object] = json.loads(sh("ip -d -j link show kvb-lan"))[0]["linkinfo"]["info_data"]
    return found


def hello(mac: str) -> bytes:
    """A configuration BPDU of a bridge that is better than any other (802.1D-1998, 9.3.1)."""
    own = b"\0\0" + bytes.fromhex(mac.replace(":", ""))
    return llc("01:80:c2:00:00:00", mac, b"\x42\x42\3" + bytes(5) + own + bytes(4) + own
               + struct.pack("!HHHHH", 0x8001, 0, 20 << 8, 2 << 8, 15 << 8) + bytes(8))


def root_port() -> object:
    """0: the bridge itself is the root (root_id is shown wrongly by iproute2 6.1)."""
    return bridge()["root_port"]


def test_a_spanning_tree_and_a_guest_that_wants_to_be_its_root() -> None:
    stp = "stp: true, stp_options: {priority: 8192, hello: 1, forward_delay: 4, max_age: 6}"
    with world() as host:
        lines(host, document(stp, guard="off"))
        shown = bridge()
        assert [shown[n] for n in ("stp_state", "priority", "hello_time", "forward_delay", "max_age")] == [1, 8192, 100, 400, 600]
        with Tap("kvt-a-0") as guest:
            wait_until(lambda: json.loads(sh("ip -d -j link show kvt-a-0"))[0]["linkinfo"]["info_slave_data"]["state"] != "disabled", 20)
            guest.wait(b"\x42\x42\x03", 20)          # the bridge speaks, so it listens too
            for _ in range(3):
                guest.send(hello(MACS["a"]))
            assert root_port() == 0, "the root guard holds"
            sh("ip link set kvt-a-0 type bridge_slave root_block off")
            wait_until(lambda: guest.send(hello(MACS["a"])) or root_port() != 0, 20)
            shown = bridge()
            assert [shown[n] for n in ("forward_delay", "hello_time", "max_age")] == [1500, 200, 2000], "the root's"
            assert host.drift() == ["update link kvt-a-0"], "the bridge's own times are not drift"
        assert host.drift() == ["update link kvt-a-0"]
        lines(host, document(""))
        # Its own times hold again when the kernel has seen that the root is gone (br_become_root_bridge()), after its max_age at the latest.
        wait_until(lambda: (bridge()["stp_state"], bridge()["forward_delay"]) == (0, 0), 60)


def test_multicast_reaches_those_that_joined() -> None:
    with world() as host:
        lines(host, document("querier: true"))
        with Tap("kvt-a-0") as a, Tap("kvt-b-0") as b, Tap("kvt-c-0") as c:
            wait_until(lambda: [f for f in a.drain() if f[12:14] == b"\x08\0" and f[23] == IGMP and f[26:30] == ip("10.7.0.1")], 20)
            wait_until(lambda: [f for f in a.drain() if f[12:14] == b"\x86\xdd" and f[20] == 0 and 130 in f[54:70]], 20)
            a.send(ether(GROUP_MAC, MACS["a"], 0x0800, ip4("10.7.0.11", GROUP, IGMP, icmp(0x16, 0, ip(GROUP)), options=b"\x94\4\0\0", ttl=1)))
            wait_until(lambda: f"port kvt-a-0 grp {GROUP}" in sh("bridge mdb show"), 20)

            def reached(nonce: bytes) -> set[str]:
                for tap in (a, c):
                    tap.forget()
                b.send(ether(GROUP_MAC, MACS["b"], 0x0800, ip4("10.7.0.12", GROUP, UDP, udp("10.7.0.12", GROUP, 9, 9, nonce))))
                a.wait(nonce, 2)
                return {n for n, t in (("a", a), ("c", c)) if t.got(nonce)}

            wait_until(lambda: reached(b"members-only") == {"a"}, 20, 0.2)   # after the first query's response time
            lines(host, document("snooping: false"))
            assert reached(b"everybody") == {"a", "c"}
