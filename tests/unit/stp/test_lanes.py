"""Which tree a frame goes by, in the gate and in the kernel's states of VLANs."""
from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmnet.drivers.stp.gate import Lanes, lanes_of, opening, spans, table_text, through
from kvmnet.drivers.stp.netlink import BLOCKING, FORWARDING, LEARNING, LISTENING, Span
from kvmnet.drivers.stp.states import port_state, vlan_changes
from kvmnet.spanning import TreePortStatus, TreeStatus, apart
from kvmnet.stp.vectors import CIST, State

SHUT, LEARN, OPEN = State.DISCARDING, State.LEARNING, State.FORWARDING
TREES = st.fixed_dictionaries({n: st.sampled_from([SHUT, LEARN, OPEN]) for n in (CIST, 1, 2)})
VIDS = st.sets(st.integers(1, 40))


def states(seen: list[Span]) -> dict[int, int]:
    return {vid: span.state for span in seen for vid in range(span.first, span.last + 1)}


def test_a_bridge_with_one_tree_has_the_gate_that_it_had() -> None:
    text = table_text("kvb-lan", ("n1", "n2"), Lanes())
    assert "vlan" not in text and "iifname @ports iifname != @open drop" in text and "open1" not in text


def test_the_tag_says_which_set_counts_and_no_tag_is_the_switchs_native_vlan() -> None:
    lanes = lanes_of(("1 1 100-199", "2 200"), untagged=1)
    text = table_text("kvb-~wan", ("n1",), lanes)
    assert "vlan id vmap { 2-99 : goto inward0, 201-4094 : goto inward0, 200 : goto inward2 }\n        iifname != @open1 drop" in text
    assert lanes.trees == (CIST, 1, 2) and lanes.untagged == 1
    assert lanes_of(("1 100-199",), untagged=1).untagged == CIST
    assert "goto" not in table_text("b", (), lanes_of(("1 1-4094",), untagged=1)), "every frame goes by one tree"
    assert opening("b", 2, {"p": 0.0}, ["q"]).splitlines()[-1] == 'add element bridge kvmnet-tree-b open2 { "p" }'


def test_a_port_is_open_in_the_kernel_as_soon_as_one_of_its_trees_is() -> None:
    assert [port_state({CIST: s}) for s in (SHUT, LEARN, OPEN)] == [LISTENING, LEARNING, FORWARDING]
    assert port_state({CIST: SHUT, 1: SHUT}) == LISTENING
    assert port_state({CIST: SHUT, 1: LEARN}) == port_state({CIST: OPEN, 1: SHUT}) == FORWARDING


@given(VIDS, VIDS, VIDS, TREES, st.lists(st.sampled_from([BLOCKING, LEARNING, FORWARDING]), min_size=40, max_size=40))
@settings(max_examples=60, deadline=None)
def test_each_vlan_comes_to_the_state_of_its_tree_and_no_other_is_told(
        present: set[int], one: set[int], two: set[int], trees: dict[int, State], before: list[int]) -> None:
    lanes = Lanes(dict.fromkeys(one, 1) | dict.fromkeys(two, 2), untagged=2, instances=(1, 2))
    native = min(present, default=0)
    seen = [Span(vid, vid, vid == native, before[vid - 1]) for vid in sorted(present)]
    told = list(vlan_changes(seen, lanes, trees))
    after = states(seen) | states(told)
    kernel = {SHUT: BLOCKING, LEARN: LEARNING, OPEN: FORWARDING}
    assert after == {vid: kernel[trees[2 if vid == native else lanes.tree(vid)]] for vid in present}
    assert all(after[vid] != states(seen)[vid] for vid in states(told))
    assert set(states(list(vlan_changes(seen, Lanes(), {CIST: SHUT}))).values()) <= {FORWARDING}, "one tree: the port alone is shut"


def test_what_the_kernels_stp_may_find_open_closes_no_loop() -> None:
    assert through({"open": {"n1", "n2"}}) == {"n1", "n2"}, "as one tree had it"
    assert through({"open": {"n1", "n2"}, "open1": {"n2"}}) == {"n2"}
    assert through({"open": {"n1"}, "open1": {"n2"}}) == {"n1"}, "each link has a tree that is shut there"
    assert through({"open": set(), "open1": {"n2"}}) == through({}) == set()


def test_a_host_whose_region_no_neighbour_shares_is_told_so() -> None:
    def tree(instance: int, *inside: bool, edge: bool = False) -> TreeStatus:
        ports = {f"n{i}": TreePortStatus("root", "forwarding", 5, edge, "mstp", there) for i, there in enumerate(inside)}
        return TreeStatus("br0", instance, "x", "y", 5, "n0", ports)
    assert apart([tree(0, False, False), tree(1, False, False)]) == ["br0"]
    assert apart([tree(0, False, True), tree(1, False, True)]) == [] == apart([tree(0, False)]), "one is; and one tree has no region"
    assert apart([tree(0, False, edge=True), tree(1, False, edge=True)]) == [], "nobody was heard"


def test_long_ranges_are_told_as_ranges() -> None:
    lanes = lanes_of(("1 100-199",), 1)
    seen = [Span(1, 1, True, FORWARDING), Span(50, 300, False, FORWARDING)]
    assert list(vlan_changes(seen, lanes, {CIST: OPEN, 1: SHUT})) == [Span(100, 199, False, BLOCKING)]
    assert list(vlan_changes(seen, lanes, {CIST: SHUT, 1: OPEN})) == [
        Span(1, 1, True, BLOCKING), Span(50, 99, False, BLOCKING), Span(200, 300, False, BLOCKING)]
    assert list(spans([1, 2, 4])) == [(1, 2), (4, 4)]
