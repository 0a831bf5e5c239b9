"""The report that all benchmarks share, and what a bond's report is made of."""
from __future__ import annotations

import json

import pytest

from kvmnet.bench.failover.balance import Share, spreads
from kvmnet.bench.failover.bonds import Bond, Member, member_of
from kvmnet.bench.failover.losses import Loss, commands
from kvmnet.bench.failover.paths import aimed
from kvmnet.bench.failover.scenario import refuse_the_last
from kvmnet.bench.machine import machine
from kvmnet.bench.matrix import configuration
from kvmnet.bench.model import Figures, Report, Row
from kvmnet.bench.virtio import unmet
from kvmnet.cli.bench import show
from kvmnet.errors import ConflictError


def test_figures_have_a_median_and_a_spread() -> None:
    five = Figures((130.0, 150.0, 110.0, 140.0, 120.0), "ms")
    assert (five.median, five.least, five.most, five.spread) == (130, 110, 150, 20)
    assert five.words() == "130 ms (110 to 150, middle half within 20)"
    assert Figures((7.0,), "ms").words() == "7 ms" and Figures((7.0,), "ms").spread == 0
    assert Figures((), "ms").words() == "not measured"
    assert Figures((), "ms").to_json() == {"values": [], "unit": "ms"}


def report(good: bool) -> Report:
    return Report("failover", "bond0, mode 802.3ad", {"bond": "bond0"}, machine(["lo"]),
                  [Row("e0", "gap", Figures((1.0, 2.0), "ms"), "why", good)], ["a note"], 1.234)


@pytest.mark.parametrize(("good", "code"), [(True, 0), (False, 1)])
def test_a_report_says_whether_all_was_as_expected(good: bool, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(report(good), False) == code
    said = capsys.readouterr().out
    assert "1.5 ms (1 to 2" in said and "note: a note" in said and "Linux" in said
    assert show(report(good), True) == code
    data = json.loads(capsys.readouterr().out)
    assert data["rows"][0]["median"] == 1.5 and data["exit_code"] == code and data["machine"]["kernel"].startswith("Linux")


def bond(mode: str, *members: Member, **options: object) -> Bond:
    return Bond("bond0", {"mode": mode, **options}, members)


def test_only_a_hash_that_looks_at_ports_can_spread_flows_to_one_address() -> None:
    assert spreads(bond("802.3ad", xmit_hash_policy="layer3+4")) == ""
    assert spreads(bond("balance-rr")) == ""
    assert "layer2+3" in spreads(bond("balance-xor", xmit_hash_policy="layer2+3"))
    assert "one member at a time" in spreads(bond("active-backup"))


def test_balance_is_the_least_share_of_an_even_one() -> None:
    assert Share(1000, {"a": 500, "b": 500}).balance == 100
    assert Share(1000, {"a": 450, "b": 550}).balance == 90
    assert Share(900, {"a": 900, "b": 0, "c": 0}).balance == 0
    assert Share(1000, {"a": 450, "b": 550}).percent("b") == 55


def test_a_ping_is_aimed_at_each_member() -> None:
    assert aimed({1: ("a", "b"), 2: ("b", "b"), 3: ("b", "a")}) == {"a": 1, "b": 2}     # out by a; both ways by b
    assert aimed({1: ("a", "b")}) == {"a": 1, "b": 1}                                  # back by b is better than nothing
    assert aimed({1: ("a", "")}) == {"a": 1}


def test_the_last_member_is_never_lost() -> None:
    up, down = Member("a", True, True, True), Member("b", False, False, False)
    with pytest.raises(ConflictError, match="a is the last member of bond0"):
        refuse_the_last(bond("active-backup", up, down), ["a"])
    refuse_the_last(bond("active-backup", up, down), ["b"])


def test_a_port_is_usable_when_both_ends_have_agreed() -> None:
    def port(state: int, mode: str) -> Member:
        return member_of({"ifname": "e0", "linkinfo": {"info_slave_data": {
            "state": "ACTIVE", "mii_status": "UP", "ad_actor_oper_port_state": state}}}, mode)
    assert port(63, "802.3ad").usable and not port(15, "802.3ad").usable and port(0, "active-backup").usable


def test_what_ends_a_loss_can_be_repeated() -> None:
    make, undo = commands(Loss.SILENT, "e0")
    assert "hook ingress device e0" in make[0].stdin and "hook egress device e0" in make[0].stdin
    assert undo[0].stdin == "add table netdev kvmnet_bench\ndelete table netdev kvmnet_bench\n"
    assert commands(Loss.LINK, "e0")[1][0].argv == ("ip", "link", "set", "dev", "e0", "up")


@pytest.mark.parametrize(("asked", "has", "said"), [
    ("packed=on", {"features": ["packed"]}, []),
    ("packed=on", {"features": ["csum"]}, ["packed=on, which was not negotiated"]),
    ("queues=4 cpus=4", {"features": [], "rx": 2}, ["queues=4, but the guest uses 2"]),
    ("mtu=9000", {"features": [], "mtu": 1500}, ["mtu=9000, but the guest has 1500"]),
    ("offloads=tso4+csum", {"features": ["host_tso6"]}, []),
    ("offloads=tso4+csum", {"features": ["host_tso4", "csum"]}, ["offloads without tso4, csum, which were negotiated all the same"]),
    ("packed=on queues=2", {"driver": "e1000"}, []),
    ("", {"features": []}, []),
])
def test_what_was_asked_for_and_not_negotiated_is_said(asked: str, has: dict[str, object], said: list[str]) -> None:
    assert unmet(configuration(asked).settings, {"driver": "virtio_net", **has}) == said
