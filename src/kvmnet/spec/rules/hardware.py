"""Hardware settings of NICs that the NIC does not have or does not take. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.ethtool.resources import GROUPS, NicFeature, NicTuning, feature_name, most_of
from kvmnet.engine.resource import Key
from kvmnet.errors import Problem
from kvmnet.spec.explain import meant
from kvmnet.spec.hardware import changeable, claims, tuned_nics
from kvmnet.spec.rules.subject import Subject, wrong

PLACES = {"rx_ring": "rings.rx", "tx_ring": "rings.tx", "combined": "channels.combined", "rx_channels": "channels.rx",
          "tx_channels": "channels.tx", "pause_autoneg": "pause.autoneg", "pause_rx": "pause.rx", "pause_tx": "pause.tx"}
"""Setting -> where it stands in the document; the others are in coalesce."""


def of_vlans(subject: Subject) -> Iterator[Problem]:
    """A VLAN has no hardware of its own."""
    for name, uplink in subject.spec.uplinks.items():
        if "ethtool" in uplink.model_fields_set and not tuned_nics(uplink):
            yield wrong(f"uplinks.{name}.ethtool", "a VLAN has no rings, queues and offloads of its own",
                        f"write ethtool at the uplink that carries it{f': {uplink.on}' if uplink.on else ''}")


def settings(subject: Subject) -> Iterator[Problem]:
    """Values above the hardware's maximum, and what the driver does not have."""
    for name, uplink in subject.spec.uplinks.items():
        path = f"uplinks.{name}.ethtool"
        for nic in tuned_nics(uplink):
            seen = subject.facts.state.get(Key(NicTuning.kind, nic))
            if not isinstance(seen, NicTuning):
                continue
            for setting, value in claims(uplink.ethtool).items():
                place, most = f"{path}.{PLACES.get(setting, f'coalesce.{setting}')}", most_of(seen, setting)
                if getattr(seen, setting) is None or most == 0:
                    yield wrong(place, f"{nic} has no such setting: its driver does not offer it",
                                f"remove it; ethtool -i {nic} names the driver")
                elif most is not None and value > most:
                    yield wrong(place, f"{nic} takes at most {most}", f"write {most}")
            yield from _features(subject, path, nic, uplink.ethtool.features)


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


RULES = (of_vlans,)
HOST_RULES = (settings,)
