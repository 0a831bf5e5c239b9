"""A plan as an operator reads it: what appears, what changes (old -> new), what goes, who notices."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click

from kvmnet.drivers.kinds import to_json
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Resource
from kvmnet.planned import noticed

SHOWN = 12
"""Steps of one kind and action shown before the rest is counted."""
TITLES = {
    "link": "links", "fdb": "hosts of overlays", "address": "addresses", "route": "routes", "proxy-neighbour": "proxy neighbours",
    "neighbour": "neighbours", "bridge-vlan": "VLANs of ports", "vlan-multicast": "multicast on VLANs",
    "sysctl": "kernel settings", "nft-table": "tables of rules", "nic-guard": "guards", "nic-groups": "groups of NICs",
    "nic-limits": "limits of NICs", "address-set": "address sets",
    "guard-keeper": "guard keeper", "dnsmasq": "DHCP and DNS servers", "reservation": "reservations",
    "guard-hook": "where guards see frames", "gate": "gates of macvtaps", "open-port": "macvtaps that go up",
    "wireguard": "tunnels", "wireguard-peer": "hosts behind tunnels",
    "tap-node": "device files", "copy": "copies of frames", "shut": "links that take nothing in",
    "tree-gate": "gates of spanning trees", "spanning-tree": "spanning trees",
    "guest-nic": "devices of running guests", "file": "files",
}
QUIET = {"guard", "keeper", "table", "server", "vm", "after", "config", "text", "zone", "version", "dev", "scope",
         "label", "addrgenmode", "learning", "flood", "mcast_flood", "mcast_snooping", "member", "bridge", "running", "forbidden",
         "program", "tunnel", "keyed", "gate", "hook", "to", "fits", "arp", "allmulticast", "stations", "counted"}
"""Settings that say nothing to the reader of a creation: neutral, or said by the name."""
WORDS = {"type", "alias", "level", "side"}
"""Settings whose value speaks for itself."""
STYLE: dict[type, tuple[str, str]] = {Create: ("+", "green"), Update: ("~", "yellow"), Delete: ("-", "red")}


Differ = Callable[[Update], Sequence[str]]
"""Lines of the difference of a text, from a driver that knows how its tool prints it."""


def plan_text(steps: Sequence[Step], notes: Sequence[str] = (), everything: bool = False,
              differ: Differ | None = None) -> str:
    """The whole plan as text with colours (click strips them where there is no terminal)."""
    if not steps:
        return "\n".join(["Nothing to do: the host is as the document says.", *(f"note: {n}" for n in notes)])
    lines: list[str] = []
    for title, group in by_title(steps):
        lines.append(click.style(title, bold=True))
        shown = group if everything else group[:SHOWN]
        for step in shown:
            lines += step_lines(step, differ)
        if len(group) > len(shown):
            lines.append(f"  … and {len(group) - len(shown)} more (--all shows them)")
    lines += ["", summary(steps), *guest_lines(steps), *(f"note: {n}" for n in notes)]
    return "\n".join(lines)


def by_title(steps: Sequence[Step]) -> Iterator[tuple[str, list[Step]]]:
    """Steps by kind, in the order in which the kinds first appear."""
    groups: dict[str, list[Step]] = {}
    for step in steps:
        groups.setdefault(step.key.kind, []).append(step)
    for kind, group in groups.items():
        yield TITLES.get(kind, kind), group


def step_lines(step: Step, differ: Differ | None) -> list[str]:
    sign, colour = STYLE[type(step)]
    head = click.style(f"  {sign} {step.key.name}", fg=colour)
    match step:
        case Create(after):
            words = settings(after)
            return [f"{head}  {words}" if words else head]
        case Update():
            return changed_lines(step, head, differ)
        case Delete(_, along):
            return [head + (f"  (and {len(along)} that go with it)" if along else "")]
    raise AssertionError(step)


def settings(resource: Resource) -> str:
    """The settings worth reading, as ``name value`` pairs; neutral ones are left out."""
    found = []
    for name, value in to_json(resource).items():
        if name in ("kind", "name") or name in QUIET or value in ("", False, (), -1, 0):
            continue
        if name == "alias":
            value = str(value).removeprefix("kvmnet ")
        found.append(name if value is True else show(value) if name in WORDS else f"{name} {show(value)}")
    return ", ".join(found)


def changed_lines(step: Update, head: str, differ: Differ | None) -> list[str]:
    """``old -> new`` of every setting; texts of rules and configuration as a line diff."""
    lines: list[str] = []
    short = []
    for name, (old, new) in step.changes.items():
        if name in ("text", "config"):
            lines += coloured(differ(step)) if differ and name == "text" else text_diff(old, new)
        elif old is not None or len(step.changes) == 1 or not neutral(new):
            notice = noticed(step, name)
            short.append(f"{name} {show(old)} -> {show(new)}" + (f" [{notice}]" if notice else ""))
    return [f"{head}  {', '.join(short)}", *lines]


def neutral(value: Any) -> bool:
    """A value that says nothing when the old one is not known."""
    return value in ("", False, (), -1, 0, True)


def coloured(diff: Sequence[str]) -> list[str]:
    """Lines of a unified diff, without its headers."""
    colours = {"+": "green", "-": "red"}
    return [click.style(f"      {line[0]} {line[1:].strip()}", fg=colours[line[0]]) for line in diff
            if line[:1] in colours and line[:3] not in ("+++", "---") and line[1:].strip()]


def text_diff(old: Any, new: Any) -> list[str]:
    before, after = (([] if t is None else t.splitlines() if isinstance(t, str) else list(t)) for t in (old, new))
    gone, come = set(before) - set(after), set(after) - set(before)
    return [*(click.style(f"      - {x.strip()}", fg="red") for x in before if x in gone),
            *(click.style(f"      + {x.strip()}", fg="green") for x in after if x in come)]


def show(value: Any) -> str:
    match value:
        case None:
            return "unset"
        case "":
            return "none"
        case True | False:
            return "on" if value else "off"
        case tuple() | list():
            return ",".join(map(str, value)) or "none"
    return str(value)


def guest_lines(steps: Iterable[Step]) -> list[str]:
    """Which running guests notice, and how: live, or by losing and regaining a card."""
    effects: dict[str, str] = {}
    for step in steps:
        if step.key.kind != "guest-nic":
            continue
        match step:
            case Update():
                effects.setdefault(step.key.name, "changed live")
            case Delete():
                effects[step.key.name] = "unplugged"
            case Create():
                effects[step.key.name] = "replugged" if effects.get(step.key.name) else "plugged in"
    return [f"guest {name}: {effect}" for name, effect in effects.items()]


def summary(steps: Iterable[Step]) -> str:
    count = {Create: 0, Update: 0, Delete: 0}
    for step in steps:
        count[type(step)] += 1
    return f"Plan: {count[Create]} to create, {count[Update]} to change, {count[Delete]} to delete."
