"""A guard's text becomes another while the table stands: which commands, and when the table must be replaced."""
from __future__ import annotations

from collections.abc import Mapping

from kvmnet.drivers.nftables.inplace import Edit, blocks, edit
from kvmnet.drivers.nftables.resources import AddressSet, NftTable
from kvmnet.drivers.nftables.standing import Standing, transaction
from kvmnet.engine.plan import plan
from kvmnet.engine.resource import Key
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
    assert made == Edit()


def test_only_the_chain_that_differs_is_written_again() -> None:
    made = edit(TABLE, text("web", "db"), text("web", "db", port="81"))
    assert made is not None and made.last == ()
    assert [line for line in made.first if line.startswith("flush")] == [
        f"flush chain {TABLE} {name}" for name in ("in_web", "in_db", "ask_web", "ask_db")]
    assert "dport { 81 }" in "\n".join(made.first) and "hook" not in "\n".join(made.first)


def test_sets_come_in_a_transaction_before_and_go_in_one_behind() -> None:
    made = edit(TABLE, text("web"), text("db", sets=("office",)))
    assert made is not None
    assert "set g_db { typeof meta mark; }" in made.before and "set a4_office { type ipv4_addr; flags interval; }" in made.before
    assert f"{TABLE} a4_office" in made.fresh and not any("set " in line for line in made.first)
    assert made.last[:1] == (f"flush chain {TABLE} in_web",) and f"delete chain {TABLE} in_web" in made.last
    assert f"delete set {TABLE} h_web" in made.behind and f"{TABLE} h_web" in made.gone


def test_new_sets_are_full_before_rules_ask_them_and_old_ones_until_no_rule_does() -> None:
    def standing(*names: str) -> Mapping[Key, NftTable | AddressSet]:
        table = NftTable(name=TABLE, text=text("web", sets=names))
        return {table.key: table, **{Key("address-set", n): AddressSet(name=n, table=TABLE, prefixes=("10.0.0.0/8",)) for n in names}}
    before, after = standing("old", "same"), standing("new", "same")
    _, stands = transaction(Standing(), plan({}, before, before.keys()))
    scripts, _ = transaction(stands, plan(before, after, before.keys()))
    filled = f"add element {TABLE} a4_new {{ 10.0.0.0/8 }}"
    assert filled in scripts.before and filled not in scripts.change
    assert [line for line in (*scripts.before, *scripts.change) if "old" in line and not line.startswith("#")] == []
    assert scripts.behind == [f"delete set {TABLE} a4_old", f"delete set {TABLE} a6_old"]
    assert scripts.unmake == [f"delete set {TABLE} a4_new", f"delete set {TABLE} a6_new"]


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
