"""Kernel settings of the whole host: what is taken, and which values. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.linux.resources import Sysctl
from kvmnet.engine.resource import Key
from kvmnet.errors import Problem
from kvmnet.spec.knobs import KNOBS, reason
from kvmnet.spec.nearest import meant
from kvmnet.spec.rules.subject import Subject, wrong


def known(subject: Subject) -> Iterator[Problem]:
    """Only settings that are understood, with values that the kernel takes."""
    for name, value in subject.spec.tuning.items():
        knob = KNOBS.get(name)
        if knob is None:
            why = reason(name)
            yield wrong(f"tuning.{name}", why or f"kvmnet knows no setting {name}",
                        "remove it" if why else meant(name, tuple(KNOBS), "settings"))
        elif said := knob.wrong(value):
            yield wrong(f"tuning.{name}", f"{value} is no value of it", f"write {said}")


def present(subject: Subject) -> Iterator[Problem]:
    """What this kernel, or this network namespace, does not have."""
    if not subject.links:
        return
    for name in subject.spec.tuning:
        if name in KNOBS and Key(Sysctl.kind, KNOBS[name].path) not in subject.facts.state:
            yield wrong(f"tuning.{name}", "this host has no such setting",
                        "remove it, or load the module that brings it (br_netfilter, nf_conntrack); in a container it may be the machine's alone")


RULES = (known,)
HOST_RULES = (present,)
