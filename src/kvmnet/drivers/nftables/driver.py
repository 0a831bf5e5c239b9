"""Tables of rules, guards of NICs and their keeper: read in bulk, changed in one nft transaction."""
from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial, reduce

from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.cutting import cut_forbidden
from kvmnet.drivers.nftables.elements import MOST, Told, agree, hold, told
from kvmnet.drivers.nftables.holder import Holder
from kvmnet.drivers.nftables.look import Look, keep, kept
from kvmnet.drivers.nftables.members import Member
from kvmnet.drivers.nftables.resources import (
    AddressSet,
    GuardHook,
    GuardKeeper,
    NftTable,
    NicGroups,
    NicGuard,
    NicLimits,
)
from kvmnet.drivers.nftables.saved import Saved
from kvmnet.drivers.nftables.standing import Scripts, Standing, in_place, transaction
from kvmnet.drivers.nftables.tables import EGRESS, FILLED, GUARD, GUARDS, HOST, OURS, ROUTED
from kvmnet.drivers.nftables.texts import DAMAGED, Texts
from kvmnet.drivers.nftables.wire import (
    MEMORY,
    Listing,
    both,
    canonical,
    read_listing,
    read_memory,
    read_passed,
    read_tables,
    read_withheld,
    take_hooks,
)
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Wanted
from kvmnet.host.netlink import Generation, generation, has_elements, tables, transactions
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run
from kvmnet.host.side import Begun, begun, together
from kvmnet.policy.keeper import HELD
from kvmnet.records import dataclass, field, replace

OF_NICS = frozenset({NicGuard.kind, GuardHook.kind})


@dataclass(frozen=True, slots=True)
class Found:
    """A look, and what it holds for."""

    moment: Generation | None
    """None where the kernel does not tell."""
    noted: str
    known: dict[Key, Member]
    """The memberships of ``noted``."""
    look: Look


@dataclass(slots=True)
class Since:
    """A look, and what our transactions have done since: nothing but elements of sets."""

    found: Found
    moment: Generation
    """When nobody else has changed anything."""
    told: Told = field(default_factory=dict)


class NftablesDriver:
    """Driver of nft-table, nic-guard, nic-groups, nic-limits, address-set, guard-hook and guard-keeper."""

    kinds = frozenset({NftTable.kind, NicGuard.kind, NicGroups.kind, NicLimits.kind, AddressSet.kind, GuardHook.kind,
                       GuardKeeper.kind})

    def __init__(self, paths: Paths):
        self.paths = paths
        self.texts = Texts(paths.guard / "texts")
        self.saved = Saved(paths.guard)
        self.holder = Holder(paths.guard)
        self.standing: Standing | None = None
        self.listed: Listing | None = None
        self.asked_memory = False
        """The last look also saw what the kernel fills."""
        self.under_way: list[Begun[None]] = []
        """What goes on beside the changes of other drivers, and has ended before we look or change again."""
        self.starting: Begun[None] | None = None
        """The start of a keeper among these."""
        self.ahead: Begun[Found] | None = None
        """A look beside those changes."""
        self.since: Since | None = None
        self.loaded: Standing | None = None
        """What our transactions have made since the last look."""
        self.fresh: list[NftTable] = []
        """Tables that were loaded whole and have not been looked at yet."""
        self.count: int | None = None
        """Transactions that the kernel has counted when nothing of ours is under way, if nobody but us has made one since they were loaded."""

    def unavailable(self) -> str | None:
        return missing("nft", "unshare")

    def observe(self, intent: Wanted) -> Seen:
        """Every table, foreign ones without the elements of their sets; every guard; the keeper."""
        self.wait()
        seen, found = Seen(), self.found_ahead() or self.found()
        known, look = found.known, found.look
        standing, self.asked_memory = Standing(memory=look.memory or {}), look.memory is not None
        for name, body in look.listings.items():
            if name in HELD:
                continue
            if name == EGRESS:
                body, hooks = take_hooks(name, body)
                standing.hooks = {h.name: h for h in hooks}
            ours = name.split()[1] in OURS
            table = NftTable(name=name, text=self.texts.text_of(name, canonical(body)) if ours else body)
            if name in look.damaged:
                table = replace(table, text=f"{table.text}{DAMAGED}")
            seen.state[table.key] = table
            if ours:
                seen.ours.add(table.key)
                standing.tables[name] = table
        if any(name in standing.tables for name in FILLED):
            standing.guards = dict(look.guards)
            standing.members = {key: item for key, item in known.items() if item.table in look.listings}
        for thing in (*standing.guards.values(), *standing.hooks.values(), *standing.members.values()):
            seen.state[thing.key] = thing
            seen.ours.add(thing.key)
        if keeper := self.holder.seen(look.listings):
            seen.state[keeper.key] = keeper
            seen.ours.add(keeper.key)
        self.standing, self.loaded = standing, None
        self.since = Since(found, found.moment) if found.moment and not look.damaged else None
        if self.asked_memory:
            self.saved.catch_up(self.save)
        return seen

    def found(self) -> Found:
        """What was loaded, and what there is: by a look of before, if the kernel says that nothing was changed since."""
        noted, file, moment = self.saved.noted(), self.paths.guard / "look.json", generation()
        known = self.saved.remembered(noted)
        look = None if self.saved.cut_off() else kept(file, moment, noted)
        if look is None:
            look = self.look_at_elements(moment) or self.look(known.values())
            if self.paths.guard.is_dir() and generation() == moment:
                keep(file, moment, noted, look)
        self.learn_from(look)
        return Found(moment, noted, known, look)

    def look_at_elements(self, moment: Generation | None) -> Look | None:
        """The look of before with what our transactions have changed since, if the kernel has counted no other and has these elements."""
        since, standing = self.since, self.standing
        if since is None or standing is None or moment != since.moment or not since.told or not hold(since.told):
            return None
        return replace(since.found.look, guards=dict(standing.guards), memory=None)

    def look_ahead(self) -> None:
        """Look while other drivers go on: nothing of ours is to be changed any more."""
        begun_before = list(self.under_way)

        def after() -> Found:
            for work in begun_before:
                work.thread.join()
            return self.found()
        self.ahead = Begun(after)

    def found_ahead(self) -> Found | None:
        """What a look ahead found, if nothing was changed since. What packets write into sets was seen too early."""
        ahead, self.ahead = self.ahead, None
        with suppress(ToolFailed):
            if ahead and (found := ahead.result()).moment and not self.saved.cut_off() and (found.moment, found.noted) == (generation(), self.saved.noted()):
                return replace(found, look=replace(found.look, memory=None))
        return None

    def learn_from(self, look: Look) -> None:
        """Have what nft prints of fresh tables known as what it makes of their texts, unless somebody else may have changed them."""
        fresh, self.fresh = [table for table in self.fresh if table.name in look.listings], []
        if fresh and self.count is not None and transactions() == self.count:
            for table in fresh:
                self.texts.meet(table, look.listings[table.name])
        for table in fresh:
            self.learn(table)

    def look(self, known: Collection[Member]) -> Look:
        """What nft lists. *known*: the elements that should be there besides those of guards."""
        some = there()
        if some is not None and not some:
            return Look({}, {}, memory={})
        standing = None if self.saved.cut_off() else self.loaded
        likely = [GUARD, ROUTED] if any(isinstance(item, NicGroups) and item.places for item in known) else [GUARD]
        with ExitStack() as beside:
            looks = {} if standing else {table: beside.enter_context(begun(partial(self.listing, table))) for table in likely
                                         if some is None or table in some}
            text = beside.enter_context(begun(partial(full_text, HOST))) if some is None or HOST in some else None
            listed = beside.enter_context(begun(partial(run, ["nft", "-s", "-t", "list", "ruleset"])))
            agreed = standing is not None and agree(standing.filled(), standing.elements())
            listings = read_tables(listed.result())
        whole_texts = {HOST: text.result()} if text else {}
        found = {name: whole(name, body, whole_texts) for name, body in listings.items()}
        filled = [name for name in FILLED if name in listings]
        if standing and agreed and filled == standing.filled():
            return Look(found, dict(standing.guards))
        tables = [self.listing_after(table, looks.get(table)) for table in filled]
        expected = members.expected(FILLED, (item for item in known if item.table in listings))
        damaged = {name for name, listing in zip(filled, tables, strict=True)
                   if not listing.flows_hold or listing.members != expected[name]}
        self.listed = reduce(both, tables) if tables else self.listed
        last = self.listed if tables else None
        return Look(found, last.guards if last else {}, frozenset(damaged), last.memory if last else {})

    def listing(self, table: str = GUARD) -> Listing:
        """A table of the guard with its elements. Raises ToolFailed, also when there is none."""
        return read_listing(json.loads(run(["nft", "-j", "list", "table", *table.split()])), self.listed, table)

    def listing_after(self, table: str, look: Begun[Listing] | None) -> Listing:
        if look:
            with suppress(ToolFailed):  # the table came back between the two looks
                return look.result()
        return self.listing(table)

    def dropped(self) -> dict[str, dict[int, int]]:
        """Tap -> number of the reason (``policy.guard.REASONS``) -> frames dropped, of the last day."""
        found: dict[str, Counter[int]] = {}
        for table in self.drops().values():
            for tap, counts in table.items():
                found.setdefault(tap, Counter()).update(counts)
        return {tap: dict(counts) for tap, counts in found.items()}

    def drops(self) -> dict[str, dict[str, dict[int, int]]]:
        """The same by the guard's tables."""
        found = {}
        for table in GUARDS:
            with suppress(ToolFailed):
                listed = run(["nft", "-j", "list", "set", *table.split(), "dropped"])
                found[table] = read_listing(json.loads(listed), table=table).dropped
        with suppress(ToolFailed):
            listed = run(["nft", "-j", "list", "set", *ROUTED.split(), "withheld"])
            found[ROUTED] = read_withheld(json.loads(listed), self.saved.remembered(self.saved.noted()).values())
        return found

    def drop_lines(self, verb: str, table: str, tap: str, counts: Mapping[int, int]) -> list[str]:
        """Commands that delete or add what ``drops`` tells of one NIC."""
        number = next((m.number or 0 for m in self.saved.remembered(self.saved.noted()).values() if isinstance(m, NicGroups) and m.name == tap), 0)
        lines = []
        for reason, count in counts.items():
            where, key = ("withheld", f"{reason << 16 | number:#010x}") if table == ROUTED else ("dropped", f'"{tap}" . {reason:#x}')
            value = f" counter packets {count} bytes 0" if verb == "add" else ""
            lines.append(f"{verb} element {table} {where} {{ {key}{value} }}")
        return lines

    def passed(self) -> dict[str, tuple[int, int]]:
        """Name of a rule of groups or tenants -> packets and bytes that it let begin a flow."""
        try:
            return read_passed(json.loads(run(["nft", "-j", "list", "table", *GUARD.split()])))
        except ToolFailed:
            return {}

    def table_diff(self, before: NftTable, after: NftTable) -> tuple[str, ...]:
        """Lines that go (``-``) and come (``+``) when *before* becomes *after*. Raises ToolFailed."""
        return self.texts.difference(before, after)

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        """What nft is told, then what becomes of the keeper."""
        (made,) = self.commands_in_turn([steps])
        return made

    def commands_in_turn(self, runs: Sequence[Sequence[Step]]) -> Sequence[Sequence[Command]]:
        """The same of several runs, each of which finds what those before it have made."""
        standing = self.standing or Standing()
        found = []
        for steps in runs:
            keys = tuple(s.key for s in steps if s.key.kind != GuardKeeper.kind)
            scripts, standing = transaction(standing, steps)
            found.append([*(Command(("nft", "-f", "-"), script, keys) for script in scripts),
                          *(self.holder.command(step) for step in steps if step.key.kind == GuardKeeper.kind)])
        return found

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        """Make *steps* as one nft transaction; the keeper starts after it and ends before it."""
        self.begin(steps, progress)
        self.wait()
        if self.fresh:
            self.found()

    def begin(self, steps: Sequence[Step], progress: Progress) -> None:
        """As ``apply``, but new texts are learned at the next look or are under way, and so may be a keeper's start while there is
        no guard yet: it has ended before the transaction that makes the first guard of a NIC."""
        if self.ahead:
            self.ahead.thread.join()
            self.ahead = None
        if self.standing is None or GUARD in self.standing.tables or any(s.key.kind in OF_NICS for s in steps):
            self.wait()
        if self.standing is None:
            self.observe({})
        assert self.standing is not None
        of_keeper = [s for s in steps if s.key.kind == GuardKeeper.kind]
        for step in of_keeper:
            if isinstance(step, Delete):
                self.holder.stop()
        with self.saved.undisturbed() as stale:
            if stale:
                self.since = None    # the files are written anew
            self.load(steps)
        for step in of_keeper:
            match step:
                case Create(GuardKeeper() as keeper) | Update(_, GuardKeeper() as keeper):
                    if GUARD in self.standing.tables:
                        self.holder.start(keeper)
                        self.count = None if self.count is None else self.count + len(HELD)
                    else:
                        self.starting = Begun(partial(self.holder.start, keeper))
                        self.under_way.append(self.starting)
                case _:
                    pass
        if not self.under_way:
            self.clear()
        progress(len(steps))

    def load(self, steps: Sequence[Step]) -> None:
        """The nft part of *steps*, and the file from which the keeper restores it."""
        assert self.standing is not None
        forgetful = any(touches_memory(s, self.standing) for s in steps)
        if forgetful or (not self.asked_memory and any(s.key.kind != GuardKeeper.kind for s in steps)):
            self.asked_memory = True
            sets = [(table, name) for table in GUARDS if table in self.standing.tables for name in MEMORY]
            some = [(*table.split(), name) for table, name in sets if not is_empty(table, name)]
            self.standing.memory = {**{f"{table} {name}": [] for table, name in sets},
                                    **read_memory(map(json.loads, together([partial(run, ["nft", "-j", "list", "set", *words]) for words in some])))}
        scripts, after = transaction(self.standing, steps)
        made = [s.after for s in steps if isinstance(s, Create | Update) and isinstance(s.after, NftTable)]
        whole = {table.name for table in scripts.whole}
        beside = [Begun(partial(self.learn, table)) for table in made if table.name not in whole]
        self.under_way += beside
        texts = [*scripts]
        if not texts:
            return
        count = transactions()
        awaited = len(HELD.keys() - (there() or set())) if self.starting in self.under_way else 0
        try:
            for text in texts:
                run(["nft", "-f", "-"], stdin=text, timeout=300)
        except ToolFailed as refused:
            with suppress(ToolFailed):  # these sets are not there if it was they that were refused
                run(["nft", "-f", "-"], stdin="\n".join((*scripts.unmake, "")))
            self.standing = self.since = self.loaded = None
            for work in beside:
                work.result()
            for table in scripts.whole:    # says which it is
                self.learn(table)
            raise StepFailed(steps[0].key if len(steps) == 1 else None, refused.detail,
                             "nothing of this transaction was made") from refused
        fresh = self.note(scripts, count)
        before, self.standing, self.loaded = self.standing, after, after
        others = [table for table in self.fresh if table.name not in {other.name for other in made}]
        if self.count != count:    # somebody else was there
            self.under_way += [Begun(partial(self.learn, table)) for table in others]
            others = []
        self.fresh, self.count = [*others, *scripts.whole], None if count is None else count + len(texts) + awaited
        judged_anew = (before.members, before.guards, before.tables.get(GUARD)) != (after.members, after.guards, after.tables.get(GUARD))
        with begun(partial(cut_forbidden, after.tables.get(GUARD) if judged_anew else None, after.members.values(), after.guards,
                           after.memory)) as cutting:
            if forgetful:
                (self.paths.guard / "memory.nft").unlink(missing_ok=True)
            self.save(fresh)
        cutting.result()

    def note(self, scripts: Scripts, count: int | None) -> Told | None:
        """Remember what was done since the last look, and tell what *scripts* did if that is nothing but elements. ``count``: transactions
        before them."""
        since, self.since = self.since, None
        fresh = told(scripts.change) if since and since.moment.number == count and not (scripts.before or scripts.behind) else None
        if since and fresh and len(since.told | fresh) <= MOST:
            self.since = Since(since.found, since.moment.after(1), since.told | fresh)
        return fresh

    def wait(self) -> None:
        """Until nothing of ours is under way. Raises StepFailed for what did not work."""
        begun_before, self.under_way = self.under_way, []
        for work in begun_before:
            work.thread.join()
        for work in begun_before:
            work.result()

    def learn(self, table: NftTable) -> None:
        try:
            self.texts.remember(table)
        except ToolFailed as refused:
            raise StepFailed(table.key, refused.detail, "nft refuses this table") from refused

    def save(self, fresh: Told | None = None) -> None:
        """Write what the keeper loads when our tables vanish. ``fresh``: all that has changed, when that is known to be elements."""
        assert self.standing is not None
        self.saved.save(self.standing, fresh)

    def clear(self) -> None:
        """Remove our files when nothing of ours is left."""
        if self.standing and not self.standing.tables and self.holder.record() is None:
            shutil.rmtree(self.paths.guard, ignore_errors=True)


def there() -> set[str] | None:
    """The tables of this host; None where the kernel does not tell, and nft has to."""
    try:
        return tables()
    except OSError:
        return None


def is_empty(table: str, name: str) -> bool:
    """Whether the kernel says that a set has no element: nft would read the whole table for it."""
    with suppress(OSError):
        return not has_elements(table, name)
    return False


def whole(name: str, body: str, texts: Mapping[str, str]) -> str:
    """The listing of one table: of ours with the elements that belong to its text. ``texts``: those that were asked for already."""
    if name.split()[1] in OURS and name not in FILLED and ("\tset " in body or "\tmap " in body):
        return texts.get(name) or full_text(name) or body
    return body


def full_text(name: str) -> str:
    """What nft prints of a table with all elements; '' when there is none."""
    with suppress(ToolFailed):
        return read_tables(run(["nft", "-s", "list", "table", *name.split()])).get(name, "")
    return ""


def touches_memory(step: Step, standing: Standing) -> bool:
    """A table that is replaced, or a NIC that goes, be it to another network."""
    match step:
        case Update(NicGuard() as before, NicGuard() as after):
            return after.zone not in (None, before.zone)
        case Update(NftTable(), NftTable() as table):
            return table.name in GUARDS and in_place(standing.tables.get(table.name), table) is None
        case Update():
            return False
        case _:
            return isinstance(step, Delete) and step.key.kind == NicGuard.kind
