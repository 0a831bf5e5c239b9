"""Mirrors: what is copied, to whom, what is not, and that nothing goes round in a circle."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from kvmnet.errors import HostCannot
from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture, device_mac
from kvmnet.status import status
from lib.frames import BROADCAST, UDP, arp, ether, ip4, tag, udp
from lib.netns import inside, sh
from lib.tap import Tap
from lib.world import World, snapshot, unchanged, world

pytestmark = pytest.mark.net

ONE, TWO, EYE = ("52:54:00:00:61:01", "10.61.0.11"), ("52:54:00:00:61:02", "10.61.0.12"), ("52:54:00:00:61:03", "10.61.0.13")
NAMES = ("kvt-one-0", "kvt-two-0", "kvt-eye-0", "kvt-eye-1")


def document(mirrors: str, extra: str = "") -> str:
    return f"""
version: 1
uplinks: {{wan: {{device: eth0}}}}
networks:
  lan: {{mode: nat, uplink: wan, subnet: 10.61.0.0/24}}
  dark: {{mode: isolated, subnet: 10.62.0.0/24}}
groups: {{web: {{ingress: [{{}}]}}}}
vms:
  one: {{nics: [{{network: lan, mac: '{ONE[0]}', ip: {ONE[1]}, groups: [web]}}]}}
  two: {{nics: [{{network: lan, mac: '{TWO[0]}', ip: {TWO[1]}}}]}}
  eye: {{nics: [{{network: lan, mac: '{EYE[0]}', ip: {EYE[1]}}}, {{network: dark{extra}}}]}}
{f"mirrors: {mirrors}" if mirrors else ""}
"""


class Taps:
    def __init__(self, stack: ExitStack):
        self.one, self.two, self.eye, self.dark = (stack.enter_context(Tap(name)) for name in NAMES)

    def forget(self) -> None:
        for tap in (self.one, self.two, self.eye, self.dark):
            tap.forget()


@contextmanager
def taps() -> Iterator[Taps]:
    with ExitStack() as stack:
        made = Taps(stack)
        probe = ether(BROADCAST, ONE[0], 0x0806, arp(1, ONE, ("00:00:00:00:00:00", TWO[1])))

        def through() -> int:
            made.one.send(probe)
            return made.two.got(probe)
        wait_until(through, 20, 0.1)
        # A tap that was opened has its carrier at once, and its queue a moment later (net/core/link_watch.c).
        wait_until(lambda: not any("noop" in sh(f"ip link show {name}") for name in NAMES), 20, 0.05)
        made.two.send(ether(ONE[0], TWO[0], 0x0806, arp(2, TWO, ONE)))    # where the bridge has learned both, nothing is flooded
        made.one.wait(bytes.fromhex(TWO[0].replace(":", "")) + b"\x08\x06")
        made.forget()
        yield made


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as made:
        made.apply(document(""))
        yield made


def mac_of(here: World, vm: str, nic: str) -> str:
    document = here.host.current()
    assert document
    return next(got.mac for key, got in here.host.engine.history.allocations().items() if key[:2] == (vm, nic))


def answer(mac: str) -> bytes:
    """What the host's ARP answer to *mac* begins with."""
    return bytes.fromhex((mac + device_mac("kvb-dark")).replace(":", "")) + b"\x08\x06"


def says(sender: tuple[str, str], target: tuple[str, str], nonce: bytes, port: int = 7, size: int = 100) -> bytes:
    payload = nonce.ljust(size - 42, b".")
    return ether(target[0], sender[0], 0x0800, ip4(sender[1], target[1], UDP, udp(sender[1], target[1], 7, port, payload)))


WATCHED = {
    "nothing": ("", 0, 0, 0),
    "guest": ("{ids: {from: [one], to: eye/nic1}}", 1, 1, 0), "sent": ("{ids: {from: [one], to: eye/nic1, direction: sent}}", 1, 0, 0),
    "received": ("{ids: {from: [one], to: eye/nic1, direction: received}}", 0, 1, 0),
    "both guests": ("{ids: {from: [one, two/nic0], to: eye/nic1}}", 2, 2, 1),
    "network": ("{ids: {from: ['network:lan'], to: eye/nic1}}", 1, 1, 1),
    "group": ("{ids: {from: ['group:web'], to: eye/nic1}}", 1, 1, 0),
    "fields": ("{ids: {from: [one], to: eye/nic1, filter: {udp: [70-80], hosts: [10.61.0.12]}}}", 0, 0, 0),
    "words": ("{ids: {from: [one], to: eye/nic1, filter: 'udp dst port 7 and src host 10.61.0.11'}}", 1, 0, 0),
    "twice": ("{ids: {from: [one], to: eye/nic1}, more: {from: [one], to: eye/nic1, direction: sent}}", 2, 1, 0),
}
"""What is watched: copies of a frame from one to two, from two to one, and from the host to two."""


@pytest.mark.parametrize("case", WATCHED)
def test_each_frame_is_copied_as_often_as_it_is_watched_and_arrives_once(here: World, case: str) -> None:
    """The copies reach the receiver and nobody else; without the mirror it gets nothing."""
    wish, *expected = WATCHED[case]
    here.apply(document(wish))
    assert here.drift() == []
    with taps() as t:
        t.one.send(says(ONE, TWO, b"there"))
        t.two.send(says(TWO, ONE, b"back!"))
        with Capture("kvb-lan") as as_host:
            as_host.send(ether(TWO[0], device_mac("kvb-lan"), 0x0800, says(EYE, TWO, b"host!")[14:]))
        t.two.wait(b"host!")
        t.two.wait(b"there")
        t.one.wait(b"back!")
        assert t.two.got(b"there") == t.one.got(b"back!") == t.two.got(b"host!") == 1
        assert [t.dark.got(n) for n in (b"there", b"back!", b"host!")] == expected
        assert t.eye.got(b"there") == t.eye.got(b"back!") == 0
        assert t.dark.got(says(ONE, TWO, b"there")) == expected[0], "byte by byte"


def test_a_guest_with_rates_is_copied_once(here: World) -> None:
    """What it sends makes a detour by the queue of another device, and comes in by the tap a second time."""
    here.apply(document("{ids: {from: [one], to: eye/nic1}}").replace("groups: [web]}", "groups: [web], rate: {in: 50mbit, out: 50mbit}}"))
    assert here.drift() == []
    with taps() as t:
        for number in range(20):
            t.one.send(says(ONE, TWO, b"out%02d" % number))
            t.two.send(says(TWO, ONE, b"in_%02d" % number))
        t.two.wait(b"out19")
        t.one.wait(b"in_19")
        assert [t.dark.got(b"%s%02d" % (way, n)) for n in range(20) for way in (b"out", b"in_")] == [1] * 40
    here.apply(document(""))
    assert here.drift() == []


def test_what_the_guard_and_rules_refuse(here: World) -> None:
    """A forged frame is seen as sent, and received by nobody; what a group refuses is not received."""
    here.apply(document("{ids: {from: [one, two], to: eye/nic1}}"))
    with taps() as t:
        t.one.send(ether(TWO[0], EYE[0], 0x0800, says(ONE, TWO, b"forged")[14:]))
        t.one.send(tag(9, says(ONE, TWO, b"tagged")))
        t.one.send(says(ONE, TWO, b"honest"))
        t.two.wait(b"honest")
        assert t.two.got(b"forged") == t.two.got(b"tagged") == 0
        assert [t.dark.got(n) for n in (b"forged", b"tagged", b"honest")] == [1, 1, 2]


def test_a_flow_under_way_is_copied_at_once_and_loses_nothing(here: World) -> None:
    """500 frames, with a mirror made and taken away in their midst: none is lost, and while it stands each is copied."""
    here.apply(document(""))
    with taps() as t:
        sent = 0

        def send(count: int) -> None:
            nonlocal sent
            for _ in range(count):
                t.one.send(says(ONE, TWO, b"n%05d;" % sent))
                sent += 1
        send(50)
        planned = here.plan(document("{ids: {from: [one], to: eye/nic1}}"))
        here.host.apply(planned)
        first = sent
        send(50)
        here.apply(document("{ids: {from: [one], to: eye/nic1, direction: sent}}"))
        send(50)
        last = sent
        here.apply(document(""))
        send(50)
        t.two.wait(b"n%05d;" % (sent - 1))
        numbers = [int(f[f.index(b"n0") + 1:][:5]) for f in t.two.seen if b";" in f and b"n0" in f]
        assert numbers == list(range(200))
        t.dark.drain()
        copied = [int(f[f.index(b"n0") + 1:][:5]) for f in t.dark.seen if b"n0" in f]
        assert copied == list(range(first, last))


def hears_and_asks(here: World) -> tuple[bool, bool]:
    """Whether eye/nic1 hears what is said to all on its network, and whether the host answers it, while copies come."""
    mac = mac_of(here, "eye", "nic1")
    ask = ether(BROADCAST, mac, 0x0806, arp(1, (mac, "10.62.0.2"), ("00:00:00:00:00:00", "10.62.0.1")))
    shout = ether(BROADCAST, "02:00:00:00:00:09", 0x88B5, b"to everybody on the bridge")
    with taps() as t, Capture("kvb-dark") as bridge:
        for number in range(50):    # a port of a bridge forwards a moment after it came up
            bridge.send(shout)
            t.dark.send(ask)
            t.one.send(says(ONE, TWO, b"copy %d." % number))
            t.dark.wait(b"copy %d." % number)
            if t.dark.got(shout) and t.dark.got(answer(mac)):
                break
        return bool(t.dark.got(shout)), bool(t.dark.got(answer(mac)))


def test_a_nic_for_copies_gets_nothing_else_and_says_nothing(here: World) -> None:
    """Against an ordinary NIC of the same network, which hears and is answered."""
    mirrors = "{ids: {from: [one], to: eye/nic1, direction: sent}}"
    here.apply(document(mirrors))
    assert hears_and_asks(here) == (True, True)
    here.apply(document(mirrors, ", ip: none, receives: copies"))
    assert here.drift() == [] and "master" not in sh("ip link show kvt-eye-1")
    assert hears_and_asks(here) == (False, False)
    found = status(here.host)
    assert found and next(n.state for n in found.nics if n.tap == "kvt-eye-1") in ("idle", "ok")
    here.apply(document(mirrors))
    assert here.drift() == []


def test_drift_change_rollback_and_destroy(here: World) -> None:
    here.apply(document(""))
    before = snapshot()
    assert "clsact" not in sh("tc qdisc show")
    first, second = (document(f"{{ids: {{from: [one, 'uplink:wan'], to: eye/nic1, filter: '{f}'}}}}") for f in ("tcp", "udp"))
    here.apply(first)
    assert here.drift() == [] and not here.plan(first).steps
    assert [type(s).__name__ for s in here.plan(second).steps] == ["Update"] * 4
    here.apply(second)
    assert here.drift() == []
    shown = sh("tc filter show dev kvt-one-0 ingress")
    number = shown.split("pref ")[1].split()[0]
    sh(f"tc filter del dev kvt-one-0 ingress pref {number}; tc filter del dev eth0 egress")
    assert sorted(here.drift()) == [f"create copy eth0 egress {number}", f"create copy kvt-one-0 ingress {number}"]
    here.host.apply(here.host.plan_revision(here.host.revision))
    assert here.drift() == []
    sh("tc filter add dev eth0 ingress protocol all pref 9000 u32 match u32 0 0 flowid 1:1")
    here.apply(document(""))
    assert "clsact" in sh("tc qdisc show dev eth0") and "pref 9000" in sh("tc filter show dev eth0 ingress"), "somebody else's"
    sh("tc qdisc del dev eth0 clsact")
    assert "clsact" not in sh("tc qdisc show")
    unchanged(before)


def test_a_receiver_that_goes_and_comes_back(here: World) -> None:
    """The source does not notice: its frames arrive, and copies come again after an apply."""
    wish = document("{ids: {from: [one], to: {device: out0}, direction: sent}}")
    sh("ip link add out0 type veth peer name far0 netns " + here.outside.netns + "; ip link set out0 up")
    here.apply(wish)
    sh("ip link del out0")
    with taps() as t:
        t.one.send(says(ONE, TWO, b"without"))
        t.two.wait(b"without")
    with pytest.raises(HostCannot, match="no device out0"):
        here.plan(wish)
    sh("ip link add out0 type veth peer name far0 netns " + here.outside.netns + "; ip link set out0 up")
    assert any("copy kvt-one-0 ingress" in line for line in here.drift())
    here.apply(wish)
    assert here.drift() == []
    sh("ip link set out0 down")
    with taps() as t:
        t.one.send(says(ONE, TWO, b"down"))
        t.two.wait(b"down")
    here.apply(document(""))
    sh("ip link del out0")


def test_a_tunnel_to_another_machine_takes_copies_out_and_nothing_in(here: World) -> None:
    """Each copy whole in a VXLAN packet, a large one in fragments; what the other end sends into the tunnel is dropped."""
    far = here.outside
    far.run("ip link add tun0 type vxlan id 7 remote 192.0.2.2 local 192.0.2.1 dstport 4790")
    far.run("ip link set tun0 addrgenmode none up")
    here.apply(document("{ids: {from: [one], to: {vxlan: {remote: 192.0.2.1, vni: 7, port: 4790}}, direction: sent}}"))
    assert here.drift() == []
    with inside(far.netns):
        end = Capture("tun0")
    with taps() as t, end:
        for nonce, size in ((b"small", 100), (b"large", 1514)):
            frame = says(ONE, TWO, nonce, size=size)
            t.one.send(frame)
            t.two.wait(nonce)
            assert got(end, nonce) == [frame]
        inward = says(ONE, TWO, b"inward")
        for target in (TWO[0], device_mac("kvm-ids"), BROADCAST):
            end.send(ether(target, "02:00:00:00:00:77", 0x0800, inward[14:]))
        with Capture("kvm-ids") as arrived:
            def arrives() -> bool:
                end.send(inward)
                return b"inward" in (arrived.receive() or b"")
            wait_until(arrives, 20, 0.05)
        t.one.send(says(ONE, TWO, b"the end"))
        t.two.wait(b"the end")
        assert t.two.got(b"inward") == 0
    found = status(here.host)
    assert found and [(m.name, m.receiver, m.state) for m in found.mirrors] == [("ids", "vxlan to 192.0.2.1", "ok")]
    assert found.mirrors[0].frames >= 3 and found.mirrors[0].lost == 0
    sh("ip link set kvm-ids down")
    assert here.drift() == ["update shut kvm-ids"]
    here.host.apply(here.host.plan_revision(here.host.revision))
    assert here.drift() == []
    here.apply(document(""))
    far.run("ip link del tun0")
    assert "kvm-ids" not in sh("ip link")


def got(end: Capture, nonce: bytes) -> list[bytes]:
    """Frames with *nonce*, of which there is one at least."""
    found: list[bytes] = []

    def came() -> bool:
        while frame := end.receive():
            if nonce in frame:
                found.append(frame)
        return bool(found)
    wait_until(came, 20)
    return found


def test_copies_of_copies_are_never_made(here: World) -> None:
    """Everything that enters the bridge and leaves by the uplink is mirrored, and the copies go by both: to a collector
    outside, by the uplink, and to one behind a tap of the mirrored network. One frame is copied once for each."""
    wish = ("{out: {from: ['network:lan'], to: {vxlan: {remote: 203.0.113.1, vni: 1}}},"
            f" back: {{from: ['network:lan', 'group:web'], to: {{vxlan: {{remote: {TWO[1]}, vni: 2, port: 4791}}}}}},"
            " wire: {from: ['vlan:5@wan'], to: {vxlan: {remote: 203.0.113.1, vni: 3}}}}")
    here.apply(document(wish))
    assert here.drift() == []
    sh(f"ip neigh replace {TWO[1]} lladdr {TWO[0]} dev kvb-lan nud permanent")
    with taps() as t, Capture("eth0") as wire:
        for number in range(20):
            t.one.send(says(ONE, TWO, b"round%02d" % number))
        t.two.wait(b"round19")
        last = says(ONE, TWO, b"round19")
        rounds = [len([f for f in t.two.drain() if b"round%02d" % n in f]) for n in range(20)]
        assert rounds == [2] * 20, "itself, and one packet of the tunnel"
        outside = [f for f in got(wire, b"round19") if last in f]
        assert len(outside) == 1
        pref = sh("tc filter show dev kvb-lan egress | grep -B3 kvm-back").split("pref ")[1].split()[0]
        sh(f"tc filter replace dev kvb-lan egress protocol all pref {pref} handle 1 bpf bytecode '1,6 0 0 4294967295' "
           "action mirred egress mirror dev kvm-back continue")
        t.one.send(says(ONE, TWO, b"without the condition"))
        t.one.send(says(ONE, TWO, b"the end"))
        t.two.wait(b"the end")
        assert t.two.got(b"without the condition") > 2, "what the condition is for; the kernel ends it after some rounds"
    here.apply(document(""))
    sh(f"ip neigh del {TWO[1]} dev kvb-lan")


def test_a_vlan_of_an_uplink_is_told_from_the_rest_and_keeps_its_tag(here: World) -> None:
    here.apply(document("{ids: {from: ['vlan:5@wan'], to: eye/nic1}}"))
    with inside(here.outside.netns):
        far = Capture("segment")
    with taps() as t, far, Capture("eth0") as near:
        frames = {name: ether("02:00:00:00:00:05", "02:00:00:00:00:06", 0x0800, says(ONE, TWO, name)[14:])
                  for name in (b"untagged", b"in five", b"in six.", b"leaving")}
        far.send(frames[b"untagged"])
        far.send(tag(6, frames[b"in six."]))
        near.send(tag(5, frames[b"leaving"]))
        far.send(tag(0x6005, frames[b"in five"]))    # with a priority
        t.dark.wait(b"in five")
        t.dark.wait(b"leaving")
        assert [t.dark.got(n) for n in frames] == [0, 1, 0, 1]
        assert t.dark.got(tag(0x6005, frames[b"in five"])) == t.dark.got(tag(5, frames[b"leaving"])) == 1
    here.apply(document(""))


def test_a_limit_bounds_the_copies_and_not_the_source(here: World) -> None:
    """280,000 bytes at once: all of them arrive and are copied; with a limit all arrive, and what fits is copied."""
    for limit, copied in (("", range(200, 201)), (", limit: 100kbit", range(10, 150))):
        here.apply(document(f"{{ids: {{from: [one], to: eye/nic1, direction: sent{limit}}}}}", ", ip: none, receives: copies"))
        assert here.drift() == []
        with taps() as t:
            arrived = 0
            for number in range(200):
                t.one.send(says(ONE, TWO, b"big%03d" % number, size=1400))
                if number % 20 == 19:    # a tap holds 500 frames, and the test is no quicker than it is
                    t.two.wait(b"big%03d" % number)
            arrived = t.two.got(b"big")
            assert arrived == 200 and t.dark.got(b"big") in copied
            found = status(here.host)
            assert found and (found.mirrors[0].lost > 20) == bool(limit)
    here.apply(document(""))


def test_check_compares_both_ends_packet_by_packet(here: World) -> None:
    """A whole mirror, one whose copies another hand filters, and one whose source is bare."""
    wish = document("{all: {from: [one, 'network:lan'], to: eye/nic1}, arps: {from: [two], to: eye/nic1, filter: arp, direction: sent},"
                    " none: {from: ['vlan:9@wan'], to: eye/nic1}}", ", ip: none, receives: copies")
    here.apply(wish)
    report = here.host.check()
    found = {c.network: (c.verdict.value, c.evidence) for c in report.claims if c.name == "copies"}
    assert {name: verdict for name, (verdict, _) in found.items()} == {"mirror all": "pass", "mirror arps": "pass", "mirror none": "skip"}, found
    assert report.exit_code == 0 and not [c for c in report.claims if c.subject == "eye/nic1"]
    assert int(found["mirror all"][1].split()[0]) > 20 and "byte by byte" in found["mirror all"][1]
    number = next(k.name.split()[2] for k in here.host.engine.observe({}).state if k.kind == "copy" and k.name.startswith("kvb-lan"))
    sh(f"tc filter replace dev kvt-one-0 ingress protocol all pref {number} handle 1 bpf bytecode '1,6 0 0 0' "
       "action mirred egress mirror dev kvt-eye-1 continue")
    found = {c.network: (c.verdict.value, c.evidence) for c in here.host.check().claims if c.name == "copies"}
    assert found["mirror all"][0] == "fail" and "were not copied to kvt-eye-1" in found["mirror all"][1]
    assert found["mirror arps"][0] == "pass"
    here.apply(document(""))


def test_a_macvtap_is_watched_from_its_own_end() -> None:
    """What its guest sends is copied once its guard has let it pass; what comes from the wire is what it receives."""
    guest, other = ("52:54:00:00:63:01", "192.0.2.61"), ("02:00:00:00:63:02", "192.0.2.1")
    text = f"""
version: 1
uplinks: {{wan: {{device: eth0}}}}
networks:
  wire: {{mode: macvtap, uplink: wan}}
  dark: {{mode: isolated}}
vms:
  one: {{nics: [{{network: wire, mac: '{guest[0]}', ip: {guest[1]}}}]}}
  eye: {{nics: [{{network: dark, receives: copies}}]}}
mirrors: {{ids: {{from: [one], to: eye}}}}
"""
    with world() as made:
        made.apply(text)
        assert made.drift() == []
        with inside(made.outside.netns):
            far = Capture("segment")
        with far, Tap.of_macvtap("kvt-one-0") as one, Tap("kvt-eye-0") as eye:
            wait_until(lambda: "noop" not in sh("ip link show kvt-eye-0"), 20, 0.05)
            one.send(ether(other[0], other[0], 0x0800, says(guest, other, b"forged")[14:]))
            one.send(says(guest, other, b"honest"))
            assert len(got(far, b"honest")) == 1
            far.send(says(other, guest, b"answer"))
            one.wait(b"answer")
            eye.wait(b"answer")
            assert [eye.got(n) for n in (b"forged", b"honest", b"answer")] == [0, 1, 1]
        made.destroy()
        assert "clsact" not in sh("tc qdisc show")
