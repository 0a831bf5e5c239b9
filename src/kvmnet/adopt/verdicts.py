"""What becomes of a setting: the words, and the verdicts that all formats share. Pure.

A format has a table ``key -> Verdict``. When the document learns a feature, its row changes here or there and
nothing else: ``LATER`` becomes ``MAPPED``.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_interface, ip_network
from typing import NamedTuple

from kvmnet.adopt.model import Draft, Element, Outcome, Place


class Verdict(NamedTuple):
    outcome: Outcome
    words: str
    feature: str = ""


DEVICE = Verdict(Outcome.MAPPED, "names the device")
PORTS = Verdict(Outcome.MAPPED, "the bridge is used as it is, with its ports")
MTU = Verdict(Outcome.MAPPED, "uplinks.NAME.mtu")
PORT_MTU = Verdict(Outcome.KEPT, "MTU of a port or of a bridge that is used as it is: stays with the host")
ADDRESS = Verdict(Outcome.KEPT, "addresses, routes and DNS of the host stay as they are")
LINK = Verdict(Outcome.KEPT, "a setting of the host's own device stays as it is")
BRIDGE = Verdict(Outcome.KEPT, "a bridge of the host is used as it is; nothing of it is changed")
RENDERER = Verdict(Outcome.KEPT, "who configures the host stays as it is")
LOOPBACK = Verdict(Outcome.KEPT, "loopback is the host's own")
BOND = Verdict(Outcome.LATER, "the document cannot describe a bond yet; it can use one that exists as an uplink", "bonds")
VLAN = Verdict(Outcome.LATER, "the document cannot describe a VLAN device yet; it can use one that exists as an uplink",
               "vlans")
VLAN_FILTER = Verdict(Outcome.LATER, "the document cannot filter VLANs on a bridge yet", "vlans")
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
    """Collects one element per key, then settles what depends on the whole."""

    def __init__(self, draft: Draft):
        self.draft = draft

    def add(self, place: Place, path: str, value: object, verdict: Verdict, device: str = "") -> None:
        shown = HIDDEN if SECRET.search(path) and value not in (None, "", {}, []) else one_line(value)
        self.draft.elements.append(Element(place=place, path=path, value=shown, outcome=verdict.outcome,
                                           words=verdict.words, feature=verdict.feature, device=device))

    def settle(self) -> None:
        """An MTU is in the document only where its device is an uplink."""
        layout = self.draft.layout()
        uplinks = {d.name for d in layout.uplinks}
        self.draft.elements[:] = [
            reword(e, PORT_MTU) if e.words == MTU.words and e.device not in uplinks else e
            for e in self.draft.elements]


def reword(element: Element, verdict: Verdict) -> Element:
    return Element(place=element.place, path=element.path, value=element.value, device=element.device,
                   outcome=verdict.outcome, words=verdict.words, feature=verdict.feature)


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
