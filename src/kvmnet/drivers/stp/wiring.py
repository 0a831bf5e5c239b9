"""One port as the process of a spanning tree holds it: BPDUs come in and go out by a socket on the device itself.

A packet socket sees frames before the bridge, nftables and tc do, so what these do with BPDUs makes no difference.
Standard library alone. Sources: packet(7), linux/if_packet.h, linux/filter.h, linux/ethtool.h.
"""
from __future__ import annotations

import errno
import fcntl
import socket
import struct
from array import array
from contextlib import suppress
from ctypes import addressof, create_string_buffer

ETH_P_ALL = 3
SOL_PACKET, ADD_MEMBERSHIP, IGNORE_OUTGOING = 263, 1, 23
MULTICAST = 0
ATTACH_FILTER = 26
SIOCETHTOOL, GSET = 0x8946, 1
UNKNOWN = (0, 0xFFFF, 0xFFFFFFFF)
GROUP = bytes.fromhex("0180c2000000")
TAGGED = 0xFFFFF000 + 48
"""SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT: tags are taken off before frames are looked at."""
FILTER = ((0x20, 0, 0, 0), (0x15, 0, 5, 0x0180C200), (0x28, 0, 0, 4), (0x15, 0, 3, 0), (0x30, 0, 0, TAGGED), (0x15, 0, 1, 0),
          (0x06, 0, 0, 0xFFFF), (0x06, 0, 0, 0))
"""Untagged frames to the group of bridges, and no others."""
LARGEST = 2048


class Wiring:
    """Raises OSError when the device is gone."""

    def __init__(self, name: str, index: int, mac: str):
        self.name, self.index, self.mac = name, index, mac
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
        try:
            program = create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in FILTER))
            self.socket.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, struct.pack("HP", len(FILTER), addressof(program)))
            self.socket.setsockopt(SOL_PACKET, IGNORE_OUTGOING, 1)
            self.socket.setsockopt(SOL_PACKET, ADD_MEMBERSHIP, struct.pack("=iHH8s", index, MULTICAST, len(GROUP), GROUP))
            self.socket.bind((name, ETH_P_ALL))
        except OSError:
            self.socket.close()
            raise

    def send(self, frame: bytes) -> None:
        """Lost when the device is down, as on a wire."""
        with suppress(OSError):
            self.socket.send(frame)

    def receive(self) -> bytes | None:
        """The next frame; None when there is none."""
        while True:
            try:
                return self.socket.recv(LARGEST)
            except OSError as error:
                if error.errno == errno.ENETDOWN:    # told once, then the socket goes on
                    continue
                return None

    def close(self) -> None:
        self.socket.close()


def megabits(name: str) -> int:
    """Speed of a device in Mbit/s; 0 where it does not tell (struct ethtool_cmd)."""
    value = array("B", struct.pack("=I", GSET) + bytes(40))
    question = struct.pack("16sP232x", name.encode(), value.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            fcntl.ioctl(asker, SIOCETHTOOL, question)
        except OSError:
            return 0
    low, = struct.unpack_from("=H", value, 12)
    high, = struct.unpack_from("=H", value, 28)
    speed = int(high << 16 | low)
    return 0 if speed in UNKNOWN else speed
