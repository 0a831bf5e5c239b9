"""From words to the entry that they mean, and from an entry and a host to an answer. Pure."""
from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches

from kvmnet.doctor.explain.cures import CURES
from kvmnet.doctor.explain.entry import Answer, Cause, Entry, Holds, Judged
from kvmnet.doctor.explain.errors import ERRORS
from kvmnet.doctor.explain.hypervisor import LIBVIRT, QEMU
from kvmnet.doctor.explain.kernel_log import LINES
from kvmnet.doctor.explain.openvswitch import OVN, OVS
from kvmnet.doctor.explain.own import CODES, FINDINGS
from kvmnet.doctor.explain.paths import PATHS
from kvmnet.doctor.explain.services import DNSMASQ, FIREWALL
from kvmnet.doctor.view import View
from kvmnet.records import dataclass

ENTRIES: tuple[Entry, ...] = (*CODES, *FINDINGS, *PATHS, *CURES, *LINES, *QEMU, *LIBVIRT, *DNSMASQ, *OVS, *OVN, *FIREWALL, *ERRORS)
"""Everything that is known; of equally good matches the earlier one counts."""
PLACES = (r"\bdev(?:ice)? ['\"]?(?P<dev>[\w.-]+)", r"\((?P<dev>tap[\w.-]*|vnet\d+|kvt-[\w.-]+)\)", r"\b(?P<dev>tap\d+|vnet\d+|kv[bt]-[\w.-]+|virbr\d+|br\d+|eth\d+|en[ospx]\w*\d\w*|wl\w*\d\w*|bond\d+)\b")
"""Where a message names a device."""
ORDER = tuple(Holds)
NEAR = 4
"""Names offered for words that are not known."""


@dataclass(frozen=True, slots=True)
class Hit:
    entry: Entry
    length: int
    """Characters of the message that it accounts for."""
    named: Mapping[str, str]


def hits(text: str, entries: Iterable[Entry] = ENTRIES) -> list[Hit]:
    """Entries whose words are in *text*, the one that accounts for the most of it first."""
    text = " ".join(text.split())
    found = []
    for entry in entries:
        best: re.Match[str] | None = None
        for pattern in (*entry.says, rf"(?<!\w){re.escape(entry.name)}(?!\w)"):
            for match in re.finditer(pattern, text, re.I):
                if best is None or len(match[0]) > len(best[0]):
                    best = match
        if best is not None:
            found.append(Hit(entry, len(best[0]), {k: v for k, v in best.groupdict().items() if v}))
    return sorted(found, key=lambda hit: -hit.length)


def explain(text: str, view: View | None, entries: Iterable[Entry] = ENTRIES) -> Answer | None:
    """What *text* means on the host of *view*; None when it is not known. Without a view no cause is looked at."""
    found = hits(text, entries)
    if not found:
        return None
    named = device_in(text) | dict(found[0].named)
    entry = found[0].entry
    judged = [judge(cause, view, named) for cause in entry.causes]
    judged.sort(key=lambda cause: ORDER.index(cause.holds) if cause.holds is not Holds.UNKNOWN else ORDER.index(Holds.POSSIBLE))
    return Answer(entry, named, tuple(judged), tuple(hit.entry.name for hit in found[1:]))


def judge(cause: Cause, view: View | None, named: Mapping[str, str]) -> Judged:
    cure = tuple(filled(command, named) for command in cause.cure)
    if view is None or cause.look is None:
        return Judged(cause.what, cure, Holds.UNKNOWN, "")
    sign = cause.look(view, named)
    return Judged(cause.what, cure, sign.holds, sign.evidence)


def filled(command: str, named: Mapping[str, str]) -> str:
    """*command* with what the message names; what it does not name stays in capitals."""
    return re.sub(r"\{(\w+)\}", lambda m: named.get(m[1]) or m[1].upper(), command)


def device_in(text: str) -> dict[str, str]:
    for pattern in PLACES:
        if found := re.search(pattern, text):
            return {"dev": found["dev"]}
    return {}


def nearest(text: str) -> list[str]:
    """Names of entries that look most like *text*."""
    names = {entry.name.lower(): entry.name for entry in ENTRIES}
    text = text.lower()
    words = set(re.findall(r"[a-z0-9_]{3,}", text))
    shared = sorted(names, key=lambda name: (-len(words & set(re.findall(r"[a-z0-9_]{3,}", name))), -SequenceMatcher(None, text, name).ratio()))
    close = get_close_matches(text, names, NEAR, 0.5)
    picked = [*close, *(name for name in shared if words & set(re.findall(r"[a-z0-9_]{3,}", name)))]
    return [names[name] for name in dict.fromkeys(picked or shared)][:NEAR]


def plain_error(text: str) -> str:
    """What the C library says of an error code that has no entry; '' when it is none."""
    word = text.strip().upper()
    number = getattr(errno, word, None) if re.fullmatch(r"E[A-Z0-9]+", word) else None
    if number is None:
        number = next((n for n in errno.errorcode if os.strerror(n).lower() == text.strip().lower()), None)
    return f"{errno.errorcode[number]} ({number}): {os.strerror(number)}" if number else ""
