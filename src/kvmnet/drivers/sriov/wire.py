"""VFs as ``ip -json -details link`` shows them and as ``ip link set PF vf N`` is told. Pure.

A driver tells of a VF what it knows. What it does not know is what every VF without it is: no VLAN, no limit,
not trusted, not checked, the carrier of its PF. So a check that a driver cannot make is never taken
for one that is on.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kvmnet.drivers.sriov.resources import Vf, split_name, vf_name
from kvmnet.engine.resource import Changes, diff

Json = Mapping[str, Any]
NO_MAC = "00:00:00:00:00:00"
FRESH = {"mac": NO_MAC, "vlan": 0, "qos": 0, "protocol": "802.1Q", "max_rate": 0, "min_rate": 0, "trust": False,
         "carrier": "auto", "driver": ""}
"""A VF that nobody has told anything, as far as all drivers agree: some check for spoofing, some do not."""
TOGETHER = (("mac",), ("vlan", "qos", "protocol"), ("max_rate", "min_rate"), ("spoofchk",), ("trust",), ("carrier",))
"""Settings that one message carries, in the order in which they are told."""


def parse_vfs(item: Json) -> Iterator[Vf]:
    """The VFs of one link of ``ip -json -details link``, without what sysfs knows of them."""
    dev = item.get("ifname", "")
    for row in item.get("vfinfo_list", ()):
        tag = next(iter(row.get("vlan_list", ())), row)
        rate = row.get("rate", {})
        yield Vf(name=vf_name(dev, row["vf"]), pool=dev, mac=row.get("address") or row.get("mac") or NO_MAC,
                 vlan=tag.get("vlan", 0), qos=tag.get("qos", 0), protocol=protocol(tag.get("protocol", "802.1Q")),
                 max_rate=rate.get("max_tx", 0) or row.get("tx_rate", 0), min_rate=rate.get("min_tx", 0),
                 spoofchk=bool(row.get("spoofchk", False)), trust=bool(row.get("trust", False)),
                 carrier=row.get("link_state", "auto"))


def protocol(word: str) -> str:
    """``ip`` writes 802.1ad in several ways (ll_proto_n2a())."""
    return "802.1ad" if word.lower() == "802.1ad" else "802.1Q"


def fresh(vf: Vf) -> Vf:
    """What is known of a VF of this name that was just made."""
    return Vf(name=vf.name, pool=vf.pool, **FRESH)  # type: ignore[arg-type]


def lines_of(before: Vf, after: Vf) -> list[tuple[str, ...]]:
    """Words of the ``ip`` lines that make *after* of *before*; the driver is bound elsewhere."""
    changes = diff(before, after)
    dev, number = split_name(after.name)
    return [("link", "set", "dev", dev, "vf", str(number), *words(names, before, after))
            for names in TOGETHER if touched(names, changes)]


def touched(names: Collection[str], changes: Changes) -> bool:
    return not changes.keys().isdisjoint(names)


def words(names: Collection[str], before: Vf, after: Vf) -> tuple[str, ...]:
    """One message. What goes along with a change and is not claimed is told as it was."""
    have = {name: getattr(before, name) if (value := getattr(after, name)) is None else value for name in names}
    match tuple(names):
        case ("mac",):
            return ("mac", have["mac"])
        case ("vlan", *_):
            tag = ("proto", have["protocol"]) if have["vlan"] else ()
            return ("vlan", str(have["vlan"] or 0), *(("qos", str(have["qos"] or 0)) if have["vlan"] else ()), *tag)
        case ("max_rate", "min_rate"):
            return ("max_tx_rate", str(have["max_rate"] or 0), "min_tx_rate", str(have["min_rate"] or 0))
        case ("carrier",):
            return ("state", have["carrier"])
        case (switch,):
            return (switch, "on" if have[switch] else "off")
    raise TypeError(f"no message carries {names}")
