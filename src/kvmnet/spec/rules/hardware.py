"""Hardware settings of NICs that the NIC does not have or does not take. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.ethtool.resources import GROUPS, NicFeature, NicTuning, feature_name, most_of
from kvmnet.engine.resource import Key
from kvmnet.errors import Problem
from kvmnet.spec.cpus import NONE, numbers
from kvmnet.spec.hardware import changeable, claims, tuned_nics
from kvmnet.spec.nearest import meant
from kvmnet.spec.rules.subject import Subject, wrong

PLACES = {"rx_ring": "ethtool.rings.rx", "tx_ring": "ethtool.rings.tx", "combined": "ethtool.channels.combined",
          "rx_channels": "ethtool.channels.rx", "tx_channels": "ethtool.channels.tx", "pause_autoneg": "ethtool.pause.autoneg",
          "pause_rx": "ethtool.pause.rx", "pause_tx": "ethtool.pause.tx",
          "rps": "steering.receive", "xps": "steering.send", "irqs": "steering.interrupts"}
"""Setting -> where it stands in the uplink; the others are in ethtool.coalesce."""


def of_vlans(subject: Subject) -> Iterator[Problem]:
    """A VLAN has no hardware of its own."""
    for name, uplink in subject.spec.uplinks.items():
        for part in sorted({"ethtool", "steering"} & uplink.model_fields_set) if not tuned_nics(uplink) else ():
            yield wrong(f"uplinks.{name}.{part}", "a VLAN has no rings, queues and offloads of its own",
                        f"write {part} at the uplink that carries it{f': {uplink.on}' if uplink.on else ''}")


def of_interrupts(subject: Subject) -> Iterator[Problem]:
    """Each interrupt needs a CPU."""
    for name, uplink in subject.spec.uplinks.items():
        if NONE in (uplink.steering.interrupts or ()):
            yield wrong(f"uplinks.{name}.steering.interrupts", "an interrupt goes to a CPU", "write CPUs, e.g. 0-3, or remove it")


def settings(subject: Subject) -> Iterator[Problem]:
    """Values above the hardware's maximum, and what the driver does not have."""
    for name, uplink in subject.spec.uplinks.items():
        path = f"uplinks.{name}"
        for nic in tuned_nics(uplink):
            seen = subject.facts.state.get(Key(NicTuning.kind, nic))
            if not isinstance(seen, NicTuning):
                continue
            for setting, value in claims(uplink).items():
                place, most = f"{path}.{PLACES.get(setting, f'ethtool.coalesce.{setting}')}", most_of(seen, setting)
                if isinstance(value, tuple):
                    yield from _steering(subject, nic, setting, value, place, seen)
                elif getattr(seen, setting) is None or most == 0:
                    yield wrong(place, f"{nic} has no such setting: its driver does not offer it",
                                f"remove it; ethtool -i {nic} names the driver")
                elif most is not None and value > most:
                    yield wrong(place, f"{nic} takes at most {most}", f"write {most}")
            yield from _features(subject, f"{path}.ethtool", nic, uplink.ethtool.features)


def _steering(subject: Subject, nic: str, setting: str, sets: tuple[str, ...], place: str, seen: NicTuning) -> Iterator[Problem]:
    """CPUs that the machine has not, and more sets than the NIC has queues."""
    queues = most_of(seen, setting)
    if queues is None:
        yield wrong(place, f"{nic} has {LACKING[setting]}", "remove it")
        return
    if len(sets) > queues and not {"combined", "rx_channels", "tx_channels"} & claims_of(subject, nic):
        yield wrong(place, f"{nic} has {queues} of them, not {len(sets)}", f"write at most {queues} sets of CPUs")
    if (beyond := set().union(*map(numbers, sets)) - set(range(subject.facts.cpu_numbers))) and subject.facts.cpu_numbers:
        yield wrong(place, f"this machine has no CPU {min(beyond)}", f"write numbers from 0 to {subject.facts.cpu_numbers - 1}")


LACKING = {"rps": "no receive queue whose CPUs can be set: a kernel without RPS, or /sys of another network namespace",
           "xps": "no transmit queues to choose from: it has one, or /sys is that of another network namespace",
           "irqs": "no interrupts of its own (MSI) in sight: a virtual NIC has none"}


def claims_of(subject: Subject, nic: str) -> set[str]:
    """Settings that the document has for *nic*."""
    return {name for uplink in subject.spec.uplinks.values() if nic in tuned_nics(uplink) for name in claims(uplink)}


def _features(subject: Subject, path: str, nic: str, told: dict[str, bool]) -> Iterator[Problem]:
    state = subject.facts.state
    known = [k.name.partition(" ")[2] for k in state if k.kind == NicFeature.kind and k.name.startswith(f"{nic} ")]
    for feature, on in told.items():
        place = f"{path}.features.{feature}"
        if feature in GROUPS:
            if not any(changeable(nic, name, state) for name in GROUPS[feature]):
                yield wrong(place, f"{nic} can change nothing of this group", f"ethtool -k {nic} shows what it can")
            continue
        seen = state.get(Key(NicFeature.kind, feature_name(nic, feature)))
        if not isinstance(seen, NicFeature):
            yield wrong(place, f"the kernel knows no feature {feature}", meant(feature, (*known, *GROUPS), "features"))
        elif seen.fixed and seen.on != on:
            yield wrong(place, f"{nic} has it fixed to {'on' if seen.on else 'off'}", "remove it")


RULES = (of_vlans, of_interrupts)
HOST_RULES = (settings,)
