"""Queues that frames wait in before a device sends them: what they are, and what that means. Pure."""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kvmnet.drivers.tc.resources import is_ours
from kvmnet.spec.disciplines import queued_nics
from kvmnet.spec.knobs import Profile
from kvmnet.spec.models import Spec
from kvmnet.spec.networks import Mode
from kvmnet.tune.proposals import Proposal

FAIR = ("fq_codel", "fq", "cake", "fq_pie", "sfq")
LINES = ("pfifo_fast", "pfifo", "bfifo")
SEVERAL = ("mq", "mqprio")
"""A queue of the device each, with a discipline of its own below."""


def queueing(devices: Iterable[str], listed: Iterable[Mapping[str, Any]], lacks_fair: str) -> Iterator[tuple[str, str, str]]:
    """(what, value, what it means here) of each device. *listed*: rows of ``tc -json qdisc show``. *lacks_fair*: why the kernel has no
    fq_codel, '' when it has."""
    rows = list(listed)
    for dev in devices:
        own = [r for r in rows if r.get("dev") == dev and r.get("kind") not in ("ingress", "clsact")]
        roots = [r for r in own if r.get("root")]
        if not roots:
            continue
        kind, below = roots[0]["kind"], sorted({r["kind"] for r in own if not r.get("root")})
        value = f"{kind} of {' and '.join(below)}" if kind in SEVERAL and below else kind
        yield f"{dev}: queueing", value, meaning(roots[0], below if kind in SEVERAL else [kind], lacks_fair)


def meaning(root: Mapping[str, Any], kinds: Iterable[str], lacks_fair: str) -> str:
    kinds = set(kinds)
    if is_ours(root.get("handle", "")):
        return "as the document says"
    if kinds <= {"noqueue"}:
        return "frames are handed on at once: right for virtual devices, which have no wire to wait for"
    if kinds <= set(FAIR):
        return "flows take turns: a bulk transfer delays others little"
    if kinds <= set(LINES):
        if lacks_fair:
            return f"one line for all flows, where a bulk transfer delays others; nothing better here: {lacks_fair}"
        below = ", of each queue" if root["kind"] in SEVERAL else ""
        return (f"one line for all flows, where a bulk transfer delays others; fq_codel lets them take turns{below}: qdisc: fq_codel of the "
                "uplink, or a rate of its networks")
    return "somebody's own choice"


def queues(profile: Profile, spec: Spec, listed: Iterable[Mapping[str, Any]], lacks_fair: str) -> Iterator[Proposal]:
    """Uplinks whose NIC has one line for all flows. A NIC of several queues is left alone: one discipline for all of them has one lock."""
    if profile is Profile.THROUGHPUT:
        return
    lines = {r.get("dev"): r["kind"] for r in listed if r.get("root") and r.get("kind") in LINES and not is_ours(r.get("handle", "0:"))}
    shared = {n.uplink for n in spec.networks.values() if n.rate.out and n.mode in (Mode.BRIDGE, Mode.MACVTAP)}
    for name, uplink in spec.uplinks.items():
        found = next((lines[nic] for nic in queued_nics(uplink) if nic in lines), "")
        if found and not uplink.qdisc and name not in shared:
            yield Proposal(f"uplinks.{name}.qdisc", found, "fq_codel", "flows take turns, and none waits longer than some milliseconds: a bulk transfer delays others little",
                           "RFC 8290", "frames that wait too long are dropped, which TCP takes for a sign to send less; brings nothing where the wire is never full",
                           lacks_fair)
