"""The public API: one host, and everything that the command line does with it.

The command line, the demo and the tests have no logic of their own; they call this.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvmnet.before import Before, digest, keep, read, short
from kvmnet.drivers.kinds import from_json, to_json
from kvmnet.drivers.linux.resources import Address, Link, Route
from kvmnet.drivers.mirror.resources import Copy
from kvmnet.drivers.nftables.driver import NftablesDriver
from kvmnet.drivers.nftables.resources import NftTable
from kvmnet.drivers.recorder.resources import Recorder
from kvmnet.drivers.table import drivers
from kvmnet.engine.borrow import load_originals
from kvmnet.engine.driver import Seen, StepFailed
from kvmnet.engine.fingerprint import Fingerprint
from kvmnet.engine.history import Revision, Status
from kvmnet.engine.journal import Codec, Phase
from kvmnet.engine.plan import Step, Update
from kvmnet.engine.resource import Key, Resource, Wanted
from kvmnet.engine.transaction import Engine, Event, Result
from kvmnet.engine.watch import Guard, unwatched
from kvmnet.errors import ConflictError, KvmnetError, SpecError
from kvmnet.facts.model import Allocations, Facts
from kvmnet.host.paths import Paths
from kvmnet.host.side import Begun, begun
from kvmnet.planned import EMPTY, Planned, read_saved
from kvmnet.records import dataclass, replace
from kvmnet.spec import source

if TYPE_CHECKING:
    from kvmnet.check.model import Progress, Report
    from kvmnet.compile import Compiled
    from kvmnet.spec.load import Document

Say = Callable[[str], None]
Listen = Callable[[Event], None]


NONE = "none"
"""In place of an address: nobody has to answer after the change."""


def silent(event: Event) -> None:
    """The listener that hears nothing."""


@dataclass(frozen=True)
class GuestRow:
    """One guest of the document, as ``vm list`` shows it."""

    name: str
    driver: str
    state: str
    pid: int
    accel: str
    networks: tuple[str, ...]


class Host:
    """This host (this network namespace), with its state in ``paths``."""

    def __init__(self, paths: Paths | None = None):
        self.paths = paths or Paths.from_environment()
        self.judged = Facts()
        """What the last document was compiled for."""

    @cached_property
    def engine(self) -> Engine:
        return Engine(drivers(self.paths), self.paths, Codec(to_json, from_json))

    # -- planning ----------------------------------------------------------------------------

    def plan(self, path: Path, *, adopt: bool = False) -> Planned:
        """What the document at *path* (or a saved plan) would change. Changes nothing.

        Raises SpecError, HostCannot, ConflictError; KvmnetError when the file cannot be read.
        """
        engine, raw = self.engine, content(path)  # made here: a thread would make another
        with begun(lambda: engine.observe({})) as look:
            return self.plan_file(path, raw, look, adopt)

    def plan_file(self, path: Path, raw: bytes, look: Begun[Seen], adopt: bool) -> Planned:
        from kvmnet.spec.load import load, loads
        saved = read_saved(raw, path)
        document = loads(saved["document"], saved["source"]) if saved else load(path, raw)
        planned = self.plan_document(document, adopt=adopt, seen=look.result())
        if saved:
            refuse_another(planned, saved, path)
        return planned

    def plan_to_apply(self, path: Path, *, adopt: bool = False) -> Planned:
        """As ``plan``, by the writer. A document that was found to be in force before, and still is, is not
        read again (see before.py)."""
        engine, kept, text = self.engine, self.paths.run / "before", content(path)
        with begun(lambda: engine.observe({})) as look:
            before = None if adopt else read(kept, text)
            if before and (planned := self.plan_before(before, text, path, look)):
                return planned
            planned = self.plan_file(path, text, look, adopt)
        document, compiled = planned.document, planned.compiled
        if (document and compiled and not planned.steps and document.text.encode() == text
                and not self.notices(document, compiled, ())):
            keep(kept, Before(digest(text, self.judged, engine.history.allocations()), short(text), *asked(document),
                              planned.wanted, planned.borrowed, planned.notes))
        return planned

    def plan_before(self, before: Before, text: bytes, path: Path, look: Begun[Seen]) -> Planned | None:
        """The plan of a document as it was understood before; None when that may have changed, or when
        something is to be done."""
        seen, engine = look.result(), self.engine
        given = engine.history.allocations()
        if before.digest != digest(text, self.facts_about(seen, before.users, before.uplinks, before.tuned, before.secrets, before.settings), given):
            return None
        engine.dispatch.look_up(seen, engine.with_lent(before.wanted))
        inner = engine.plan(seen, before.wanted, before.borrowed)
        return None if inner.steps else Planned(str(path), None, None, given, inner, before.notes, text.decode())

    def plan_document(self, document: Document, *, adopt: bool = False, seen: Seen | None = None) -> Planned:
        """What *document* would change."""
        self.engine.dispatch.require_kinds({Link.kind})  # nothing can be said of a host whose links are not seen
        seen = seen or self.engine.observe({})
        self.engine.dispatch.require_sight()
        self.judged = facts = self.facts(seen, document)
        compiled, allocations = self.compile(document, facts)
        strange = (seen.state.keys() - seen.ours - compiled.borrowed) & compiled.wanted.keys()
        if any(isinstance(compiled.wanted[k], Resource) for k in strange):  # what lives by itself is ours only while it is wanted
            seen = self.engine.observe(compiled.wanted)
        self.engine.dispatch.look_up(seen, self.engine.with_lent(compiled.wanted))
        inner = self.engine.plan(seen, compiled.wanted, compiled.borrowed, adopt)
        from kvmnet.facts.collect import bridge_netfilter
        from kvmnet.facts.firewalls import blockers, foreign_tables, own_forwards, packets
        segments, bridged = compiled.segments.values(), bridge_netfilter()
        blocked = [*own_forwards(segments, bridged), *blockers(foreign_tables(seen), packets(segments, bridged))]
        return Planned(document.source, document, compiled, allocations, inner,
                       (*compiled.notes, *map(str, blocked), *self.notices(document, compiled, inner.steps)))

    def notices(self, document: Document, compiled: Compiled, steps: Sequence[Step]) -> Sequence[str]:
        """What the steps do not say of guests that run."""
        from kvmnet.drivers.qemu.folder import running_folders
        running = running_folders(self.paths)
        if not running and not any(step.key.kind == "nic-guard" for step in steps):
            return ()
        from kvmnet.guests.notices import notices
        return notices(document.spec, compiled, steps, running)

    def facts(self, seen: Seen, document: Document | None = None) -> Facts:
        return self.facts_about(seen, *(asked(document) if document else ((), (), (), (), ())))

    def facts_about(self, seen: Seen, users: Sequence[str], uplinks: Sequence[str], tuned: Sequence[str],
                    secrets: Sequence[str], settings: Sequence[str]) -> Facts:
        """Facts for a document that names these users, has these devices join a bridge, tunes these NICs, has
        secrets in these files, and sets these settings of the kernel."""
        from kvmnet.drivers.qemu.folder import running_folders
        from kvmnet.facts.collect import facts_of
        present = {home.name: tuple(n.partition("/")[2] for n in home.record())
                   for home in running_folders(self.paths)}
        found = facts_of(seen, self.paths, users=users, uplinks=uplinks, tuned=tuned, secrets=secrets,
                         settings=settings, running=present)
        originals = load_originals(self.paths.originals, self.engine.codec)
        lent = dict.fromkeys(o.value.dev or "" for o in originals.values()
                             if o.whole and isinstance(o.value, (Address, Route)))
        return replace(found, state={**found.state, **self.given_back(seen)}, lent=tuple(d for d in lent if d))

    def given_back(self, seen: Seen) -> dict[Key, Resource]:
        """Lent links with the MTU that they had: what follows from an uplink's MTU must follow from the
        one that it will have, not from one that is only claimed until this change."""
        found: dict[Key, Resource] = {}
        for key, original in load_originals(self.paths.originals, self.engine.codec).items():
            link, before = seen.state.get(key), original.value
            if isinstance(link, Link) and isinstance(before, Link) and before.mtu:
                found[key] = replace(link, mtu=before.mtu)
        return found

    def compile(self, document: Document, facts: Facts) -> tuple[Compiled, Allocations]:
        """Checked, allocated and compiled. Raises SpecError with lines, HostCannot."""
        from kvmnet.compile import compile_spec
        from kvmnet.spec.allocate import allocate
        from kvmnet.spec.checks import require
        from kvmnet.spec.vfs import rooms
        require(document, facts)
        try:
            allocations = allocate(document.spec, self.engine.history.allocations(), rooms(document.spec, facts.state))
        except SpecError as wrong:
            raise SpecError(document.source, document.located(wrong.problems)) from None
        return compile_spec(document.spec, facts, allocations), allocations

    def plan_revision(self, number: int | None = None) -> Planned:
        """What going back to revision *number* would change; the one before the present if not given."""
        return self.plan_document(self.revision_document(number))

    def revision_document(self, number: int | None) -> Document:
        from kvmnet.spec.load import loads
        history = self.engine.history
        if number is None:
            number = self.before_the_present()
        text = history.document(number)
        return loads(text or EMPTY, f"revision {number}")

    def before_the_present(self) -> int:
        """The newest confirmed revision with another document than the last one (a repair has the same)."""
        history = self.engine.history
        last, *earlier = [r.number for r in history.revisions(100, Status.CONFIRMED)] or [0]
        for number in earlier:
            if history.document(number) != history.document(last):
                return number
        raise KvmnetError("there is no earlier revision to go back to", "see: kvmnet history")

    def plan_destroy(self) -> Planned:
        """Everything of ours gone and everything borrowed given back."""
        wanted: Wanted = {}
        seen = self.engine.observe(wanted)
        self.engine.dispatch.look_up(seen, self.engine.with_lent(wanted))
        return Planned("destroy", None, None, {}, self.engine.plan(seen, wanted))

    def text_diff(self, step: Update) -> Sequence[str]:
        """Difference of a table of rules, by lines."""
        driver = self.engine.dispatch.by_kind[step.key.kind]
        assert isinstance(driver, NftablesDriver) and isinstance(step.before, NftTable)
        assert isinstance(step.after, NftTable)
        return driver.table_diff(step.before, step.after)

    # -- changing ----------------------------------------------------------------------------

    def guard(self, planned: Planned, reach: Sequence[str] = (), within: float | None = None,
              confirm: float | None = None) -> Guard:
        """The guard of a change: gateways, the addresses that its document names, *reach* and the peer of this
        session must answer afterwards within *within* seconds, if they did before. ``reach``: ``none`` for no guard."""
        if not planned.steps or NONE in reach:
            return unwatched
        from kvmnet.reach.guard import Reach
        named = dict.fromkeys((*self.far_ends(planned), *reach))
        return Reach(tuple(named), within, confirmed=confirm is not None)

    def far_ends(self, planned: Planned) -> Sequence[str]:
        """Addresses that must still answer: those of the new document, without one those of the document in force."""
        document = planned.document
        if document is None and (number := self.revision) is not None and source.may_name(self.engine.history.document(number) or "", "reach"):
            document = self.current()
        return document.spec.reach if document else ()

    def guarded(self, planned: Planned, reach: Sequence[str] = (), within: float | None = None) -> tuple[str, ...]:
        """Who has to answer after *planned*, in words, as it is now. Sends packets; changes nothing."""
        watch = self.guard(planned, reach, within, confirm=0)(planned.inner)
        return watch.notes if watch else ()

    def apply(self, planned: Planned, *, confirm: float | None = None, adopt: bool = False, reach: Sequence[str] = (),
              within: float | None = None, listen: Listen = silent) -> Result:
        """Make *planned* true in one transaction; refused when the host moved since it was made. ``reach``, ``within``:
        see ``guard``.

        Raises what Engine.converge raises.
        """
        return self.engine.converge(planned.wanted, planned.change, borrowed=planned.borrowed, confirm=confirm,
                                    adopt=adopt, expected=planned.fingerprint,
                                    guard=self.guard(planned, reach, within, confirm), listen=listen)

    def change(self, make: Callable[[], Planned], *, confirm: float | None = None, reach: Sequence[str] = (),
               within: float | None = None, shown: Callable[[Planned], None] = lambda planned: None,
               listen: Listen = silent) -> Result:
        """Make a plan and carry it out under one lock, looking at the host once. ``shown``: told of the
        plan before it is carried out. ``reach``, ``within``: see ``guard``.

        Raises what Engine.converge raises.
        """
        with self.engine.writing("kvmnet"):
            self.engine.make_way()
            planned = make()
            shown(planned)
            return self.engine.carry_out(planned.inner, planned.change, confirm=confirm,
                                         guard=self.guard(planned, reach, within, confirm), listen=listen)

    def destroy(self, *, confirm: float | None = None, reach: Sequence[str] = (), within: float | None = None, shown: Callable[[Planned], None] = lambda planned: None,
                say: Say = lambda words: None) -> Result:
        """Stop the guests that kvmnet runs and remove everything, under one lock. Whatever refuses the
        removal (another writer, an unconfirmed change, a missing tool) does so before a guest is stopped.

        Raises what Engine.converge raises.
        """
        with self.engine.writing("kvmnet destroy"):
            self.engine.make_way()
            planned = self.plan_destroy()
            shown(planned)
            if running := self.running():
                self.stop_guests(running, say)
                planned = self.plan_destroy()
            return self.engine.carry_out(planned.inner, planned.change, confirm=confirm,
                                         guard=self.guard(planned, reach, within, confirm))

    def apply_file(self, path: Path, *, confirm: float | None = None, adopt: bool = False,
                   listen: Listen = silent) -> Result:
        """Plan and apply under one lock, looking at the host once."""
        return self.change(lambda: self.plan_to_apply(path, adopt=adopt), confirm=confirm, listen=listen)

    def confirm(self) -> int | None:
        return self.engine.confirm()

    def recover(self) -> str:
        """What was found and done, in words: a change that was cut off, probes of a check that was killed."""
        from kvmnet.check.probe import sweep
        with self.engine.writing("kvmnet recover", timeout=10):
            found = self.engine.recover()
            try:
                swept = sweep(self.paths) if found.left is None else 0
            except StepFailed as failed:
                raise KvmnetError(f"what a killed check left cannot be removed: {failed}", failed.hint) from failed
        words = found.what.value
        if found.revision is not None:
            words += f" (revision {found.revision})"
        if swept:
            words += f"; {swept} leftover(s) of a killed check removed"
        return words if found.left is None else f"{words}; {found.left:.0f} s left"

    def unconfirmed(self) -> float | None:
        """Seconds left to confirm the change that waits, or None."""
        from kvmnet.host.process import uptime
        journal = self.engine.journal
        return None if journal is None or journal.deadline is None else max(0.0, journal.deadline - uptime())

    # -- looking -----------------------------------------------------------------------------

    @property
    def revision(self) -> int | None:
        """Number of the revision in force, confirmed or waiting for it; None when nothing was applied."""
        journal = self.engine.journal
        if journal is not None and journal.phase is Phase.UNCONFIRMED and journal.revision is not None:
            return journal.revision
        last = self.engine.history.last_confirmed()
        return None if last is None else last.number

    def history(self, limit: int = 100) -> list[Revision]:
        return self.engine.history.revisions(limit)

    def current(self) -> Document | None:
        """The document that is in force: of the change that waits for its confirmation, else of the last
        confirmed revision."""
        number = self.revision
        if number is None:
            return None
        document = self.revision_document(number)
        return document if document.spec.networks or document.spec.vms or document.spec.uplinks else None

    # -- guests ------------------------------------------------------------------------------

    def running(self) -> Mapping[str, Any]:
        """Guests that kvmnet runs now, by name."""
        from kvmnet.drivers.qemu.folder import running_folders
        if not running_folders(self.paths):
            return {}
        from kvmnet.guests.launch import running
        return running(self.paths)

    def in_force(self) -> tuple[Document, Compiled]:
        """The applied document and what it means. Raises KvmnetError when nothing is applied."""
        document = self.current()
        if document is None:
            raise KvmnetError("no document is applied on this host", "kvmnet apply FILE")
        compiled, _ = self.compile(document, self.facts(self.engine.observe({}), document))
        return document, compiled

    def start_guests(self, names: Sequence[str], say: Say) -> list[str]:
        """Start guests of the applied document; those that run are left alone."""
        from kvmnet.guests.accel import probe
        from kvmnet.guests.launch import start
        document, compiled = self.in_force()
        for name in names:
            if name not in compiled.guest_nics:
                raise KvmnetError(f"no guest {name} that kvmnet starts",
                                  f"the document has: {', '.join(compiled.guest_nics) or 'none'}")
        accel = probe(self.paths)
        say(accel.reason)
        started = []
        for name in names:
            status = start(name, document.spec.vms[name], compiled.guest_nics[name], self.paths, accel, say)
            say(f"guest {name} runs (pid {status.pid}, {status.accel})")
            started.append(name)
        return started

    def stop_guests(self, names: Iterable[str], say: Say, timeout: float = 20.0) -> None:
        """Stop guests: asked first, ended when they do not answer within *timeout* seconds."""
        from kvmnet.guests.launch import stop
        for name in names:
            say(f"guest {name}: {stop(name, self.paths, timeout).value}")

    def execute(self, name: str, program: Sequence[str], timeout: float = 60.0) -> tuple[int, str, str]:
        """Run a program in a guest, by its agent: (exit code, output, errors)."""
        return execute_in(name, program, self.paths, timeout)

    def guests(self) -> list[GuestRow]:
        """Every guest of the applied document, and those that still run without it."""
        from kvmnet.guests.launch import guests
        known = guests(self.paths)
        document = self.current()
        rows = []
        for name, vm in document.spec.vms.items() if document else ():
            status = known.pop(name, None)
            state = "stopped" if status is None else "running" if status.alive else "died"
            rows.append(GuestRow(name, "qemu" if vm.run else "external", state if vm.run else "not ours",
                                 status.pid if status and status.alive else 0, status.accel if status else "",
                                 tuple(n.network for n in vm.nics)))
        rows += [GuestRow(name, "qemu", "running, not in the document" if s.alive else "died", s.pid, s.accel, ())
                 for name, s in known.items()]
        return rows

    def external(self, name: str, *, libvirt: bool) -> str:
        """What to tell QEMU or libvirt so that a guest opens its prepared taps."""
        from kvmnet.drivers.macvtap.driver import node_folder
        from kvmnet.guests.external import libvirt_xml, macvtap_arguments, qemu_arguments, shell_line
        document, compiled = self.in_force()
        if name not in document.spec.vms:
            raise KvmnetError(f"no guest {name} in the document",
                              f"it has: {', '.join(document.spec.vms) or 'none'}")
        nics, first = compiled.guest_nics[name], 3    # shells other than bash take one digit
        macvtaps = {n.tap for s in compiled.segments.values() if s.parent for n in s.nics}
        lines = []
        for nic in nics:
            if libvirt:
                lines.append(libvirt_xml(nic))
            elif nic.tap in macvtaps:
                lines.append(shell_line(macvtap_arguments(nic, str(node_folder(self.paths) / nic.tap), first)))
                first += nic.queues or 1
            else:
                lines.append(shell_line(qemu_arguments(nic)))
        return "\n".join(lines)

    def console(self, name: str) -> None:
        """Attach this terminal to a guest's serial console, until Ctrl-]."""
        from kvmnet.guests.console import attach
        attach(name, self.paths)

    # -- proof -------------------------------------------------------------------------------

    def check(self, outside: Sequence[str] = (), progress: Progress = lambda what, done, total: None, *,
              rates: bool = False) -> Report:
        """Prove the applied document with packets. ``outside``: addresses that answer echo. ``rates``: measure rates, too."""
        from kvmnet.check.allowed import allowed
        from kvmnet.check.model import Subject
        from kvmnet.check.prove import prove
        document = self.current()
        if document is None:
            raise KvmnetError("no document is applied on this host", "kvmnet apply FILE")
        seen = self.engine.observe({})
        compiled, allocations = self.compile(document, self.facts(seen, document))
        segments = {name: replace(s, nics=tuple(n for n in s.nics if n.declared.receives == "all"))
                    for name, s in compiled.segments.items()}    # NICs for copies are no ports of a network
        return prove(Subject(segments=segments, paths=self.paths, running=tuple(self.running()),
                             allocations=allocations, outside=tuple(outside) or next_hops(seen),
                             next_hops=next_hops(seen), domain_hops=domain_hops(seen), rates=rates,
                             tenants={name: tenant.rate for name, tenant in document.spec.tenants.items()},
                             tunnels=compiled.tunnels, execute=execute_in,
                             copies=tuple(r for r in compiled.wanted.values() if isinstance(r, Copy)),
                             recorders={r.device or "": r.name for r in compiled.wanted.values() if isinstance(r, Recorder)},
                             allowed=allowed(compiled.wanted)), progress)


def refuse_another(planned: Planned, saved: Mapping[str, Any], path: Path) -> None:
    """Raise ConflictError when *planned* is not the change that was saved at *path*."""
    again = "plan again and look at what is different"
    if moved := planned.fingerprint.moved(Fingerprint(saved["seen"])):
        raise ConflictError(f"the host changed since {path} was made: {', '.join(moved[:5])}"
                            + (f" and {len(moved) - 5} more" if len(moved) > 5 else ""), again)
    if other := set(planned.spelled()) ^ set(saved["steps"]):
        names = sorted({f"{step['kind']} {step['name']}" for step in map(json.loads, other)})
        raise ConflictError(f"the host changed since {path} was made, and the change would be another one: "
                            f"{', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else ""), again)


def next_hops(seen: Seen) -> tuple[str, ...]:
    """Gateways of the host's default routes, outside of routing domains."""
    domains = {str(r.vrf_table) for r in seen.state.values() if isinstance(r, Link) and r.type == "vrf"}
    return tuple(dict.fromkeys(r.via for r in seen.state.values()
                               if isinstance(r, Route) and r.dst == "default" and r.via and r.table not in domains))


def domain_hops(seen: Seen) -> dict[str, tuple[str, ...]]:
    """Device of a routing domain -> gateways of its default routes."""
    routes = [r for r in seen.state.values() if isinstance(r, Route) and r.dst == "default" and r.via]
    return {vrf.name: tuple(dict.fromkeys(r.via or "" for r in routes if r.table == str(vrf.vrf_table)))
            for vrf in seen.state.values() if isinstance(vrf, Link) and vrf.type == "vrf"}


def execute_in(name: str, program: Sequence[str] | str, paths: Paths, timeout: float) -> tuple[int, str, str]:
    """Run a program or script in a guest: (exit code, output, errors)."""
    from kvmnet.guests.launch import execute
    result = execute(name, program, paths, timeout)
    return result.code, result.out, result.err


def asked(document: Document) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """What facts are asked about for *document*: its users, the devices that join a bridge, the NICs that it tunes,
    the files of its secrets, the settings of the kernel."""
    from kvmnet.spec.hardware import named_nics
    from kvmnet.spec.knobs import KNOBS
    from kvmnet.spec.tunnels import secret_files
    spec = document.spec
    bridged = {n.uplink for n in spec.networks.values() if n.mode == "bridge" and n.uplink}
    return (tuple(sorted({vm.owner for vm in spec.vms.values() if vm.owner})),
            tuple(dict.fromkeys(device for name, u in spec.uplinks.items() if name in bridged or u.members
                                for device in (u.members or (u.device or "",)))),
            named_nics(spec), secret_files(spec), tuple(KNOBS[name].path for name in spec.tuning if name in KNOBS))


def content(path: Path) -> bytes:
    """The file's bytes; none when it cannot be read, which is said when it is loaded. A pipe is read once."""
    try:
        return source.content(path)
    except (OSError, ValueError):
        return b""
