"""What libvirt's files tell: whose bridge it is, and of which guest a tap is. Reads files only; libvirt need not run.

A running domain has a status file with the names of its taps (``<target dev='vnet0'/>``); the definition
in /etc has them only where the operator chose the name.
"""
from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from kvmnet.adopt.model import GuestPort

NETWORKS = (("run/libvirt/network", "*.xml"), ("var/lib/libvirt/dnsmasq", "*.conf"))
DOMAINS = ("etc/libvirt/qemu", "run/libvirt/qemu")
"""Later ones count more."""
LARGEST = 4 * 2**20


def networks(root: Path = Path("/")) -> Iterator[tuple[str, str]]:
    """Bridge -> libvirt's network, from its status files."""
    for place, pattern in NETWORKS:
        for file in found(root / place, pattern):
            with suppress(OSError):
                text = file.read_text(encoding="utf-8", errors="replace")
                told = re.search(r"<bridge name=['\"]([^'\"]+)", text) or re.search(r"(?m)^interface=(\S+)", text)
                if told:
                    yield told[1], file.stem


def domains(root: Path = Path("/")) -> dict[str, GuestPort]:
    """Tap -> the guest and its card, of every domain whose file can be read."""
    taps: dict[str, GuestPort] = {}
    for place in DOMAINS:
        for file in found(root / place, "*.xml"):
            with suppress(OSError, ElementTree.ParseError):
                raw = file.read_bytes()
                if len(raw) <= LARGEST and b"<!ENTITY" not in raw:
                    taps |= {port.tap: port for port in ports(ElementTree.fromstring(raw))}
    return taps


def ports(tree: ElementTree.Element) -> Iterator[GuestPort]:
    """The cards of a domain; a status file has the domain inside."""
    domain = tree if tree.tag == "domain" else tree.find("domain")
    if domain is None:
        return
    name = domain.findtext("name") or ""
    uuid = domain.findtext("uuid") or ""
    for card in domain.iterfind("devices/interface"):
        if tap := attribute(card, "target", "dev"):
            model = attribute(card, "model", "type")
            yield GuestPort(tap=tap, bridge=attribute(card, "source", "bridge"), guest=name,
                            mac=attribute(card, "mac", "address").lower(), model=model,
                            words=f"libvirt's domain{f', uuid {uuid}' if uuid else ''}")


def attribute(card: ElementTree.Element, tag: str, name: str) -> str:
    inner = card.find(tag)
    return inner.get(name, "") if inner is not None else ""


def found(place: Path, pattern: str) -> list[Path]:
    try:
        return sorted(place.glob(pattern))
    except OSError:
        return []
