"""A Layout as a document of ours, with comments that say what came from where. Pure."""
from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from kvmnet.adopt.model import Bridge, Device, Element, GuestPort, Layout, Outcome
from kvmnet.adopt.uplinks import Uplink, describe, flow, quoted, refusal, unusable, word
from kvmnet.records import dataclass, replace

WIDTH = 110
"""Columns of a line with an uplink on it."""


@dataclass(frozen=True, slots=True)
class Written:
    """The text, and every element with what became of it in the end."""

    text: str
    elements: tuple[Element, ...]


def write(layout: Layout, heading: Sequence[str]) -> Written:
    """The smallest document for *layout*. ``heading``: lines of its first comment."""
    uplinks, elements = describe(layout)
    refused: list[Element] = []
    lines = [f"# {line}".rstrip() for line in heading]
    lines.append("version: 1")
    if uplinks:
        lines += ["", "# NICs, bonds and VLANs of the host. They are borrowed: only what is written here is changed.",
                  "uplinks:", *(line for uplink in uplinks for line in uplink_lines(uplink, layout))]
    networks, names = network_lines(layout, refused)
    if networks:
        lines += ["", "# Bridges of the host, used as they are: nothing of them is changed.", "networks:", *networks]
    lines += guest_lines(layout, names)
    unwritten = {e.device: e.words for e in refused}
    told = (*(replace(e, outcome=Outcome.UNSUPPORTED, words=unwritten[e.device])
              if e.outcome is Outcome.MAPPED and e.device in unwritten else e for e in elements), *refused)
    return Written("\n".join([*lines, *left_lines(told)]) + "\n", told)


def uplink_lines(uplink: Uplink, layout: Layout) -> Iterator[str]:
    """On one line where it fits, else an option on each."""
    short = f"  {uplink.name}: {flow(uplink.data)}"
    said = comment(uplink.device, "", layout)
    if len(short) <= WIDTH:
        yield short + said
        return
    yield f"  {uplink.name}:{said}"
    for option, value in uplink.data.items():
        if option == "routes":
            yield "    routes:"
            yield from (f"      - {flow(row)}" for row in value)
        else:
            yield f"    {option}: {flow(value)}"


def network_lines(layout: Layout, refused: list[Element]) -> tuple[list[str], dict[str, str]]:
    """The lines, and bridge -> network."""
    lines, taken, names = [], set[str](), dict[str, str]()
    for bridge in layout.bridges:
        if why := unusable(bridge):
            refused.append(refusal(bridge, f"bridge {bridge.name}", why))
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
    found = [e for e in elements if e.outcome is Outcome.UNSUPPORTED]
    return ["", "# Not expressed:", *(f"#   {safe(str(e))}" for e in found)] if found else []


# -- words -----------------------------------------------------------------------------------------

def comment(device: Device, words: str, layout: Layout) -> str:
    addresses = [a.cidr for a in layout.addresses if a.dev == device.name] if isinstance(device, Bridge) else []
    asks = [f"DHCPv{d.family}" for d in layout.dynamic if d.dev == device.name]
    stays = f"{' '.join([*addresses, *asks])} stays on it" if addresses or asks else ""
    parts = [p for p in (str(device.place), words, stays) if p]
    return f"   # {safe('; '.join(parts))}" if parts else ""


def safe(text: str) -> str:
    """Text for a comment: one line, nothing that ends it."""
    return "".join(c if c.isprintable() else "?" for c in text)
