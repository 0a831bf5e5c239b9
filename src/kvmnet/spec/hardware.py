"""Hardware settings of an uplink's NICs as claims, setting by setting. Pure."""
from __future__ import annotations

from collections.abc import Iterator

from kvmnet.drivers.ethtool.resources import GROUPS, NicFeature, NicTuning, feature_name
from kvmnet.engine.resource import Key, State, setting_names
from kvmnet.spec.models import Spec
from kvmnet.spec.uplinks import Ethtool, Uplink


def tuned_nics(uplink: Uplink) -> tuple[str, ...]:
    """NICs that the hardware settings of an uplink are for; none for a VLAN, whose carrier has them."""
    if uplink.members or uplink.vlan:
        return uplink.members
    return (uplink.device,) if uplink.device else ()


def named_nics(spec: Spec) -> tuple[str, ...]:
    """NICs that the document has hardware settings for."""
    return tuple(dict.fromkeys(nic for uplink in spec.uplinks.values() if claims(uplink) or uplink.ethtool.features
                               for nic in tuned_nics(uplink)))


def claims(uplink: Uplink) -> dict[str, int | bool | tuple[str, ...]]:
    """Setting of a NicTuning -> value, of what is given."""
    told, steering = uplink.ethtool, uplink.steering
    given = {"rps": steering.receive, "xps": steering.send, "irqs": steering.interrupts,
             "rx_ring": told.rings.rx, "tx_ring": told.rings.tx, "combined": told.channels.combined,
             "rx_channels": told.channels.rx, "tx_channels": told.channels.tx,
             **{name: getattr(told.coalesce, name) for name in type(told.coalesce).model_fields},
             **{f"pause_{name}": getattr(told.pause, name) for name in type(told.pause).model_fields}}
    return {name: value for name, value in given.items() if value is not None}


def tune(uplink: Uplink, state: State) -> Iterator[NicTuning | NicFeature]:
    """What *uplink* claims of its NICs. ``state``: with their features as they are."""
    given = claims(uplink)
    assert given.keys() <= set(setting_names(NicTuning))
    for nic in tuned_nics(uplink):
        if given:
            yield NicTuning(name=nic, dev=nic, **given)  # type: ignore[arg-type]
        for name, on in expanded(nic, uplink.ethtool, state).items():
            yield NicFeature(name=feature_name(nic, name), dev=nic, on=on)


def expanded(nic: str, told: Ethtool, state: State) -> dict[str, bool]:
    """Features by the kernel's names. What is named by itself counts more than its group."""
    groups = {name: on for group, on in told.features.items() for name in GROUPS.get(group, ()) if changeable(nic, name, state)}
    return groups | {name: on for name, on in told.features.items() if name not in GROUPS}


def changeable(nic: str, feature: str, state: State) -> bool:
    seen = state.get(Key(NicFeature.kind, feature_name(nic, feature)))
    return isinstance(seen, NicFeature) and not seen.fixed
