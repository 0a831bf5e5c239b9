"""What guests make of their cards, and their own kernels' settings, as their agents tell. Pure."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]


def rows(name: str, told: Json) -> Iterator[tuple[str, str, str]]:
    """(what, value, what it means) of a guest, from its capture (``facts/guests.py``)."""
    inside = told.get("inside") or {}
    if reason := inside.get("agent"):
        yield f"{name}: inside", "not seen", f"{reason}; tune sees the host's side alone"
        return
    taken = {nic.get("mac"): nic.get("negotiated") or {} for nic in told.get("nics", ())}
    for link in inside.get("links", ()):
        if link.get("driver"):
            yield f"{name}: {link['name']}", value(link), meaning(link, taken.get(link.get("mac"), {}))
    for setting, text in inside.get("settings", {}).items():
        if setting == "net.ipv4.ip_forward":
            continue
        yield f"{name}: {setting}", text, "of the guest's own TCP: set it in the guest, tuning: is for the host's"


def value(link: Json) -> str:
    now, most = used(link)
    off = [word for word, on in link.get("offloads", {}).items() if not on]
    return f"{link['driver']}, {now} of {most} queues" + (f", off: {' '.join(off)}" if off else "")


def used(link: Json) -> tuple[int, int]:
    """Queues that it uses, and that its card has."""
    channels = link.get("channels", {})
    now = channels.get("now", link.get("queues", 1))
    return now, channels.get("most", now)


def meaning(link: Json, agreed: Json) -> str:
    now, most = used(link)
    off = [word for word, on in link.get("offloads", {}).items() if not on]
    refused = sorted(set(agreed.get("offered", ())) - set(agreed.get("taken", ())))
    found = [f"it could use {most}: ethtool -L {link['name']} combined {most} in the guest" if now < most else "",
             f"switched on again by ethtool -K {link['name']} {' '.join(f'{word} on' for word in off)} in the guest, where its card offers them" if off else "",
             f"offered and not taken by its driver: {', '.join(refused)}" if refused else ""]
    return "; ".join(filter(None, found)) or "it uses what its card offers"
