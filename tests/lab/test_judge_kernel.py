"""Random rules and random packets on Debian's kernel, where bridges track flows: made and judged out here, sent in there."""
from __future__ import annotations

import random

import pytest

from lib.lab import Lab
from lib.netns import new_netns
from lib.nft import Nft
from lib.rules import PLACES, SEED, TRACKED, allowed, deal, differences, fire, phrases

pytestmark = pytest.mark.lab

RULESETS, PACKETS = 90, 24
BRIDGED = [p for p in phrases(TRACKED) if "original ip" not in p]
"""What rules of a bridge can ask connection tracking there."""


def test_the_model_is_the_kernel(lab: Lab) -> None:
    dice = random.Random(SEED)
    with new_netns(call_iptables=1):
        nft = Nft()
        words = {place: allowed(nft, *place) for place in PLACES}
        nft.close()
    for place, (matches, _) in words.items():
        if place[0] == "bridge":
            matches += BRIDGED * 3
    rounds = [deal(dice, words, 1 + number * PACKETS, PACKETS) for number in range(RULESETS)]
    found = lab.call(fire, rounds, timeout=300)
    loaded = [one.text for one, heard in zip(rounds, found, strict=True) if heard]
    assert len(loaded) > RULESETS * 0.5 and sum("table bridge" in text and " ct " in text for text in loaded) > 10
    assert differences(rounds, found, least=RULESETS * PACKETS // 2) == []
