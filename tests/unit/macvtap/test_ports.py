"""A guest's macvtap as steps: in which order, in which words, and read back."""
from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmnet.drivers.linux.resources import Link
from kvmnet.drivers.linux.wire import parse_links
from kvmnet.drivers.linux.words import lines_of
from kvmnet.drivers.macvtap.driver import lines_of as port_lines
from kvmnet.drivers.macvtap.driver import program_of
from kvmnet.drivers.nftables.wire import chain_name, hook_lines, take_hooks
from kvmnet.drivers.qemu.resources import GuestNic
from kvmnet.engine.plan import Create, Delete, Update, plan
from kvmnet.guests.external import macvtap_arguments, shell_line
from kvmnet.policy.egress import PROGRAM, TABLE, egress_table, guest_port, parent_hook
from kvmnet.policy.guard import TEXT, nic_guard

LINK = Link(name="kvt-a-0", type="macvtap", parent="eth0", macvlan_mode="bridge", passthru=False, mtu=1500, master="",
            mac="52:54:00:00:00:09", alias="kvmnet nic a/nic0", addrgenmode="none", allmulticast=True, arp=False)
GATE, HOOK, OPEN = guest_port("kvt-a-0")
GUARD = nic_guard("kvt-a-0", "full", ["52:54:00:00:00:09"], ["192.0.2.7"], table=TABLE)
PORT = {r.key: r for r in (LINK, GATE, HOOK, OPEN, GUARD, egress_table())}


def test_it_goes_up_when_all_else_stands_and_down_before_all_else() -> None:
    made = [s.key.kind for s in plan({}, PORT, set())]
    assert made[-1] == "open-port" and made.index("link") < made.index("gate") < made.index("open-port")
    assert made.index("nic-guard") < made.index("guard-hook") and made.index("link") < made.index("guard-hook")
    gone = [s.key.kind for s in plan(PORT, {}, set(PORT))]
    assert gone[0] == "open-port" and gone.index("guard-hook") < gone.index("link")


def test_another_kind_is_told_live_and_passthru_is_made_anew() -> None:
    live = plan(PORT, {**PORT, LINK.key: replace(LINK, macvlan_mode="private")}, set(PORT))
    assert [str(x) for s in live for x in lines_of(s)] == ["link set dev kvt-a-0 type macvtap mode private"]
    anew = plan(PORT, {**PORT, LINK.key: replace(LINK, macvlan_mode="passthru", passthru=True)}, set(PORT))
    assert [type(s) for s in anew if s.key == LINK.key] == [Delete, Create] and anew[-1].key == OPEN.key


def test_in_the_words_of_ip_and_tc() -> None:
    assert [str(x) for x in lines_of(Create(LINK))] == [
        "link add link eth0 name kvt-a-0 address 52:54:00:00:00:09 type macvtap mode bridge",
        'link set dev kvt-a-0 mtu 1500 addrgenmode none nomaster allmulticast on arp off alias "kvmnet nic a/nic0"']
    assert [str(x) for x in lines_of(Create(replace(LINK, macvlan_mode="passthru", passthru=True)))][1].startswith(
        "link set dev kvt-a-0 address 52:54:00:00:00:09 "), "the kernel gives it its parent's MAC"
    assert [str(x) for x in port_lines(Create(GATE))] == [
        "qdisc replace dev kvt-a-0 clsact",
        f'filter replace dev kvt-a-0 egress protocol all prio 1 handle 1 bpf da bytecode "5,{PROGRAM}"']
    assert [str(x) for x in port_lines(Create(OPEN))] == ["link set dev kvt-a-0 up"]
    assert [str(x) for x in port_lines(Delete(OPEN))] == ["link set dev kvt-a-0 down"]
    assert [str(x) for x in port_lines(Update(GATE, GATE))][1].startswith("filter replace ")


def test_it_is_read_back() -> None:
    item = {"ifname": "kvt-a-0", "link": "eth0", "flags": ["BROADCAST", "NOARP", "ALLMULTI", "UP"], "mtu": 1500,
            "link_type": "ether", "address": "52:54:00:00:00:09", "inet6_addr_gen_mode": "none", "txqlen": 500,
            "ifalias": "kvmnet nic a/nic0", "linkinfo": {"info_kind": "macvtap", "info_data": {"mode": "bridge"}}}
    found = next(parse_links([item], int))
    assert replace(found, txqlen=None, guard=None, keeper=None, bonded=None, vrf=None) == LINK, "whether it is up is told apart"
    theirs = next(parse_links([{**item, "ifalias": "libvirt's"}], int))
    assert theirs.up is True


@pytest.mark.parametrize(("shown", "program"), [
    ({"kind": "bpf", "options": {"direct-action": True, "bytecode": {"insns": [{"code": 6, "jt": 0, "jf": 0, "k": 2}]}}}, "6 0 0 2"),
    ({"kind": "bpf", "options": {"bytecode": {"insns": [{"code": 6, "jt": 0, "jf": 0, "k": 2}]}}}, ""),
    ({"kind": "u32", "options": {}}, "")])
def test_only_a_program_that_decides_is_a_gate(shown: dict[str, object], program: str) -> None:
    assert program_of(shown) == program


@given(st.text(st.characters(blacklist_characters="/ \x00\n\t\"", blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]),
               min_size=1, max_size=15).filter(lambda name: len(name.encode()) <= 15 and name.isascii()))
def test_a_hook_is_found_again_by_the_name_of_its_chain(name: str) -> None:
    hook = replace(HOOK, name=name, dev=name, guard=name)
    assert set(chain_name(hook)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert f'device "{name}"' in hook_lines(hook)[0]
    listed = (f"\tset mac {{\n\t\ttypeof oifname\n\t}}\n\n\tchain {chain_name(hook)} {{\n\t\ttype filter hook egress device "
              f'"{name}" priority -350; policy drop;\n\t\tgoto guest\n\t}}\n')
    assert take_hooks(TABLE, listed) == ("\tset mac {\n\t\ttypeof oifname\n\t}\n", [hook])


@pytest.mark.parametrize("body", [
    "\t\ttype filter hook egress priority -350; policy drop;\n\t\tgoto guest\n",
    '\t\ttype filter hook egress device "other" priority -350; policy drop;\n\t\tgoto guest\n',
    '\t\ttype filter hook egress device "kvt-a-0" priority -350; policy accept;\n\t\tgoto guest\n'])
def test_a_hook_that_hangs_elsewhere_hangs_on_nothing(body: str) -> None:
    _, (found,) = take_hooks(TABLE, f"\tchain egress_kvt-a-0 {{\n{body}\t}}\n")
    assert found == replace(HOOK, dev="")


def test_a_hook_that_judges_nothing_is_another() -> None:
    head = '\t\ttype filter hook egress device "kvt-a-0" priority -350; policy drop;\n'
    for rules in ("", "\t\taccept\n", "\t\tgoto guest\n\t\taccept\n"):
        _, (found,) = take_hooks(TABLE, f"\tchain egress_kvt-a-0 {{\n{head}{rules}\t}}\n")
        assert found.to == ""


def test_the_judgement_is_word_for_word_that_of_bridges() -> None:
    text = egress_table([7]).text or ""
    judged = text.partition("chain outside_")[0]
    assert "iifname" not in judged
    rules = {line for line in TEXT.splitlines() if "hook " not in line and '"kvt-*"' not in line}
    assert set(judged.replace("oifname", "iifname").splitlines()) <= rules
    assert parent_hook("eth0", 7).to == "outside_00000007" and "chain outside_00000007 {" in text


def test_a_program_that_is_no_kvmnet_gets_descriptors() -> None:
    nic = GuestNic(name="db/nic0", vm="db", tap="kvt-db-0", model="e1000e", mac="52:54:00:00:00:01", link=True, host_mtu=0,
                   queues=1, rx_ring=0, tx_ring=0, packed=False, offloads=(), vhost=False, bootindex=-1, pci="")
    line = shell_line(macvtap_arguments(nic, "/run/kvmnet/taps/kvt-db-0", 3))
    assert line == ("-netdev tap,id=kvmnet-nic0.tap,fd=3,vhost=off -device e1000e,id=kvmnet-nic0,netdev=kvmnet-nic0.tap,"
                    "mac=52:54:00:00:00:01,romfile= 3<>/run/kvmnet/taps/kvt-db-0")
    line = shell_line(macvtap_arguments(replace(nic, model="virtio", queues=2), "/x y", 5))
    assert "fds=5:6" in line and line.endswith("5<>'/x y' 6<>'/x y'")


