"""Thousands of frames one byte away from honest ones and from attacks: what passes is judged by a second mind.

``fault`` reads frames as a receiver would, header by header, and shares nothing with the rules. What
is too short for its own header is no attack: a receiver throws it away.
"""
from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from importlib import util
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from types import ModuleType

import pytest

from kvmnet.host.clock import wait_until
from lib.guardlab import ATTACKER, Lab, lab
from lib.guardlab import VICTIM as V
from lib.netns import new_netns

pytestmark = pytest.mark.net
OWN_MAC = bytes.fromhex(ATTACKER.mac.replace(":", ""))
OWN = {ip_address(a).packed for a in (ATTACKER.ip4, ATTACKER.ip6, ATTACKER.local)}
TELLING = b"\0\1\2\x11\x2b\x2c\x3a\x3c\x43\x44\x86\x87\x88"
"""Bytes that mean something in one header or another."""
ROUTER_ICMP6 = {130, 134, 137, 138, 139, 140, 141, 142, 148, 149, 151, 152, 153}


def sibling(name: str) -> ModuleType:
    """A test file beside this one, for its tables of frames."""
    spec = util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def own(address: bytes) -> bool:
    """Bound to the NIC, or a link-local that it may have claimed."""
    if address in OWN:
        return True
    if len(address) == 4:
        return False
    six = IPv6Address(address)
    return six.is_link_local and address[11:13] != b"\xff\xfe"


def fault(frame: bytes) -> str:
    """Why a plain guest must not send *frame*; '' when it may."""
    source, kind, body = frame[6:12], frame[12:14], frame[14:]
    if source != OWN_MAC:
        return "source MAC"
    readers = {b"\x08\x00": fault4, b"\x86\xdd": fault6, b"\x08\x06": fault_arp, b"\x80\x35": fault_rarp}
    return readers[kind](body) if kind in readers else "frame type"


def fault_arp(body: bytes) -> str:
    op, sender_mac, sender, target = body[6:8], body[8:14], body[14:18], body[24:28]
    if body[:6] != b"\0\1\x08\0\6\4" or op not in (b"\0\1", b"\0\2"):
        return "ARP of another kind"
    if sender_mac != OWN_MAC:
        return "ARP sender MAC"
    probe = sender == bytes(4) and op == b"\0\1" and own(target)
    return "" if own(sender) or probe else "ARP sender"


def fault_rarp(body: bytes) -> str:
    good = body[:8] == b"\0\1\x08\0\6\4\0\3" and body[8:14] == body[18:24] == OWN_MAC and body[14:18] == bytes(4)
    return "" if good else "RARP"


def fault4(body: bytes) -> str:
    if body[0] >> 4 != 4 or body[0] & 15 < 5:
        return "IPv4 header"
    header, total = (body[0] & 15) * 4, int.from_bytes(body[2:4], "big")
    if header > 20 and body[20:24] != b"\x94\4\0\0":
        return "IPv4 option"
    source, proto, upper = body[12:16], body[9], body[header:max(header, total)]
    later = int.from_bytes(body[6:8], "big") & 0x1FFF
    dhcp = proto == 17 and upper[:4] == b"\0\x44\0\x43"
    if not own(source) and not (source == bytes(4) and (dhcp or proto == 2)):
        return "IPv4 source"
    if later:
        return "fragment of IGMP" if proto == 2 else ""
    if len(upper) < 8:
        return ""
    if proto == 17:
        return fault_dhcp(upper, dhcp)
    wrong = {1: upper[:1] in (b"\5", b"\x09"), 2: upper[:1] not in (b"\x12", b"\x16", b"\x17", b"\x22"), 103: True}
    return f"protocol {proto}" if wrong.get(proto) else ""


def fault_dhcp(upper: bytes, request: bool) -> str:
    ports = struct.unpack("!HH", upper[:4])
    if request and upper[8] == 1 and upper[36:42] == OWN_MAC:
        return ""
    return "DHCP" if ports[0] == 67 or ports[1] in (67, 68) else ""


def fault6(body: bytes) -> str:
    if body[0] >> 4 != 6:
        return "IPv6 header"
    source, following, rest = body[8:24], body[6], body[40:40 + int.from_bytes(body[4:6], "big")]
    hops, nothing = body[7], source == bytes(16)
    if not own(source) and not nothing:
        return "IPv6 source"
    if nothing and following not in (0, 58):
        return "IPv6 source"
    if len(rest) < 12:
        return ""
    if following == 44:
        return fault_fragment(rest)
    if following == 0:
        return "" if rest[:2] == b"\x3a\0" and rest[8:9] in (b"\x83", b"\x84", b"\x8f") else "hop-by-hop"
    if following in (43, 60, 135, 139, 140, 253, 254, 103):
        return "extension header"
    if following == 17:
        return "DHCPv6" if rest[:2] == b"\2\x23" or rest[2:4] == b"\2\x22" else ""
    return fault_nd(rest, hops, nothing) if following == 58 else ""


def fault_fragment(rest: bytes) -> str:
    if int.from_bytes(rest[2:4], "big") & 0xFFF8:
        return ""
    if rest[0] in (6, 17, 47, 50, 88, 89, 132, 136) and len(rest) >= 16:
        return "DHCPv6" if rest[0] == 17 and (rest[8:10] == b"\2\x23" or rest[10:12] == b"\2\x22") else ""
    return "" if rest[0] == 58 and rest[8:9] in (b"\1", b"\2", b"\3", b"\4", b"\x80", b"\x81") else "hidden header"


def fault_nd(rest: bytes, hops: int, nothing: bool) -> str:
    kind = rest[0]
    if kind in ROUTER_ICMP6:
        return "router message"
    if kind not in (133, 135, 136):
        return "IPv6 source" if nothing else ""
    if hops != 255 or (nothing and kind == 136):
        return "ND from afar"
    start = 8 if kind == 133 else 24
    if (kind == 136 or nothing) and kind != 133 and not own(rest[8:24]):
        return "ND target"
    options = rest[start:]
    while options:
        length = options[1] * 8 if len(options) > 1 else 0
        if not length:
            return "ND option"
        if options[0] in (1, 2) and options[2:8] != OWN_MAC:
            return "ND MAC"
        options = options[length:]
    return ""


@pytest.fixture
def wired() -> Iterator[Lab]:
    with new_netns(), lab() as made:
        yield made


def variants(frame: bytes, chance: random.Random) -> Iterator[bytes]:
    """*frame* with one byte changed, at every place of its headers; with several; and cut short."""
    for place in range(6, min(len(frame), 100)):
        for value in {frame[place] ^ 1 << chance.randrange(8), chance.randrange(256), chance.choice(TELLING)}:
            yield frame[:place] + bytes([value]) + frame[place + 1:]
    for _ in range(150):
        changed = bytearray(frame)
        for _ in range(chance.randrange(2, 5)):
            place = chance.randrange(12, min(len(frame), 90))
            changed[place] = chance.choice([chance.randrange(256), chance.choice(TELLING)])
        yield bytes(changed)
    for length in range(14, min(len(frame), 80), 7):
        yield frame[:length]


def test_nothing_passes_that_a_receiver_would_read_as_an_attack(wired: Lab) -> None:
    chance = random.Random(7)
    bases = [f for make in sibling("test_guard_legitimate").LEGITIMATE.values() for f in make()]
    bases += [f for make in sibling("test_guard_attacks").ATTACKS.values() for f in make(V)]
    wired.guard()
    sent = passed = 0
    for base in bases:
        lot = {struct.pack("!4sI4s", b"\xa7FZ\x17", n, b"\x17ZF\xa7"): f
               for n, f in enumerate(variants(base, chance), sent)}
        sent += len(lot)
        arrived = deliver(wired, lot)
        passed += len(arrived)
        wrong = {reason: frame.hex() for frame in arrived if (reason := fault(frame))}
        assert wrong == {}
    assert sent > 50000 and passed > sent / 20, (sent, passed)


def deliver(wired: Lab, lot: dict[bytes, bytes]) -> list[bytes]:
    """The frames of *lot* (nonce -> frame) that reach the victim or the outside."""
    wired.forget()
    for nonce, frame in lot.items():
        wired.attacker.send(frame + nonce)
    last = b"last" + bytes(range(8))
    wired.outside.send(b"\xff" * 6 + OWN_MAC + b"\x88\xb5" + bytes(46) + last)
    wait_until(lambda: wired.victim.got(last), 20)
    seen = {f[-12:] for tap in (wired.victim, wired.outside) for f in tap.drain()}
    return [frame + nonce for nonce, frame in lot.items() if nonce in seen]
