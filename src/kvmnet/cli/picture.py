"""The topology as a picture in the terminal: uplinks, networks, guests, from the wire to the card."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import click

from kvmnet.records import dataclass, field

MOST = 8
"""Children of one node that are drawn; the rest is counted."""
COLOURS = {"uplink": "blue", "network": "cyan", "guest": "green"}


@dataclass(slots=True)
class Node:
    """A name, words beside it, a state sign, and what hangs below."""

    kind: str
    name: str
    words: Sequence[str] = ()
    state: str = ""
    children: list[Node] = field(default_factory=list)


STATES: Mapping[str, tuple[str, str]] = {
    "up": ("●", "green"), "down": ("○", "red"), "idle": ("○", "white"), "broken": ("✖", "red"), "": ("", "white"),
}


def picture(roots: Sequence[Node]) -> str:
    """The trees below *roots*, one line a node."""
    return "\n".join(line for root in roots for line in draw(root, "", ""))


def draw(node: Node, lead: str, below: str) -> Iterator[str]:
    sign, colour = STATES[node.state]
    state = f" {click.style(sign, fg=colour)}" if sign else ""
    name = click.style(node.name, fg=COLOURS.get(node.kind), bold=True)
    yield f"{lead}{name}{state}  {'  '.join(w for w in node.words if w)}".rstrip()
    shown = node.children[:MOST]
    hidden = len(node.children) - len(shown)
    for i, child in enumerate(shown):
        last = i == len(shown) - 1 and not hidden
        yield from draw(child, below + ("╰── " if last else "├── "), below + ("    " if last else "│   "))
    if hidden:
        yield f"{below}╰── … and {hidden} more"
