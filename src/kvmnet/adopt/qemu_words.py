"""The guest of a QEMU, from its command line. Pure."""
from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath

from kvmnet.records import dataclass, field


@dataclass(frozen=True, slots=True)
class Card:
    """One network card on a QEMU command line."""

    mac: str
    model: str
    tap: str = ""
    """Name of its tap, '' when it was handed over as descriptors."""
    descriptors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """The guest of one QEMU, as its command line tells."""

    name: str
    uuid: str
    libvirt: bool
    cards: tuple[Card, ...] = field(default=())


def machine(words: Sequence[str]) -> Machine | None:
    """The guest of a QEMU command line; None for another program."""
    if not words or not re.match(r"(qemu|kvm)", PurePath(words[0]).name):
        return None
    options = list(pairwise(words))
    name = next((settings(v).get("guest") or v.split(",")[0] for k, v in options if k == "-name"), "")
    uuid = next((v for k, v in options if k == "-uuid"), "")
    libvirt = any("/libvirt/qemu/" in v or "/lib/libvirt/" in v for v in words)
    netdevs = {d["id"]: d for k, v in options if k == "-netdev" and "id" in (d := settings(v))}
    cards = [card(d, netdevs.get(d["netdev"], {})) for k, v in options
             if k == "-device" and "netdev" in (d := settings(v))]
    return Machine(name, uuid, libvirt, tuple(cards))


def settings(text: str) -> dict[str, str]:
    """``a,b=c`` or JSON, as QEMU takes both."""
    if text.startswith("{"):
        try:
            data = json.loads(text)
        except ValueError:
            return {}
        return {k: ":".join(map(str, v)) if isinstance(v, list) else str(v) for k, v in data.items()}
    return {k: v for k, _, v in (part.partition("=") for part in text.split(","))}


MODELS = {"virtio-net-pci": "virtio", "virtio-net-pci-non-transitional": "virtio", "virtio-net-ccw": "virtio",
          "virtio-net-device": "virtio", "virtio-net-pci-transitional": "virtio-transitional", "e1000e": "e1000e",
          "e1000": "e1000", "e1000-82540em": "e1000", "pcnet": "pcnet", "rtl8139": "rtl8139", "vmxnet3": "vmxnet3"}
"""QEMU's device -> model of the document."""


def card(device: dict[str, str], netdev: dict[str, str]) -> Card:
    kind = device.get("driver") or next(iter(device), "")
    numbers = f"{netdev.get('fd', '')}:{netdev.get('fds', '')}".split(":")
    return Card(device.get("mac", "").lower(), MODELS.get(kind, ""), netdev.get("ifname", ""),
                tuple(int(n) for n in numbers if n.isdigit()))
