"""Guards as nft set elements, nft's listings as guards. No I/O.

A guard is nothing but elements: one line of nft per set, whatever the number of NICs. nft 1.0.6 has
no name for some header fields that the sets are keyed by, so their values are plain integers.
"""
from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network, summarize_address_range
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from typing import Any, TypeAlias

from kvmnet.drivers.nftables import members
from kvmnet.drivers.nftables.resources import COMES_IN, GuardHook, NftTable, NicGroups, NicGuard
from kvmnet.drivers.nftables.tables import GUARD, table_of
from kvmnet.policy.marks import NIC
from kvmnet.records import dataclass, field

ROLE_SETS = {"dhcp-server": "dhcp_server", "router": "router", "querier": "querier"}
MEMORY = ("claimed", "learned")
"""Sets that the kernel fills: which NIC uses which link-local. A new text of the table keeps them."""

FRAME_TYPE = {4: 0x0800, 6: 0x86DD}
MOST_FLOWS = 64
"""Most (MAC, address) pairs of one NIC that get an entry of their own."""

Elements: TypeAlias = dict[str, list[str]]
"""``TABLE SET`` -> its elements, as nft reads them."""


@lru_cache(maxsize=50_000)
def element(guard: NicGuard) -> tuple[tuple[str, str], ...]:
    """The (``TABLE SET``, element) pairs that make *guard*."""
    table = guard.table or GUARD
    return tuple((f"{table} {name}", text) for name, text in _elements(guard))


def _elements(guard: NicGuard) -> Iterator[tuple[str, str]]:
    nic = f'"{guard.name}"'
    if guard.zone:  # 0 when seen: somebody took the element away
        yield "zone", f"{nic} : {guard.zone:#010x}"
    if guard.level == "open":
        yield "open", nic
    if guard.level == "mac":
        yield "loose", nic
    for mac in guard.macs or ():
        yield "mac", f"{nic} . 0x{mac.replace(':', '')}"
    for kind, addresses in (("own", guard.addresses), ("not", guard.forbidden)):
        for text in addresses or ():
            version, value = parse(text)
            yield f"{kind}{version}", f"{nic} . {value:#x}"
    for version, source, pair in flows(guard):
        yield f"flow{version}", f"{nic} . {source:#018x} . {pair:#x}"
    for text in guard.prefixes or ():
        net = ip_network(text)
        yield f"net{net.version}", f"{nic} . {int(net[0]):#x}-{int(net[-1]):#x}"
    for vlan in guard.vlans or ():
        yield "vlans", f"{nic} . {vlan}"
    for role in guard.roles or ():
        yield ROLE_SETS[role], nic


@lru_cache(maxsize=50_000)
def flows(guard: NicGuard) -> tuple[tuple[int, int, int], ...]:
    """(IP version, MAC and frame type, address) of what the guard knows in a single lookup.

    They follow from the MACs and addresses; where there would be many, the slower path serves.
    """
    usual = [parse(a) for a in guard.addresses or () if not a.startswith("fe80:")]
    if len(usual) * len(guard.macs or ()) > MOST_FLOWS:
        return ()
    return tuple((version, int(mac.replace(":", ""), 16) << 16 | FRAME_TYPE[version], address)
                 for mac in guard.macs or () for version, address in usual)


def gather(pairs: Iterable[tuple[str, str]]) -> Elements:
    found: Elements = {}
    for name, text in pairs:
        found.setdefault(name, []).append(text)
    return found


def change(before: Iterable[NicGuard], after: Iterable[NicGuard]) -> tuple[Elements, Elements]:
    """Elements to delete and elements to add, so that *after* stands where *before* stood."""
    before, after = list(before), list(after)
    if not before:  # all the pairs of different guards differ
        return {}, gather(pair for guard in after for pair in element(guard))
    old = {pair for guard in before for pair in element(guard)}
    new = {pair for guard in after for pair in element(guard)}
    return gather(sorted(old - new)), gather(sorted(new - old))


def element_lines(verb: str, elements: Mapping[str, Iterable[str]]) -> list[str]:
    """One nft command per set: *verb* is add or delete."""
    return [f"{verb} element {name} {{ {', '.join(texts)} }}" for name, texts in elements.items() if texts]


def within(tables: Collection[str], elements: Elements) -> Elements:
    """The part of *elements* that lies in *tables*."""
    return {name: texts for name, texts in elements.items() if table_of(name) in tables}


DEVICE_CHAIN = re.compile(r"^(egress|ingress)_(\S+)$")
POLICIES = {"egress": "drop", "ingress": "accept"}
HOOK_PRIORITY = -350


def chain_name(hook: GuardHook) -> str:
    """Name of a hook's chain, from which the device can be read: nft takes few signs there."""
    device = re.sub(r"[^A-Za-z0-9-]", lambda m: "".join(f"_{b:02x}" for b in m[0].encode()), hook.name.removesuffix(COMES_IN))
    return f"{hook.side}_{device}"


def hook_lines(hook: GuardHook) -> list[str]:
    """Commands that make a hook. The kernel must know the device (from Linux 6.16 on it need not yet)."""
    return [f'table {hook.table} {{ chain {chain_name(hook)} {{ type filter hook {hook.side} device "{hook.dev}" '
            f"priority {HOOK_PRIORITY}; policy {POLICIES[hook.side or 'egress']}; goto {hook.to}; }}; }}"]


def unhook_lines(hook: GuardHook) -> list[str]:
    return [f"delete chain {hook.table} {chain_name(hook)}"]


def take_hooks(table: str, body: str) -> tuple[str, list[GuardHook]]:
    """A listing of *table* without the chains that hang on devices, and these. One that is not as we make them
    hangs on nothing: it is made anew."""
    found: list[GuardHook] = []

    def one(match: re.Match[str]) -> str:
        words = DEVICE_CHAIN.match(match[1])
        if words is None:
            return match[0]
        device = re.sub(r"_([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), words[2])
        head, *rules = (line.strip() for line in match[2].splitlines() if line.strip())
        whole = (f'type filter hook {words[1]} device "{device}" priority {HOOK_PRIORITY}; '
                 f"policy {POLICIES[words[1]]};")
        to = rules[0].removeprefix("goto ") if len(rules) == 1 and rules[0].startswith("goto ") else ""
        found.append(GuardHook(name=device + (COMES_IN if words[1] == "ingress" else ""), table=table, dev=device if head == whole else "", to=to, side=words[1],
                               guard=device if words[1] == "egress" else ""))
        return ""
    rest = LISTED_CHAIN.sub(one, body)
    return (rest.rstrip("\n") + "\n" if found else body), found


def table_lines(table: NftTable) -> list[str]:
    """Commands that put *table* in the place of whatever bears its name, in one transaction."""
    return [*removal_lines(table.name), f"table {table.name} {{", *(table.text or "").splitlines(), "}"]


def removal_lines(name: str) -> list[str]:
    """Commands that remove a table, also when there is none."""
    return [f"table {name} {{ }}", f"delete table {name}"]


@dataclass
class Listing:
    """What ``nft -j list table`` told of one of the guard's tables, or of both."""

    guards: dict[str, NicGuard] = field(default_factory=dict)
    parts: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """Tap -> set -> the elements that its guard was read from."""
    memory: Elements = field(default_factory=dict)
    """Elements of the sets that the kernel fills, with their remaining time."""
    flows_hold: bool = True
    """The (MAC, address) pairs are those that follow from the guards."""
    dropped: dict[str, dict[int, int]] = field(default_factory=dict)
    """Tap -> number of the reason -> frames."""
    members: set[tuple[str, str]] = field(default_factory=set)
    """(``TABLE SET``, element) of groups, tenants, limits and address sets."""


def read_listing(document: Mapping[str, Any], before: Listing | None = None, table: str = GUARD) -> Listing:
    """Guards, learned link-locals and counters out of nft's JSON of *table*. A guard whose elements are those of
    *before* is taken from there, instead of being read again."""
    sets: dict[str, list[Any]] = {}
    for entry in document["nftables"]:
        body = entry.get("set") or entry.get("map")
        if body and f"{body['family']} {body['table']}" == table:
            sets[body["name"]] = body.get("elem", [])
    facts: dict[str, dict[str, list[Any]]] = {}
    for name in PARTS:
        for item in sets.get(name, ()):
            nic, value = item["concat"] if isinstance(item, dict) else item if isinstance(item, list) else (item, "")
            facts.setdefault(nic, {}).setdefault(name, []).append(value)
    known, known_parts = (before.guards, before.parts) if before else ({}, {})
    guards = {nic: known[nic] if known_parts.get(nic) == parts and known[nic].table == table
              else read_guard(nic, parts, table) for nic, parts in facts.items()}
    listed = {(version, nic, number(mac), number(address)) for version in (4, 6)
              for nic, mac, address in (e["concat"] for e in sets.get(f"flow{version}", ()))}
    expected = {(version, g.name, mac, address) for g in guards.values() for version, mac, address in flows(g)}
    return Listing(guards=guards, parts=facts, flows_hold=listed == expected,
                   memory={f"{table} {name}": [remembered(e["elem"]) for e in sets.get(name, ()) if "elem" in e]
                           for name in MEMORY},
                   dropped=read_dropped(sets.get("dropped", ())), members=members.listed(table, sets))


PARTS = ("zone", "open", "loose", "mac", "own4", "own6", "not4", "not6", "net4", "net6", "vlans",
         *ROLE_SETS.values())


def both(one: Listing, other: Listing) -> Listing:
    """Two tables' listings as one."""
    return Listing({**one.guards, **other.guards}, {**one.parts, **other.parts}, {**one.memory, **other.memory},
                   one.flows_hold and other.flows_hold, {**one.dropped, **other.dropped}, one.members | other.members)


def read_guard(nic: str, parts: Mapping[str, list[Any]], table: str = GUARD) -> NicGuard:
    level = "open" if "open" in parts else "mac" if "loose" in parts else "full"
    return NicGuard(
        name=nic, table=table, level=level,
        macs=tuple(sorted(mac_text(number(v)) for v in parts.get("mac", ()))),
        addresses=hosts(parts, "own"), forbidden=hosts(parts, "not"),
        prefixes=tuple(str(net) for net in sorted(
            (net for kind, cls in (("net4", IPv4Address), ("net6", IPv6Address)) for v in parts.get(kind, ())
             for net in networks(v, cls)), key=lambda n: (n.version, int(n.network_address), n.prefixlen))),
        vlans=tuple(sorted(number(v) for v in parts.get("vlans", ()))),
        roles=tuple(sorted(role for role, name in ROLE_SETS.items() if name in parts)),
        zone=number(parts["zone"][0]) if "zone" in parts else 0)


def hosts(parts: Mapping[str, list[Any]], kind: str) -> tuple[str, ...]:
    return (*(inet_ntop(AF_INET, n.to_bytes(4, "big")) for n in sorted(map(number, parts.get(kind + "4", ())))),
            *(text6(n) for n in sorted(map(number, parts.get(kind + "6", ())))))


def text6(value: int) -> str:
    """As ``ipaddress`` writes it, which inet_ntop does too unless it looks like an embedded IPv4 address."""
    return inet_ntop(AF_INET6, value.to_bytes(16, "big")) if value >> 48 else str(IPv6Address(value))


def parse(text: str) -> tuple[int, int]:
    """(version, number) of an address; several times as fast as ``ipaddress``."""
    version, family = (6, AF_INET6) if ":" in text else (4, AF_INET)
    return version, int.from_bytes(inet_pton(family, text), "big")


def networks(value: Any, cls: type[IPv4Address] | type[IPv6Address]) -> Iterable[Any]:
    """The prefixes of one interval element."""
    if isinstance(value, dict) and "prefix" in value:
        return [ip_network((value["prefix"]["addr"], value["prefix"]["len"]))]
    ends = value["range"] if isinstance(value, dict) else str(value).split("-")
    first, last = (cls(number(end)) if "." not in str(end) else cls(end) for end in (ends[0], ends[-1]))
    return summarize_address_range(first, last)


def read_memory(documents: Iterable[Mapping[str, Any]]) -> Elements:
    """The same of the sets in MEMORY alone, each from its own listing."""
    return {f"{entry['set']['family']} {entry['set']['table']} {entry['set']['name']}":
            [remembered(e["elem"]) for e in entry["set"].get("elem", ())]
            for document in documents for entry in document["nftables"] if "set" in entry}


def number(value: Any) -> int:
    """nft prints integers of more than 64 bits as hexadecimal strings."""
    return value if isinstance(value, int) else int(value, 0)


def mac_text(value: int) -> str:
    return value.to_bytes(6, "big").hex(":")


def remembered(item: Mapping[str, Any]) -> str:
    """One element of a set with timeouts, with the time that it has left."""
    first, second = item["val"]["concat"]
    key = f'"{first}"' if isinstance(first, str) and not first.startswith("0x") else f"{first}"
    return f"{key} . {number(second):#x} timeout {item.get('timeout', 86400)}s expires {max(1, item.get('expires', 1))}s"


def read_dropped(elements: Iterable[Mapping[str, Any]]) -> dict[str, dict[int, int]]:
    found: dict[str, dict[int, int]] = {}
    for entry in elements:
        item = entry["elem"]
        nic, reason = item["val"]["concat"]
        found.setdefault(nic, {})[number(reason)] = item.get("counter", {}).get("packets", 0)
    return found


def read_withheld(document: Mapping[str, Any], items: Iterable[members.Member]) -> dict[str, dict[int, int]]:
    """The same of what the host did not route to a NIC: the key is the reason and the NIC's number."""
    taps = {item.number: item.name for item in items if isinstance(item, NicGroups)}
    found: dict[str, dict[int, int]] = {}
    for item in (e["elem"] for entry in document["nftables"] for e in entry.get("set", {}).get("elem", ())):
        if tap := taps.get(item["val"] & NIC):
            found.setdefault(tap, {})[item["val"] >> 16] = item.get("counter", {}).get("packets", 0)
    return found


def read_passed(document: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Packets and bytes by the comment that a rule bears, summed over the rules that bear the same."""
    found: dict[str, tuple[int, int]] = {}
    for entry in document["nftables"]:
        rule = entry.get("rule", {})
        for part in rule.get("expr", ()) if "comment" in rule else ():
            if counter := part.get("counter"):
                packets, octets = found.get(rule["comment"], (0, 0))
                found[rule["comment"]] = packets + counter["packets"], octets + counter["bytes"]
    return found


BLOCK = re.compile(r"^table (\S+) (\S+) \{(?: #[^\n]*)?\n(.*?)^\}\n?", re.M | re.S)
BRACES = re.compile(r"(?<=elements = )\{([^{}]*)\}|\{([^{}\n]*)\}")


def read_tables(listing: str) -> dict[str, str]:
    """``FAMILY NAME`` -> the lines between the braces, from ``nft list ruleset``."""
    return {f"{m[1]} {m[2]}": m[3] for m in BLOCK.finditer(listing)}


def canonical(body: str) -> str:
    """A table's listing with its parts, and the elements of every set, in one order: the kernel's hashes have none,
    and what was added to a standing table is listed last."""
    def in_order(match: re.Match[str]) -> str:
        items = sorted(" ".join(item.split()) for item in (match[1] or match[2] or "").split(",") if item.strip())
        return "{ " + ", ".join(items) + " }"
    parts = BRACES.sub(in_order, body).rstrip("\n").split("\n\n")
    return "\n\n".join(sorted(parts, key=lambda part: (part.startswith("\tchain "), part))) + "\n"


LISTED_CHAIN = re.compile(r"^\tchain (\S+) \{\n(.*?)^\t\}\n\n?", re.M | re.S)
CHAIN = re.compile(r"^\tchain (\S+) \{\n(.*?)^\t\}\n\n?", re.M | re.S)
CHAIN = re.compile(r"^\tchain (\S+) \{\n(.*?)^\t\}", re.M | re.S)
HOOK = re.compile(r"type (\S+) hook (\S+) (?:device \S+ )?priority ([^;]+); policy (\w+);")


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain of somebody else's firewall that packets pass."""

    table: str
    chain: str
    hook: str
    priority: str
    """As nft prints it: a number or a name such as ``filter - 5``."""
    policy: str
    """``drop``: whatever the chain does not accept is lost."""
    rules: tuple[str, ...]


def base_chains(table: NftTable) -> tuple[BaseChain, ...]:
    """The hooks of a table, foreign ones too: for facts and the doctor."""
    found = []
    for chain in CHAIN.finditer(table.text or ""):
        if hook := HOOK.search(chain[2]):
            rules = tuple(line.strip() for line in chain[2].splitlines()[1:] if line.strip())
            found.append(BaseChain(table.name, chain[1], hook[2], hook[3], hook[4], rules))
    return tuple(found)
