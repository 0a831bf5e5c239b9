"""Copies in GRE and ERSPAN, on a kernel that has them: what travels is the frame, in the header that was asked for."""
from __future__ import annotations

import pytest

from kvmnet.host.clock import wait_until
from kvmnet.host.packets import Capture
from lib.frames import UDP, ether, ip4, udp
from lib.netns import inside, sh
from lib.tap import Tap
from lib.world import ROUTER, world

pytestmark = pytest.mark.lab

ONE, TWO = ("52:54:00:00:62:01", "10.62.0.11"), ("52:54:00:00:62:02", "10.62.0.12")
DOCUMENT = f"""
version: 1
uplinks: {{wan: {{device: eth0}}}}
networks: {{lan: {{mode: nat, uplink: wan, subnet: 10.62.0.0/24}}}}
vms:
  one: {{nics: [{{network: lan, mac: '{ONE[0]}', ip: {ONE[1]}}}]}}
  two: {{nics: [{{network: lan, mac: '{TWO[0]}', ip: {TWO[1]}}}]}}
mirrors:
  gre: {{from: [one], direction: sent, to: {{gre: {{remote: {ROUTER}, key: 7}}}}}}
  bare: {{from: [one], direction: sent, to: {{gre: {{remote: {ROUTER}, local: 192.0.2.2}}}}}}
  two: {{from: [one], direction: sent, to: {{erspan: {{remote: {ROUTER}, session: 33, index: 5}}}}}}
  three: {{from: [one], direction: sent, to: {{erspan: {{remote: {ROUTER}, session: 44, version: 2}}}}}}
"""


def test_gre_and_erspan() -> None:
    frame = ether(TWO[0], ONE[0], 0x0800, ip4(ONE[1], TWO[1], UDP, udp(ONE[1], TWO[1], 7, 7, b"a-frame-to-copy" + bytes(900))))
    with world() as here:
        here.apply(DOCUMENT)    # which looks again: what is read back is what was told
        with inside(here.outside.netns):
            wire = Capture("segment")
        with Tap("kvt-one-0") as one, Tap("kvt-two-0") as two, wire:
            def through() -> int:
                one.send(ether(TWO[0], ONE[0], 0x0800, frame[14:].replace(b"a-frame", b"another")))
                return two.got(b"another-to-copy")
            wait_until(through, 20, 0.2)
            one.send(frame)
            heads: dict[bytes, bytes] = {}

            def all_came() -> bool:
                while packet := wire.receive():
                    if frame in packet and packet[23] == 47:
                        heads[packet[36:38] + packet[34:36]] = packet[34:-len(frame)]
                return len(heads) == 4
            wait_until(all_came, 20, 0.1)
        assert heads[b"\x65\x58\x20\x00"] == b"\x20\x00\x65\x58\x00\x00\x00\x07", "GRE with a key (RFC 2890)"
        assert heads[b"\x65\x58\x00\x00"] == b"\x00\x00\x65\x58"
        second, third = heads[b"\x88\xbe\x10\x00"], heads[b"\x22\xeb\x10\x00"]
        assert len(second) == 16 and (second[8] >> 4, (second[10] << 8 | second[11]) & 0x3FF, second[13:16]) == (1, 33, b"\x00\x00\x05")
        assert len(third) == 20 and (third[8] >> 4, (third[10] << 8 | third[11]) & 0x3FF) == (2, 44)
        sh("ip link set kvm-gre mtu 1400; ip link del kvm-two")
        assert {s for s in here.drift() if " link " in s} == {"update link kvm-gre", "create link kvm-two"}
        here.destroy()
        assert "kvm-" not in sh("ip link") and "clsact" not in sh("tc qdisc show")
