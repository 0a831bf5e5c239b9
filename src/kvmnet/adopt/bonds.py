"""Options of a bond: the kernel's words, in which formats differ by spelling alone, and the document's. Pure.

Source of the kernel's words, numbers and defaults: Documentation/networking/bonding.rst and bond_opts in
drivers/net/bonding/bond_options.c.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvmnet.adopt import verdicts as v
from kvmnet.adopt.model import Bond, Outcome
from kvmnet.drivers.linux.resources import Link
from kvmnet.modes.links import CLAIMS, Way, bond_link
from kvmnet.spec.uplinks import BondMode, BondOptions

NAMES = {
    "primary": "primary", "primary_reselect": "reselect", "miimon": "miimon", "updelay": "updelay",
    "downdelay": "downdelay", "arp_interval": "arp.interval", "arp_ip_target": "arp.targets", "arp_validate": "arp.check",
    "xmit_hash_policy": "hash", "lacp_rate": "lacp_rate", "ad_select": "ad_select", "min_links": "min_links",
    "num_grat_arp": "peer_notify"}
"""The kernel's word -> path below ``options``."""
ALSO = {"num_unsol_na": "num_grat_arp", "num_peer_notif": "num_grat_arp", "ad_lacp_rate": "lacp_rate",
        "all_members_active": "all_slaves_active", "packets_per_member": "packets_per_slave"}
"""Another word for the same thing."""
UNSAID = {
    "fail_over_mac": "none", "all_slaves_active": "0", "use_carrier": "1", "resend_igmp": "1", "packets_per_slave": "1",
    "lp_interval": "1", "tlb_dynamic_lb": "1", "arp_all_targets": "any", "ad_actor_sys_prio": "65535",
    "ad_actor_system": "00:00:00:00:00:00", "ad_user_port_key": "0", "arp_missed_max": "2", "peer_notify_delay": "0",
    "active_slave": "", "coupled_control": "1"}
"""What the document has no words for -> the kernel's default."""
NUMBERED = {
    "mode": tuple(m.value for m in BondMode), "lacp_rate": ("slow", "fast"),
    "xmit_hash_policy": ("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"),
    "primary_reselect": ("always", "better", "failure"), "ad_select": ("stable", "bandwidth", "count"),
    "arp_validate": ("none", "active", "backup", "all"), "fail_over_mac": ("none", "active", "follow"),
    "arp_all_targets": ("any", "all")}
"""Values by the number that the kernel gives them, which every tool takes too."""
NO_WORDS = v.Verdict(Outcome.UNSUPPORTED, "the document has no words for this option of a bond: a bond that kvmnet makes has "
                     "the kernel's default")
USUAL = v.Verdict(Outcome.MAPPED, "the kernel's default, which a bond of the document has too")
DEFAULT_MODE = "balance-rr"
"""The kernel's mode for a bond that is given none."""


def canonical(word: str) -> str:
    """The kernel's word for an option, however it is spelled: ``lacp-rate``, ``num_unsol_na``."""
    plain = word.replace("-", "_").lower()
    return ALSO.get(plain, plain)


def spelled(word: str, value: Any) -> Any:
    """A value in the kernel's words; numbers as whole numbers, targets as a list."""
    if isinstance(value, bool):
        return int(value)
    if word in NUMBERED:
        text = str(value).lower()
        return NUMBERED[word][int(text)] if text.isdecimal() and int(text) < len(NUMBERED[word]) else text
    if word == "arp_ip_target":
        return [str(x) for x in value] if isinstance(value, list) else [x for x in re.split(r"[,\s]+", str(value)) if x]
    if word == "primary":
        return str(value)
    number = v.whole(value)
    return value if number is None else number


def verdict(word: str, value: Any, words: Mapping[str, Any]) -> v.Verdict:
    """What becomes of one option. ``words``: all of the bond's, canonical."""
    if word == "mode":
        return v.MODE
    if word in NAMES:
        return v.uplink(f"options.{NAMES[word]}")
    if word in UNSAID:
        return USUAL if str(spelled(word, value)).lower() == UNSAID[word] else NO_WORDS
    return v.UNKNOWN


def described(words: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Mode and options of the document for the kernel's *words*. A wrong value stays, for the document to refuse."""
    said = {word: spelled(word, value) for word, value in words.items() if value not in (None, "")}
    options: dict[str, Any] = {}
    watches = bool(said.get("arp_interval") or said.get("arp_ip_target")) and said.get("arp_interval") != 0
    for word, path in NAMES.items():
        if word not in said or (word == "primary" and said[word] == "none"):
            continue
        outer, _, inner = path.partition(".")
        if inner and watches:
            options.setdefault(outer, {})[inner] = said[word]
        elif not inner and not (word == "miimon" and said[word] == 0 and watches):
            options[outer] = said[word]
    mode = said.get("mode", DEFAULT_MODE)
    if mode == BondMode.LACP:
        options.setdefault("hash", "layer2")  # the kernel's default; the document's is layer3+4
    return mode, options


def words_of(bond: Bond) -> dict[str, Any]:
    """The kernel's words for a bond of the document, those that are not the kernel's default anyway; the mode apart."""
    made = link_of(bond)
    values: dict[str, Any] = {
        "miimon": made.bond_miimon or None, "updelay": made.bond_updelay or None, "downdelay": made.bond_downdelay or None,
        "arp_interval": made.bond_arp_interval or None, "arp_ip_target": list(made.bond_arp_targets or ()) or None,
        "arp_validate": made.bond_arp_validate, "primary": made.bond_primary, "primary_reselect": made.bond_primary_reselect,
        "xmit_hash_policy": made.bond_hash, "lacp_rate": made.bond_lacp_rate, "ad_select": made.bond_ad_select,
        "min_links": made.bond_min_links or None, "num_grat_arp": made.bond_peer_notify}
    usual = {"arp_validate": "none", "primary_reselect": "always", "xmit_hash_policy": "layer2", "lacp_rate": "slow",
             "ad_select": "stable", "num_grat_arp": 1}
    return {word: value for word, value in values.items() if value is not None and value != usual.get(word)}


def link_of(bond: Bond) -> Link:
    """The bond as kvmnet would make it."""
    mode = BondMode(bond.mode or BondMode.ACTIVE_BACKUP)
    return bond_link(Way(bond.name, bond.mtu or 1500, bond.mac, None, ()), "", mode,
                     BondOptions.model_validate(bond.options), bond.members)


def of_link(link: Link) -> dict[str, Any]:
    """Options of the document for a bond as it is seen, those that are not the document's default."""
    mode = link.bond_mode or DEFAULT_MODE
    seen = {"arp_interval": link.bond_arp_interval, "arp_ip_target": list(link.bond_arp_targets or ()),
            "arp_validate": link.bond_arp_validate, "miimon": link.bond_miimon, "updelay": link.bond_updelay,
            "downdelay": link.bond_downdelay, "primary": link.bond_primary, "primary_reselect": link.bond_primary_reselect,
            "xmit_hash_policy": link.bond_hash, "lacp_rate": link.bond_lacp_rate, "ad_select": link.bond_ad_select,
            "min_links": link.bond_min_links, "num_grat_arp": link.bond_peer_notify}
    _, options = described({w: x for w, x in seen.items() if x not in (None, [])})
    if mode not in NUMBERED["mode"]:
        return options
    usual = link_of(Bond(name=link.name, mode=mode, members=link.members or ("",)))
    return {name: value for name, value in options.items()
            if name == "arp" or any(getattr(usual, f) is not None and getattr(usual, f) != getattr(link, f) for f in CLAIMS[name])}


def unsaid(data: Mapping[str, Any]) -> dict[str, str]:
    """Of what ``ip -json -details link`` tells of a bond: settings that the document has no words for and that are not
    the default."""
    shown = {canonical(word): value for word, value in data.items()}
    found = {w: str(spelled(w, shown[w])) for w in UNSAID if w in shown and w != "active_slave"}
    return {w: x for w, x in found.items() if x.lower() != UNSAID[w]}
