"""Tables of rules, guards of NICs and their keeper: read in bulk, changed in one nft transaction.

nft rewrites what it loads, so a table's text cannot be compared with its listing. What nft prints for a
text is therefore remembered beside it (``Texts``): of a table that is loaded whole when it is, if the kernel
counts no transaction but ours, else from an empty namespace, by the same kernel and the same nft. On the host a
listing that is known *is* its text; one that is not known has been changed by another hand, and stands for itself.
"""
from __future__ import annotations

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, reduce
from pathlib import Path

from kvmnet.digests import sha256
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.cutting import cut_forbidden
from kvmnet.drivers.nftables.holder import Holder
from kvmnet.drivers.nftables.look import Look, keep, kept, write_whole
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
from kvmnet.drivers.nftables.standing import Standing, in_place, transaction
from kvmnet.drivers.nftables.tables import EGRESS, FILLED, GUARD, GUARDS, HOST, OURS, ROUTED
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
    table_lines,
    take_hooks,
)
from kvmnet.engine.driver import Command, Progress, Seen, StepFailed
from kvmnet.engine.plan import Create, Delete, Step, Update
from kvmnet.engine.resource import Key, Wanted
from kvmnet.host.netlink import generation, tables, transactions
from kvmnet.host.paths import Paths
from kvmnet.host.run import ToolFailed, missing, run
from kvmnet.host.side import Begun, begun, together
from kvmnet.policy.keeper import HELD
from kvmnet.records import dataclass, field, replace

OF_NICS = frozenset({NicGuard.kind, GuardHook.kind})
TEXTS_KEPT = 20


@dataclass(slots=True)
class Texts:
    """What nft prints for each text that was ever loaded, as files under ``guard/texts``."""

    folder: Path
    listings: dict[tuple[str, str], str] = field(default_factory=dict)
    """(table, text) -> listing, as far as this process has met it."""

    def text_of(self, name: str, listing: str) -> str:
        """The text that was loaded, if *listing* is known, else the listing itself."""
        try:
            text = str(json.loads(self.file(name, listing).read_text())["text"])
        except (OSError, ValueError, KeyError):
            return listing
        self.listings[name, text] = listing
        return text

    def listing_of(self, table: NftTable) -> str:
        """What nft prints for *table*; loads it in an empty namespace, once. Raises ToolFailed."""
        known = table.name, table.text or ""
        if (listing := self.listings.get(known)) is None:
            if len(self.listings) > TEXTS_KEPT:
                self.listings.clear()
            self.listings[known] = listing = self.loaded(table)
        return listing

    def loaded(self, table: NftTable) -> str:
        """What nft prints for *table* in an empty namespace."""
        script = f"nft -f - && nft -s {' '.join(terse(table.name))} list table {table.name}"
        out = run(["unshare", "-n", "sh", "-c", script], stdin="\n".join(table_lines(table)) + "\n")
        return canonical(read_tables(out)[table.name])

    def standing(self, made: Sequence[NftTable], count: int | None) -> None:
        """Have *made* known by what nft prints of them on this host, where they were just loaded, if nothing was changed behind it:
        the kernel still counts *count* transactions."""
        asked = [table for table in made if (table.name, table.text or "") not in self.listings]
        with suppress(ToolFailed):
            printed = together([partial(run, ["nft", "-s", *terse(table.name), "list", "table", *table.name.split()]) for table in asked])
            if count is not None and transactions() == count:
                for table, text in zip(asked, printed, strict=True):
                    body = read_tables(text)[table.name]
                    self.listings[table.name, table.text or ""] = canonical(take_hooks(table.name, body)[0] if table.name == EGRESS else body)

    def remember(self, table: NftTable) -> str:
        listing = self.listing_of(table)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self.file(table.name, listing), json.dumps({"table": table.name, "text": table.text}))
        self.forget_oldest()
        return listing

    def forget_oldest(self) -> None:
        """Keep the newest texts. Another table's text may be written at the same time."""
        ages = []
        for file in self.folder.iterdir():
            with suppress(FileNotFoundError):
                ages.append((file.stat().st_mtime, file))
        for _, file in sorted(ages)[:-TEXTS_KEPT]:
            file.unlink(missing_ok=True)

    def file(self, name: str, listing: str) -> Path:
        return self.folder / sha256(f"{name}\n{listing}".encode()).hexdigest()[:32]


class NftablesDriver:
    """Driver of nft-table, nic-guard, nic-groups, nic-limits, address-set, guard-hook and guard-keeper."""

    kinds = frozenset({NftTable.kind, NicGuard.kind, NicGroups.kind, NicLimits.kind, AddressSet.kind, GuardHook.kind,
                       GuardKeeper.kind})

    def __init__(self, paths: Paths):
        self.paths = paths
        self.texts = Texts(paths.guard / "texts")
        self.holder = Holder(paths.guard)
        self.standing: Standing | None = None
        self.listed: Listing | None = None
        self.asked_memory = False
        """The last look also saw what the kernel fills."""
        self.written: tuple[str, Mapping[Key, Member]] = ("", {})
        self.under_way: list[Begun[None]] = []
        """What goes on beside the changes of other drivers, and has ended before we look or change again."""

    def unavailable(self) -> str | None:
        return missing("nft", "unshare")

    def observe(self, intent: Wanted) -> Seen:
        """Every table, foreign ones without the elements of their sets; every guard; the keeper."""
        self.wait()
        seen, known, look = Seen(), *self.found()
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
                table = replace(table, text=f"{table.text}# sets changed\n")
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
        self.standing = standing
        if self.asked_memory:
            self.catch_up()
        return seen

    def found(self) -> tuple[dict[Key, Member], Look]:
        """What was loaded, and what there is: by a look of before, if the kernel says that nothing was changed since."""
        noted, file, moment = self.noted(), self.paths.guard / "look.json", generation()
        known = self.remembered(noted)
        look = None if self.cut_off() else kept(file, moment, noted)
        if look is None:
            look = self.look(known.values())
            if self.paths.guard.is_dir() and generation() == moment:
                keep(file, moment, noted, look)
        return known, look

    def look(self, known: Collection[Member]) -> Look:
        """What nft lists. *known*: the elements that should be there besides those of guards."""
        there = tables()
        if not there:
            return Look({}, {}, memory={})
        likely = [GUARD, ROUTED] if any(isinstance(item, NicGroups) and item.places for item in known) else [GUARD]
        with ExitStack() as beside:
            looks = {table: beside.enter_context(begun(partial(self.listing, table))) for table in likely if table in there}
            text = beside.enter_context(begun(partial(full_text, HOST))) if HOST in there else None
            listings = read_tables(run(["nft", "-s", "-t", "list", "ruleset"]))
        filled = [name for name in FILLED if name in listings]
        found = [self.listing_after(table, looks.get(table)) for table in filled]
        expected = members.expected(FILLED, (item for item in known if item.table in listings))
        damaged = {name for name, listing in zip(filled, found, strict=True)
                   if not listing.flows_hold or listing.members != expected[name]}
        if found:
            self.listed = reduce(both, found)
        texts = {HOST: text.result()} if text else {}
        return Look({name: whole(name, body, texts) for name, body in listings.items()}, self.listed.guards if found and self.listed else {},
                    frozenset(damaged), self.listed.memory if found and self.listed else {})

    def noted(self) -> str:
        """The file of memberships, limits and address sets as they were loaded last."""
        try:
            return (self.paths.guard / "members.json").read_text()
        except OSError:
            return ""

    def remembered(self, text: str) -> dict[Key, Member]:
        """What stands in that file. What this process wrote is not read again."""
        if text == self.written[0]:
            return dict(self.written[1])
        try:
            items = json.loads(text)
        except ValueError:
            return {}
        made = (from_json(item) for item in items)
        return {item.key: item for item in made if isinstance(item, Member)}

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
            found[ROUTED] = read_withheld(json.loads(listed), self.remembered(self.noted()).values())
        return found

    def drop_lines(self, verb: str, table: str, tap: str, counts: Mapping[int, int]) -> list[str]:
        """Commands that delete or add what ``drops`` tells of one NIC."""
        number = next((m.number or 0 for m in self.remembered(self.noted()).values() if isinstance(m, NicGroups) and m.name == tap), 0)
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
        """Lines of nft's listing that go (``-``) and come (``+``) when *before* becomes *after*.

        Raises ToolFailed when nft refuses the text of *after*.
        """
        from difflib import unified_diff
        try:
            old = self.texts.listing_of(before)
        except ToolFailed:
            old = canonical(before.text or "")
        lines = unified_diff(old.splitlines(), self.texts.listing_of(after).splitlines(), lineterm="", n=0)
        return tuple(line for line in lines if not line.startswith(("---", "+++", "@@")))

    def commands(self, steps: Sequence[Step]) -> Sequence[Command]:
        """What nft is told, then what becomes of the keeper."""
        standing = self.standing or Standing()
        made: list[Command] = []
        keys = tuple(s.key for s in steps if s.key.kind != GuardKeeper.kind)
        made += [Command(("nft", "-f", "-"), script, keys) for script in transaction(standing, steps)[0]]
        made += [self.holder.command(step) for step in steps if step.key.kind == GuardKeeper.kind]
        return made

    def apply(self, steps: Sequence[Step], progress: Progress) -> None:
        """Make *steps* as one nft transaction; the keeper starts after it and ends before it."""
        self.begin(steps, progress)
        self.wait()

    def begin(self, steps: Sequence[Step], progress: Progress) -> None:
        """As ``apply``, but listings of new texts may still be under way, and a keeper's start while there is
        no guard yet: it has ended before the transaction that makes the first guard of a NIC."""
        if self.standing is None or GUARD in self.standing.tables or any(s.key.kind in OF_NICS for s in steps):
            self.wait()
        if self.standing is None:
            self.observe({})
        assert self.standing is not None
        of_keeper = [s for s in steps if s.key.kind == GuardKeeper.kind]
        for step in of_keeper:
            if isinstance(step, Delete):
                self.holder.stop()
        with self.undisturbed():
            self.load(steps)
        for step in of_keeper:
            match step:
                case Create(GuardKeeper() as keeper) | Update(_, GuardKeeper() as keeper):
                    if GUARD in self.standing.tables:
                        self.holder.start(keeper)
                    else:
                        self.under_way.append(Begun(partial(self.holder.start, keeper)))
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
            sets = [(*table.split(), name) for table in GUARDS if table in self.standing.tables for name in MEMORY]
            self.standing.memory = read_memory(map(json.loads, together([partial(run, ["nft", "-j", "list", "set", *words]) for words in sets])))
        scripts, after = transaction(self.standing, steps)
        made = [s.after for s in steps if isinstance(s, Create | Update) and isinstance(s.after, NftTable)]
        whole = {table.name for table in scripts.whole}
        beside = [Begun(partial(self.learn, table)) for table in made if table.name not in whole]
        self.under_way += beside
        if not any(scripts):
            return
        count = transactions()
        try:
            for script in scripts:
                run(["nft", "-f", "-"], stdin=script, timeout=300)
        except ToolFailed as refused:
            with suppress(ToolFailed):  # these sets are not there if it was they that were refused
                run(["nft", "-f", "-"], stdin="\n".join((*scripts.unmake, "")))
            self.standing = None
            for work in beside:
                work.result()
            for table in scripts.whole:    # says which it is
                self.learn(table)
            raise StepFailed(steps[0].key if len(steps) == 1 else None, refused.detail,
                             "nothing of this transaction was made") from refused
        before, self.standing = self.standing, after
        self.texts.standing(scripts.whole, None if count is None else count + len([*scripts]))
        self.under_way += [Begun(partial(self.learn, table)) for table in scripts.whole]
        if (before.members, before.guards, before.tables.get(GUARD)) != (after.members, after.guards, after.tables.get(GUARD)):
            cut_forbidden(after.tables.get(GUARD), after.members.values(), after.guards, after.memory)
        if forgetful:
            (self.paths.guard / "memory.nft").unlink(missing_ok=True)
        self.save()

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

    def save(self) -> None:
        """Write what the keeper loads when our tables vanish."""
        assert self.standing is not None
        if self.standing.members:
            text = json.dumps([to_json(item) for item in self.standing.members.values()])
            write_whole(self.paths.guard / "members.json", text)
            self.written = text, self.standing.members
        else:
            (self.paths.guard / "members.json").unlink(missing_ok=True)
        if self.standing.tables:
            write_whole(self.paths.guard / "ruleset.nft", "\n".join(self.standing.script()) + "\n")
        else:
            (self.paths.guard / "ruleset.nft").unlink(missing_ok=True)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """The keeper restores nothing meanwhile; the file says so until the change is saved, too."""
        self.paths.guard.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(self.paths.guard / "changing", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.write("x")
            lock.flush()
            yield
            lock.truncate(0)

    def cut_off(self) -> bool:
        """A change was cut off before it was saved, or is under way."""
        try:
            return bool((self.paths.guard / "changing").read_bytes())
        except OSError:
            return False

    def catch_up(self) -> None:
        """After a change that was cut off before it was saved: save what there is."""
        try:
            with open(self.paths.guard / "changing", "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.read(1):
                    self.save()
                    lock.truncate(0)
        except (FileNotFoundError, BlockingIOError):
            return

    def clear(self) -> None:
        """Remove our files when nothing of ours is left."""
        if self.standing and not self.standing.tables and self.holder.record() is None:
            shutil.rmtree(self.paths.guard, ignore_errors=True)


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


def terse(name: str) -> Sequence[str]:
    """The guard's elements are resources of their own; other tables' belong to their text."""
    return ("-t",) if name in FILLED else ()


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
