"""A guard's text becomes another while the table stands: which commands, and when the table must be replaced."""
from __future__ import annotations

from kvmnet.drivers.nftables.inplace import blocks, edit
from kvmnet.policy.flows import Policy, Rule, Rules
from kvmnet.policy.groups import Ports, Tracking, bridge_text
from kvmnet.policy.guard import TABLE, guard_table

PORTS = Ports(frozenset({("kvb-lan", "02:00:00:00:00:01")}), {"kvb-lan": 7})


def text(*groups: str, port: str = "80", ports: Ports = PORTS, sets: tuple[str, ...] = ()) -> str:
    policy = Policy({name: Rules((Rule(tcp=(port,)),)) for name in groups})
    return guard_table(groups=bridge_text(policy, Tracking.NETFILTER, ports, sets)).text or ""


def test_every_declaration_of_the_guard_is_understood() -> None:
    found = blocks(text("web"))
    assert found is not None
    assert {("set", "flow4"), ("map", "zone"), ("chain", "guest"), ("chain", "in_web"), ("chain", "log_sent")} <= found.keys()
    assert "\n".join(found.values()) == "\n".join(line for line in text("web").splitlines() if line and not line.startswith("#"))


def test_nothing_is_done_when_nothing_differs() -> None:
    made = edit(TABLE, text("web"), text("web"))
    assert made is not None and made.first == made.last == ()


def test_only_the_chain_that_differs_is_written_again() -> None:
    made = edit(TABLE, text("web", "db"), text("web", "db", port="81"))
    assert made is not None and made.last == ()
    assert [line for line in made.first if line.startswith("flush")] == [
        f"flush chain {TABLE} {name}" for name in ("in_web", "in_db", "ask_web", "ask_db")]
    assert "dport { 81 }" in "\n".join(made.first) and "hook" not in "\n".join(made.first)


def test_what_comes_comes_before_elements_and_what_goes_goes_after_them() -> None:
    made = edit(TABLE, text("web"), text("db", sets=("office",)))
    assert made is not None
    assert "set g_db { typeof meta mark; }" in made.first and "set a4_office { type ipv4_addr; flags interval; }" in made.first
    assert made.last[:1] == (f"flush chain {TABLE} in_web",) and f"delete set {TABLE} h_web" in made.last
    assert made.last.index(f"delete chain {TABLE} in_web") < made.last.index(f"delete set {TABLE} g_web")


def test_elements_of_a_set_in_the_text_are_changed_one_by_one() -> None:
    two = Ports(frozenset({("kvb-lan", "02:00:00:00:00:01"), ("kvb-b", "02:00:00:00:00:02")}), PORTS.zones)
    made = edit(TABLE, text("web"), text("web", ports=two))
    assert made is not None
    assert made.first == (f"add element {TABLE} routers {{ 02:00:00:00:00:02 }}",)


def test_another_hook_or_set_or_a_foreign_text_is_a_reason_to_replace() -> None:
    ours = text("web")
    assert edit(TABLE, ours.replace("priority -340", "priority -339"), ours) is None
    assert edit(TABLE, ours.replace("set lone { typeof iifname; }", "set lone { typeof iifname; size 5; }"), ours) is None
    assert edit(TABLE, ours + "# sets changed\n", ours) is None
    assert edit(TABLE, "\tset s {\n\t\ttype mark\n\t}\n", ours) is None
