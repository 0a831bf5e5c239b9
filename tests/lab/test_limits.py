"""Limits of flows on Debian's kernel: bridge conntrack counts them, not the host's table."""
from __future__ import annotations

import pytest

from lib.netns import sh
from net import test_limits as limits
from net.test_limits import Ground, ground  # noqa: F401 - the fixture

pytestmark = pytest.mark.lab

test_flows_a_second = limits.test_flows_a_second_and_packets_of_known_flows
test_flows_at_once = limits.test_flows_at_once
test_who_is_over_its_limit_still_resolves_addresses = limits.test_who_is_over_its_limit_still_resolves_addresses_and_no_more_than_that
test_what_comes_to_a_guest = limits.test_what_comes_to_a_guest


def test_the_bridge_counts_flows(ground: Ground) -> None:  # noqa: F811
    assert "ct count over 25" in sh("nft list set bridge kvmnet l_concurrent")
    assert "ct count" not in sh("nft list table inet kvmnet")
    assert ground.made.drift() == []
