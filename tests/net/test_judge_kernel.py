"""Random rules and random packets: what the model says is what the kernel does.

Every frame goes through the hooks of netdev, bridge and, by br_netfilter, of IP. Whether it passed is seen at the far port.
"""
from __future__ import annotations

import random

import pytest

from lib.netns import new_netns
from lib.nft import Nft
from lib.rules import PLACES, SEED, allowed, deal, differences, fire

pytestmark = pytest.mark.net

RULESETS, PACKETS = 200, 30


def test_the_model_is_the_kernel() -> None:
    dice = random.Random(SEED)
    with new_netns(call_iptables=1):
        nft = Nft()
        words = {place: allowed(nft, *place) for place in PLACES}
        nft.close()
    assert all(len(can[0]) > 40 for can in words.values())
    rounds = [deal(dice, words, 1 + number * PACKETS, PACKETS) for number in range(RULESETS)]
    found = fire(rounds)
    assert sum(heard is not None for heard in found) > RULESETS * 0.6   # conditions that exclude each other are refused
    assert differences(rounds, found, least=RULESETS * PACKETS // 2) == []
