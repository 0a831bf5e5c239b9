"""plan(seen, wanted) -> Steps. Pure, and linear in the size of the two states.

Order comes from references alone. A resource's depth is one more than the deepest thing it names;
creations and updates run from shallow to deep, and before them deletions in exactly the reverse order.
So do updates that only lower what must not be larger above than below (an MTU), right after the deletions.
Within one depth, steps of one kind stand together, so that a driver gets long runs and makes each one
batch. What takes the place of something else (an address that moves to another link) comes last, its
deletions beside its creations, so that the gap is one batch and not the length of the plan.

Removal is simulated on a copy: what the system takes along (``cascade``) needs no step, what it
leaves behind (``detach``) shows up as an update if the wanted state still claims it. What it drops for other
reasons (``Resource.swept``: the routes of a link whose last address goes) is made again if it can stand, also
when it is somebody else's.

What keeps shut what the rest of the plan must have changed before it may be open (``Resource.goes_last``) is deleted at
the very end.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

from kvmnet.engine.resource import (
    Absent,
    Changes,
    Key,
    Resource,
    State,
    Wanted,
    diff,
    lost_with,
    merge,
    must_recreate,
    narrow,
    ref_fields,
    replaces_name,
    top_down_names,
)
from kvmnet.records import dataclass, replace


@dataclass(frozen=True)
class Create:
    after: Resource

    @cached_property
    def key(self) -> Key:
        return self.after.key


@dataclass(frozen=True)
class Update:
    before: Resource
    after: Resource
    along: tuple[Key, ...] = ()
    """What the system drops meanwhile (the routes of a link that goes down)."""

    @cached_property
    def key(self) -> Key:
        return self.after.key

    @cached_property
    def changes(self) -> Changes:
        return diff(self.before, self.after)


@dataclass(frozen=True)
class Delete:
    before: Resource
    along: tuple[Key, ...] = ()
    """Resources that the system removes together with this one."""

    @cached_property
    def key(self) -> Key:
        return self.before.key


Step: TypeAlias = Create | Update | Delete


class Cycle(ValueError):
    """Resources that name each other in a ring; a bug of the compiler, never of the user."""


class Conflict(Exception):
    """Unmarked objects bear names that are ours. ``keys`` lists them all."""

    def __init__(self, keys: Iterable[Key]):
        self.keys = tuple(keys)
        super().__init__("not made by kvmnet, but in its way: " + ", ".join(map(str, self.keys)))


def plan(seen: State, wanted: Wanted, ours: Set[Key],
         borrowed: Set[Key] = frozenset(), adopt: bool = False, fulfilled: State = MappingProxyType({})) -> tuple[Step, ...]:
    """Steps that turn *seen* into *wanted*.

    ``ours``: the seen keys that carry our mark; they are deleted when not wanted.
    ``borrowed``: wanted keys that are claims on somebody else's object. Any other wanted key that
    is seen without our mark raises Conflict, unless ``adopt``. ``fulfilled``: what was compared with *wanted* before, and
    is as wanted; the very same object is not compared again.
    """
    if not adopt:
        strangers = [k for k in (wanted.keys() & seen.keys()) - ours - borrowed if not isinstance(wanted[k], Absent)]
        if strangers:
            raise Conflict(sorted(strangers))
    same = fulfilled.get
    unequal = {k: r for k, r in wanted.items() if (before := seen.get(k)) is not None
               and before is not same(k) and (isinstance(r, Absent) or diff(before, r))}
    doomed = find_doomed(seen, wanted, unequal, ours)
    now = dict(seen)
    deletions = remove_all(now, doomed) if doomed else []
    present = {k: r for k, r in wanted.items() if not isinstance(r, Absent)}
    pending: list[Create | Update] = []
    for key, after in present.items():
        before = now.get(key)
        if before is None:
            pending.append(Create(after))
        elif key in unequal if before is seen.get(key) else diff(before, after):
            pending.append(Update(before, after))
    if doomed or unequal:
        deletions, pending = make_again(seen, now, present, deletions, pending)
    if len(pending) > 1:
        depth = Depths({**{s.key: s.after for s in pending}, **present})
        # A setting before what else is on the same thing: IPv6 is switched on before an address comes.
        pending.sort(key=lambda s: (0, -depth[s.key], True, s.key) if only_lowers(s)
                     else (1, *placed(s.after, depth), s.key))
    last = [s for s in deletions if isinstance(s, Delete) and s.before.goes_last and s.key not in present]
    return (*handover_last([s for s in deletions if s not in last] if last else deletions, pending), *last)


def placed(resource: Resource, depth: Depths) -> tuple[int, bool, Key, bool]:
    """Where a resource stands in a plan: behind what it names; a part right behind its whole."""
    whole = next((r.target for r in resource.refs() if r.field == resource.part_of), None) if resource.part_of else None
    if whole and depth[resource.key] > depth[whole] + 1:    # it names more than that
        whole = None
    return depth[whole or resource.key], not resource.permanent, whole or resource.key, whole is not None


def only_lowers(step: Create | Update) -> bool:
    """Whether a step does nothing but take down numbers that go down from the top (an MTU: first the guest, then
    its tap, then the bridge, so that nobody sends what the next cannot carry)."""
    if isinstance(step, Create) or not (names := top_down_names(type(step.after))):
        return False
    return all(name in names and have is not None and want < have for name, (have, want) in step.changes.items())


def make_again(seen: State, now: dict[Key, Resource], present: State, deletions: list[Step],
               pending: list[Create | Update]) -> tuple[list[Step], list[Create | Update]]:
    """The plan with what the system drops on the way made again, and told in the steps that are the cause."""
    gone = [seen[k] for step in deletions if isinstance(step, Delete) for k in (step.key, *step.along)]
    changed = [(step.before, step.after) for step in pending if isinstance(step, Update)]
    dropped = sweep(now, gone, changed)
    if not dropped:
        return deletions, pending
    along: dict[Key, list[Key]] = {}
    for key, (cause, _) in dropped.items():
        along.setdefault(cause, []).append(key)
    kept = [replace(s, along=tuple(along.get(s.key, ()))) if isinstance(s, Update) else s for s in pending
            if s.key not in dropped]
    final = {**now, **{s.key: merge(now[s.key], s.after) if isinstance(s, Update) else s.after for s in kept}}
    final.update((k, present[k]) for k in dropped if k in present)
    again = [Create(merge(was, present[key]) if key in present else was) for key, (_, was) in dropped.items()
             if key in present or (was.stands(final) and all(r.target in final for r in was.refs()))]
    return [replace(s, along=(*s.along, *along.get(s.key, ()))) if isinstance(s, Delete) else s
            for s in deletions], [*kept, *again]


def sweep(now: dict[Key, Resource], gone: Sequence[Resource],
          changed: Sequence[tuple[Resource, Resource]]) -> dict[Key, tuple[Key, Resource]]:
    """Take out of *now* what the system drops: key -> (the step's key that is the cause, what it was)."""
    found: dict[Key, tuple[Key, Resource]] = {}
    while gone or changed:
        kinds = {type(r) for r in now.values()}
        dropped = {key: cause for cls in kinds for cause, key in cls.swept(now, gone, changed) if key in now}
        for key, cause in dropped.items():
            found[key] = (found[cause][0] if cause in found else cause), now.pop(key)
        gone, changed = [found[key][1] for key in dropped], ()
    return found


def handover_last(deletions: list[Step], pending: Sequence[Create | Update]) -> tuple[Step, ...]:
    """The plan's order, with everything that changes places at its end.

    There stand: the deletions of what is replaced, then the changes of what it hung on (the NIC that
    joins a bridge), then what takes its place, then what needs that change (the NIC's VLANs on the bridge).
    """
    left = {old: s.key for s in pending if isinstance(s, Create) and (old := predecessor(s.after))}
    moving = [s for s in deletions if s.key in left]
    if not moving:
        return (*deletions, *pending)
    arriving = {left[s.key] for s in moving}
    holders = {r.target for s in moving if isinstance(s, Delete) for r in s.before.refs()}
    bonds = {(s.key, r.target) for s in pending if isinstance(s, Update) and s.key in holders for r in s.after.refs()}
    late: set[Key] = set()
    for step in pending if bonds else ():  # from shallow to deep
        if needs_one(step.after, bonds) or any(r.target in late for r in step.after.refs()):
            late.add(step.key)
    last = {s.key for s in moving}
    return (*(s for s in deletions if s.key not in last),
            *(s for s in pending if s.key not in arriving and s.key not in holders and s.key not in late),
            *moving,
            *(s for s in pending if s.key in holders),
            *(s for s in pending if s.key in arriving),
            *(s for s in pending if s.key in late))


def needs_one(resource: Resource, bonds: Set[tuple[Key, Key]]) -> bool:
    """Whether *resource* names both ends of one of the *bonds*: it can stand when the first hangs on the second."""
    named = [r.target for r in resource.refs()]
    return any((one, other) in bonds for one in named for other in named)


def predecessor(resource: Resource) -> Key | None:
    """Whose place *resource* takes, or None."""
    name = replaces_name(type(resource))
    old = getattr(resource, name) if name else None
    return Key(resource.kind, old) if old else None


def find_doomed(seen: State, wanted: Wanted, unequal: Wanted, ours: Set[Key]) -> set[Key]:
    """Seen keys that must go: ours and unwanted, wanted absent, or not changeable in place.

    ``unequal``: the part of *wanted* that *seen* does not fulfil.
    """
    doomed = {k for k in (ours - wanted.keys()) & seen.keys() if not seen[k].permanent}
    for key, after in unequal.items():
        before = seen[key]
        if not before.permanent and (isinstance(after, Absent) or must_recreate(before, after)):
            doomed.add(key)
    if doomed:
        holders = reverse(seen)
        stack = list(doomed)
        while stack:
            for holder, _, on_delete in holders.get(stack.pop(), ()):
                if on_delete == "delete" and holder not in doomed:
                    doomed.add(holder)
                    stack.append(holder)
    return doomed


def remove_all(now: dict[Key, Resource], doomed: set[Key]) -> list[Step]:
    """Take *doomed* out of *now* as the system would, and return the deletions in order."""
    holders = reverse(now)
    along: dict[Key, list[Key]] = {}
    taken: set[Key] = set()
    for key in doomed:
        stack, went = [key], along.setdefault(key, [])
        while stack:
            for holder, _, on_delete in holders.get(stack.pop(), ()):
                if on_delete == "cascade" and holder not in taken:
                    taken.add(holder)
                    went.append(holder)
                    stack.append(holder)
    depth = Depths(now)
    explicit = sorted(doomed - taken, key=lambda k: (depth[k], k), reverse=True)
    steps: list[Step] = [Delete(now[k], tuple(with_what_hangs_on(k, along))) for k in explicit]
    gone = doomed | taken
    for key in gone:
        now.pop(key, None)
    for key in gone:
        for holder, name, on_delete in holders.get(key, ()):
            if on_delete == "detach" and holder in now:
                now[holder] = replace(now[holder], **{name: ""})
    return steps


def with_what_hangs_on(key: Key, along: Mapping[Key, list[Key]]) -> Iterator[Key]:
    """Everything that goes along with *key*, also what goes along with that (an address of a VLAN of a bond)."""
    for holder in along.get(key, ()):
        yield holder
        yield from with_what_hangs_on(holder, along)


def reverse(state: State) -> dict[Key, list[tuple[Key, str, str]]]:
    """For each key that is named: who names it, by which field, and what its deletion does."""
    holders: dict[Key, list[tuple[Key, str, str]]] = {}
    for key, resource in state.items():
        for name, kind, on_delete in ref_fields(type(resource)):
            if target := getattr(resource, name):
                holders.setdefault(Key(kind, target), []).append((key, name, on_delete))
    return holders


class Depths(dict[Key, int]):
    """Depth of each resource below the things it names, computed when asked for."""

    def __init__(self, state: State):
        super().__init__()
        self.state = state

    def __missing__(self, key: Key) -> int:
        path: list[Key] = [key]
        on_path = {key}
        while path:
            top = path[-1]
            resource = self.state.get(top)
            targets = [] if resource is None else [
                Key(kind, target) for name, kind, _ in ref_fields(type(resource)) if (target := getattr(resource, name))]
            waiting = next((t for t in targets if t not in self), None)
            if waiting is None:
                self[top] = 1 + max((self[t] for t in targets), default=-1)
                on_path.discard(path.pop())
            elif waiting in on_path:
                raise Cycle(" -> ".join(map(str, (*path, waiting))))
            else:
                path.append(waiting)
                on_path.add(waiting)
        return self[key]


def before_image(seen: State, steps: Iterable[Step], ours: Set[Key]) -> Wanted:
    """The wanted state that undoes *steps*: everything that they touch, as it was seen.

    A foreign object claims back only the settings that the steps change.
    """
    image: dict[Key, Resource | Absent] = {}
    parts: dict[Key, set[str]] = {}
    holders: Mapping[Key, list[tuple[Key, str, str]]] | None = None
    for step in steps:
        match step:
            case Create(after):
                image.setdefault(after.key, Absent(after.key))
            case Update(before, after, along) if before.key in ours:
                image[before.key] = seen[before.key]
                image.update((key, seen[key]) for key in along)
            case Update(before, after, along):
                image.update((key, seen[key]) for key in along)
                parts.setdefault(before.key, set()).update(diff(before, after))
            case Delete(before, along):
                holders = holders if holders is not None else reverse(seen)
                for key in (before.key, *along):
                    image[key] = seen[key]
                    for holder, name, on_delete in holders.get(key, ()):
                        if on_delete == "detach":
                            parts.setdefault(holder, set()).add(name)
    for key, names in parts.items():
        was = seen[key]
        image.setdefault(key, was if key in ours else narrow(was, names | lost_with(type(was), frozenset(names))))
    return image


def apply_to(state: State, steps: Iterable[Step]) -> dict[Key, Resource]:
    """The state that *steps* leave behind: the executing model that tests and dry runs share."""
    now = dict(state)
    for step in steps:
        state = dict(now) if isinstance(step, Delete) else now
        match step:
            case Create(after):
                now[after.key] = after
            case Update(before, after):
                was, now[after.key] = now[before.key], merge(now[before.key], after)
                sweep(now, (), [(was, after)])
            case Delete(before):
                steps_made = remove_all(now, {before.key})
                sweep(now, [state[k] for s in steps_made if isinstance(s, Delete) for k in (s.key, *s.along) if k in state], ())
    return now
