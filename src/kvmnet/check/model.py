"""What ``kvmnet check`` is asked to prove, and what it found. Pure."""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from ipaddress import ip_address
from itertools import groupby
from typing import Any, Protocol

from kvmnet.check.allowed import Allowed
from kvmnet.drivers.mirror.resources import Copy
from kvmnet.facts.model import Allocations
from kvmnet.host.paths import Paths
from kvmnet.modes.segment import Segment
from kvmnet.modes.tunnel import TunnelWay
from kvmnet.records import asdict, dataclass, field
from kvmnet.spec.rates import TenantRate


class Execute(Protocol):
    """Runs an argument list, or a shell script, in a guest: exit code, output, errors.

    Raises KvmnetError when the guest does not answer within ``timeout`` seconds.
    """

    def __call__(self, name: str, program: Sequence[str] | str, paths: Paths, timeout: float,
                 /) -> tuple[int, str, str]: ...


Progress = Callable[[str, int, int], None]
"""Called with what is being proved, how many parts are done, and of how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The applied document, as far as packets can prove it."""

    segments: Mapping[str, Segment]
    paths: Paths
    running: Collection[str] = ()
    """Guests that run and may have an agent."""
    allocations: Allocations = field(default_factory=dict)
    """Addresses that are given away, also those of NICs that are gone."""
    outside: tuple[str, ...] = ()
    """Addresses beyond the uplinks that answer echo, of either family: the next hops of the host's
    default routes, or what the operator names."""
    next_hops: tuple[str, ...] = ()
    """Those of them that are neighbours of this host, or networks': what fits into their segment is known."""
    domain_hops: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Device of a routing domain -> gateways of its default routes: what is asked there in place of ``outside``."""
    execute: Execute | None = None
    """None: no guest is asked."""
    tunnels: tuple[TunnelWay, ...] = ()
    rates: bool = False
    """Whether rates are measured, which takes the network for seconds."""
    tenants: Mapping[str, TenantRate] = field(default_factory=dict)
    """What their NICs may send and receive together."""
    copies: tuple[Copy, ...] = ()
    """Of all mirrors."""
    recorders: Mapping[str, str] = field(default_factory=dict)
    """Device that copies are handed to -> its mirror, where they are kept in files."""
    allowed: Allowed = field(default_factory=Allowed)
    """What groups and tenants let pass."""

    def target(self, family: int, vrf: str = "") -> str:
        """The address to try outside, of a routing domain or of the host's own; '' for none. A link-local next hop answers
        nobody but the host."""
        found = (ip_address(a) for a in (self.domain_hops.get(vrf, ()) if vrf else self.outside))
        return next((str(a) for a in found if a.version == family and not a.is_link_local), "")

    def is_next_hop(self, address: str, vrf: str = "") -> bool:
        return address in (self.domain_hops.get(vrf, ()) if vrf else self.next_hops)


class Verdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence about a network, and whether packets bear it out."""

    network: str
    subject: str
    """Who sent the packets: a guest's NIC (``web1/nic0``), or ``probe``."""
    name: str
    """What is claimed, in words that stay the same: ``dhcp4``, ``gateway4``, ``drops arp-spoof``."""
    verdict: Verdict
    evidence: str
    """What was seen; of a claim that was skipped, why."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one claim before it has a place in the report."""

    verdict: Verdict
    evidence: str


def passed(evidence: str) -> Finding:
    return Finding(Verdict.PASS, evidence)


def failed(evidence: str) -> Finding:
    return Finding(Verdict.FAIL, evidence)


def skipped(reason: str) -> Finding:
    return Finding(Verdict.SKIP, reason)


@dataclass(frozen=True, slots=True)
class Report:
    claims: tuple[Claim, ...]
    seconds: float

    def count(self, verdict: Verdict) -> int:
        return sum(c.verdict is verdict for c in self.claims)

    @property
    def exit_code(self) -> int:
        """1 when a claim failed."""
        return int(self.count(Verdict.FAIL) > 0)

    @property
    def summary(self) -> str:
        return (f"{self.count(Verdict.PASS)} passed, {self.count(Verdict.FAIL)} failed, "
                f"{self.count(Verdict.SKIP)} skipped in {self.seconds:.1f} s")

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Cells of the table under ``COLUMNS``: forged frames that were all dropped share one row."""
        return [cells(c) for c in folded(self.claims)]

    def every_row(self) -> list[tuple[str, str, str, str, str]]:
        """The same with a row for every claim."""
        return [cells(c) for c in self.claims]

    def to_json(self) -> dict[str, Any]:
        """Stable data for other programs."""
        return {"format": 1, "seconds": round(self.seconds, 3), "exit_code": self.exit_code,
                "counts": {v.value: self.count(v) for v in Verdict},
                "claims": [{**asdict(c), "verdict": c.verdict.value, "seconds": round(c.seconds, 3)}
                           for c in self.claims]}


COLUMNS = ("network", "from", "claim", "verdict", "evidence")
PROBE = "probe"
"""Name of a sender that is no declared guest."""
DROPS = "drops "
"""Beginning of the claims about forged frames."""
RULES = "rules to "
"""Beginning of the claims about groups, tenants and isolation."""


def cells(claim: Claim) -> tuple[str, str, str, str, str]:
    return claim.network, claim.subject, claim.name, claim.verdict.value, claim.evidence


def folded(claims: Sequence[Claim]) -> list[Claim]:
    """*claims*, those about forged frames that passed as one for each network and sender; those about rules likewise."""
    out: list[Claim] = []
    for (network, subject, start), group in groupby(
            claims, lambda c: (c.network, c.subject, next((s for s in FOLDED if c.verdict is Verdict.PASS and c.name.startswith(s)), ""))):
        found = list(group)
        if start and len(found) > 1:
            name, words = FOLDED[start]
            first, last = (found[i].name.removeprefix(start) for i in (0, -1))
            out.append(Claim(network, subject, f"{start}{name}", Verdict.PASS, words.format(count=len(found), first=first, last=last),
                             sum(c.seconds for c in found)))
        else:
            out += found
    return out


FOLDED = {DROPS: ("forged", "{count} kinds of frames, {first} to {last}, did not arrive; their controls did"),
          RULES: ("all", "to {count} ends, {first} to {last}, nothing forbidden arrived; what is allowed did")}
"""Beginning of claims that share a row -> the rest of the row's name, and its evidence."""


def check_text(report: Report) -> str:
    """The table as plain text, one row a line, and the summary."""
    rows = [COLUMNS, *report.rows()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]
    lines = ["  ".join((*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1])).rstrip()
             for row in rows]
    return "\n".join((*lines, "", report.summary))
