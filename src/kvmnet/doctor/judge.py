"""What rules say to one packet: accept, drop, or that nobody can tell. Pure.

An accept ends the chain at its hook only; every other chain at that hook and at later ones judges again, and each may
drop (nft(8), VERDICT STATEMENTS). What this model does not know makes no verdict: a rule of which it is not clear
whether it matches is followed both ways, and where the ways lead to different ends the verdict is *unknown*, with
the rule that made it so.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from kvmnet.doctor.expressions import holding, kind_of, value
from kvmnet.doctor.fields import BITMASKS, FIELDS
from kvmnet.doctor.packet import ABSENT, STATES, UNKNOWN, Context, Special, Tracked, Value
from kvmnet.doctor.ruleset import (
    Chain,
    Kind,
    Limited,
    Rule,
    Ruleset,
    Table,
    fits,
    limited,
    pattern,
    unclear,
)
from kvmnet.records import dataclass, field

Json = Any
DEPTH = 16
"""Most chains within chains (NFT_JUMP_STACK_SIZE)."""


class Verdict(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Step:
    """A rule or policy that had a word."""

    hook: str
    place: str
    """``inet filter forward``."""
    priority: int
    text: str
    handle: int
    """0 of a policy."""
    verdict: str
    """accept, drop, reject, unknown; ``LIMIT`` where a limit was taken as not reached; or what was changed: ``dnat to ...``."""
    comes: str = ""
    """The chain at the hook from which a jump led here; '' where it is the same."""


@dataclass(slots=True)
class Judgement:
    verdict: Verdict
    steps: list[Step] = field(default_factory=list)
    """In order; the last one that ends the packet, or could, is why."""
    changed: list[Json] = field(default_factory=list)
    """Statements of NAT that apply: (what, body, table)."""


Matched = bool | Special
COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge}
QUIET = frozenset({"counter", "log", "comment", "last", "continue"})
"""Statements that pass every packet on as it is; what stands behind ``continue`` in a rule is done, too."""
QUIET_XT = frozenset({"comment", "LOG", "NFLOG", "CHECKSUM", "TCPMSS", "TRACE"})
"""Extensions of xtables that pass every packet on."""
UNSURE = frozenset({"limit", "quota", "ct count", "xt", "connlimit", "numgen", "meter"})
"""Statements that let a packet pass or not by what happened before, or that nft does not tell."""
LIMIT = "limit"
ENDS = {"accept": Verdict.ACCEPT, "unknown": Verdict.UNKNOWN}
"""What the last word means; every other one loses the packet."""
NAT = frozenset({"dnat", "snat", "masquerade", "redirect"})


class Walk:
    """One packet in one chain at a hook."""

    def __init__(self, table: Table, base: Chain, context: Context):
        self.table, self.base, self.context = table, base, context
        self.judgement = Judgement(Verdict.ACCEPT)
        self.possible: list[str] = []
        """Verdicts of rules that may match."""
        self.reckoned = False
        """Whether the rule was judged as if a limit were not reached."""

    def run(self) -> Judgement:
        end = self.chain(self.base, certain=True, depth=0)
        if end is None:
            self.judgement.steps.append(self.step(self.base, None, self.base.policy))
            end = self.base.policy
        final = ENDS.get(end, Verdict.DROP)
        self.judgement.verdict = final if {ENDS.get(v, Verdict.DROP) for v in self.possible} <= {final} else Verdict.UNKNOWN
        return self.judgement

    def step(self, chain: Chain, rule: Rule | None, verdict: str) -> Step:
        return Step(self.base.hook, chain.place, self.base.priority, rule.text if rule else f"policy {self.base.policy}",
                    rule.handle if rule else 0, verdict, "" if chain is self.base else self.base.name)

    def chain(self, chain: Chain, *, certain: bool, depth: int) -> str | None:
        """The word of a chain that ends the walk; None when it is silent. ``certain``: whether the packet is sure to come
        here; what may only match is noted in ``possible`` and passed by."""
        for rule in chain.rules:
            matched, verdict, target = self.rule(chain, rule, certain)
            if self.reckoned:
                self.note(chain, rule, LIMIT)
            if matched is False or not verdict:
                continue
            sure = matched is True
            if verdict in ("jump", "goto"):
                into = self.table.chains.get(target)
                end = self.chain(into, certain=certain and sure, depth=depth + 1) if into and depth < DEPTH else "unknown"
                if sure and (end or verdict == "goto"):
                    return end
                if not sure and (end or verdict == "goto"):
                    self.possible.append(end or "unknown")
            elif verdict == "return":
                if sure:
                    return None
                self.note(chain, rule, "unknown")
                self.possible.append("unknown")
            else:
                self.note(chain, rule, verdict if (certain and sure) or verdict == "unknown" else f"may {verdict}")
                if sure:
                    return verdict
                self.possible.append(verdict)
        return None

    def note(self, chain: Chain, rule: Rule, verdict: str) -> None:
        self.judgement.steps.append(self.step(chain, rule, verdict))

    # -- one rule ----------------------------------------------------------------------------------

    def rule(self, chain: Chain, rule: Rule, certain: bool) -> tuple[Matched, str, str]:
        """(whether it matches, its verdict, the chain that it jumps to)."""
        matched: Matched = True
        self.context.asked, self.reckoned = set(), False
        name: str
        body: Json
        for statement in rule.statements:
            name, body = next(iter(statement.items())) if isinstance(statement, Mapping) else (str(statement), None)
            if name in QUIET or (name == "xt" and body and body.get("name") in QUIET_XT):
                continue
            if name in ("accept", "drop", "return"):
                return matched, name, ""
            if name in ("jump", "goto"):
                return matched, name, body["target"]
            if name == "fwd":   # netdev: another device sends it on
                return matched, "drop", ""
            if name == "synproxy":    # the host answers for the receiver, and asks it once the beginner has answered
                return matched, "accept", ""
            if name == "reject" or (name == "xt" and body and body.get("name") == "REJECT"):
                return matched, "reject", ""
            if name == "match":
                held = self.match(body)
            elif name == "vmap":
                held, verdict, target = self.vmap(body)
                if verdict and verdict != "continue":
                    return (held if matched is True else UNKNOWN if held else False), verdict, target
            elif name in NAT:
                return self.nat(chain, rule, name, body, matched, certain)
            elif name in UNSURE:
                held = self.within(limited(statement))
                if name == "xt":
                    matched = UNKNOWN
            elif name == "set":
                held = self.counted(body)
            else:
                held = self.act(name, body, sure=certain and matched is True)
                if held is UNKNOWN and name not in ("mangle",):
                    return UNKNOWN, "unknown", ""
            if held is False:
                return False, "", ""
            if held is UNKNOWN:
                matched = UNKNOWN
        if any("xt" in s and not (s["xt"] and (s["xt"].get("type") == "match" or s["xt"].get("name") in QUIET_XT)) for s in rule.statements if isinstance(s, Mapping)):
            return UNKNOWN, "unknown", ""
        return matched, "", ""

    def within(self, asked: Limited | None) -> Matched:
        """What a limit says of a packet that is alone."""
        if asked is None or not self.context.alone:
            return UNKNOWN
        self.reckoned = True
        return asked is Limited.WITHIN

    def counted(self, body: Json) -> Matched:
        """A statement that writes into a set, with a limit for each element or without."""
        held = self.known(body["elem"])
        for statement in body.get("stmt", ()):
            if UNSURE & statement.keys() and held is not False:
                held = self.within(limited(statement))
        return held

    def known(self, expression: Json) -> Matched:
        """Whether the packet has what an element is made of."""
        found = value(expression, self.context, self.table)
        return found is not ABSENT

    def match(self, body: Json) -> Matched:
        left, right, op = body["left"], body["right"], body["op"]
        kind = kind_of(left)
        found = value(left, self.context, self.table)
        if found is ABSENT:
            return False
        if (isinstance(right, str) and right.startswith("@")) or (isinstance(right, Mapping) and "set" in right):
            there = holding(right, kind, self.table).find(found)
            if isinstance(there, Special) or (there is not None and there[0] is UNKNOWN):
                return UNKNOWN
            if there is not None and isinstance(there[0], Limited):
                held = self.within(there[0])
                return held if held is UNKNOWN else held is (op != "!=")
            return (there is not None) is (op != "!=")
        if isinstance(right, Mapping) and not ("range" in right or "prefix" in right):
            wanted: Any = value(right, self.context, self.table, kind)
            if wanted is ABSENT:
                return False
        else:
            wanted = pattern(right, kind)
        if unclear(found) or unclear(wanted):
            return UNKNOWN
        return compared(op, found, wanted, kind)

    def vmap(self, body: Json) -> tuple[Matched, str, str]:
        key = value(body["key"], self.context, self.table)
        if key is ABSENT:
            return False, "", ""
        found = holding(body["data"], kind_of(body["key"]), self.table).find(key)
        if found is None:
            return False, "", ""
        if isinstance(found, Special) or found[0] is UNKNOWN or isinstance(found[0], Limited):
            return UNKNOWN, "unknown", ""
        verdict, more = next(iter(found[0].items()))
        return True, verdict, more["target"] if isinstance(more, Mapping) else ""

    def nat(self, chain: Chain, rule: Rule, name: str, body: Json, matched: Matched, certain: bool) -> tuple[Matched, str, str]:
        """NAT decides once for each flow, and ends the chain."""
        if certain and matched is True:
            self.judgement.changed.append((name, body or {}, self.table))
            return matched, "accept", ""
        return UNKNOWN, "unknown", ""

    def act(self, name: str, body: Json, *, sure: bool) -> Matched:
        """A statement that changes the packet or what is known of it. UNKNOWN for one that may end it."""
        context = self.context
        if name == "mangle":
            return self.mangle(body["key"], body["value"], sure)
        if name == "notrack":
            if sure:
                context.tracked = Tracked(state=STATES["untracked"])
            return True
        return True if name in ("ct helper", "ct timeout", "ct expectation", "flow", "secmark", "dup") else UNKNOWN

    def mangle(self, key: Json, given: Json, sure: bool) -> Matched:
        kind = kind_of(key)
        found = value(given, self.context, self.table, kind)
        if found is ABSENT or ("payload" in key and value(key, self.context, self.table) is ABSENT):
            return False
        wanted = found if sure else UNKNOWN
        context = self.context
        match key:
            case {"meta": {"key": "mark"}}:
                context.mark = wanted
            case {"meta": {"key": "priority"}}:
                context.priority = wanted
            case {"meta": {"key": "pkttype"}}:
                context.pkttype = wanted
            case {"ct": {"key": "zone", **more}} if context.tracked is None and not more:
                context.zone = wanted
            case {"ct": {"key": "mark"}} if context.tracked:
                context.tracked.mark = wanted
            case {"payload": {"protocol": protocol, "field": name}} if isinstance(wanted, int) and name in FIELDS.get(protocol, {}):
                field_ = FIELDS[protocol][name]
                context.packet = context.packet.with_bits(field_.header, field_.offset, field_.length, wanted)
        return True


def compared(op: str, found: Value, wanted: Any, kind: Kind) -> bool:
    """Flags are compared bit by bit where nft says ``in``: one of them is enough."""
    if op == "in" and (kind in BITMASKS or (isinstance(found, int) and isinstance(wanted, int))):
        return bool(found & wanted)
    if op == "!":
        return isinstance(found, int) and not found & wanted
    if op in COMPARE:
        return COMPARE[op](found, wanted)
    return fits(wanted, found) is (op != "!=")


def judge(ruleset: Ruleset, chain: Chain, context: Context) -> Judgement:
    """What one chain at a hook says. *context* is changed as the rules change the packet."""
    context.family = chain.family
    return Walk(ruleset.tables[chain.family, chain.table], chain, context).run()
