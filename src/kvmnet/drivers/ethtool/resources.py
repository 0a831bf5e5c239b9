"""Hardware settings of NICs: rings, channels, coalescing, pause frames and offload features. Pure."""
from __future__ import annotations

from typing import ClassVar

from kvmnet.engine.resource import Resource, option
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NicTuning(Resource):
    """Settings of one NIC; named by the device. What its driver does not have stays None."""

    kind: ClassVar[str] = "nic-tuning"
    permanent: ClassVar[bool] = True
    dev: str | None = option(doc="the NIC", ref="link", on_delete="cascade")
    rx_ring: int | None = option(doc="receive ring, entries")
    tx_ring: int | None = option(doc="transmit ring, entries")
    combined: int | None = option(doc="queue pairs that receive and send")
    rx_channels: int | None = option(doc="queues that only receive")
    tx_channels: int | None = option(doc="queues that only send")
    adaptive_rx: bool | None = option(doc="the NIC chooses the receive delay by itself")
    adaptive_tx: bool | None = option(doc="the NIC chooses the transmit delay by itself")
    rx_usecs: int | None = option(doc="µs from a received packet to its interrupt")
    rx_frames: int | None = option(doc="received packets until an interrupt")
    tx_usecs: int | None = option(doc="µs from a sent packet to its interrupt")
    tx_frames: int | None = option(doc="sent packets until an interrupt")
    pause_autoneg: bool | None = option(doc="pause frames are negotiated")
    pause_rx: bool | None = option(doc="pause frames that come in are obeyed")
    pause_tx: bool | None = option(doc="pause frames are sent")
    rps: tuple[str, ...] | None = option(doc="CPUs among which flows that come in are spread, of all queues or of each in turn")
    xps: tuple[str, ...] | None = option(doc="CPUs that send by a queue, of all queues or of each in turn")
    irqs: tuple[str, ...] | None = option(doc="CPUs that get interrupts, of all or of each in turn")
    most: tuple[str, ...] | None = option(doc="what the hardware takes at most, as name=number", once=True)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class NicFeature(Resource):
    """An offload of one NIC by the kernel's name; named ``DEV FEATURE``, e.g. ``eth0 rx-vlan-filter``."""

    kind: ClassVar[str] = "nic-feature"
    permanent: ClassVar[bool] = True
    dev: str | None = option(doc="the NIC", ref="link", on_delete="cascade")
    on: bool | None = option(doc="it is in use")
    fixed: bool | None = option(doc="the driver does not let it be changed", once=True)


OPTIONS: dict[str, dict[str, str]] = {
    "-G": {"rx_ring": "rx", "tx_ring": "tx"},
    "-L": {"combined": "combined", "rx_channels": "rx", "tx_channels": "tx"},
    "-C": {"adaptive_rx": "adaptive-rx", "adaptive_tx": "adaptive-tx", "rx_usecs": "rx-usecs", "rx_frames": "rx-frames",
           "tx_usecs": "tx-usecs", "tx_frames": "tx-frames"},
    "-A": {"pause_autoneg": "autoneg", "pause_rx": "rx", "pause_tx": "tx"},
}
"""ethtool's option -> setting -> its word there."""

STEERING = ("rps", "xps", "irqs")
"""Settings that are files of the kernel's, not ethtool's."""

GROUPS: dict[str, tuple[str, ...]] = {
    "rx-checksumming": ("rx-checksum",),
    "tx-checksumming": ("tx-checksum-ipv4", "tx-checksum-ip-generic", "tx-checksum-ipv6", "tx-checksum-fcoe-crc",
                        "tx-checksum-sctp"),
    "scatter-gather": ("tx-scatter-gather", "tx-scatter-gather-fraglist"),
    "tcp-segmentation-offload": ("tx-tcp-segmentation", "tx-tcp-ecn-segmentation", "tx-tcp-mangleid-segmentation",
                                 "tx-tcp6-segmentation"),
    "generic-segmentation-offload": ("tx-generic-segmentation",),
    "generic-receive-offload": ("rx-gro",),
    "large-receive-offload": ("rx-lro",),
    "rx-vlan-offload": ("rx-vlan-hw-parse",),
    "tx-vlan-offload": ("tx-vlan-hw-insert",),
    "ntuple-filters": ("rx-ntuple-filter",),
    "receive-hashing": ("rx-hashing",),
}
"""ethtool's names for several features at once -> the kernel's names (off_flag_def in ethtool.c,
netdev_features_strings in net/ethtool/common.c)."""


def feature_name(dev: str, feature: str) -> str:
    """Name of a NicFeature."""
    return f"{dev} {feature}"


def most_of(tuning: NicTuning, setting: str) -> int | None:
    """The largest value that the hardware takes; None when it names none."""
    for word in tuning.most or ():
        name, _, number = word.partition("=")
        if name == setting:
            return int(number)
    return None
