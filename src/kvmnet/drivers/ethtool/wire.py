"""What a NIC's driver says by SIOCETHTOOL: read in this process, without a program for each NIC and question.

ethtool 6.1 prints most of it for people only (no --json for rings, channels and coalescing). Layouts: linux/ethtool.h. What of a NIC
is not the driver's but the kernel's own is in ``steering``.
"""
from __future__ import annotations

import fcntl
import socket
import struct
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from kvmnet.drivers.ethtool import steering
from kvmnet.drivers.ethtool.resources import NicFeature, NicTuning, feature_name

SIOCETHTOOL = 0x8946
GCOALESCE, GRINGPARAM, GPAUSEPARAM, GSTRINGS, GSSET_INFO, GFEATURES, GCHANNELS = 0x0E, 0x10, 0x12, 0x1B, 0x37, 0x3A, 0x3C
FEATURES = 4
"""ETH_SS_FEATURES: the string set with the names of offloads."""
NAME = 32
"""Bytes of a name (ETH_GSTRING_LEN)."""


class Asker:
    """Asks NICs of this network namespace."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def ask(self, dev: str, command: int, words: int, *given: int) -> array[int] | None:
        """The words behind the command's own; None when the driver does not answer it."""
        value = array("I", [command, *given, *[0] * (words - len(given))])
        question = struct.pack("16sP232x", dev.encode(), value.buffer_info()[0])
        try:
            fcntl.ioctl(self.socket, SIOCETHTOOL, question)
        except OSError:
            return None
        return value[1:]

    def tuning(self, dev: str) -> NicTuning:
        found: dict[str, int | bool | tuple[str, ...]] = {}
        most: dict[str, int] = {}
        if rings := self.ask(dev, GRINGPARAM, 8):
            found |= {"rx_ring": rings[4], "tx_ring": rings[7]}
            most |= {"rx_ring": rings[0], "tx_ring": rings[3]}
        if channels := self.ask(dev, GCHANNELS, 8):
            names = ("rx_channels", "tx_channels", "", "combined")
            found |= {n: channels[4 + i] for i, n in enumerate(names) if n}
            most |= {n: channels[i] for i, n in enumerate(names) if n}
        if delays := self.ask(dev, GCOALESCE, 22):
            found |= {"rx_usecs": delays[0], "rx_frames": delays[1], "tx_usecs": delays[4], "tx_frames": delays[5],
                      "adaptive_rx": bool(delays[9]), "adaptive_tx": bool(delays[10])}
        if pause := self.ask(dev, GPAUSEPARAM, 3):
            found |= {n: bool(pause[i]) for i, n in enumerate(("pause_autoneg", "pause_rx", "pause_tx"))}
        for setting, sets, count in steering.observe(dev):
            found[setting] = sets
            most[setting] = count
        return NicTuning(name=dev, dev=dev, most=tuple(f"{n}={v}" for n, v in most.items()), **found)  # type: ignore[arg-type]

    def features(self, dev: str) -> Iterator[NicFeature]:
        """Every feature that the kernel knows, of one NIC."""
        names = self.feature_names(dev)
        blocks = (len(names) + 31) // 32
        bits = self.ask(dev, GFEATURES, 1 + 4 * blocks, blocks) if names else None
        if bits is None:
            return
        for number, name in enumerate(names):
            block, bit = 1 + number // 32 * 4, 1 << number % 32
            available, _, active, never = (bool(bits[block + i] & bit) for i in range(4))
            yield NicFeature(name=feature_name(dev, name), dev=dev, on=active, fixed=never or not available)

    def active(self, dev: str, names: Sequence[str]) -> list[str] | None:
        """Which of *names*, the kernel's list in its order, are on; None when the NIC does not tell."""
        blocks = (len(names) + 31) // 32
        bits = self.ask(dev, GFEATURES, 1 + 4 * blocks, blocks) if names else None
        if bits is None:
            return None
        return [name for i, name in enumerate(names) if name and bits[3 + i // 32 * 4] & 1 << i % 32]

    def feature_names(self, dev: str) -> list[str]:
        info = self.ask(dev, GSSET_INFO, 4, 0, 1 << FEATURES)
        if info is None or not info[1]:
            return []
        count = info[3]
        text = self.ask(dev, GSTRINGS, 2 + count * NAME // 4, FEATURES, count)
        if text is None:
            return []
        raw = text[2:].tobytes()
        return [raw[i:i + NAME].split(b"\0")[0].decode() for i in range(0, count * NAME, NAME)]


def is_there(dev: str) -> bool:
    try:
        socket.if_nametoindex(dev)
    except OSError:
        return False
    return True


def read(devices: Iterable[str], wanted: Mapping[str, frozenset[str] | None]) -> Iterator[NicTuning | NicFeature]:
    """Settings of those *devices* that exist, and of each the features in *wanted*; None for all."""
    with Asker() as asker:
        for dev in devices:
            if not is_there(dev):
                continue
            yield asker.tuning(dev)
            names = wanted.get(dev, frozenset())
            if names is None or names:
                yield from (f for f in asker.features(dev) if names is None or f.name.partition(" ")[2] in names)


def active_features(devices: Collection[str], wanted: Collection[str]) -> dict[str, list[str]]:
    """Device -> which of the *wanted* features are on. One question per device: the names are the kernel's, the same
    for all (net/ethtool/common.c, netdev_features_strings)."""
    found = {}
    with Asker() as asker:
        names: list[str] = []
        for dev in devices:
            names = names or [n if n in wanted else "" for n in asker.feature_names(dev)]
            if (active := asker.active(dev, names)) is not None:
                found[dev] = active
    return found
