"""Borrowed objects: what somebody else's things looked like before we first changed them.

Settings of a foreign object are claimed one by one and given back one by one. The first value that
we saw wins; it is kept for as long as this boot and this network namespace, where it is true.
``release`` lays over a wanted state what must be given back, so that destroy is an ordinary plan.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import TypeAlias

from kvmnet.engine.journal import Codec
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import (
    Absent,
    Key,
    Resource,
    State,
    Wanted,
    diff,
    merge,
    narrow,
    setting_names,
)
from kvmnet.errors import KvmnetError
from kvmnet.host.files import readable_errors, write_durably
from kvmnet.host.process import boot_id, namespace_id
from kvmnet.records import dataclass, field, replace

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Original:
    value: Resource | Absent
    whole: bool = False
    """We deleted it: it is made again when released. Otherwise only its settings are given back."""


Originals: TypeAlias = Mapping[Key, Original]


@dataclass(frozen=True, slots=True)
class Released:
    """A wanted state with everything given back that it no longer claims."""

    wanted: Wanted
    borrowed: frozenset[Key]
    gone: tuple[Key, ...] = field(default=())
    """Objects that vanished meanwhile: nothing is left to give back."""


def remember(originals: Originals, seen: State, steps: Iterable[Step], ours: Set[Key],
             borrowed: Set[Key]) -> dict[Key, Original]:
    """*originals* with what *steps* change of foreign objects for the first time."""
    known = dict(originals)
    steps = tuple(steps)
    adopted = {s.key for s in steps if isinstance(s, Create) and s.key not in borrowed}
    for step in steps:
        for key in step.along if isinstance(step, Update) else ():
            if key not in ours and key not in adopted:
                keep_whole(known, seen[key])
        match step:
            case Update(before, after) if after.key in borrowed and after.key not in ours:
                was = seen.get(after.key)
                if was is None:
                    continue
                keep_first(known, narrow(was, set(diff(before, after))))
            case Delete(before, along):
                for key in (before.key, *along):
                    if key not in ours and key not in adopted:  # what was taken over is ours for good
                        keep_whole(known, seen[key])
            case Create(after) if after.key in borrowed and after.key not in known:
                known[after.key] = Original(Absent(after.key))
            case _:
                pass
    return known


def keep_first(known: dict[Key, Original], was: Resource) -> None:
    old = known.get(was.key)
    if old is None:
        if claims(was):
            known[was.key] = Original(was)
    elif not isinstance(old.value, Absent):
        known[was.key] = replace(old, value=merge(was, old.value))


def keep_whole(known: dict[Key, Original], was: Resource) -> None:
    old = known.get(was.key)
    if old is None:
        known[was.key] = Original(was, whole=True)
    elif not isinstance(old.value, Absent):
        known[was.key] = Original(merge(was, old.value), whole=True)


def release(originals: Originals, wanted: Wanted, seen: State, ours: Set[Key] = frozenset()) -> Released:
    """*wanted* plus the original of everything that it does not claim (any more).

    What we deleted comes back, also in the place of what we made there, but not over what others made.
    """
    full = dict(wanted)
    gone = []
    for key, original in originals.items():
        back = unclaimed(original, wanted.get(key))
        if back is None or waits(original, wanted):
            continue
        match back:
            case Absent():
                full[key] = back
            case Resource() if isinstance(claim := wanted.get(key), Resource):
                full[key] = merge(back, claim)
            case Resource() if original.whole and (key not in seen or key in ours):
                full[key] = back
            case Resource() if not original.whole and key in seen:
                full[key] = back
            case _ if not original.whole:
                gone.append(key)
    orphans = without_holders(full, seen, {k for k, o in originals.items() if o.whole and k not in wanted})
    for key in orphans:
        del full[key]
    return Released(full, frozenset(originals), (*gone, *orphans))


def waits(original: Original, wanted: Wanted) -> bool:
    """Whether something with a lifetime stays away because *wanted* still claims what it hung on.

    An advertised address was moved off a NIC, and was renumbered or ran out where it went: it comes
    back with the NIC, not before.
    """
    value = original.value
    return (original.whole and isinstance(value, Resource) and getattr(value, "lifetime", None) is not None
            and any(isinstance(wanted.get(r.target), Resource) for r in value.refs()))


def unclaimed(original: Original, claim: Resource | Absent | None) -> Resource | Absent | None:
    """The part of an original that *claim* leaves free, or None."""
    if claim is None:
        return original.value
    if isinstance(claim, Absent) or isinstance(original.value, Absent):
        return None
    free = {n for n in setting_names(type(claim)) if getattr(claim, n) is None}
    rest = narrow(original.value, free)
    return rest if claims(rest) else None


def without_holders(wanted: Wanted, seen: State, suspects: Set[Key]) -> list[Key]:
    """Those of *suspects* that cannot exist, because what they hang on is gone."""
    orphans: dict[Key, None] = {}

    def stands(key: Key) -> bool:
        if key in orphans:
            return False
        return not isinstance(wanted[key], Absent) if key in wanted else key in seen

    todo = True
    while todo:
        todo = False
        for key in suspects:
            resource = wanted.get(key)
            if isinstance(resource, Resource) and key not in orphans and not all(
                    stands(r.target) for r in resource.refs() if r.on_delete == "cascade"):
                orphans[key] = None
                todo = True
    return list(orphans)


def remaining(originals: Originals, wanted: Wanted) -> dict[Key, Original]:
    """What is still lent to *wanted*; the rest has been given back."""
    kept = {}
    for key, original in originals.items():
        claim = wanted.get(key)
        if claim is None:
            if waits(original, wanted):
                kept[key] = original
            continue
        if original.whole or isinstance(original.value, Absent) or isinstance(claim, Absent):
            kept[key] = original
            continue
        part = narrow(original.value, {n for n in setting_names(type(claim)) if getattr(claim, n) is not None})
        if claims(part):
            kept[key] = Original(part)
    return kept


def claims(resource: Resource) -> bool:
    return any(getattr(resource, n) is not None for n in setting_names(type(resource)))


def save_originals(path: Path, originals: Originals, codec: Codec) -> None:
    """Durably. Raises HostCannot."""
    objects = [{"whole": o.whole, "was": codec.to_json(o.value)} for o in originals.values()]
    write_durably(path, json.dumps({"format": FORMAT, "boot": boot_id(), "namespace": namespace_id(),
                                    "objects": objects}, separators=(",", ":")))


def load_originals(path: Path, codec: Codec) -> dict[Key, Original]:
    """Those of this boot and network namespace. Raises KvmnetError when they cannot be understood."""
    try:
        with readable_errors(path, "read"):
            data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise unreadable(path, str(error)) from error
    if data is None:
        return {}
    try:
        if data["format"] > FORMAT:
            raise KvmnetError(f"{path}: format {data['format']}, this kvmnet reads up to {FORMAT}",
                              "use the newer kvmnet that wrote it")
        if (data["boot"], data["namespace"]) != (boot_id(), namespace_id()):
            return {}
        found = {}
        for item in data["objects"]:
            value = codec.from_json(item["was"])
            found[value.key] = Original(value, bool(item["whole"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unreadable(path, f"{type(error).__name__}: {error}") from error
    return found


def unreadable(path: Path, reason: str) -> KvmnetError:
    return KvmnetError(f"{path}: what borrowed objects looked like cannot be read: {reason}",
                       f"move it away (mv {path} {path}.broken); their first settings are then not restored")
