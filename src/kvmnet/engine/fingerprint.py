"""What a plan was computed from, so that a host that moved since is noticed. Pure.

Only claimed settings count: never counters, carrier, leases or lifetimes.
"""
from __future__ import annotations

from collections.abc import Mapping, Set
from hashlib import blake2b, sha256

from kvmnet.engine.resource import Absent, Key, State, Wanted, compared_names
from kvmnet.records import dataclass


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Digest of the claimed settings as they were seen, one for each resource. Plain data: goes into a file."""

    parts: Mapping[str, str]
    """``kind name`` -> digest; '' where nothing was there."""

    @property
    def digest(self) -> str:
        text = "\n".join(f"{key} {part}" for key, part in sorted(self.parts.items()))
        return sha256(text.encode()).hexdigest()

    def moved(self, since: Fingerprint) -> list[str]:
        """Names of what is different now from what it was in *since*."""
        names = self.parts.keys() | since.parts.keys()
        return sorted(n for n in names if self.parts.get(n) != since.parts.get(n))


def fingerprint(seen: State, wanted: Wanted, ours: Set[Key]) -> Fingerprint:
    parts = {}
    for key in wanted.keys() | ours:
        resource, claim = seen.get(key), wanted.get(key)
        if resource is None:
            parts[str(key)] = ""
            continue
        if claim is None or isinstance(claim, Absent):
            values = "present" + (" ours" if key in ours else "")
        else:
            values = repr([getattr(resource, n) for n in compared_names(type(claim))
                           if getattr(claim, n) is not None])
        parts[str(key)] = blake2b(values.encode(), digest_size=8).hexdigest()
    return Fingerprint(parts)


def plan_hash(seen: State, wanted: Wanted, ours: Set[Key]) -> str:
    return fingerprint(seen, wanted, ours).digest
