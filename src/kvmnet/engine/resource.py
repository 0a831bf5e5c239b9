"""What is wanted and what is seen, in one type.

A ``Resource`` is one thing on the host: a link, an address, a table of rules, a guest's NIC.
A field that names another resource *is* the dependency (``ref=``), and says what becomes of the
holder when its target is deleted:

* ``cascade``: the system removes the holder by itself (an address, when its link goes);
* ``detach``:  the field becomes ``""`` (a bridge port, when its bridge goes);
* ``delete``:  the holder must be deleted first, by a step of its own (a guest's NIC before its tap);
* ``stays``:   the field goes on naming it until it is told otherwise (a note on a link).

``None`` means "no claim". ``Absent`` in a wanted state means "must not exist".
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias, TypeVar

from kvmnet.records import dataclass, field, fields, replace

F = TypeVar("F")
if TYPE_CHECKING:
    def cache(function: F) -> F:
        """functools.cache; mypy takes the class of a frozen dataclass for unhashable."""
else:
    from functools import cache


class Key(NamedTuple):
    """Identity of one resource: its kind and its name within the kind."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def option(default: Any = None, *, doc: str, recreate: bool = False, ref: str = "",
           on_delete: str = "detach", guest: str = "", once: bool = False, replaces: bool = False,
           of: str = "", top_down: bool = False, at_times: bool = False) -> Any:
    """Declare one setting of a resource.

    ``recreate``: it cannot be changed in place. ``ref``: the kind of resource it names.
    ``guest``: how a running guest notices a change: "live", "replug" or "restart".
    ``once``: told when the resource is made and never compared (a lifetime that runs).
    ``replaces``: it names a resource of the same kind whose place this one takes (an address that
    moves to another link); the plan keeps the two together. ``of``: the field without whose target it is
    lost (a setting of a bridge port, when the link leaves the bridge). ``top_down``: a number that goes down on what
    stands on a thing before it does on the thing (an MTU). ``at_times``: the system does not always tell it; while it
    does not, it is taken to be as claimed.
    """
    return field(default=default, metadata={"doc": doc, "recreate": recreate, "ref": ref, "on_delete": on_delete,
                                            "guest": guest, "once": once, "replaces": replaces, "of": of,
                                            "top_down": top_down, "at_times": at_times})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Resource:
    """One thing on the host. Subclasses set ``kind`` and declare fields with ``option``.

    They are equal, and have a hash, by all their fields, as other dataclasses are; it is said here once for all (``eq=False``,
    ``repr=False``), since ``dataclasses`` would compile these methods anew for each class at each start (a third of what
    making the classes takes).
    """

    name: str
    kind: ClassVar[str] = ""
    permanent: ClassVar[bool] = False
    """It always exists (a kernel setting): when nothing wants it any more it is left as it is."""
    goes_last: ClassVar[bool] = False
    """Where it goes for good, everything else has changed before (what it holds shut must be shut by something else then)."""
    part_of: ClassVar[str] = ""
    """Field that names the whole which it is a part of (an element's table): both change in one go, with nothing in between."""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.name)

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        values = all_values(type(self))
        return values(self) == values(other)

    def __hash__(self) -> int:
        return hash(all_values(type(self))(self))

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={getattr(self, name)!r}" for name in ("name", *setting_names(type(self))))
        return f"{type(self).__qualname__}({told})"

    @classmethod
    def swept(cls, now: State, gone: Sequence[Resource],
              changed: Sequence[tuple[Resource, Resource]]) -> Iterator[tuple[Key, Key]]:
        """(cause, key of this class) of what the system drops besides what hangs on a deleted thing by a reference.

        ``now``: what is there after the deletions. ``gone``: what they removed. ``changed``: (before, claim) of updates.
        """
        return iter(())

    def stands(self, state: State) -> bool:
        """Whether it can exist in *state*, where everything that it names does."""
        return True

    def refs(self) -> Iterator[Ref]:
        """The resources that this one names, with what happens when they go."""
        for name, kind, on_delete in ref_fields(type(self)):
            target = getattr(self, name)
            if target:
                yield Ref(name, Key(kind, target), on_delete)


class Ref(NamedTuple):
    field: str
    target: Key
    on_delete: str


@dataclass(frozen=True, slots=True)
class Absent:
    """Wanted: that nothing of this key exists, even if it is not ours."""

    key: Key


State: TypeAlias = Mapping[Key, Resource]
Wanted: TypeAlias = Mapping[Key, "Resource | Absent"]


@cache
def ref_fields(cls: type[Resource]) -> tuple[tuple[str, str, str], ...]:
    return tuple((f.name, f.metadata["ref"], f.metadata["on_delete"])
                 for f in fields(cls) if f.metadata.get("ref"))


@cache
def setting_names(cls: type[Resource]) -> tuple[str, ...]:
    """Names of the fields that can be claimed (all but the name)."""
    return tuple(f.name for f in fields(cls) if f.name != "name")


@cache
def all_values(cls: type[Resource]) -> Callable[[object], object]:
    """A function that gives the values of all fields of a resource."""
    return attrgetter("name", *setting_names(cls))


@cache
def compared_names(cls: type[Resource]) -> tuple[str, ...]:
    """Names of the settings that make a difference: all but those told only once."""
    return tuple(f.name for f in fields(cls) if f.name != "name" and not f.metadata.get("once"))


@cache
def compared(cls: type[Resource]) -> tuple[tuple[str, ...], Callable[[Resource], tuple[Any, ...]]]:
    """``compared_names``, and a function that gives their values at once."""
    names = compared_names(cls)
    if len(names) == 1:
        name = names[0]
        return names, lambda resource: (getattr(resource, name),)
    return names, attrgetter(*names) if names else lambda resource: ()


@cache
def replaces_name(cls: type[Resource]) -> str:
    """Name of the field that says whose place a resource takes, or ''."""
    return next((f.name for f in fields(cls) if f.metadata.get("replaces")), "")


@cache
def lost_with(cls: type[Resource], names: frozenset[str]) -> frozenset[str]:
    """Settings that a resource loses together with those in *names*."""
    return frozenset(f.name for f in fields(cls) if f.metadata.get("of") in names)


@cache
def top_down_names(cls: type[Resource]) -> frozenset[str]:
    """Numbers that go down on what stands on a thing before they go down on the thing."""
    return frozenset(f.name for f in fields(cls) if f.metadata.get("top_down"))


@cache
def at_times_names(cls: type[Resource]) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls) if f.metadata.get("at_times"))


@cache
def recreate_names(cls: type[Resource]) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls) if f.metadata.get("recreate"))


Changes: TypeAlias = dict[str, tuple[Any, Any]]


def diff(before: Resource, after: Resource) -> Changes:
    """Settings claimed by *after* that *before* does not already have: name -> (old, new)."""
    names, values = compared(type(after))
    there, claimed = values(before), values(after)
    if there == claimed:
        return {}
    return {name: (have, want) for name, have, want in zip(names, there, claimed, strict=True)
            if want is not None and want != have and not (have is None and name in at_times_names(type(after)))}


def must_recreate(before: Resource, after: Resource) -> bool:
    changes = diff(before, after)
    return bool(changes) and not recreate_names(type(after)).isdisjoint(changes)


def merge(before: Resource, after: Resource) -> Resource:
    """*before* with every claim of *after* laid over it: what an update leaves behind."""
    return replace(before, **{name: new for name, (_, new) in diff(before, after).items()})


def narrow(resource: Resource, names: Iterator[str] | frozenset[str] | set[str]) -> Resource:
    """*resource* claiming only the settings in *names*."""
    keep = set(names)
    dropped: dict[str, Any] = {n: None for n in setting_names(type(resource)) if n not in keep}
    return replace(resource, **dropped)
