"""Which of an uplink's two ways carries a load from the host itself: a guest's way to its uplink is the same for all."""
from __future__ import annotations

import json
from pathlib import Path

from kvmnet.bench.matrix import Seat
from kvmnet.bench.twoways import CARRIED, sent
from lib.netns import sh


def carrying(load: Path, seat: Seat) -> str:
    """The member by which requests left that were all answered; '' when some were not, or too few were sent on a machine that is busy."""
    before = sent(seat)
    answer = json.loads(sh(f"{load} steady ms=300 us=1000 to={seat.outside}"))
    moved = [b - a for a, b in zip(before, sent(seat), strict=True)]
    print(seat.configuration.name, answer, moved)
    return seat.members[moved.index(max(moved))] if answer["lost"] == 0 and max(moved) >= CARRIED else ""
