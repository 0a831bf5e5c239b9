"""Which priority a guest's packet leaves with, by the document."""
from __future__ import annotations

import pytest

from kvmnet.check.tags import priorities_of
from kvmnet.spec.guests import Nic
from kvmnet.spec.networks import Network
from kvmnet.spec.rates import Mark

SHOP = Network.model_validate({"mode": "bridge", "uplink": "wan", "vlan": 5, "classes": {
    "video": {"dscp": "af11", "pcp": 3}, "bulk": {"dscp": "cs1"}, "voice": {"dscp": [46, 44], "pcp": 5}}})


@pytest.mark.parametrize(("mark", "wanted"), [
    (Mark(), {0: 0, 10: 3, 44: 5}),
    (Mark(pcp=2), {0: 2, 10: 3, 44: 5}),
    (Mark(dscp=10), {0: 3, 10: 3, 44: 3}),
    (Mark(dscp=10, trust=True, pcp=2), {0: 3, 10: 3, 44: 5}),
    (Mark(dscp=8, pcp=2), {0: 0, 10: 0, 44: 0})])    # a class without a priority
def test_priorities(mark: Mark, wanted: dict[int, int]) -> None:
    assert priorities_of(Nic(network="shop", mark=mark), SHOP) == wanted
