"""Which accelerator really runs a guest here.

``/dev/kvm`` may be there and open, and yet no guest get anywhere (nested virtualisation that is
half supported). So KVM is believed only when a guest has run on it before a deadline.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accel:
    name: str
    """kvm or tcg."""
    reason: str
    """Why, for people: ``KVM does not run a guest here: ...; using TCG``."""
