"""Rules of iptables as iptables-save prints them, judged like those of nft."""
from __future__ import annotations

from typing import Any

import pytest

from kvmnet.doctor.hooks import Rules, at_hook, verdict
from kvmnet.doctor.judge import Verdict
from kvmnet.doctor.packet import BROADCAST, ICMP, NO_MAC, STATES, TCP, UDP, Context, Tracked, made
from kvmnet.doctor.ruleset import Ruleset, parse
from kvmnet.doctor.xtables import with_xtables

DOCKER = """*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [12:720]
:OUTPUT ACCEPT [0:0]
:DOCKER-USER - [0:0]
[5:300] -A FORWARD -j DOCKER-USER
[0:0] -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
[0:0] -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
[5:300] -A DOCKER-USER -j RETURN
COMMIT
"""


def rule(words: str, policy: str = "DROP") -> str:
    return f"*filter\n:FORWARD {policy} [0:0]\n:MINE - [0:0]\n-A FORWARD {words}\n-A MINE -p tcp -j ACCEPT\nCOMMIT\n"


def asked(text: str, name: str = "ip", known: Ruleset | None = None, **more: Any) -> Verdict:
    packet = made((BROADCAST, NO_MAC), "10.0.0.1", "192.0.2.7", more.pop("protocol", TCP), (1000, 443))
    context = Context(packet, iif=more.pop("iif", "br0"), oif=more.pop("oif", "eth0"), mark=more.pop("mark", 0),
                      tracked=Tracked(state=STATES[more.pop("state", "new")]))
    assert not more
    return verdict(at_hook(Rules(with_xtables(known or Ruleset(), {name: text})), context, "ip", "forward"))


def test_docker_drops_what_is_not_its_own() -> None:
    assert asked(DOCKER) is Verdict.DROP
    assert asked(DOCKER, iif="docker0") is Verdict.ACCEPT
    assert asked(DOCKER, oif="docker0", state="established") is Verdict.ACCEPT and asked(DOCKER, oif="docker0") is Verdict.DROP


@pytest.mark.parametrize(("words", "said"), [
    ("-i br+ -j ACCEPT", Verdict.ACCEPT), ("! -i br0 -j ACCEPT", Verdict.DROP), ("-s 10.0.0.0/255.255.255.0 -j ACCEPT", Verdict.ACCEPT), ("! -d 192.0.2.7/32 -j ACCEPT", Verdict.DROP),
    ("-p tcp -m tcp --dport 440:450 -j ACCEPT", Verdict.ACCEPT), ("-p udp -m udp --dport 443 -j ACCEPT", Verdict.DROP), ("-p tcp -m multiport --dports 22,443 -j ACCEPT", Verdict.ACCEPT),
    ('-m comment --comment "a -j DROP b" -j ACCEPT', Verdict.ACCEPT), ("-p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT", Verdict.ACCEPT), ("-j MINE", Verdict.ACCEPT), ("-g MINE", Verdict.ACCEPT),
    ("-m state --state NEW -j REJECT --reject-with icmp-port-unreachable", Verdict.DROP), ("-m mark --mark 0x1/0xff -j ACCEPT", Verdict.DROP), ("-m limit --limit 5/sec -j ACCEPT", Verdict.UNKNOWN),
    ("-m physdev --physdev-is-bridged -j ACCEPT", Verdict.UNKNOWN), ("-m set --match-set x src -j ACCEPT", Verdict.UNKNOWN), ("-p tcp -j LOG --log-prefix x", Verdict.DROP),
    ("-j NFQUEUE --queue-num 1", Verdict.UNKNOWN), ("-m set ! --match-set x src -j DROP", Verdict.DROP)])
def test_words(words: str, said: Verdict) -> None:
    assert asked(rule(words)) is said


def test_a_mark_is_seen_by_later_tables() -> None:
    text = "*mangle\n:FORWARD ACCEPT [0:0]\n-A FORWARD -i br0 -j MARK --set-xmark 0x1/0xff\nCOMMIT\n" + rule("-m mark --mark 0x101 -j ACCEPT")
    assert asked(text, mark=0x1F0) is Verdict.ACCEPT and asked(text, mark=0x2F0) is Verdict.DROP


def test_tables_that_cannot_be_printed_are_not_taken_for_empty() -> None:
    assert asked("# unknown: iptables-legacy-save is not installed; tables in use: filter\n") is Verdict.UNKNOWN


def test_what_nft_shows_by_halves_is_read_from_the_other_listing() -> None:
    def items(expression: list[Any]) -> list[Any]:
        return [{"table": {"family": "ip", "name": "filter"}},
                {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
                {"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 3, "expr": expression}}]

    halves = items([{"xt": {"type": "match", "name": "multiport"}}, {"accept": None}])
    assert asked("", known=parse(halves)) is Verdict.UNKNOWN
    assert asked(rule("-p tcp -m multiport --dports 443 -j ACCEPT"), "nft-ip", parse(halves)) is Verdict.ACCEPT
    assert asked("", known=parse(items([{"xt": {"type": "match", "name": "comment"}}, {"accept": None}]))) is Verdict.ACCEPT
    assert asked("", known=parse(items([{"xt": {"type": "target", "name": "LOG"}}]))) is Verdict.DROP
    assert asked("", protocol=ICMP, known=parse(items([{"xt": {"type": "target", "name": "REJECT"}}]))) is Verdict.DROP


def test_a_tunnel_of_another_protocol_has_no_port() -> None:
    assert asked(rule("-p udp -m udp --dport 443 -j ACCEPT"), protocol=UDP) is Verdict.ACCEPT
