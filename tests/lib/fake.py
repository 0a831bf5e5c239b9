"""A host that executes: drivers over one file, which refuse what a kernel refuses.

The file is written after every step, so a process that is killed leaves the host as far as it got.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.journal import Codec
from kvmnet.engine.plan import Create, Delete, Step, Update, apply_to
from kvmnet.engine.resource import Key, Resource, Wanted

CODEC = Codec(to_json, from_json)
LINUX = frozenset({"link", "address", "route", "sysctl"})
GUESTS = frozenset({"guest-nic"})


class FakeHost:
    """The state of a host in a file."""

    def __init__(self, path: Path, things: Iterable[Resource] = ()):
        self.path = path
        self.fault: Callable[[Step], None] = lambda step: None
        """Called before each step; may raise, or kill this process."""
        self.steps: list[Step] = []
        self.put({r.key: r for r in things})

    def put(self, state: dict[Key, Resource]) -> None:
        self.path.write_text(json.dumps([to_json(state[k]) for k in sorted(state)]))

    @property
    def state(self) -> dict[Key, Resource]:
        found = [from_json(item) for item in json.loads(self.path.read_text())]
        return {r.key: r for r in found if isinstance(r, Resource)}

    @property
    def ours(self) -> set[Key]:
        state = self.state
        return {k for k, r in state.items() if is_ours(r, state)}

    @property
    def foreign(self) -> dict[Key, Resource]:
        state = self.state
        return {k: r for k, r in state.items() if not is_ours(r, state)}

    def make(self, step: Step) -> None:
        self.fault(step)
        state = self.state
        if reason := refusal(step, state):
            raise StepFailed(step.key, reason)
        self.put(apply_to(state, [step]))
        self.steps.append(step)

    def drivers(self) -> list[FakeDriver]:
        return [FakeDriver(self, LINUX), FakeDriver(self, GUESTS)]


class FakeDriver:
    def __init__(self, host: FakeHost, kinds: frozenset[str], reason: str | None = None):
        self.host, self.kinds, self.reason = host, kinds, reason
        self.looks = 0
        if kinds == GUESTS:
            self.sees_without_tool = True

    def unavailable(self) -> str | None:
        return self.reason

    def observe(self, intent: Wanted) -> Seen:
        self.looks += 1
        state = self.host.state
        return Seen({k: r for k, r in state.items() if k.kind in self.kinds},
                    {k for k, r in state.items() if k.kind in self.kinds and is_ours(r, state)})

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        assert {s.key.kind for s in steps} <= self.kinds
        for step in steps:
            self.host.make(step)
            progress(1)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        return [Command(("fake", type(s).__name__.lower(), str(s.key))) for s in steps]


def is_ours(resource: Resource, state: dict[Key, Resource]) -> bool:
    """By mark for links, by link for what hangs on one; guests' NICs always."""
    if resource.kind == "link":
        return (getattr(resource, "alias", None) or "").startswith("kvmnet")
    if resource.kind == "guest-nic":
        return True
    dev = getattr(resource, "dev", None)
    link = state.get(Key("link", dev)) if dev else None
    return link is not None and is_ours(link, state)


def refusal(step: Step, state: dict[Key, Resource]) -> str | None:
    """What a kernel would answer to *step*, or None."""
    match step:
        case Create(after) if after.key in state:
            return "File exists"
        case Update(_, after) | Delete(after) if after.key not in state:
            return "No such device"
        case Delete(before):
            for holder in state.values():
                if any(ref.target == before.key and ref.on_delete == "delete" for ref in holder.refs()):
                    return f"Device or resource busy ({holder.key})"
        case Create(after) | Update(_, after):
            for ref in after.refs():
                if ref.target not in state:
                    return f"No such device: {ref.target}"
    return None
