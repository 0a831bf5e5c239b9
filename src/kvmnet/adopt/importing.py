"""What ``kvmnet import`` does: look, write a document, and plan it to say what it would change."""
from __future__ import annotations

import json
import pwd
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from kvmnet.adopt import libvirt_files
from kvmnet.adopt.document import left_lines, write
from kvmnet.adopt.live import Host as LiveHost
from kvmnet.adopt.live import layout_of
from kvmnet.adopt.model import Element, Outcome
from kvmnet.adopt.restore import restore
from kvmnet.adopt.sources import import_files
from kvmnet.adopt.tap_holders import holders
from kvmnet.api import Host
from kvmnet.engine.driver import Seen
from kvmnet.errors import KvmnetError, SpecError
from kvmnet.facts.collect import command_lines, namespace_of, policy_rules, resolvers
from kvmnet.host import run as tools
from kvmnet.host.process import namespace_id
from kvmnet.records import dataclass, replace
from kvmnet.spec.load import loads

MARKS = "marks on this host"
USUAL_RULES = re.compile(r"0:\s+from all lookup local|32766:\s+from all lookup main|32767:\s+from all lookup default")
"""Policy rules of every host."""
FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


@dataclass(frozen=True, slots=True)
class Imported:
    """The document, and what became of each element of the input."""

    text: str
    elements: tuple[Element, ...]
    origin: str
    """Where it comes from: ``host``, ``revision 3``, ``marks on this host``, or the files."""
    changes: tuple[str, ...] | None = None
    """What apply would do with it on this host; None when it was not planned."""

    def of(self, outcome: Outcome) -> list[Element]:
        return [e for e in self.elements if e.outcome is outcome]

    def to_json(self) -> dict[str, Any]:
        """Stable data for other programs."""
        return {"format": 1, "document": self.text, "origin": self.origin, "changes": self.changes,
                **{o.value: [row(e) for e in self.of(o)] for o in Outcome}}


def row(element: Element) -> dict[str, Any]:
    return {"file": element.place.file, "line": element.place.line, "path": element.path, "value": element.value,
            "words": element.words, "device": element.device}


# -- from files ------------------------------------------------------------------------------------

def import_format(name: str, paths: Sequence[Path]) -> Imported:
    """A document from the files of one format. Raises KvmnetError, SpecError."""
    layout, read = import_files(name, paths)
    written = write(layout, [f"Written by kvmnet import from {name}: {', '.join(read)}.",
                             "The host keeps its own configuration; this document only borrows from it."])
    loads(written.text, "the document written by import")
    return Imported(written.text, written.elements, ", ".join(read))


# -- from the host ---------------------------------------------------------------------------------

def import_host(host: Host) -> Imported:
    """The document of this host: the one in force, or one read back from the marks of ours, or one for what
    others have made. Raises what Host.plan_document raises."""
    seen = host.engine.observe({})
    live = look(host, seen)
    foreign = layout_of(live)
    document = in_force(host)
    if document is not None:
        text, origin = document
    elif (data := restore(seen, runs(host), resolvers(), user_names())) is not None:
        text, origin = restored_text(data), MARKS
    else:
        return first_import(host, foreign)
    left = foreign_only(foreign.elements)
    changes: tuple[str, ...] | None = None
    try:
        changes, _ = planned(host, text, seen)
        lost = [Element(path=c, outcome=Outcome.UNSUPPORTED, words="could not be read back; apply would do this")
                for c in changes]
    except SpecError as wrong:
        lost = [Element(path=p.path, outcome=Outcome.UNSUPPORTED, words=f"kvmnet would refuse the document: {p.message}")
                for p in wrong.problems]
    if origin == MARKS:
        left = (*left, *lost)
        text += "\n".join((*left_lines(left), ""))
    return Imported(text, left, origin, changes)


def in_force(host: Host) -> tuple[str, str] | None:
    """The applied document as it was written, from history."""
    with suppress(KvmnetError):
        document = host.current()
        if document is not None:
            return document.text, f"revision {host.revision}"
    return None


def foreign_only(elements: Sequence[Element]) -> tuple[Element, ...]:
    """With a document in force, what is not in it stays with the host."""
    return tuple(replace(e, outcome=Outcome.KEPT) if e.outcome is Outcome.MAPPED else e for e in elements)


def first_import(host: Host, layout: Any) -> Imported:
    """A document for a host that kvmnet never touched."""
    title = "Written by kvmnet import from the running host."
    written = write(layout, [title])
    changes, notes = planned(host, written.text, None)
    said = "Applied on this host it changes nothing." if not changes else \
        f"Applied on this host it makes {len(changes)} things, none of them foreign: see kvmnet plan."
    named = [e for e in layout.elements if e.outcome is Outcome.FOREIGN]
    heading = [title, said, *(f"left alone: {e}" for e in named), *(f"note: {n}" for n in notes)]
    text = write(layout, heading).text
    return Imported(text, written.elements, "host", changes)


def planned(host: Host, text: str, seen: Seen | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What apply would do: (steps, notes)."""
    plan = host.plan_document(loads(text, "the document written by import"), seen=seen)
    return tuple(f"{type(s).__name__.lower()} {s.key}" for s in plan.steps), plan.notes


def restored_text(data: Mapping[str, Any]) -> str:
    return ("# Written by kvmnet import from the marks on this host: its history is lost.\n"
            + yaml.safe_dump(dict(data), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True))


def runs(host: Host) -> dict[str, dict[str, Any]]:
    """How the guests that kvmnet runs were started, from their recorded command lines. QEMU gets its kernel and
    disk as descriptors, so that their names are not known any more; only the own test guest is recognised."""
    from kvmnet.drivers.qemu.arguments import TINY_WORDS
    from kvmnet.drivers.qemu.folder import folder
    found = {}
    for name in host.running():
        words: list[str] = []
        with suppress(OSError, ValueError):
            words = shlex.split(folder(host.paths, name).command.read_text(encoding="utf-8"))
        found[name] = run_of(words, TINY_WORDS)
    return found


def run_of(words: Sequence[str], tiny: str) -> dict[str, Any]:
    """``run`` of a command line that ``drivers.qemu.arguments`` made."""
    options = dict(pairwise(words))
    memory = options.get("-m", "").removeprefix("size=").partition(",")[0].removesuffix("b")
    run: dict[str, Any] = {"cpus": int(options.get("-smp", "1")), "machine": options.get("-machine", "q35").partition(",")[0]}
    if memory.isdigit():
        run["memory"] = f"{int(memory) // 2**20}M"
    if tiny in options.get("-append", ""):
        run["image"] = "tiny"
    return run


def user_names() -> dict[int, str]:
    return {entry.pw_uid: entry.pw_name for entry in pwd.getpwall()}


# -- looking ---------------------------------------------------------------------------------------

def look(host: Host, seen: Seen) -> LiveHost:
    """Everything that the document is written from. Only reads."""
    details = {d["ifname"]: d for d in json.loads(tools.run(("ip", "-json", "-details", "link", "show")) or "[]")
               if "ifname" in d}
    rules = [r for r in policy_rules() if not USUAL_RULES.fullmatch(r)]
    return LiveHost(seen, details, holders(), dict(libvirt_files.networks()), libvirt_files.domains(),
                    dict(foreign_dnsmasq(host)), rules, forwarding())


def foreign_dnsmasq(host: Host) -> Iterator[tuple[int, str]]:
    here, run = namespace_id(), str(host.paths.run)
    for pid, words in command_lines(Path("/proc")):
        if Path(words[0]).name == "dnsmasq" and namespace_of(Path("/proc"), pid) == here:
            line = " ".join(filter(None, words))
            if run not in line:
                yield pid, line


def forwarding(root: Path = Path("/proc/sys")) -> dict[str, str]:
    found = {}
    for name in FORWARDING:
        with suppress(OSError):
            if (value := (root / name).read_text(encoding="ascii").strip()) != "0":
                found[name] = value
    return found
