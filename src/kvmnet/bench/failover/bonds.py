"""Bonds as the kernel runs them: options, members, and which of them carry traffic."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvmnet.errors import KvmnetError
from kvmnet.host.run import ToolFailed, run
from kvmnet.records import dataclass

LACP = "802.3ad"
DISTRIBUTING = 0x20
"""Bit of a port's LACP state: it may send (IEEE 802.1AX, 6.4.2.3)."""
OPTIONS = ("mode", "miimon", "updelay", "downdelay", "arp_interval", "arp_ip_target", "arp_validate", "primary",
           "primary_reselect", "xmit_hash_policy", "num_peer_notif", "peer_notify_delay", "min_links", "ad_lacp_rate",
           "ad_select")
"""What of a bond goes into a report, as iproute2 names it."""
ONLY_IN = {
    "primary": ("active-backup", "balance-tlb", "balance-alb"), "primary_reselect": ("active-backup", "balance-tlb", "balance-alb"),
    "xmit_hash_policy": ("balance-xor", LACP, "balance-tlb", "balance-alb"), "ad_lacp_rate": (LACP,), "ad_select": (LACP,),
    "num_peer_notif": ("active-backup",), "peer_notify_delay": ("active-backup",),
}
"""Option -> modes that it has a meaning in; others have it in all."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    up: bool
    """Its carrier is there, as the bond's monitor sees it."""
    active: bool
    """Not a backup."""
    distributing: bool
    """802.3ad: it and its partner agree that it carries traffic. In other modes as ``up``."""

    @property
    def usable(self) -> bool:
        return self.up and self.distributing


@dataclass(frozen=True, slots=True)
class Bond:
    name: str
    options: Mapping[str, Any]
    members: tuple[Member, ...]

    @property
    def mode(self) -> str:
        return str(self.options.get("mode", ""))

    def member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)

    def others(self, name: str) -> list[Member]:
        """Members beside *name* that could carry its traffic."""
        return [m for m in self.members if m.name != name and m.up]

    def number(self, option: str) -> int:
        value = self.options.get(option)
        return value if isinstance(value, int) else 0


def read_bond(name: str) -> Bond:
    """The bond *name* as it is now. Raises KvmnetError when there is none."""
    try:
        found = json.loads(run(("ip", "-j", "-d", "link", "show", "dev", name)) or "[]")
        rows = json.loads(run(("ip", "-j", "-d", "link", "show", "master", name)) or "[]")
    except ToolFailed as failed:
        raise KvmnetError(f"there is no device {name}", "name an uplink of the document with members, or a bond; "
                          "ip link show type bond lists them") from failed
    info = found[0].get("linkinfo", {}) if found else {}
    if info.get("info_kind") != "bond":
        raise KvmnetError(f"{name} is no bond", "ip link show type bond lists them")
    data = info.get("info_data", {})
    mode = str(data.get("mode"))
    options = {k: data[k] for k in OPTIONS if data.get(k) not in (None, [], "", 0) and mode in ONLY_IN.get(k, (mode,))}
    return Bond(name, options, tuple(member_of(r, mode) for r in rows if r))


def member_of(row: Mapping[str, Any], mode: str) -> Member:
    state = row.get("linkinfo", {}).get("info_slave_data", {})
    up = state.get("mii_status") == "UP"
    agreed = bool(state.get("ad_actor_oper_port_state", 0) & DISTRIBUTING) if mode == LACP else up
    return Member(str(row["ifname"]), up, state.get("state") == "ACTIVE", agreed)


def devices_below(device: str) -> set[str]:
    """*device* and everything that carries it: ports of a bridge, members of a bond, the carrier of a VLAN."""
    rows = [r for r in json.loads(run(("ip", "-j", "link")) or "[]") if r]
    below: dict[str, set[str]] = {}
    for row in rows:
        if "link" in row:
            below.setdefault(row["ifname"], set()).add(row["link"])
        if "master" in row:
            below.setdefault(row["master"], set()).add(row["ifname"])
    found, left = set[str](), [device]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += below.get(name, ())
    return found
