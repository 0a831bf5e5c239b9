"""Cross checks of a document: what no single part of it can say. Pure.

``check`` finds every problem of a document at once, ``lacking`` everything that this host lacks for it.
``require`` raises them with their lines.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator

from kvmnet.errors import HostCannot, Problem, SpecError
from kvmnet.facts.model import Facts
from kvmnet.spec.load import Document
from kvmnet.spec.models import Spec
from kvmnet.spec.rules import (
    addresses,
    disciplines,
    groups,
    guests,
    hardware,
    host,
    limits,
    macvtap,
    mirrors,
    networks,
    overlays,
    rates,
    references,
    sriov,
    trees,
    tuning,
    tunnels,
    uplinks,
    vlans,
    vrfs,
)
from kvmnet.spec.rules.subject import Subject

Rule = Callable[[Subject], Iterator[Problem]]

OF_DOCUMENT: tuple[Rule, ...] = (*references.RULES, *uplinks.RULES, *tunnels.RULES, *vrfs.RULES, *hardware.RULES, *networks.RULES, *macvtap.RULES,
                                 *sriov.RULES, *vlans.RULES, *trees.RULES, *overlays.RULES, *addresses.RULES, *guests.RULES, *groups.RULES,
                                 *rates.RULES, *disciplines.RULES, *limits.RULES, *tuning.RULES, *mirrors.RULES, host.ports)
OF_HOST: tuple[Rule, ...] = (*host.RULES, *uplinks.HOST_RULES, *tunnels.HOST_RULES, *vrfs.HOST_RULES, *hardware.HOST_RULES,
                             *macvtap.HOST_RULES, *sriov.HOST_RULES, *vlans.HOST_RULES, *trees.HOST_RULES, *overlays.HOST_RULES,
                             *guests.HOST_RULES, *groups.HOST_RULES, *rates.HOST_RULES, *disciplines.HOST_RULES, *limits.HOST_RULES, *tuning.HOST_RULES,
                             *mirrors.HOST_RULES)


def check(spec: Spec, facts: Facts) -> list[Problem]:
    """Everything wrong with *spec*, with paths but without lines (``Document.located`` adds them). The
    host counts where the two collide: its prefixes, addresses and MTUs."""
    subject = Subject(spec, facts)
    return [problem for rule in OF_DOCUMENT for problem in rule(subject)]


def lacking(spec: Spec, facts: Facts) -> list[Problem]:
    """Everything that the host lacks for *spec*: devices, users, features, room in the kernel's tables.
    Without links in ``facts`` the host is taken as unknown, and nothing is missing."""
    subject = Subject(spec, facts)
    return [problem for rule in OF_HOST for problem in rule(subject)]


def require(document: Document, facts: Facts) -> None:
    """Raise SpecError with every problem of *document* and its line, else HostCannot with everything that
    this host lacks for it; return when there is nothing."""
    if problems := check(document.spec, facts):
        raise SpecError(document.source, document.located(problems))
    if missing := document.located(lacking(document.spec, facts)):
        raise HostCannot("\n".join(f"{document.source}:{p.line}:{p.column}: {p.path}: {p.message}" for p in missing),
                         "\n".join(dict.fromkeys(p.hint for p in missing if p.hint)))
