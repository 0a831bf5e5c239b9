"""What becomes of a setting: the words, and the verdicts that all formats share. Pure.

A format has a table ``key -> Verdict``. A verdict that begins with ``uplinks.NAME.`` is settled when the document is
written: there a device is an uplink or not, and a value is one that the document takes or not (uplinks.py).
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_interface, ip_network
from typing import NamedTuple

from kvmnet.adopt.model import Draft, Element, Outcome, Place
from kvmnet.records import replace


class Verdict(NamedTuple):
    outcome: Outcome
    words: str


PREFIX = "uplinks.NAME."


def uplink(option: str) -> Verdict:
    """It is an option of the uplink that the device is."""
    return Verdict(Outcome.MAPPED, PREFIX + option)


DEVICE = Verdict(Outcome.MAPPED, "names the device")
PORTS = Verdict(Outcome.MAPPED, "the bridge is used as it is, with its ports")
MTU, MAC, MEMBERS, MODE = uplink("mtu"), uplink("mac"), uplink("members"), uplink("bond")
VLAN, CARRIER, PROTOCOL = uplink("vlan"), uplink("on"), uplink("protocol")
HOST_ADDRESS, ROUTE = uplink("addresses"), uplink("routes or gateway")
PORT_MTU = Verdict(Outcome.KEPT, "MTU of a port or of a bridge that is used as it is: stays with the host")
ADDRESS = Verdict(Outcome.KEPT, "stays with the host: kvmnet leaves its addresses, routes and name servers alone")
ODD_ROUTE = Verdict(Outcome.KEPT, "stays with the host: the document's routes have no more than to, via and metric")
LINK = Verdict(Outcome.KEPT, "a setting of the host's own device stays as it is")
BRIDGE = Verdict(Outcome.KEPT, "a bridge of the host is used as it is; nothing of it is changed")
VLAN_FILTER = Verdict(Outcome.KEPT, "a bridge of the host is used as it is, with the VLANs of its ports")
RENDERER = Verdict(Outcome.KEPT, "who configures the host stays as it is")
LOOPBACK = Verdict(Outcome.KEPT, "loopback is the host's own")
COMMAND = Verdict(Outcome.UNSUPPORTED, "a command of the host's own: kvmnet runs none, and cannot tell what it changes")
KIND = Verdict(Outcome.UNSUPPORTED, "a kind of device that the document does not have")
UNKNOWN = Verdict(Outcome.UNSUPPORTED, "not known to this import")
NAMELESS = Verdict(Outcome.UNSUPPORTED, "matches no single device by its name: write the device yourself")
BAD_VALUE = Verdict(Outcome.UNSUPPORTED, "this value cannot be read")


SECRET = re.compile(r"(pass(word|phrase)?|psk|secret|(?<!dhcp-)key|wep[_-]?key\d?|private[_-]?key|preshared[_-]?key)"
                    r"(s|file)?(\.\w+|\[\d+\])?$", re.I)
"""Ends the name of a setting whose value is nobody's business."""
HIDDEN = "(hidden)"


class Notes:
    """Collects one element per key, to be settled when the document is written."""

    def __init__(self, draft: Draft):
        self.draft = draft

    def add(self, place: Place, path: str, value: object, verdict: Verdict, device: str = "") -> None:
        shown = HIDDEN if SECRET.search(path) and value not in (None, "", {}, []) else one_line(value)
        self.draft.elements.append(Element(place=place, path=path, value=shown, outcome=verdict.outcome,
                                           words=verdict.words, device=device))


def reword(element: Element, verdict: Verdict) -> Element:
    return replace(element, outcome=verdict.outcome, words=verdict.words)


def one_line(value: object) -> str:
    """*value* as a report shows it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(one_line(v) for v in value)
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def judge(table: Mapping[str, Verdict], key: str) -> Verdict:
    """The row of *key*; a row that ends in ``*`` is for every key that begins so."""
    if key in table:
        return table[key]
    return next((v for k, v in table.items() if k.endswith("*") and key.startswith(k[:-1])), UNKNOWN)


def cidr(text: object) -> str | None:
    """An address with its prefix length in canonical form; None when it is none."""
    return attempt(lambda: str(ip_interface(str(text))))


def prefix(text: object, version: int = 4) -> str | None:
    """A prefix in canonical form; ``default`` is 0.0.0.0/0, or ::/0 for version 6."""
    if text in ("default", "0.0.0.0", "::"):
        return "::/0" if version == 6 or text == "::" else "0.0.0.0/0"
    return attempt(lambda: str(ip_network(str(text), strict=False)))


def is_address(value: object) -> bool:
    return attempt(lambda: str(ip_address(str(value)))) is not None


UNITS = {"us": 0.001, "ms": 1, "s": 1000, "sec": 1000, "second": 1000, "seconds": 1000, "min": 60000, "m": 60000, "h": 3600000}


def milliseconds(value: object, bare: int) -> object:
    """A time of systemd's (``1s 500ms``, systemd.time(7)) in milliseconds; a bare number counts *bare* of them. What
    is no time stays as it is."""
    parts = re.findall(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", str(value).strip().lower())
    if not parts or "".join(f"{n}{u}" for n, u in parts) != re.sub(r"\s", "", str(value).lower()) or any(
            u and u not in UNITS for _, u in parts):
        return value
    total = sum(float(n) * (UNITS[u] if u else bare) for n, u in parts)
    return int(total) if total == int(total) else value


def attempt(make: Callable[[], str]) -> str | None:
    try:
        return make()
    except ValueError:
        return None


def whole(value: object) -> int | None:
    """A whole number, also from text; None when it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else None
