"""The model of nftables, where the kernel cannot be asked: words that are not known, and what is said of them."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.doctor.hooks import Rules, at_hook, verdict
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.packet import BROADCAST, NO_MAC, UDP, Context, made
from kvmnet.doctor.ruleset import devices_of, parse

DROP, ACCEPT = {"drop": None}, {"accept": None}
LIMIT = {"limit": {"rate": 5, "burst": 5, "per": "second"}}
XT: dict[str, Any] = {"xt": None}


def match(left: Any, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def port(number: int | str) -> dict[str, Any]:
    return match({"payload": {"protocol": "udp", "field": "dport"}}, number)


def chain(*rules: list[Any], policy: str = "accept", more: dict[str, list[list[Any]]] | None = None, **base: Any) -> list[Any]:
    """A table with one base chain at input, and others to jump to."""
    here = {"family": "inet", "table": "t"}
    found: list[Any] = [{"table": {"family": "inet", "name": "t"}},
                        {"chain": {**here, "name": "c", "type": "filter", "hook": "input", "prio": 0, "policy": policy, **base}}]
    for name, inside in ({"c": list(rules)} | (more or {})).items():
        if name != "c":
            found.append({"chain": {**here, "name": name}})
        found += [{"rule": {**here, "chain": name, "handle": i + 1, "expr": r}} for i, r in enumerate(inside)]
    return found


def asked(items: list[Any], **context: Any) -> Verdict:
    packet = made((BROADCAST, NO_MAC), "10.0.0.1", "10.0.0.2", UDP, (1000, 53))
    return verdict(at_hook(Rules(parse(items)), Context(packet, iif="br0", **context), "ip", "input"))


JUMP, GOTO = {"jump": {"target": "d"}}, {"goto": {"target": "d"}}


@pytest.mark.parametrize(("items", "said"), [
    (chain([LIMIT, ACCEPT], policy="drop"), Verdict.UNKNOWN),
    (chain([LIMIT, ACCEPT], [ACCEPT], policy="drop"), Verdict.ACCEPT),
    (chain([LIMIT, DROP], policy="drop"), Verdict.DROP),
    (chain([port(54), LIMIT, DROP]), Verdict.ACCEPT),
    (chain([port(53), XT, ACCEPT], policy="drop"), Verdict.UNKNOWN),
    (chain([port(53), XT]), Verdict.UNKNOWN),
    (chain([port(54), XT]), Verdict.ACCEPT),
    (chain([match({"osf": {"key": "name"}}, "Linux"), DROP]), Verdict.UNKNOWN),
    (chain([{"queue": {"num": 1}}]), Verdict.UNKNOWN),
    (chain([port(53), {"synproxy": {"mss": 1460, "wscale": 7}}], [DROP]), Verdict.ACCEPT),
    (chain([LIMIT, JUMP], more={"d": [[port(54), DROP]]}), Verdict.ACCEPT),
    (chain([LIMIT, JUMP], more={"d": [[port(53), DROP]]}), Verdict.UNKNOWN),
    (chain([LIMIT, JUMP], [DROP], more={"d": [[port(53), DROP]]}), Verdict.DROP),
    (chain([LIMIT, GOTO], [DROP], more={"d": [[port(54), DROP]]}), Verdict.UNKNOWN),
    (chain([GOTO], [DROP], more={"d": [[port(54), DROP]]}), Verdict.ACCEPT),
    (chain([JUMP], [DROP], more={"d": [[{"return": None}], [ACCEPT]]}), Verdict.DROP),
    (chain([JUMP], [DROP], more={"d": [[LIMIT, {"return": None}], [ACCEPT]]}), Verdict.UNKNOWN),
    (chain([LIMIT, {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}], [match({"meta": {"key": "mark"}}, 1), DROP]), Verdict.UNKNOWN),
    (chain([match({"payload": {"protocol": "ip", "field": "saddr"}}, "@gone"), DROP]), Verdict.UNKNOWN),
])
def test_what_is_not_known_is_no_verdict(items: list[Any], said: Verdict) -> None:
    assert asked(items) is said


OVER = {"limit": {"rate": 5, "burst": 5, "per": "second", "inv": True}}
CROWDED = {"ct count": {"val": 5, "inv": True}}


def elements(*bodies: dict[str, Any]) -> dict[str, Any]:
    return {"set": {"family": "inet", "table": "t", "name": "s", "type": "inet_service", "elem": [{"elem": {"val": 53, **b}} for b in bodies]}}


@pytest.mark.parametrize(("items", "said"), [
    (chain([LIMIT, ACCEPT], policy="drop"), Verdict.ACCEPT),
    (chain([OVER, DROP]), Verdict.ACCEPT),
    (chain([CROWDED, DROP]), Verdict.ACCEPT),
    (chain([{"quota": {"val": 5, "val_unit": "bytes", "inv": True}}, DROP]), Verdict.UNKNOWN),
    ([*chain([port("@s"), DROP]), elements(OVER)], Verdict.ACCEPT),
    ([*chain([port("@s"), DROP]), elements(LIMIT)], Verdict.DROP),
    ([*chain([port("@s"), DROP]), elements({"quota": {"val": 5}})], Verdict.UNKNOWN),
])
def test_a_packet_that_is_alone_is_within_every_limit(items: list[Any], said: Verdict) -> None:
    assert asked(items, alone=True) is said
    if said is not Verdict.UNKNOWN:
        assert asked(items) is Verdict.UNKNOWN


def test_an_accept_is_not_final() -> None:
    other = [{k: {**v, "table": "u", "name": "u" if k == "table" else v.get("name", "")} for k, v in item.items()} for item in chain([DROP])]
    assert asked(chain([ACCEPT]) + other) is Verdict.DROP


def test_a_dormant_table_says_nothing() -> None:
    items = chain([DROP])
    items[0]["table"]["flags"] = ["dormant"]
    assert asked(items) is Verdict.ACCEPT


def test_devices_come_from_the_listing() -> None:
    text = ('table netdev x { # handle 1\n\tchain c { # handle 1\n\t\ttype filter hook ingress device "t1" priority filter; policy accept;\n\t}\n'
            '\tchain d {\n\t\ttype filter hook egress devices = { lo, t1 } priority 0; policy accept;\n\t}\n}')
    assert devices_of(text) == {("netdev", "x", "c"): ("t1",), ("netdev", "x", "d"): ("lo", "t1")}
