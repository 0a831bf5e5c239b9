"""A Layout as a document of ours, with comments that say what came from where. Pure."""
from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from kvmnet.adopt.model import Bridge, Device, Element, GuestPort, Layout, Outcome
from kvmnet.spec.names import BRIDGE, PROBE, TAP
from kvmnet.spec.values import interface

RESERVED = (TAP, BRIDGE, PROBE)


@dataclass(frozen=True, slots=True)
class Written:
    """The text, and every element with what became of it in the end."""

    text: str
    elements: tuple[Element, ...]


def write(layout: Layout, heading: Sequence[str]) -> Written:
    """The smallest document for *layout*. ``heading``: lines of its first comment."""
    refused: list[Element] = []
    lines = [f"# {line}".rstrip() for line in heading]
    lines.append("version: 1")
    uplinks = list(uplink_lines(layout, refused))
    if uplinks:
        lines += ["", "# NICs of the host. They are borrowed: only what is written here is changed.", "uplinks:", *uplinks]
    networks, names = network_lines(layout, refused)
    if networks:
        lines += ["", "# Bridges of the host, used as they are: nothing of them is changed.", "networks:", *networks]
    lines += guest_lines(layout, names)
    unwritten = {e.device: e.words for e in refused}
    elements = (*(replace(e, outcome=Outcome.UNSUPPORTED, words=unwritten[e.device])
                  if e.outcome is Outcome.MAPPED and e.device in unwritten else e for e in layout.elements), *refused)
    return Written("\n".join([*lines, *left_lines(elements)]) + "\n", elements)


def uplink_lines(layout: Layout, refused: list[Element]) -> Iterator[str]:
    taken: set[str] = set()
    for device in layout.uplinks:
        if why := unusable(device):
            refused.append(refusal("uplink", device, why))
            continue
        name = word(device.name, taken, 63)
        mtu = f", mtu: {device.mtu}" if device.mtu is not None else ""
        kind = {"Bond": "a bond that the host makes", "Vlan": "a VLAN that the host makes"}.get(type(device).__name__, "")
        yield f"  {name}: {{device: {quoted(device.name)}{mtu}}}{comment(device, kind, layout)}"


def network_lines(layout: Layout, refused: list[Element]) -> tuple[list[str], dict[str, str]]:
    """The lines, and bridge -> network."""
    lines, taken, names = [], set[str](), dict[str, str]()
    for bridge in layout.bridges:
        if why := unusable(bridge):
            refused.append(refusal("bridge", bridge, why))
            continue
        names[bridge.name] = word(bridge.name, taken, 32)
        ports = "ports " + " ".join(bridge.ports) if bridge.ports else ""
        lines.append(f"  {names[bridge.name]}: {{mode: bridge, bridge: {quoted(bridge.name)}}}"
                     f"{comment(bridge, ports, layout)}")
    return lines, names


def guest_lines(layout: Layout, names: dict[str, str]) -> list[str]:
    """Guests on taps of their own: shown, and left to whoever runs them."""
    found: dict[str, list[GuestPort]] = {}
    for port in layout.guests:
        found.setdefault(port.guest or f"tap-{port.tap}", []).append(port)
    if not found:
        return []
    lines = ["", "# Guests that others run, on taps of their own. They stay as they are. To have one guarded, take it over:",
             "# uncomment it, and let its hypervisor open the tap that `kvmnet vm arguments NAME` prints.", "# vms:"]
    taken: set[str] = set()
    for guest, ports in found.items():
        nics = ", ".join(f"{{network: {names.get(p.bridge) or p.bridge or '?'}" + (f", model: {p.model}" if p.model else "")
                         + (f", mac: {json.dumps(p.mac)}" if p.mac else "") + "}" for p in ports)
        lines.append(f"#   {word(guest, taken, 63)}: {{nics: [{nics}]}}   # {safe(', '.join(p.tap for p in ports))}"
                     f": {safe(ports[0].words)}")
    return lines


def left_lines(elements: Sequence[Element]) -> list[str]:
    """What the document does not say."""
    lines: list[str] = []
    for outcome, title in ((Outcome.LATER, "Not yet expressible:"), (Outcome.UNSUPPORTED, "Not expressed:")):
        if found := [e for e in elements if e.outcome is outcome]:
            lines += ["", f"# {title}", *(f"#   {safe(str(e))}" for e in found)]
    return lines


# -- words -----------------------------------------------------------------------------------------

def unusable(device: Device) -> str:
    """Why the document cannot name the device; '' when it can."""
    if device.name.startswith(RESERVED):
        return "its name begins like those of kvmnet's own devices"
    try:
        interface(device.name)
    except ValueError as error:
        return str(error)
    if device.mtu is not None and not isinstance(device, Bridge) and not 68 <= device.mtu <= 65535:
        return f"MTU {device.mtu} is not between 68 and 65535"
    return ""


def refusal(what: str, device: Device, why: str) -> Element:
    return Element(place=device.place, path=f"{what} {device.name}", outcome=Outcome.UNSUPPORTED, words=why,
                   device=device.name)


def word(text: str, taken: Collection[str], longest: int) -> str:
    """*text* as a name of the document, different from those *taken* (which it joins)."""
    clean = re.sub(r"[^A-Za-z0-9_-]", "-", text).lstrip("-_")[:longest] or "device"
    if clean.lower() in ("null", "true", "false"):
        clean = f"{clean}-0"
    name, number = clean, 2
    while name in taken:
        name, number = f"{clean[:longest - 4]}-{number}", number + 1
    if isinstance(taken, set):
        taken.add(name)
    return name


def quoted(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", text) and text.lower() not in (
        "null", "true", "false") else json.dumps(text, ensure_ascii=False)


def comment(device: Device, words: str, layout: Layout) -> str:
    addresses = [a.cidr for a in layout.addresses if a.dev == device.name]
    asks = [f"DHCPv{d.family}" for d in layout.dynamic if d.dev == device.name]
    stays = f"{' '.join([*addresses, *asks])} stays on it" if addresses or asks else ""
    parts = [p for p in (str(device.place), words, stays) if p]
    return f"   # {safe('; '.join(parts))}" if parts else ""


def safe(text: str) -> str:
    """Text for a comment: one line, nothing that ends it."""
    return "".join(c if c.isprintable() else "?" for c in text)
