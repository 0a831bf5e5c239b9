"""kvmnet's own words: exit codes, and codes of findings."""
from __future__ import annotations

from collections.abc import Mapping

from kvmnet.doctor.explain.entry import Cause, Entry, Holds, Look, Sign
from kvmnet.doctor.rules.table import RULES, Rule
from kvmnet.doctor.view import View

EXITS: Mapping[int, tuple[str, str, tuple[str, ...]]] = {
    1: ("a claim of check failed, or another error that the message explains", "the table that was printed says which", ("kvmnet check", "kvmnet doctor")),
    2: ("plan: there are changes", "the document and the host differ", ("kvmnet plan", "kvmnet apply")),
    10: ("the document is wrong", "every problem is printed with its line; nothing was changed", ("kvmnet schema   # for an editor",)),
    11: ("this host lacks something that the document needs", "a tool, a feature of the kernel, a privilege; the message names it", ("kvmnet facts | jq .features",)),
    12: ("a conflict: something that is not kvmnet's is in the way, or another change is under way", "nothing was changed",
         ("kvmnet status", "kvmnet confirm   # or kvmnet rollback, when a change waits", "kvmnet apply --adopt   # to take over what has kvmnet's names")),
    13: ("a step failed and everything was rolled back", "the message has the tool's own words: explain them", ("kvmnet explain WORDS OF THE TOOL",)),
    14: ("a step failed and the host could not be brought back", "the journal is still there", ("kvmnet recover",)),
    64: ("the command line is wrong", "", ("kvmnet --help",)),
    74: ("the output could not be written", "the disk is full, or nobody reads", ("df -h",)),
    130: ("stopped by Ctrl-C", "a change that had begun was rolled back", ("kvmnet status",)),
}

CODES: tuple[Entry, ...] = tuple(
    Entry(name=f"exit {code}", says=(rf"^(?:kvmnet )?(?:exit(?: ?code| ?status)?|rc) ?{code}$", rf"^{code}$"), means=f"kvmnet ended with {code}: {words}.",
          causes=(Cause(what=detail or words, cure=cure),), source="kvmnet(8), EXIT STATUS")
    for code, (words, detail, cure) in EXITS.items())


def found_by(rule: Rule) -> Look:
    """Whether the rule finds something on this host."""
    def look(view: View, named: Mapping[str, str]) -> Sign:
        found = list(rule(view))
        return Sign(Holds.SEEN, "; ".join(f.what for f in found[:4])) if found else Sign(Holds.RULED_OUT, "the rule finds nothing in this look at the host")
    return look


FINDINGS: tuple[Entry, ...] = tuple(
    Entry(name=code, says=(rf"(?<![\w-]){code}(?![\w-])",), means=" ".join((rule.__doc__ or "").split()),
          causes=(Cause(what="kvmnet doctor finds it, with evidence and what mends it", cure=("kvmnet doctor",), look=found_by(rule)),), source="docs/doctor.md")
    for code, rule in RULES.items())
