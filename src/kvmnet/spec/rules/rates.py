"""Rates of NICs: what can be promised by whom. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.errors import Problem
from kvmnet.spec.models import Mode
from kvmnet.spec.rates import Rate
from kvmnet.spec.rules.subject import Subject, wrong

SHAPER, DETOUR = ("tc-tbf",), ("tc-tbf", "ifb", "tc-redirect")
"""Features of the host for frames that a device sends, and for those that come in by it."""
OF_HOST = {"in_": "the frames of a VF never pass the host, and the NIC limits only what a VF sends",
           "burst": "the NIC's hardware has a burst of its own"}


def nics(subject: Subject) -> Iterator[Problem]:
    """What a mode cannot keep, and numbers that contradict each other."""
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        rate, path = item.nic.rate, f"{item.path}.rate"
        if network is None or item.primary:
            continue
        if network.mode is Mode.SRIOV:
            yield from _vf(path, rate)
        elif rate.min:
            yield wrong(f"{path}.min", "a guaranteed minimum is kept by the hardware of a VF's NIC, and network "
                        f"{item.nic.network} is of mode {network.mode}", "remove min, or limit the others by rate.out")
        if rate.min and rate.out and rate.min > rate.out:
            yield wrong(f"{path}.min", f"{words(rate.min)} at least and {words(rate.out)} at most", "write a smaller min")
        if rate.burst and not rate.limited and network.mode is not Mode.SRIOV:
            yield wrong(f"{path}.burst", "a burst is of a rate, and there is none", "write in: or out: beside it")


def _vf(path: str, rate: Rate) -> Iterator[Problem]:
    for option, why in OF_HOST.items():
        if getattr(rate, option):
            shown = option.rstrip("_")
            yield wrong(f"{path}.{shown}", why, f"remove {shown}, or use a network in mode bridge")
    for option in ("out", "min"):
        value = getattr(rate, option)
        if value and value % 1000:
            yield wrong(f"{path}.{option}", f"a VF takes whole Mbit/s, not {words(value)}", f"write {max(value // 1000, 1)}mbit")


def words(rate: int) -> str:
    """*rate* (kbit/s) as it is written."""
    for unit, size in (("gbit", 1_000_000), ("mbit", 1000)):
        if rate % size == 0:
            return f"{rate // size}{unit}"
    return f"{rate}kbit"


def features(subject: Subject) -> Iterator[Problem]:
    """Shapers that this kernel lacks."""
    known = subject.facts.features
    for item in subject.nics:
        network = subject.spec.networks.get(item.nic.network)
        if network is None or network.mode is Mode.SRIOV:
            continue
        inverse = network.mode is Mode.MACVTAP
        for option, needs in (("in", DETOUR if inverse else SHAPER), ("out", SHAPER if inverse else DETOUR)):
            reasons = [reason for name in needs if (reason := known.get(name, ""))]
            if getattr(item.nic.rate, "in_" if option == "in" else option) and reasons:
                yield wrong(f"{item.path}.rate.{option}", f"this host cannot limit it: {'; '.join(reasons)}",
                            "install the distribution's full kernel")


RULES = (nics,)
HOST_RULES = (features,)
