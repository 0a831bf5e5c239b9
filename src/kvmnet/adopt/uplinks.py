"""Devices of a layout -> ``uplinks`` of a document, and what the document does not take. Pure.

Every uplink is written with all that is known of it and then judged by the document's own rules. What they refuse
goes out again, one option at a time, and is named with their words: so nothing here repeats what a bond or a VLAN
may be. Where the refusal is about the whole thing, the device stands there alone: used as the host has it.
"""
from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from kvmnet.adopt import verdicts as v
from kvmnet.adopt.model import Bond, Bridge, Device, Element, Layout, Outcome, Route, Vlan
from kvmnet.errors import Problem, SpecError
from kvmnet.facts.model import Facts
from kvmnet.records import dataclass, field
from kvmnet.spec import checks
from kvmnet.spec.load import loads
from kvmnet.spec.names import BRIDGE, PROBE, TAP, UPLINK, uplink_name
from kvmnet.spec.values import interface

RESERVED = (TAP, BRIDGE, PROBE)
WHOLE = frozenset({"", "device", "members", "bond", "vlan", "on", "protocol"})
"""Options without which a bond or VLAN is none."""
DEFAULTS = {"0.0.0.0/0": ("gateway", 0), "::/0": ("gateway6", 1024)}
"""Default route -> its option, and the metric that it has when none is given (IP6_RT_PRIO_USER)."""


@dataclass(slots=True)
class Uplink:
    """One uplink while it is written."""

    name: str
    device: Device
    data: dict[str, Any]
    refused: dict[str, str] = field(default_factory=dict)
    """Option -> why the document does not take it; '' for the whole."""


def describe(layout: Layout) -> tuple[list[Uplink], list[Element]]:
    """The uplinks of *layout*, and its elements with what became of each."""
    refused: list[Element] = []
    found: dict[str, Uplink] = {}
    taken: set[str] = set()
    banned: dict[str, str] = {}
    for device in layout.uplinks:
        if why := unusable(device):
            banned[device.name] = why
            refused.append(refusal(device, f"uplink {device.name}", why))
        elif device.name not in found:
            name = word(device.name.removeprefix(UPLINK), taken, 63)
            found[device.name] = Uplink(name, device, {})
    for uplink in found.values():
        uplink.data = data_of(uplink, found)
    for address in layout.addresses:
        if address.dev in found:
            found[address.dev].data.setdefault("addresses", []).append(address.cidr)
    for route in layout.routes:
        if route.dev in found:
            add_route(found[route.dev].data, route)
    for uplink in found.values():
        if uplink.refused:
            stand_alone(uplink)
    kept = judged(list(found.values()))
    refused += [e for uplink in found.values() for e in told(uplink, layout.elements)]
    elements = (v.reword(e, v.Verdict(Outcome.UNSUPPORTED, banned[e.device]))
                if e.outcome is Outcome.MAPPED and e.device in banned else e for e in layout.elements)
    return kept, [*settled(elements, found), *(e for e in refused if e.device not in banned or e.path.startswith("uplink"))]


def data_of(uplink: Uplink, found: dict[str, Uplink]) -> dict[str, Any]:
    """What the device itself is."""
    device, data = uplink.device, dict[str, Any]()
    if device.name != uplink_name(uplink.name) or not isinstance(device, (Bond, Vlan)):
        data["device"] = device.name
    if isinstance(device, Bond):
        data |= {"members": list(device.members), "bond": device.mode or "active-backup"}
        data |= {"options": {k: dict(w) if isinstance(w, dict) else w for k, w in device.options.items()}} if device.options else {}
        if not device.members:
            uplink.refused[""] = "a bond without members"
    elif isinstance(device, Vlan):
        carrier = found.get(device.parent)
        data |= {"vlan": device.id, "on": carrier.name if carrier else device.parent}
        data |= {"protocol": device.protocol} if device.protocol != "802.1Q" else {}
        if not carrier:
            uplink.refused[""] = f"a VLAN of {device.parent or 'no device'}, which is no uplink of the document"
    if device.mtu is not None:
        data["mtu"] = device.mtu
    if device.mac and isinstance(device, (Bond, Vlan)):
        data["mac"] = device.mac
    return data


def add_route(data: dict[str, Any], route: Route) -> None:
    option, usual = DEFAULTS.get(route.dst, ("", 0))
    if option and route.via and option not in data and route.metric in (None, usual):
        data[option] = route.via
        return
    row: dict[str, Any] = {"to": route.dst} | ({"via": route.via} if route.via else {})
    data.setdefault("routes", []).append(row | ({} if route.metric is None else {"metric": route.metric}))


# -- the document's own judgement ------------------------------------------------------------------

def judged(uplinks: list[Uplink]) -> list[Uplink]:
    """Those that the document takes, without what it does not take of them."""
    before = ""
    while (problems := problems_of(uplinks)) and before != (before := flow([u.data for u in uplinks])):
        by_name = {u.name: u for u in uplinks}
        # From the back: positions in a list stay true.
        for problem in reversed(problems):
            name, path = step(problem.path.removeprefix("uplinks."))
            if name in by_name:
                drop(by_name[name], path, problem.message)
        uplinks = [u for u in uplinks if u.data]
    return uplinks


def problems_of(uplinks: list[Uplink]) -> list[Problem]:
    text = "\n".join(("version: 1", "uplinks:", *(f"  {u.name}: {flow(u.data)}" for u in uplinks)))
    try:
        document = loads(text)
    except SpecError as wrong:
        return sorted(wrong.problems, key=lambda p: p.path)
    return sorted(checks.check(document.spec, Facts()), key=lambda p: p.path)


def step(path: str) -> tuple[str, str]:
    """First key of a path, and the rest."""
    found = re.match(r"([^.\[]*)\.?(.*)", path)
    assert found
    return found[1], found[2]


def drop(uplink: Uplink, path: str, why: str) -> None:
    """Take out what *path* names, or everything that makes it more than a device of the host's."""
    first, rest = step(path)
    if first in WHOLE or first not in uplink.data:
        hopeless = "" in uplink.refused or not isinstance(uplink.device, (Bond, Vlan))
        uplink.refused.setdefault("", why)
        if hopeless:
            uplink.data = {}
        stand_alone(uplink)
        return
    at: Any = uplink.data
    key: Any = first
    if first == "options" and rest:
        at, key = uplink.data["options"], step(rest)[0]
    elif position := re.match(r"\[(\d+)\]", rest):
        at, key = uplink.data[first], int(position[1])
    if isinstance(at, dict) and key not in at:
        at, key = uplink.data, first
    if isinstance(at, list) and key >= len(at):
        return
    gone = at.pop(key)
    uplink.refused[f"options.{key}" if at is uplink.data.get("options") else first] = f"{why} ({flow(gone)})"
    if not uplink.data.get(first, True):
        del uplink.data[first]


def stand_alone(uplink: Uplink) -> None:
    """Used as the host has it."""
    kept = {k: w for k, w in uplink.data.items() if k not in WHOLE and k not in ("options", "mac", "mtu")}
    alone = list(uplink.data) and (len(uplink.data) > 1 or "device" not in uplink.data)
    uplink.data = {"device": uplink.device.name, **kept} if alone else uplink.data


# -- what became of each element -------------------------------------------------------------------

def told(uplink: Uplink, elements: Iterable[Element]) -> Iterator[Element]:
    """Refusals of which no key of the input speaks."""
    spoken = {option for e in elements if e.device == uplink.device.name for option in options_of(e)}
    whole = any(step(option)[0] in WHOLE for option in spoken)
    for option, why in uplink.refused.items():
        if not (whole if option == "" else any(o == option or o.startswith(f"{option}.") for o in spoken)):
            way = "; it is used as the host has it" if option == "" and uplink.data else ""
            yield refusal(uplink.device, f"uplink {uplink.device.name}{f' {option}' if option else ''}", why + way)


def options_of(element: Element) -> list[str]:
    return element.words.removeprefix(v.PREFIX).split(" or ") if element.words.startswith(v.PREFIX) else []


def settled(elements: Iterable[Element], found: dict[str, Uplink]) -> Iterator[Element]:
    for element in elements:
        options = options_of(element)
        uplink = found.get(element.device)
        if not options or element.outcome is not Outcome.MAPPED:
            yield element
        elif uplink is None or not uplink.data:
            yield v.reword(element, v.PORT_MTU if options == ["mtu"] else v.ADDRESS if options[0] in ("addresses", "routes")
                           else v.Verdict(Outcome.UNSUPPORTED, f"{element.device} is no uplink of the document"))
        elif "" in uplink.refused and (step(options[0])[0] in WHOLE or options[0].startswith(("options", "mac", "mtu"))):
            yield v.reword(element, v.Verdict(Outcome.UNSUPPORTED, f"{uplink.refused['']}; {element.device} is used as the host has it"))
        elif why := next((w for o, w in uplink.refused.items() if any(x == o or x.startswith(f"{o}.") for x in options) and o), ""):
            yield v.reword(element, v.Verdict(Outcome.UNSUPPORTED, f"the document does not take it: {why}"))
        else:
            yield v.reword(element, v.Verdict(Outcome.MAPPED, element.words.replace("NAME", uplink.name, 1)))


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


def refusal(device: Device, path: str, why: str) -> Element:
    return Element(place=device.place, path=path, outcome=Outcome.UNSUPPORTED, words=why, device=device.name)


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


PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]*|802\.\w+|[0-9]{1,3}(\.[0-9]{1,3}){3}(/[0-9]+)?|[0-9a-fA-F][0-9a-fA-F:]*/[0-9]+")


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(k)}: {flow(w)}" for k, w in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    return text if PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false") else json.dumps(
        text, ensure_ascii=not text.isprintable())
