"""What guests of a network share, and how their packets are marked, on a real kernel.

Every share has its control: the same floods with nothing shared out, or with the other way of sharing.
"""
from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from kvmnet.drivers.tc.driver import TcDriver
from kvmnet.drivers.tc.resources import RECEIVERS, SORTERS
from kvmnet.errors import HostCannot
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import device_mac
from kvmnet.policy import shares
from kvmnet.status import status as look
from lib.flood import Heard, ear, flood
from lib.frames import UDP, ether, ip4, ip6, udp
from lib.netns import sh
from lib.world import NEVER, OUTSIDE, OUTSIDE6, Guest, World, snapshot, unchanged, world

pytestmark = pytest.mark.net

RATE, BURST = 4000, 16 * 1024
"""kbit/s and bytes of the network."""
SECONDS, FRAME = 0.6, 1014
WHOLE = 0.7
"""Part of a flood that arrives when nothing holds it up, on a machine that is busy. Four times the rate, and twice for each of two,
lose more."""
PATIENCE = 20
"""Seconds in which a machine that is busy has a moment for a flood: the upper bounds hold at each attempt, the lower ones at one."""
ROUTED = """
version: 1
uplinks: {wan: {device: eth0}}
networks:
  lan: {mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64"%s}
vms:
  a: {nics: [{network: lan%s}]}
  b: {nics: [{network: lan%s}]}
"""
BRIDGED = ROUTED.replace('mode: routed, uplink: wan, subnet: 198.51.100.0/28, subnet6: "2001:db8:100::/64"',
                         "mode: bridge, uplink: wan, subnet: 192.0.2.0/24, pool: 192.0.2.50-192.0.2.60, gateway: 192.0.2.1")


def routed(network: str = "", a: str = "", b: str = "") -> str:
    return ROUTED % tuple(f", {text}" if text else "" for text in (network, a, b))


def bridged(network: str = "", mode: str = "bridge") -> str:
    return (BRIDGED % (f", {network}" if network else "", "", "")).replace("mode: bridge", f"mode: {mode}")


@pytest.fixture(scope="module")
def ground() -> Iterator[World]:
    with world() as made:
        up = made.outside.netns
        sh(f"ip -n {up} route add 198.51.100.0/28 via 192.0.2.2; ip -n {up} route add 2001:db8:100::/64 via 2001:db8:1::2")
        made.apply(routed())
        for name in "ab":
            made.guest(name).use(f"{made.guest(name).ip}/28", f"{made.guest(name).ip6}/64")
        yield made


def gateway() -> str:
    return device_mac("kvb-lan")


def outward(source: Guest, nonce: bytes, tos: int = 0, size: int = FRAME, six: bool = False) -> bytes:
    """A frame for the server outside, by the router of the network."""
    payload = nonce + bytes(size - 42 - len(nonce))
    if six:
        packet = bytearray(ip6(source.ip6, OUTSIDE6, UDP, udp(source.ip6, OUTSIDE6, 1234, 5678, payload), hops=64))
        packet[0], packet[1] = packet[0] | tos >> 4, packet[1] | (tos & 15) << 4
        return ether(gateway(), source.mac, 0x86DD, bytes(packet))
    packet = bytearray(ip4(source.ip, OUTSIDE, UDP, udp(source.ip, OUTSIDE, 1234, 5678, payload)))
    packet[1] = tos
    packet[10:12] = b"\0\0"
    packet[10:12] = checksum(bytes(packet[:20]))
    return ether(gateway(), source.mac, 0x0800, bytes(packet))


def checksum(header: bytes) -> bytes:
    from lib.frames import checksum as of
    return of(header).to_bytes(2, "big")


def together(made: World, *floods: tuple[str, int]) -> Sequence[tuple[int, Heard]]:
    """Floods of guests towards the server outside, side by side: (guest, kbit/s) -> bytes sent, and what came there."""
    with ExitStack() as stack, ThreadPoolExecutor(len(floods)) as pool:
        nonces = [os.urandom(8) for _ in floods]
        ears = [stack.enter_context(ear(made.outside.netns, "segment", nonce)) for nonce in nonces]
        work = [pool.submit(flood, partial(os.write, made.guest(name).outer.fd), outward(made.guest(name), nonce), rate, SECONDS)
                for (name, rate), nonce in zip(floods, nonces, strict=True)]
        sent = [w.result() for w in work]
        return [(n, e.rest()) for n, e in zip(sent, ears, strict=True)]


def test_all_guests_together_send_no_more_than_the_network_may(ground: World) -> None:
    ground.apply(routed("rate: {out: 4mbit}"))
    assert ground.drift() == []

    def limited() -> bool:
        floods = together(ground, ("a", 2 * RATE), ("b", 2 * RATE))
        found = [heard for _, heard in floods]
        longest = max(found, key=lambda h: h.seconds)
        assert sum(h.octets for h in found) <= longest.allowed(RATE, BURST)
        return sum(h.octets for h in found) >= 0.75 * RATE * 125 * SECONDS and all(h.octets < WHOLE * sent for sent, h in floods)

    wait_until(limited, PATIENCE)
    ground.apply(routed())
    wait_until(lambda: all(h.octets >= WHOLE * sent for sent, h in together(ground, ("a", 2 * RATE), ("b", 2 * RATE))), PATIENCE)


def part_of_b(made: World) -> float:
    """What part of the network's rate *b* gets, which asks for three quarters of it while *a* asks for four times. What waits at
    the end does not count."""
    (_, a), (_, b) = together(made, ("a", 4 * RATE), ("b", RATE * 3 // 4))
    end = a.began + SECONDS
    return b.before(end) / (a.before(end) + b.before(end))


def test_nics_share_equally_or_as_promised(ground: World) -> None:
    ground.apply(routed("rate: {out: 4mbit}"))
    wait_until(lambda: 0.35 < part_of_b(ground) < 0.6, PATIENCE)    # fair
    ground.apply(routed("rate: {out: 4mbit, share: none}"))
    wait_until(lambda: part_of_b(ground) < 0.3, PATIENCE)    # first come, first served
    ground.apply(routed("rate: {out: 4mbit, share: none}", b="rate: {min: 3mbit}"))
    wait_until(lambda: part_of_b(ground) > 0.6, PATIENCE)    # a minimum
    ground.apply(routed("rate: {out: 4mbit}", b="rate: {priority: 0}"))
    wait_until(lambda: part_of_b(ground) > 0.6, PATIENCE)    # a priority
    ground.apply(routed("rate: {out: 4mbit}, classes: {video: {dscp: af11, min: 3mbit}}", b="mark: {dscp: 10}"))
    wait_until(lambda: part_of_b(ground) > 0.6, PATIENCE)    # a class
    ground.apply(routed("rate: {out: 4mbit}, classes: {bulk: {dscp: [8, af11], max: 400kbit}}", b="mark: {dscp: 10}"))
    wait_until(lambda: part_of_b(ground) < 0.25, PATIENCE)    # a ceiling
    classes = {c.name: c for n in (look(ground.host) or pytest.fail("no status")).networks for c in n.classes}
    assert {name: (c.least, c.most, c.priority) for name, c in classes.items()} == {
        "bulk": (64_000, 400_000, 3), "a/nic0": (64_000, RATE * 1000, 3), "b/nic0": (64_000, RATE * 1000, 3), "rest": (64_000, RATE * 1000, 3)}
    assert classes["a/nic0"].sent > classes["bulk"].sent > 10 * FRAME
    assert classes["a/nic0"].dropped > 0 and classes["bulk"].dropped > 0
    assert ground.drift() == []


def test_what_comes_in_for_a_network(ground: World) -> None:
    ground.apply(routed("rate: {in: 4mbit}"))
    assert ground.drift() == []

    def limited() -> bool:
        sent, heard = inward(ground)
        assert heard.octets <= heard.allowed(RATE, BURST)
        return 0.6 * RATE * 125 * SECONDS <= heard.octets < WHOLE * sent

    wait_until(limited, PATIENCE)
    rates = {n.name: n.rates for n in (look(ground.host) or pytest.fail("no status")).networks}["lan"]
    assert set(rates) == {"in"} and rates["in"].rate == 4_000_000 and rates["in"].dropped > 0
    ground.apply(routed())
    wait_until(lambda: came_whole(inward(ground)), PATIENCE)


def came_whole(flood: tuple[int, Heard]) -> bool:
    sent, heard = flood
    return heard.octets >= WHOLE * sent


def test_nics_receive_equally(ground: World) -> None:
    """What comes from outside for two, four times the rate for one and three quarters of it for the other."""
    ground.apply(routed("rate: {in: 4mbit}"))
    assert ground.drift() == []
    wait_until(lambda: 0.35 < received_by_b(ground) < 0.6, PATIENCE)    # fair
    classes = {(c.direction, c.name): c for n in (look(ground.host) or pytest.fail("no status")).networks for c in n.classes}
    assert classes.keys() == {("in", "a/nic0"), ("in", "b/nic0"), ("in", "rest")}
    assert classes["in", "a/nic0"].dropped > 0 and classes["in", "b/nic0"].sent > 10 * FRAME
    member = f'{{ "kvb-lan" . {ground.guest("b").ip} }}'
    for damage, drift in ((f"nft delete element inet kvmnet-marks inward4 '{member}'", "update nft-table inet kvmnet-marks"),
                          ("tc qdisc del dev kvb-lan root", "create qdisc kvb-lan")):
        sh(damage)
        assert any(line.startswith(drift) for line in ground.drift())
        ground.apply(routed("rate: {in: 4mbit}"))
        assert ground.drift() == []
    ground.apply(routed("rate: {in: 4mbit, share: none}"))
    wait_until(lambda: received_by_b(ground) < 0.3, PATIENCE)    # first come, first served
    ground.apply(routed("rate: {in: 4mbit, share: none}", b="rate: {min_in: 3mbit}"))
    wait_until(lambda: received_by_b(ground) > 0.6, PATIENCE)    # a minimum
    assert ground.drift() == []


def test_classes_of_what_comes_in(ground: World) -> None:
    """What comes from outside for one guest: four times the rate without a DSCP, and three quarters of it with one."""
    video = "rate: {in: 4mbit}, classes: {video: {dscp: ef%s}}"
    ground.apply(routed(video % ""))
    wait_until(lambda: video_of_a(ground) < 0.3, PATIENCE)    # in one line
    ground.apply(routed(video % ", in: {min: 3mbit}"))
    assert ground.drift() == []
    wait_until(lambda: video_of_a(ground) > 0.6, PATIENCE)
    classes = {(c.direction, c.name): c for n in (look(ground.host) or pytest.fail("no status")).networks for c in n.classes}
    assert classes.keys() == {("in", "a/nic0"), ("in", "b/nic0"), ("in", "video"), ("in", "rest")}
    video_class = classes["in", "video"]
    assert (video_class.least, video_class.most, video_class.priority) == (3_000_000, 4_000_000, 3)
    assert video_class.sent > 10 * FRAME and classes["in", "a/nic0"].dropped > 0
    six = ground.guest("a").ip6
    before = passed_in(ground, "video")
    ground.outside.pings(six, timeout=NEVER)    # for the neighbour entry; nobody answers
    with ground.outside.socket(10, 2) as out:
        out.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, EF)
        wait_until(lambda: out.sendto(bytes(FRAME), (six, 5678)) and passed_in(ground, "video") > before + FRAME, PATIENCE)
    sh("nft delete element inet kvmnet-marks classed '{ \"kvb-lan\" }'")
    assert ground.drift() == ["update nft-table inet kvmnet-marks"]
    ground.apply(routed())
    assert ground.drift() == []


EF = 46 << 2


def passed_in(made: World, name: str) -> int:
    """Bytes that left a class of what comes in."""
    return next(c.sent for n in (look(made.host) or pytest.fail("no status")).networks for c in n.classes if (c.direction, c.name) == ("in", name))


def video_of_a(made: World) -> float:
    """What part of what *a* gets from outside has a DSCP. What waits at the end does not count."""
    guest = made.guest("a")
    made.outside.pings(guest.ip, timeout=NEVER)
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        ears, work = [], []
        for tos, rate in ((0, 4 * RATE), (EF, RATE * 3 // 4)):
            nonce, out = os.urandom(8), stack.enter_context(made.outside.socket(2, 2))
            out.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
            ears.append(stack.enter_context(ear(guest.netns, "eth0", nonce)))
            work.append(pool.submit(flood, partial(sends, out, guest.ip), nonce + bytes(FRAME - 42 - len(nonce)), rate, SECONDS))
        for w in work:
            w.result()
        plain, video = (e.rest() for e in ears)
    end = plain.began + SECONDS
    return video.before(end) / max(1, plain.before(end) + video.before(end))


def received_by_b(made: World) -> float:
    """What part of what comes from outside *b* gets. What waits at the end does not count."""
    for name in "ab":
        made.outside.pings(made.guest(name).ip, timeout=NEVER)    # for the neighbour entry; nobody answers
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        ears, work = [], []
        for name, rate in (("a", 4 * RATE), ("b", RATE * 3 // 4)):
            guest, nonce = made.guest(name), os.urandom(8)
            out = stack.enter_context(made.outside.socket(2, 2))
            ears.append(stack.enter_context(ear(guest.netns, "eth0", nonce)))
            work.append(pool.submit(flood, partial(sends, out, guest.ip), nonce + bytes(FRAME - 42 - len(nonce)), rate, SECONDS))
        for w in work:
            w.result()
        a, b = (e.rest() for e in ears)
    end = a.began + SECONDS
    return b.before(end) / max(1, a.before(end) + b.before(end))


def sends(out: socket.socket, address: str, data: bytes) -> None:
    out.sendto(data, (address, 5678))


def inward(made: World) -> tuple[int, Heard]:
    """A flood from the server outside: the bytes of its frames, and what guest a gets."""
    guest, nonce = made.guest("a"), os.urandom(8)
    made.outside.pings(guest.ip, timeout=NEVER)    # for the neighbour entry; nobody answers
    with ear(guest.netns, "eth0", nonce) as hears, made.outside.socket(2, 2) as out:
        sent = flood(lambda data: out.sendto(data, (guest.ip, 5678)), nonce + bytes(FRAME - 42 - len(nonce)), 4 * RATE, SECONDS)
        return sent, hears.rest()


@pytest.mark.parametrize("six", [False, True])
def test_packets_are_marked(ground: World, six: bool) -> None:
    """DSCP of the frames that arrive outside, for guests that set none, and 46 with ECN."""
    found = {}
    for words in ("", "mark: {dscp: 10}", "mark: {dscp: cs0}", "mark: {dscp: af41, trust: true}"):
        ground.apply(routed(a=words))
        found[words] = [marked(ground, tos, six) for tos in (0, 46 << 2 | 1)]
    assert found == {"": [0, 46 << 2 | 1], "mark: {dscp: 10}": [10 << 2, 10 << 2 | 1], "mark: {dscp: cs0}": [0, 1],
                     "mark: {dscp: af41, trust: true}": [34 << 2, 46 << 2 | 1]}
    assert marked(ground, 0, six, "b") == 0, "another NIC's packets are not"


def marked(made: World, tos: int, six: bool, name: str = "a") -> int:
    """The TOS byte, or traffic class, with which a packet of *tos* arrives outside."""
    nonce = os.urandom(8)
    with ear(made.outside.netns, "segment", nonce) as hears:
        os.write(made.guest(name).outer.fd, outward(made.guest(name), nonce, tos, 200, six))
        (frame,) = hears.rest(1).frames
    return (frame[14] & 15) << 4 | frame[15] >> 4 if six else frame[15]


def test_what_is_taken_away_is_seen_and_put_back(ground: World) -> None:
    text = routed("rate: {out: 4mbit}, classes: {video: {dscp: ef, priority: 0}}", "mark: {dscp: ef}")
    ground.apply(text)
    leaf, queue = next((line.split()[2], line.split()[6]) for line in sh("tc class show dev kvi-~lan").splitlines() if "prio 0" in line)
    for damage, drift in ((f"tc class del dev kvi-~lan classid {leaf}", [f"create tc-class kvi-~lan {leaf}", f"create qdisc kvi-~lan {queue}"]),
                          (f"tc qdisc del dev kvi-~lan parent {leaf}", [f"create qdisc kvi-~lan {queue}"]),
                          (f"tc class change dev kvi-~lan parent {leaf.partition(':')[0]}:1 classid {leaf} htb rate 64kbit ceil 9mbit burst 16k cburst 16k prio 0",
                           [f"update tc-class kvi-~lan {leaf}"]),
                          ('nft delete element bridge kvmnet-marks marked \'{ "kvt-a-0" }\'', ["update nft-table bridge kvmnet-marks"])):
        sh(damage)
        assert ground.drift() == drift
        ground.apply(text)
        assert ground.drift() == []
    assert ground.apply(text).steps == ()
    sh("nft delete table bridge kvmnet-marks")
    wait_until(lambda: "kvmnet-marks" in sh("nft list tables"), 20)
    assert ground.drift() == [], "the guard's keeper has brought it back"


@pytest.mark.parametrize("mode", ["bridge", "macvtap"])
def test_a_segment_of_the_uplink(mode: str) -> None:
    """Guests wait at the uplink itself; the host beside them does not, and the uplink's own queue comes back."""
    with world() as made:
        made.apply(bridged(mode=mode))
        made.guest("a")
        before = sh("tc qdisc show dev eth0")
        made.apply(bridged("rate: {out: 4mbit}, classes: {video: {dscp: ef}}", mode))
        assert made.drift() == [] and "htb 6" in sh("tc qdisc show dev eth0")
        one, nonce = made.guest("a"), os.urandom(8)
        router = made.outside.run("cat /sys/class/net/segment/address").strip()
        payload = nonce + bytes(FRAME - 50)
        frame = ether(router, one.mac, 0x0800, ip4(one.ip, "192.0.2.1", UDP, udp(one.ip, "192.0.2.1", 1234, 5678, payload)))

        def flooded(send: Callable[[bytes], object], data: bytes) -> tuple[int, Heard]:
            with ear(made.outside.netns, "segment", nonce) as hears:
                return flood(send, data, 4 * RATE, SECONDS), hears.rest()

        def limited() -> bool:
            sent, heard = flooded(partial(os.write, one.outer.fd), frame)
            assert heard.octets <= heard.allowed(RATE, BURST)
            return 0.75 * RATE * 125 * SECONDS <= heard.octets < WHOLE * sent

        wait_until(limited, PATIENCE)
        with made.here.socket(2, 2) as out:
            wait_until(lambda: came_whole(flooded(lambda data: out.sendto(data, ("192.0.2.1", 5678)), payload)), PATIENCE)
        if mode == "macvtap":
            sh(f"tc filter del dev eth0 parent {sh('tc qdisc show dev eth0').split()[2]} pref {SORTERS[-1]}")
            assert made.drift() == [f"create sorter eth0 {SORTERS[-1]}"]
        made.apply(bridged(mode=mode))
        assert sh("tc qdisc show dev eth0") == before
        sh("tc qdisc replace dev eth0 root handle 1: htb default 1")
        with pytest.raises(HostCannot, match=r"test.yaml:5:\d+: networks.lan.rate.out: eth0 has a queue that somebody else has set: htb 1:"):
            made.plan(bridged("rate: {out: 4mbit}", mode))
        assert made.drift() == []


def test_nics_receive_equally_from_other_hosts() -> None:
    """What comes in by a port waits before any hook has seen it: there a NIC is known by the frame's destination."""
    text = ("version: 1\nuplinks: {{wan: {{device: eth0}}}}\n"
            "networks: {{lan: {{mode: vxlan, uplink: wan, subnet: 10.50.0.0/24, vxlan: {{vni: 50, peers: [192.0.2.1]}}{}}}}}\n"
            "vms: {{a: {{nics: [{{network: lan, ip: 10.50.0.11}}]}}, b: {{nics: [{{network: lan, ip: 10.50.0.12{}}}]}}}}\n")
    with world() as made:
        up = made.outside.netns
        sh(f"ip -n {up} link add far type vxlan id 50 local 192.0.2.1 remote 192.0.2.2 dstport 4789 dev segment;"
           f"ip -n {up} addr add 10.50.0.1/24 dev far; ip -n {up} link set far up")
        made.apply(text.format(", rate: {in: 4mbit, share: none}", ""))
        for name in "ab":
            made.guest(name).use(f"{made.guest(name).ip}/24")
        wait_until(lambda: received_by_b(made) < 0.3, PATIENCE)    # first come, first served
        made.apply(text.format(", rate: {in: 4mbit}", ""))
        assert made.drift() == [] and "kvmnet-marks" not in sh("nft list tables inet")
        wait_until(lambda: 0.35 < received_by_b(made) < 0.6, PATIENCE)    # fair
        made.apply(text.format(", rate: {in: 4mbit}", ", rate: {min_in: 3mbit}"))
        classes = {(c.direction, c.name): c for n in (look(made.host) or pytest.fail("no status")).networks for c in n.classes}
        assert classes.keys() == {("in", "a/nic0"), ("in", "b/nic0"), ("in", "rest")} and classes["in", "b/nic0"].least == 3_000_000
        assert classes["in", "a/nic0"].dropped > 0 and classes["in", "b/nic0"].sent > 10 * FRAME
        place = f"dev kvi-~lan parent {sh('tc qdisc show dev kvi-~lan').split()[2]} pref {RECEIVERS}"
        macs = [made.guest(name).mac for name in "ab"]
        for damage, drift in (("", ["create mac-table kvi-~lan", *(f"create receiver kvi-~lan {mac}" for mac in sorted(macs))]),
                              (f" handle 1:{node_of(macs[1])} u32", [f"create receiver kvi-~lan {macs[1]}"])):
            sh(f"tc filter del {place}{damage}")
            assert sorted(made.drift()) == drift
            made.apply(text.format(", rate: {in: 4mbit}", ", rate: {min_in: 3mbit}"))
            assert made.drift() == []
        made.apply(text.format(", rate: {in: 4mbit}", "").replace(", b: {", "}\n#"))    # a NIC goes, and its class, which its MAC led to
        assert made.drift() == [] and macs[1].replace(":", "")[4:] not in sh(f"tc filter show {place}")


def node_of(mac: str) -> str:
    """Where a MAC that is alone in its bucket stands."""
    return f"{int(mac[-2:], 16):x}:{shares.numbers([mac], shares.NODES)[mac]:x}"


def test_an_existing_bridge_with_one_way_outside() -> None:
    """What guests send waits at the bridge's only port of the host's own; the host beside them is in no class there."""
    with world() as made:
        sh("ip link add br7 type bridge; ip link add vx7 type vxlan id 7 local 192.0.2.2 remote 192.0.2.1 dstport 4789 dev eth0;"
           "ip link set vx7 master br7 up; ip link set br7 up; ip addr add 10.7.0.1/24 dev br7")
        text = ("version: 1\nnetworks: {{old: {{mode: bridge, bridge: br7, subnet: 10.7.0.0/24{}}}}}\n"
                "vms: {{a: {{nics: [{{network: old, ip: 10.7.0.9}}]}}}}\n")
        before = sh("tc qdisc show dev vx7")
        made.apply(text.format(", rate: {out: 4mbit}"))
        assert made.drift() == [] and "htb 6" in sh("tc qdisc show dev vx7")
        guest = made.guest("a").use("10.7.0.9/24")
        queues = TcDriver()

        def passed() -> int:
            return sum(counts.sent for name, counts in queues.queue_counts()[1].items() if name.startswith("vx7 "))

        def of_guest() -> bool:
            guest.pings("10.7.0.77", timeout=NEVER)    # asked for by everybody's frames
            return passed() > 0
        wait_until(of_guest, PATIENCE)
        with made.here.socket(2, 2) as out:    # its frames pass the port as well, and wait nowhere
            out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            direct, waited = sent_by("vx7"), passed()
            wait_until(lambda: out.sendto(bytes(1000), ("10.7.0.255", 9)) and sent_by("vx7") > direct + 20, PATIENCE)
            assert passed() - waited < 10_000, "what the guest says by itself"
        sh("ip link add vx8 type vxlan id 8 local 192.0.2.2 remote 192.0.2.1 dstport 4790 dev eth0; ip link set vx8 master br7")
        with pytest.raises(HostCannot, match=r"test.yaml:2:\d+: networks.old.rate.out: br7 leads outside by vx7 and vx8"):
            made.plan(text.format(", rate: {out: 5mbit}"))
        sh("ip link del vx8")
        made.apply(text.format(""))
        assert sh("tc qdisc show dev vx7") == before


def sent_by(device: str) -> int:
    """Packets that a device has sent."""
    return int(next(line.split()[10] for line in Path("/proc/thread-self/net/dev").read_text().splitlines() if line.strip().startswith(f"{device}:")))


def test_destroy_leaves_nothing() -> None:
    with world() as made:
        before, queues = snapshot(), sh("tc qdisc show")
        made.apply(routed("rate: {out: 4mbit, in: 4mbit}, classes: {video: {dscp: ef, priority: 0}}", "mark: {dscp: ef}", "rate: {min: 1mbit}"))
        assert "htb" in sh("tc qdisc show") and "kvmnet-marks" in sh("nft list tables")
        made.apply(routed("rate: {out: 5mbit}"))
        made.destroy()
        unchanged(before)
        assert sh("tc qdisc show") == queues
