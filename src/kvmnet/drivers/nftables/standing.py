"""Our tables and guards as they stand, and the nft scripts that make them others. Pure.

One transaction makes a change. Around it, where rules of groups change in place (``inplace``), new sets are filled before and old ones
removed behind: neither is asked by any rule then, so nothing that passes or is refused depends on them.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.inplace import Edit, edit
from kvmnet.drivers.nftables.members import Member
from kvmnet.drivers.nftables.resources import AddressSet, GuardHook, NftTable, NicGroups, NicGuard, NicLimits
from kvmnet.drivers.nftables.tables import FILLED, GUARD, GUARDS, ROUTED
from kvmnet.drivers.nftables.wire import (
    Elements,
    change,
    element,
    element_lines,
    gather,
    hook_lines,
    removal_lines,
    table_lines,
    unhook_lines,
    within,
)
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, merge
from kvmnet.records import dataclass, field, replace


@dataclass(slots=True)
class Standing:
    """Our tables and guards as they are, or as a transaction will leave them."""

    tables: dict[str, NftTable] = field(default_factory=dict)
    guards: dict[str, NicGuard] = field(default_factory=dict)
    memory: Elements = field(default_factory=dict)
    hooks: dict[str, GuardHook] = field(default_factory=dict)
    members: dict[Key, Member] = field(default_factory=dict)

    def copy(self) -> Standing:
        return Standing(dict(self.tables), dict(self.guards), self.memory, dict(self.hooks), dict(self.members))

    def script(self) -> list[str]:
        """Commands that make all of it from nothing."""
        lines = [line for table in self.tables.values() for line in table_lines(table)]
        return lines + self.contents(self.filled())

    def filled(self) -> list[str]:
        """Its tables whose elements are resources."""
        return [name for name in FILLED if name in self.tables]

    def elements(self) -> dict[str, set[str]]:
        """``TABLE SET`` -> the elements that follow from guards and members."""
        found: dict[str, set[str]] = {}
        for name, text in (*(pair for guard in self.guards.values() for pair in element(guard)),
                           *members.within(self.filled(), self.members.values())):
            found.setdefault(name, set()).add(text)
        return found

    def contents(self, tables: Collection[str]) -> list[str]:
        """What stands in some of the tables whose elements are resources."""
        if not tables:
            return []
        added = gather(pair for guard in self.guards.values() if guard.table in tables for pair in element(guard))
        return [*element_lines("add", added), *element_lines("add", within(tables, self.memory)),
                *members.lines("add", members.within(tables, self.members.values())),
                *(line for hook in self.hooks.values() if hook.table in tables and hook.dev for line in hook_lines(hook))]


@dataclass(frozen=True, slots=True)
class Scripts:
    """What nft is told, a transaction each; the first and the last may be empty."""

    before: Sequence[str]
    """Sets that no rule asks yet."""
    change: Sequence[str]
    behind: Sequence[str]
    """The end of sets that no rule asks any more."""
    unmake: Sequence[str]
    """Takes back ``before``, if ``change`` is refused."""
    whole: Sequence[NftTable]
    """Tables that are put in the place of whatever bears their name."""

    def __iter__(self) -> Iterator[str]:
        """The text of each."""
        return ("\n".join(lines) + "\n" for lines in (self.before, self.change, self.behind) if lines)


def transaction(standing: Standing, steps: Sequence[Step]) -> tuple[Scripts, Standing]:
    """The nft scripts for *steps*, and what stands after them."""
    after = standing.copy()
    loaded: dict[str, NftTable] = {}
    edited: list[Edit] = []
    gone: list[str] = []
    for step in steps:
        match step:
            case Create(NftTable() as table):
                after.tables[table.name] = loaded[table.name] = table
            case Update(NftTable() as before, NftTable() as wanted):
                after.tables[wanted.name] = replace(before, text=wanted.text)
                if way := in_place(standing.tables.get(wanted.name), wanted):
                    edited.append(way)
                else:
                    loaded[wanted.name] = after.tables[wanted.name]
            case Delete(NftTable(name=name)):
                after.tables.pop(name, None)
                loaded.pop(name, None)
                gone.append(name)
                if name in GUARDS:
                    after.guards = {n: g for n, g in after.guards.items() if g.table != name}
                    after.hooks = {n: h for n, h in after.hooks.items() if h.table != name}
                    after.members = {k: m for k, m in after.members.items() if m.table != name}
                    after.memory = within([t for t in GUARDS if t != name], after.memory)
            case Create(NicGuard() as guard):
                after.guards[guard.name] = guard
            case Update(NicGuard() as before, NicGuard() as guard):
                merged = merge(before, guard)
                assert isinstance(merged, NicGuard)
                after.guards[guard.name] = merged
            case Delete(NicGuard(name=name)):
                after.guards.pop(name, None)
            case Create(GuardHook() as hook) | Update(_, GuardHook() as hook):
                after.hooks[hook.name] = hook
            case Delete(GuardHook(name=name)):
                after.hooks.pop(name, None)
            case Create(NicGroups() | NicLimits() | AddressSet() as member):
                after.members[member.key] = member
            case Update(NicGroups() | NicLimits() | AddressSet() as before, NicGroups() | NicLimits() | AddressSet() as member):
                after.members[member.key] = merge(before, member)  # type: ignore[assignment]
            case Delete(NicGroups() | NicLimits() | AddressSet() as member):
                after.members.pop(member.key, None)
    script = [line for name in gone if name not in loaded for line in removal_lines(name)]
    script += [line for table in loaded.values() for line in table_lines(table)]
    left = {n for n, g in standing.guards.items() if n not in after.guards or after.guards[n].zone != g.zone}
    after.memory = forget(after.memory, left, standing)
    script += [*after.contents([t for t in FILLED if t in loaded]), *(line for way in edited for line in way.first)]
    fresh, dead = {name for way in edited for name in way.fresh}, {name for way in edited for name in way.gone}
    filled = [line for way in edited for line in way.before]
    for line in changes([t for t in FILLED if t in after.tables and t not in loaded], standing, after):
        name = " ".join(line.split(" ", 5)[2:5])
        if name not in dead:
            (filled if name in fresh else script).append(line)
    script += [line for way in edited for line in way.last]
    return Scripts(filled, script, [line for way in edited for line in way.behind], [f"delete set {name}" for name in sorted(fresh)],
                   [*loaded.values()]), after


def in_place(standing: NftTable | None, wanted: NftTable) -> Edit | None:
    """Tables of groups are not replaced where their rules alone change: no packet may be lost by that."""
    if standing is None or wanted.name not in (GUARD, ROUTED):
        return None
    return edit(wanted.name, standing.text or "", wanted.text or "")


def changes(tables: Collection[str], standing: Standing, after: Standing) -> list[str]:
    """The lines for guards, hooks and claims in *tables* that stay."""
    script = []
    for name in {**standing.hooks, **after.hooks}:
        old, new = standing.hooks.get(name), after.hooks.get(name)
        if old != new:
            script += unhook_lines(old) if old and old.table in tables else []
            script += hook_lines(new) if new and new.table in tables else []
    changed = [n for n in {*standing.guards, *after.guards} if standing.guards.get(n) != after.guards.get(n)]
    removed, added = change([standing.guards[n] for n in changed if n in standing.guards],
                            [after.guards[n] for n in changed if n in after.guards])
    script += element_lines("delete", within(tables, removed)) + element_lines("add", within(tables, added))
    moved = {k for k in {*standing.members, *after.members} if standing.members.get(k) != after.members.get(k)}
    if moved:
        script += members.change((m for k, m in standing.members.items() if k in moved),
                                 (m for k, m in after.members.items() if k in moved),
                                 (m for k, m in after.members.items() if k not in moved), tables)
    lost = within(tables, {name: [m for m in items if m not in set(after.memory.get(name, ()))]
                           for name, items in standing.memory.items()})
    script += element_lines("add", lost)
    script += element_lines("delete", {k: [m.split(" timeout")[0] for m in v] for k, v in lost.items()})
    return script


def forget(memory: Elements, gone: set[str], standing: Standing) -> Elements:
    """*memory* without the link-locals that the NICs in *gone* had claimed."""
    if not gone or not memory:
        return memory
    kept: Elements = {}
    for table in GUARDS:
        learned: list[str] = []
        freed: set[str] = set()
        for item in memory.get(f"{table} learned", ()):
            nic, address = item.split(" timeout")[0].split(" . ")
            guard = standing.guards.get(nic.strip('"'))
            if guard and guard.name in gone:
                freed.add(f"{guard.zone} . {address}")
            else:
                learned.append(item)
        kept[f"{table} learned"] = learned
        kept[f"{table} claimed"] = [c for c in memory.get(f"{table} claimed", ())
                                    if c.split(" timeout")[0] not in freed]
    return kept
