"""mode isolated: guests reach each other and the host's services, and nothing else. Pure."""
from __future__ import annotations

from kvmnet.facts.model import Facts
from kvmnet.modes.hosted import hosted
from kvmnet.modes.segment import Part, Segment


def wire(segment: Segment, facts: Facts) -> Part:
    return hosted(segment)
