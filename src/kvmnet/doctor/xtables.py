"""Rules of iptables (legacy, and those of iptables-nft that nft shows only by halves) as chains like those of nftables. Pure.

Input is what iptables-save prints (iptables-save(8), iptables-extensions(8)). Matches and targets that are not known here become
``xt``, of which the judge says that nobody can tell.
"""
from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kvmnet.doctor.ruleset import Chain, Rule, Ruleset, Table

Json = Any
PRIORITIES: Mapping[tuple[str, str], int] = {
    **{("raw", h): -300 for h in ("prerouting", "output")}, **{("mangle", h): -150 for h in ("prerouting", "input", "forward", "output", "postrouting")},
    **{("filter", h): 0 for h in ("input", "forward", "output")}, **{("security", h): 50 for h in ("input", "forward", "output")},
    ("nat", "prerouting"): -100, ("nat", "output"): -100, ("nat", "input"): 100, ("nat", "postrouting"): 100,
}
"""(table, hook) -> its priority (linux/netfilter_ipv4.h)."""
LEGACY = "iptables:"
"""Begins the name of a table that is not nft's."""
QUIET_MATCHES = frozenset({"comment", "tcp", "udp", "icmp", "icmp6", "state", "conntrack", "mark", "multiport", "connmark", "iprange"})
"""-m of these is nothing by itself: their options are judged."""
QUIET_TARGETS = frozenset({"LOG", "NFLOG", "ULOG", "CHECKSUM", "TCPMSS", "TRACE", "CLASSIFY", "SECMARK", "CONNSECMARK", "TTL", "HL", "ECN", "AUDIT", "LED", "NOOP"})
"""Targets after which the next rule is asked, and that change nothing that rules ask for later, or hardly."""
COUNTERS = re.compile(r"^\[(\d+):(\d+)\] ")


def with_xtables(ruleset: Ruleset, texts: Mapping[str, str]) -> Ruleset:
    """*ruleset*, with the legacy tables, and with better words for tables of iptables-nft. ``texts``: of a capture."""
    for name, text in texts.items():
        family = name.removeprefix("nft-")
        for table in parse(text, family, "" if name.startswith("nft-") else LEGACY):
            if not name.startswith("nft-"):
                ruleset.tables[family, table.name] = table
            elif (shown := ruleset.tables.get((family, table.name))) and shows_halves(shown):
                for chain in shown.chains.values():
                    if chain.name in table.chains:
                        chain.rules = table.chains[chain.name].rules
        if text.startswith("# unknown") and family in ("ip", "ip6"):
            table = unknown(family, text)
            ruleset.tables[family, table.name] = table
    return ruleset


def shows_halves(table: Table) -> bool:
    return any("xt" in s for c in table.chains.values() for r in c.rules for s in r.statements if isinstance(s, Mapping))


def unknown(family: str, text: str) -> Table:
    """Tables that are in use and could not be printed: they may drop anything."""
    table = Table(family, f"{LEGACY}filter")
    for hook in ("input", "forward", "output"):
        rule = Rule(1, ({"xt": {"type": "target", "name": "?"}},), text.strip("# \n"))
        table.chains[hook.upper()] = Chain(family, table.name, hook.upper(), [rule], hook=hook, type="filter")
    return table


def parse(text: str, family: str, prefix: str) -> Iterator[Table]:
    """The tables of iptables-save."""
    table: Table | None = None
    for line in text.splitlines():
        if line.startswith("*"):
            table = Table(family, prefix + line[1:].strip())
        elif line.startswith(":") and table:
            name, policy = line[1:].split()[:2]
            hook = name.lower() if policy != "-" else ""
            base = table.name.removeprefix(prefix)
            table.chains[name] = Chain(family, table.name, name, hook=hook, priority=PRIORITIES.get((base, hook), 0), policy=policy.lower() if hook else "accept",
                                       type="nat" if base == "nat" else "filter")
        elif line.startswith("COMMIT") and table:
            yield table
            table = None
        elif table and "-A " in line:
            counted = COUNTERS.match(line)
            words = shlex.split(COUNTERS.sub("", line))
            chain = table.chains.get(words[1])
            if chain:
                spelled = COUNTERS.sub("", line)
                more = ({"counter": {"packets": int(counted[1]), "bytes": int(counted[2])}},) if counted else ()
                chain.rules.append(Rule(len(chain.rules) + 1, (*more, *Reading(words[2:], family).statements()), spelled))


class Reading:
    """The words of one rule, from left to right."""

    def __init__(self, words: list[str], family: str):
        self.words, self.family = words, family
        self.protocol = ""
        self.found: list[Json] = []
        self.last: list[Json] = []
        self.options: dict[str, str] = {}
        """Of the target."""

    def take(self) -> str:
        return self.words.pop(0) if self.words else ""

    def statements(self) -> list[Json]:
        negated = False
        while self.words:
            word = self.take()
            if word == "!":
                negated = True
                continue
            reader = READERS.get(word)
            if reader:
                reader(self, negated)
            elif word.startswith("-"):
                values = []
                while self.words and not self.words[0].startswith("-") and self.words[0] != "!":
                    values.append(self.take())
                self.unknown(word)
            negated = False
        return self.found + self.last

    def unknown(self, what: str) -> None:
        self.found.append({"xt": {"type": "match", "name": what.lstrip("-")}})

    def add(self, left: Json, right: Json, negated: bool, op: str = "==") -> None:
        self.found.append({"match": {"op": "!=" if negated else op, "left": left, "right": right}})

    # -- matches -----------------------------------------------------------------------------------

    def device(self, key: str) -> Callable[[bool], None]:
        def read(negated: bool) -> None:
            name = self.take()
            if name != "+":
                self.add({"meta": {"key": key}}, name[:-1] + "*" if name.endswith("+") else name, negated)
        return read

    def address(self, field: str, negated: bool) -> None:
        text, _, length = self.take().partition("/")
        whole = "128" if ":" in text else "32"
        if "." in length:
            length = str(sum(bin(int(part)).count("1") for part in length.split(".")))
        right: Json = text if length in ("", whole) else {"prefix": {"addr": text, "len": int(length)}}
        self.add({"payload": {"protocol": "ip6" if self.family == "ip6" else "ip", "field": field}}, right, negated)

    def proto(self, negated: bool) -> None:
        self.protocol = {"icmpv6": "ipv6-icmp", "icmp6": "ipv6-icmp"}.get(name := self.take(), name)
        if self.protocol not in ("all", "0"):
            self.add({"meta": {"key": "l4proto"}}, int(self.protocol) if self.protocol.isdigit() else self.protocol, negated)

    def ports(self, field: str, negated: bool) -> None:
        parts = [port(p) for p in self.take().split(",")]
        if None in parts:
            self.unknown(field)
            return
        left = {"payload": {"protocol": "th", "field": field}}
        self.add(left, parts[0] if len(parts) == 1 else {"set": parts}, negated)

    def either(self, negated: bool) -> None:
        self.take()
        self.unknown("ports")

    def state(self, negated: bool) -> None:
        states = [s.lower() for s in self.take().split(",")]
        if set(states) - {"new", "established", "related", "invalid", "untracked"}:
            self.unknown("ctstate")
            return
        self.add({"ct": {"key": "state"}}, {"set": states}, negated)

    def marked(self, key: Json, negated: bool) -> None:
        value, _, mask = self.take().partition("/")
        left = {"&": [key, int(mask, 0)]} if mask else key
        self.add(left, int(value, 0), negated)

    def icmp(self, negated: bool) -> None:
        kind, _, code = self.take().partition("/")
        name = "icmpv6" if self.family == "ip6" else "icmp"
        self.add({"payload": {"protocol": name, "field": "type"}}, int(kind) if kind.isdigit() else kind, negated)
        if code:
            self.add({"payload": {"protocol": name, "field": "code"}}, int(code), negated)

    def flags(self, negated: bool) -> None:
        mask, wanted = self.take().lower().split(","), self.take().lower()
        every = ["fin", "syn", "rst", "psh", "ack", "urg"]
        self.add({"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, every if mask == ["all"] else mask]}, 0 if wanted == "none" else every if wanted == "all" else wanted.split(","), negated)

    def kind_of_address(self, side: str, negated: bool) -> None:
        self.add({"fib": {"result": "type", "flags": [side]}}, {"set": [w.lower() for w in self.take().split(",")]}, negated)

    def module(self, negated: bool) -> None:
        name = self.take()
        if name not in QUIET_MATCHES and name != "addrtype":
            self.unknown(name)

    # -- targets -----------------------------------------------------------------------------------

    def target(self, negated: bool) -> None:
        self.jump("jump")

    def goto(self, negated: bool) -> None:
        self.jump("goto")

    def jump(self, how: str) -> None:
        name = self.take()
        rest, self.words = self.words, []
        options = dict(zip(rest[::2], rest[1::2], strict=False))
        if name in ("ACCEPT", "DROP", "RETURN", "REJECT"):
            self.last = [{name.lower(): None}]
        elif name == "MASQUERADE":
            self.last = [{"masquerade": None}]
        elif name in ("DNAT", "SNAT", "REDIRECT"):
            self.last = [translation(name, options)]
        elif name == "MARK":
            self.last = [marking({"meta": {"key": "mark"}}, options)]
        elif name == "NOTRACK" or (name == "CT" and "--notrack" in rest):
            self.last = [{"notrack": None}]
        elif name in QUIET_TARGETS:
            self.last = [{"log": None}]
        elif name.isupper() and name in KNOWN_TARGETS:
            self.last = [{"xt": {"type": "target", "name": name}}]
        else:
            self.last = [{how: {"target": name}}]


KNOWN_TARGETS = frozenset({"CONNMARK", "CT", "NFQUEUE", "QUEUE", "SET", "TPROXY", "SYNPROXY", "NETMAP", "DSCP", "TOS", "TEE", "CLUSTERIP", "RATEEST", "IDLETIMER", "HMARK", "SNPT", "DNPT"})


def port(text: str) -> Json:
    first, colon, last = text.partition(":")
    if not (first.isdigit() or not first) or not (last.isdigit() or not last):
        return None
    return {"range": [int(first or 0), int(last or 65535)]} if colon else int(first)


def translation(name: str, options: Mapping[str, str]) -> Json:
    """``--to-destination 10.0.0.5:8080``; a range of addresses is one that nobody can tell."""
    text = options.get("--to-destination", options.get("--to-source", ""))
    if name == "REDIRECT":
        number = options.get("--to-ports", "")
        return {"redirect": {"port": int(number)} if number.isdigit() else {}}
    address, port_text = text, ""
    if text.startswith("["):
        address, _, port_text = text[1:].partition("]")
        port_text = port_text.lstrip(":")
    elif text.count(":") == 1:
        address, _, port_text = text.partition(":")
    body: Json = {"addr": address if "-" not in address else {"numgen": {}}} if address else {}
    if port_text.isdigit():
        body["port"] = int(port_text)
    return {name.lower(): body}


def marking(key: Json, options: Mapping[str, str]) -> Json:
    """``--set-xmark value/mask``: the mask's bits go, then the value is combined by exclusive or."""
    text = options.get("--set-xmark") or options.get("--set-mark")
    if text is None:
        return {"xt": {"type": "target", "name": "MARK"}}
    value, _, mask = text.partition("/")
    keep = ~int(mask or "0xffffffff", 0) & 0xFFFFFFFF
    return {"mangle": {"key": key, "value": {"^": [{"&": [key, keep]}, int(value, 0)]}}}


READERS: Mapping[str, Callable[[Reading, bool], None]] = {
    "-i": lambda r, n: r.device("iifname")(n), "-o": lambda r, n: r.device("oifname")(n), "-s": lambda r, n: r.address("saddr", n), "-d": lambda r, n: r.address("daddr", n),
    "-p": Reading.proto, "--dport": lambda r, n: r.ports("dport", n), "--sport": lambda r, n: r.ports("sport", n), "--dports": lambda r, n: r.ports("dport", n),
    "--sports": lambda r, n: r.ports("sport", n), "--ports": Reading.either, "--state": Reading.state, "--ctstate": Reading.state,
    "--mark": lambda r, n: r.marked({"meta": {"key": "mark"}}, n), "--icmp-type": Reading.icmp, "--icmpv6-type": Reading.icmp, "--tcp-flags": Reading.flags,
    "--dst-type": lambda r, n: r.kind_of_address("daddr", n), "--src-type": lambda r, n: r.kind_of_address("saddr", n), "-m": Reading.module,
    "--comment": lambda r, n: r.words.__delitem__(0), "-j": Reading.target, "-g": Reading.goto,
}
"""Option -> what it means. Their order in a rule does not matter for what it matches."""
