"""Cross checks of a document: what no single part of it can say. Pure.

``check`` finds every problem at once and tells apart what is wrong with the document (whatever the
host) from what this host lacks for it. ``require`` raises them with their lines.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kvmnet.errors import HostCannot, Problem, SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec.load import Document
from kvmnet.spec.models import Spec
from kvmnet.spec.rules import addresses, guests, host, networks, references
from kvmnet.spec.rules.subject import Subject

Rule = Callable[[Subject], Iterator[Problem]]

OF_DOCUMENT: tuple[Rule, ...] = (*references.RULES, *networks.RULES, *addresses.RULES, *guests.RULES, host.ports)
OF_HOST: tuple[Rule, ...] = host.RULES


@dataclass(frozen=True, slots=True)
class Verdict:
    """What ``check`` found; problems have a path but no line yet."""

    document: tuple[Problem, ...]
    """Wrong in the document."""
    host: tuple[Problem, ...]
    """Missing on the host."""


def check(spec: Spec, facts: Facts) -> Verdict:
    """Every problem of *spec* on the host of *facts*. Without links in ``facts`` (Facts()) the host is
    taken as unknown and is not judged."""
    subject = Subject(spec, facts)
    return Verdict(tuple(problem for rule in OF_DOCUMENT for problem in rule(subject)),
                   tuple(problem for rule in OF_HOST for problem in rule(subject)))


def require(document: Document, facts: Facts) -> None:
    """Raise SpecError with every problem of *document* and its line, else HostCannot with everything that
    this host lacks for it; return when there is nothing."""
    verdict = check(document.spec, facts)
    if verdict.document:
        raise SpecError(document.source, document.located(verdict.document))
    if verdict.host:
        found = document.located(verdict.host)
        raise HostCannot("\n".join(f"{document.source}:{p.line}:{p.column}: {p.path}: {p.message}" for p in found),
                         "\n".join(dict.fromkeys(p.hint for p in found if p.hint)))
