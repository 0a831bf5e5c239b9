"""The rules of nftables as ``nft -j list ruleset`` prints them (libnftables-json(5)). Pure."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from ipaddress import ip_network
from typing import Any, TypeAlias

from kvmnet.doctor.fields import WIDTHS, WORDS, scalar
from kvmnet.doctor.packet import UNKNOWN, Scalar, Special, Value
from kvmnet.records import dataclass, field

Json = Any
Kind = str | tuple[str, ...]
"""Type of a value; of a concatenation the types of its parts."""


@dataclass(frozen=True, slots=True)
class Range:
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Starts:
    """Text that begins so (``eth*``)."""

    text: str


Pattern: TypeAlias = "Scalar | Range | Starts | Special | tuple[Pattern, ...]"
"""What an element of a set stands for; UNKNOWN for what is not understood."""


@dataclass(frozen=True, slots=True)
class Rule:
    handle: int
    statements: Sequence[Json]
    text: str
    """As nft prints it; what stands in for it where the text was not captured."""


@dataclass(slots=True)
class Chain:
    family: str
    table: str
    name: str
    rules: list[Rule] = field(default_factory=list)
    hook: str = ""
    """'' for a chain that is only jumped to."""
    priority: int = 0
    policy: str = "accept"
    type: str = ""
    devices: tuple[str, ...] = ()
    """Of ingress and egress hooks."""
    handle: int = 0

    @property
    def place(self) -> str:
        return f"{self.family} {self.table} {self.name}"


@dataclass(slots=True)
class Elements:
    """What a set or map holds, for quick questions."""

    exact: dict[Value, Json] = field(default_factory=dict)
    patterns: list[tuple[Pattern, Json]] = field(default_factory=list)
    default: list[Json] | None = None
    """Data of the catch-all element, as a list of one; None without."""
    clear: bool = True
    """Whether every element was understood."""

    def find(self, value: Value) -> list[Json] | Special | None:
        """What belongs to *value* as a list of one; None when it is not there, UNKNOWN when nobody can tell."""
        if not self.exact and not self.patterns and self.default is None and self.clear:
            return None
        if unclear(value):
            return UNKNOWN
        if value in self.exact:
            return [self.exact[value]]
        for pattern, data in self.patterns:
            if fits(pattern, value):
                return [data]
        return self.default if self.default is not None or self.clear else UNKNOWN


@dataclass(slots=True)
class Table:
    family: str
    name: str
    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Json] = field(default_factory=dict)
    dormant: bool = False
    indexed: dict[tuple[str, Kind], Elements] = field(default_factory=dict)

    def elements(self, name: str, kind: Kind) -> Elements:
        """Of a named set or map; nothing is known of one that is not there."""
        if (name, kind) not in self.indexed:
            found = self.sets.get(name)
            self.indexed[name, kind] = Elements(clear=False) if found is None else index(found.get("elem", ()), kind)
        return self.indexed[name, kind]


@dataclass(slots=True)
class Ruleset:
    tables: dict[tuple[str, str], Table] = field(default_factory=dict)

    def chains(self) -> Iterator[Chain]:
        for table in self.tables.values():
            if not table.dormant:
                yield from table.chains.values()

    def bases(self, hook: str, families: Iterable[str], device: str = "") -> list[Chain]:
        """Chains at a hook in the order in which the kernel asks them: by priority, of equal ones the newest first
        (nf_hook_entries_grow())."""
        wanted = set(families)
        found = [c for c in self.chains() if c.hook == hook and c.family in wanted and (not c.devices or any(
            device == d or (d.endswith("*") and device.startswith(d[:-1])) for d in c.devices))]
        found.reverse()
        found.sort(key=lambda c: c.priority)
        return found

    def asks(self, word: str, families: Iterable[str]) -> bool:
        """Whether a rule of these families has such an expression or statement (``ct``)."""
        wanted = set(families)
        return any(mentions(rule.statements, word) for c in self.chains() if c.family in wanted for rule in c.rules)


def parse(items: Iterable[Json], text: str = "") -> Ruleset:
    """``items``: the list under ``nftables``. ``text``: of ``nft -a -t list ruleset``, for the words of rules."""
    words, hooked = lines(text), devices_of(text)
    found = Ruleset()
    for item in items:
        kind, body = next(iter(item.items()))
        if kind == "metainfo":
            continue
        family = body.get("family", "")
        if kind == "table":
            flags = body.get("flags", ())
            found.tables[family, body["name"]] = Table(family, body["name"], dormant="dormant" in ([flags] if isinstance(flags, str) else flags))
            continue
        table = found.tables.get((family, body.get("table", "")))
        if table is None:
            continue
        if kind == "chain":
            devices = body.get("dev", body.get("devs", hooked.get((family, table.name, body["name"]), ())))
            table.chains[body["name"]] = Chain(
                family, table.name, body["name"], hook=body.get("hook", ""), priority=int(body.get("prio", 0)), policy=body.get("policy", "accept"),
                type=body.get("type", ""), devices=(devices,) if isinstance(devices, str) else tuple(devices), handle=body.get("handle", 0))
        elif kind in ("set", "map"):
            table.sets[body["name"]] = body
        elif kind == "rule" and body["chain"] in table.chains:
            handle = body.get("handle", 0)
            spelled = words.get((family, table.name, handle)) or f"rule with handle {handle}"
            table.chains[body["chain"]].rules.append(Rule(handle, body.get("expr", ()), spelled))
    return found


TABLE = re.compile(r"table (\S+) (\S+) \{")
HANDLE = re.compile(r"^\s*(.*?) # handle (\d+)$")


def lines(text: str) -> dict[tuple[str, str, int], str]:
    """(family, table, handle) -> rule, of a listing with handles."""
    found: dict[tuple[str, str, int], str] = {}
    family = name = ""
    for line in text.splitlines():
        if heading := TABLE.match(line):
            family, name = heading[1], heading[2]
        elif (rule := HANDLE.match(line)) and not rule[1].endswith("{"):
            found[family, name, int(rule[2])] = rule[1]
    return found


DEVICES = re.compile(r"table (?P<family>\S+) (?P<table>\S+) \{|chain (?P<chain>\S+) \{|hook (?:ingress|egress) devices? (?:= )?(?P<devices>\{[^}]*\}|\S+)")


def devices_of(text: str) -> dict[tuple[str, str, str], tuple[str, ...]]:
    """(family, table, chain) -> the devices that it hangs on, from a listing: nft 1.0.6 leaves them out of its JSON."""
    found: dict[tuple[str, str, str], tuple[str, ...]] = {}
    family = table = chain = ""
    for word in DEVICES.finditer(text):
        if word["table"]:
            family, table = word["family"], word["table"]
        elif word["chain"]:
            chain = word["chain"]
        else:
            found[family, table, chain] = tuple(re.findall(r'[^\s,{}"]+', word["devices"]))
    return found


def mentions(part: Json, word: str) -> bool:
    if isinstance(part, Mapping):
        return word in part or any(mentions(p, word) for p in part.values())
    return isinstance(part, Sequence) and not isinstance(part, str) and any(mentions(p, word) for p in part)


# -- sets ------------------------------------------------------------------------------------------

STATEFUL = frozenset({"limit", "quota", "ct count"})


class Limited(Enum):
    """What stands for an element that is only there within, or only beyond, a limit of its own."""

    WITHIN = "within"
    BEYOND = "beyond"


def limited(body: Json) -> Limited | None:
    """What an element, or a statement, with a rate or a number of flows asks; None for other states (a quota counts for ever)."""
    asked = [body[name] for name in ("limit", "ct count") if isinstance(body.get(name), Mapping)]
    if not asked or STATEFUL & body.keys() - {"limit", "ct count"}:
        return None
    return Limited.BEYOND if any(a.get("inv") for a in asked) else Limited.WITHIN


def index(items: Iterable[Json], kind: Kind) -> Elements:
    """Elements of a set, or pairs of a map."""
    found = Elements()
    for item in items:
        key, data = item if isinstance(item, Sequence) and not isinstance(item, str) and len(item) == 2 else (item, True)
        if isinstance(key, Mapping) and "elem" in key:
            body = key["elem"]
            data = (data is True and limited(body)) or UNKNOWN if STATEFUL & body.keys() else data
            key = body["val"]
        if key == "*":
            found.default = [data]
            continue
        wanted = pattern(key, kind)
        if unclear(wanted):
            found.clear = False
        elif is_exact(wanted):
            found.exact[wanted] = data  # type: ignore[index]
        else:
            found.patterns.append((wanted, data))
    return found


def pattern(item: Json, kind: Kind) -> Pattern:
    """What one element stands for."""
    if isinstance(kind, tuple):
        parts = item.get("concat") if isinstance(item, Mapping) else None
        return tuple(pattern(p, k) for p, k in zip(parts, kind, strict=True)) if parts is not None and len(parts) == len(kind) else UNKNOWN
    if isinstance(item, Mapping):
        if "range" in item:
            first, last = (scalar(end, kind) for end in item["range"])
            return Range(first, last) if isinstance(first, int) and isinstance(last, int) else UNKNOWN
        return prefix(item["prefix"], kind) if "prefix" in item else UNKNOWN
    if isinstance(item, list):
        bits = [WORDS.get(kind, {}).get(word) if isinstance(word, str) else word for word in item]
        return sum(b for b in bits if b is not None) if None not in bits else UNKNOWN
    if isinstance(item, str) and kind == "ifname" and item.endswith("*"):
        return Starts(item[:-1].removesuffix("\\") + ("*" if item.endswith("\\*") else ""))
    found = scalar(item, kind)
    return UNKNOWN if found is None else found


def prefix(item: Json, kind: str) -> Pattern:
    address, length = item["addr"], item["len"]
    if kind in ("ipv4_addr", "ipv6_addr"):
        network = ip_network(f"{address}/{length}", strict=False)
        return Range(int(network.network_address), int(network.broadcast_address))
    width, value = WIDTHS.get(kind), scalar(address, kind)
    if width is None or not isinstance(value, int):
        return UNKNOWN
    return Range(value, value | (1 << width - length) - 1)


def is_exact(wanted: Pattern) -> bool:
    return all(map(is_exact, wanted)) if isinstance(wanted, tuple) else isinstance(wanted, int | str)


def unclear(value: Any) -> bool:
    return any(map(unclear, value)) if isinstance(value, tuple) else isinstance(value, Special)


def fits(wanted: Pattern, value: Value) -> bool:
    """Whether a value, which is clear, is one of those that a pattern stands for."""
    match wanted:
        case Range(first, last):
            return isinstance(value, int) and first <= value <= last
        case Starts(text):
            return isinstance(value, str) and value.startswith(text)
        case tuple():
            return isinstance(value, tuple) and all(map(fits, wanted, value))
    return wanted == value
