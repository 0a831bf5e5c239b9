"""Groups on Debian's kernel: bridge conntrack instead of bridge netfilter, the same frames."""
from __future__ import annotations

import pytest

from lib.netns import sh
from net import test_groups_frames as frames
from net.test_groups_frames import Wire, wire  # noqa: F401 - the fixture

pytestmark = pytest.mark.lab

test_what_a_rule_allows_passes = frames.test_what_a_rule_allows_passes_and_so_does_its_reply
test_nothing_else_does = frames.test_nothing_else_does_and_without_groups_all_of_it_does
test_a_refusal_is_answered = frames.test_a_refusal_is_answered_in_the_name_of_the_receiver
test_what_a_member_may_not_send_is_answered = frames.test_what_a_member_may_not_send_is_answered_as_if_by_the_receiver
test_a_member_that_leaves = frames.test_a_member_that_leaves_loses_its_flows_and_nobody_else_does


def test_the_bridges_own_conntrack_does_it(wire: Wire) -> None:  # noqa: F811
    assert "ct state established,related" in sh("nft list chain bridge kvmnet forward")
    assert "nf_call_iptables 0" in sh("ip -d link show kvb-lan")
