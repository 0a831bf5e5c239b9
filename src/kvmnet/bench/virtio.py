"""What a virtio card and its guest have agreed on, from the bits that the guest's kernel shows. Pure."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvmnet.bench.matrix import without

FEATURES: Mapping[int, str] = {
    0: "csum", 1: "guest_csum", 3: "mtu", 7: "guest_tso4", 8: "guest_tso6", 10: "guest_ufo", 11: "host_tso4", 12: "host_tso6",
    14: "host_ufo", 15: "mrg_rxbuf", 22: "mq", 28: "indirect", 29: "event_idx", 32: "version_1", 34: "packed", 35: "in_order",
    53: "notf_coal", 54: "guest_uso4", 55: "guest_uso6", 56: "host_uso", 57: "hash_report", 60: "rss", 62: "standby",
}
"""Bit -> name (virtio 1.3, 5.1.3 and 6)."""

SCRIPT = """l=$(nic {mac}) || exit 1
d=/sys/class/net/$l
echo driver $(basename $(readlink $d/device/driver))
echo mtu $(cat $d/mtu)
echo rx $(ls -d $d/queues/rx-* | wc -l)
echo tx $(ls -d $d/queues/tx-* | wc -l)
[ -e $d/device/features ] && echo features $(cat $d/device/features)
cat /proc/cpuinfo | grep -c ^processor | sed 's/^/cpus /'
exit 0
"""


def read(text: str) -> dict[str, Any]:
    """What SCRIPT printed: driver, mtu, queues, cpus, and of virtio the features that were negotiated."""
    found = dict(line.split(" ", 1) for line in text.splitlines() if " " in line)
    bits = found.pop("features", "")
    said: dict[str, Any] = {k: int(v) if v.isdigit() else v for k, v in found.items()}
    if bits:
        said["features"] = [name for bit, name in FEATURES.items() if bits[bit:bit + 1] == "1"]
    return said


def unmet(settings: Mapping[str, str], has: Mapping[str, Any]) -> list[str]:
    """What a configuration asks for and its guest has not got, in words."""
    said = []
    if "mtu" in settings and has.get("mtu") != int(settings["mtu"]):
        said.append(f"mtu={settings['mtu']}, but the guest has {has.get('mtu')}")
    if has.get("driver") != "virtio_net":
        return said
    features = has.get("features", [])
    if settings.get("packed") == "on" and "packed" not in features:
        said.append("packed=on, which was not negotiated")
    if settings.get("rss") == "on" and "rss" not in features:
        said.append("rss=on, which was not negotiated: the guest has no RSS, or the host's vhost has none")
    if (queues := int(settings.get("queues", 1))) > 1 and has.get("rx") != queues:
        said.append(f"queues={queues}, but the guest uses {has.get('rx')}")
    kept = [name for name in without(settings.get("offloads", "all")) if OFFERED.get(name, name) in features]
    if kept:
        said.append(f"offloads without {', '.join(kept)}, which were negotiated all the same")
    return said


OFFERED: Mapping[str, str] = {"tso4": "host_tso4", "tso6": "host_tso6", "ufo": "host_ufo"}
"""An offload of the document -> the feature by which the device offers it; others have the same name."""
